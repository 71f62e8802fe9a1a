// SPDX-License-Identifier: Apache-2.0

// Package handover passes live tunnels to the process that follows this one,
// so that an upgrade breaks no connection: what is said between the two
// ([Old], [New]), and a tunnel with its connections as bytes ([Encode],
// [Decode]). docs/wire/handover.md has the format and the order.
//
//	tunnel.go  what travels             link.go   packets, descriptors, memory files
//	encode.go  decode.go  its bytes     peer.go   whom we speak with, and whether it lives
//	old.go     who gives                new.go    who takes
//
// One rule stands above all: two processes must never seal with one key and one
// sequence number, since that breaks AES-GCM. So each step has one owner:
//
//	old: stops, sends Lot ------------> new: reads, checks; may do nothing yet
//	old: (may still go on itself) <---- Restored
//	old: Commit; does nothing more ---> new: says Begun, and only then begins
//	old: hears Begun: forgets <--------
//
// The old one goes on itself before Commit once the other has been told so, or
// is dead; after Commit only if the other has said that it will never begin, or
// is dead and has left no Begun behind. If it can be asked no more, it is killed
// first. The new one goes on without Commit only if the other is dead.
//
// It knows no pod and no proxy: tunnels are given to it and taken from it by
// functions. Imports the packages whose values travel; imported by dataplane
// and cmd/ztunnel/app.
package handover
