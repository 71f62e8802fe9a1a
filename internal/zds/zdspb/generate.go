// SPDX-License-Identifier: Apache-2.0

// Package zdspb is what protoc makes of zds.proto. Only package zds and
// stand-ins for the agent use it.
package zdspb

// The plugin is the one that go.mod names as a tool.
//go:generate sh -c "protoc --plugin=$DOLLAR(go tool -n protoc-gen-go) --go_out=. --go_opt=paths=source_relative zds.proto"
