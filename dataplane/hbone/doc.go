// SPDX-License-Identifier: Apache-2.0

// Package hbone carries user connections between nodes: each is one HTTP/2
// CONNECT stream of a tunnel, which is TCP with mutual TLS (contract 4).
//
// It speaks both sides. [Pool] opens streams towards peers and decides which
// tunnel they share; [ServerConn] accepts them and hands each CONNECT to a
// function as a value. What is on the wire is told in docs/wire/hbone.md.
//
// It knows neither routes, policy nor metrics: whom to expect is in the
// tls.Config it is given, what is refused is what its caller rejects.
//
// There are two engines, and the interface shows neither. One is dataplane/engine:
// event loops that own the records. The other is here: one reading and one
// writing goroutine to a tunnel, over crypto/tls. It carries what the first
// cannot: TLS 1.2, tunnels within tunnels, and all of them with TLS_ENGINE=std.
// No type of net/http or x/net/http2 shows.
//
//	tunnel.go server_loop.go   which engine
//	conn.go      the tunnel: its state, its begin and its end
//	reader.go    frames that arrive      writer.go  batches that leave
//	stream.go    one user connection     flow.go    windows and credit
//	headers.go   header blocks           vocabulary.go  codes, errors, settings
//	client.go pool.go                    server.go
//
// Lock order: Pool.mu before conn.mu. No lock is held while a function of the
// caller runs.
//
// Imports dataplane/engine, dataplane/hbone/{record,wire}, dataplane/relay,
// internal/{identity,mtls,sock}, x/net/http2 for its Framer and hpack; imported
// by dataplane.
package hbone
