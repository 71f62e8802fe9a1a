// SPDX-License-Identifier: Apache-2.0

// Package pb holds, in packages of their own, what protoc makes of xds/proto:
// workloadpb, securitypb and discoverypb. Only xds, xds/delta and stand-ins
// for the control plane use them: wire types are translated at the edge.
//
// The messages bear Istio's and Envoy's full names. A program may hold one
// definition of a name, so nothing that links these packages may link Istio's
// API or go-control-plane; test/istiod is a module of its own for that reason.
package pb

// The plugin is the one that go.mod names as a tool.
//go:generate sh -c "protoc --plugin=$DOLLAR(go tool -n protoc-gen-go) -I../proto --go_out=. --go_opt=module=github.com/ztunnel-go/ztunnel/xds/pb workload.proto authorization.proto discovery.proto"
