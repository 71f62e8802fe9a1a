// SPDX-License-Identifier: Apache-2.0

// Package wire is what both engines of tunnels say and hear, as values: error
// codes and errors, settings, requests and answers, header blocks, and what a
// peer may waste (contract 4, RFC 9113, RFC 7541).
//
//	errors.go    codes, and by what tunnels and streams end
//	settings.go  what a side announces
//	fields.go    requests, answers, the rules of header blocks
//	budget.go    what frames cost that move nothing
//	past.go      what is remembered of closed streams
//
// It reads no connection, keeps no state of its own and starts nothing. Imports
// x/net/http2's hpack and names; imported by dataplane/hbone and
// dataplane/engine.
package wire
