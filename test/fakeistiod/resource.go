// SPDX-License-Identifier: Apache-2.0

package fakeistiod

import (
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/ztunnel-go/ztunnel/xds/pb/discoverypb"
	"github.com/ztunnel-go/ztunnel/xds/pb/securitypb"
	"github.com/ztunnel-go/ztunnel/xds/pb/workloadpb"
)

// The types of resources.
const (
	AddressType       = "type.googleapis.com/istio.workload.Address"
	AuthorizationType = "type.googleapis.com/istio.security.Authorization"
)

// A Resource is something to be pushed.
type Resource struct {
	Type, Name, Version string
	Aliases             []string
	Payload             []byte // as it goes on the wire, good or not
	Bare                bool   // no payload at all
}

// Workload makes a resource of a workload, named by its uid.
func Workload(w *workloadpb.Workload) Resource {
	return Resource{Type: AddressType, Name: w.GetUid(), Payload: encode(
		&workloadpb.Address{Type: &workloadpb.Address_Workload{Workload: w}})}
}

// Service makes a resource of a service, named namespace/hostname.
func Service(s *workloadpb.Service) Resource {
	return Resource{Type: AddressType, Name: s.GetNamespace() + "/" + s.GetHostname(), Payload: encode(
		&workloadpb.Address{Type: &workloadpb.Address_Service{Service: s}})}
}

// Policy makes a resource of a policy, named namespace/name.
func Policy(p *securitypb.Authorization) Resource {
	return Resource{Type: AuthorizationType, Name: p.GetNamespace() + "/" + p.GetName(), Payload: encode(p)}
}

// encode cannot fail but for strings that are no UTF-8, which is the caller's
// mistake.
func encode(m proto.Message) []byte {
	b, err := proto.Marshal(m)
	if err != nil {
		panic("fake istiod: " + err.Error())
	}
	return b
}

// Response makes a response.
func Response(typeURL, nonce string, resources []Resource, removed ...string) *discoverypb.DeltaDiscoveryResponse {
	r := &discoverypb.DeltaDiscoveryResponse{TypeUrl: typeURL, Nonce: nonce, RemovedResources: removed}
	for _, res := range resources {
		d := &discoverypb.Resource{Name: res.Name, Version: res.Version, Aliases: res.Aliases}
		if !res.Bare {
			d.Resource = &anypb.Any{TypeUrl: res.Type, Value: res.Payload}
		}
		r.Resources = append(r.Resources, d)
	}
	return r
}
