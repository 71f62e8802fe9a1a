// SPDX-License-Identifier: Apache-2.0

// Package handoverpb is what protoc makes of handover.proto. Only package
// handover uses it.
package handoverpb

// The plugin is the one that go.mod names as a tool.
//go:generate sh -c "protoc --plugin=$DOLLAR(go tool -n protoc-gen-go) --go_out=. --go_opt=paths=source_relative handover.proto"
