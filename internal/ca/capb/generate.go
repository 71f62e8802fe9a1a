// SPDX-License-Identifier: Apache-2.0

// Package capb is what protoc makes of ca.proto. Only package ca and
// stand-ins for the authority use it.
package capb

// The plugin is the one that go.mod names as a tool.
//go:generate sh -c "protoc --plugin=$DOLLAR(go tool -n protoc-gen-go) --go_out=. --go_opt=paths=source_relative ca.proto"
