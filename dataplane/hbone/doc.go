// SPDX-License-Identifier: Apache-2.0

// Package hbone carries user connections between nodes: each is one HTTP/2
// CONNECT stream of a tunnel, which is TCP with mutual TLS (contract 4).
//
// It speaks both sides. [Pool] opens streams towards peers and decides which
// tunnel they share; [ServerConn] accepts them and hands each CONNECT to a
// function as a value. What is on the wire is told in docs/wire/hbone.md.
//
// It knows neither routes, policy nor metrics: whom to expect is in the
// tls.Config it is given, what is refused is what its caller rejects. The
// engine is one reading and one writing goroutine to a tunnel, over
// crypto/tls; none of that shows in the interface, and no type of net/http or
// x/net/http2 does, so that another engine can take its place.
//
//	conn.go      the tunnel: its state, its begin and its end
//	reader.go    frames that arrive      writer.go  batches that leave
//	stream.go    one user connection     flow.go    windows and credit
//	headers.go   header blocks           vocabulary.go  codes, errors, settings
//	client.go pool.go                    server.go
//
// Lock order: Pool.mu before conn.mu. No lock is held while a function of the
// caller runs.
//
// Imports dataplane/hbone/wire, internal/identity and internal/mtls, x/net/http2 for its Framer and
// hpack, and nothing else; imported by dataplane.
package hbone
