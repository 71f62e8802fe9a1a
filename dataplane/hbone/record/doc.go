// SPDX-License-Identifier: Apache-2.0

// Package record is the record layer of TLS 1.3 (RFC 8446, sections 4.6, 5, 6
// and 7) for whoever wants to own a connection's bytes: crypto/tls does the
// handshake, and from its end on the records are sealed and opened here, in
// the caller's buffers, with nothing hidden behind a net.Conn.
//
//	s, err := record.Server(ctx, conn, cfg) // or Client
//	if s.Std != nil { ... }                 // TLS 1.2: crypto/tls goes on
//
// Then s.Out seals and s.In opens. What was read too far is s.Unread, and comes
// before anything that is read from conn later.
//
// # Records
//
// A record to be sent lies in a slot of the caller's:
//
//	[5 header | n content | 1 type | 16 tag]      n + Overhead bytes
//
// The caller fills the content, [Half.Seal] the rest, in place. A record that
// came is measured by [Length] and opened in place by [Receiver.Receive], which
// also takes care of everything that is not application data: tickets are
// dropped, a KeyUpdate changes the key, alerts become events or errors.
//
// # Values
//
// [State] and [ReceiverState] are all there is to a direction: suite, current
// traffic secret, sequence number, and the part of a message that has come. They
// can be written down and read elsewhere, and the connection goes on there. It
// may go on in one place only: two that seal with one secret and one sequence
// number break the cipher. Secrets are never logged, formatted or sent; Wipe
// clears them. What the standard library keeps of a key inside its ciphers and
// its handshake cannot be cleared and is left to the collector.
//
// # Suites, and FIPS
//
// Only TLS_AES_128_GCM_SHA256 and TLS_AES_256_GCM_SHA384. Under GODEBUG
// fips140=on everything here works. Under fips140=only the standard library
// gives nobody but crypto/tls an AES-GCM whose nonce is the record's number;
// [Available] says so, and such a build lets crypto/tls keep the connection.
//
// The package opens no connection, reads and writes nothing after the handshake,
// starts no goroutine, knows no HTTP/2, and imports nothing of ours.
package record
