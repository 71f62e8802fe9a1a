// SPDX-License-Identifier: Apache-2.0

// Package engine carries tunnels on event loops: HTTP/2 for CONNECT alone (RFC
// 9113), both roles, over TLS records that it seals and opens itself.
//
// A [Tunnel] belongs to one loop, and so do its streams and the applications'
// sockets that they are joined with ([Stream.Join]): no lock and no goroutine
// stands between the tunnel and a socket, and bytes are moved without a copy.
//
//	application --readv--> record slots: frame, seal in place --write--> tunnel
//	application <--writev-- frames <-- records opened in place <--read-- tunnel
//
// Buffers are the loop's, and a tunnel or stream has one only while it holds
// bytes that somebody does not take: a socket that does not read, or a peer
// whose record has come in part. What it holds is bounded by windows, since
// credit follows delivery.
//
//	tunnel.go    its state, begin and end    image.go   the same as plain values
//	receive.go   records to frames           frames.go  what frames ask for
//	headers.go   requests and answers        send.go    frames to records
//	stream.go    one user connection         flow.go    windows and credit
//	joint.go     a stream and its socket     blocking.go  a stream for goroutines
//	client.go    server.go                   for the two roles
//
// Errors, settings, header rules and budgets are those of dataplane/hbone/wire,
// which the other engine shares. Handshakes, routes, policy and metrics are
// others' business. Imports dataplane/hbone/{record,wire}, dataplane/reactor,
// dataplane/relay, internal/sock, x/sys; imported by dataplane/hbone.
package engine

import (
	"github.com/ztunnel-go/ztunnel/dataplane/hbone/record"
	"github.com/ztunnel-go/ztunnel/dataplane/reactor"
	"github.com/ztunnel-go/ztunnel/dataplane/relay"
	"golang.org/x/sys/unix"
)

const (
	// records is how many full records one batch takes: what is read from an
	// application at once, and leaves in one write.
	records = 16
	// stride is the length of a full record.
	stride = record.MaxContent + record.Overhead
	// batchSize leaves room for a KeyUpdate or an alert behind the records.
	batchSize = records*stride + 2*record.ControlLen

	frameHeader = 9
	// minRoom is how little of a record is not worth another DATA frame.
	minRoom = 1 << 10
	// chunkSize is the piece in which undelivered bytes are kept.
	chunkSize = 16 << 10
)

// An Engine is the loops and what they lend. Make it with [New].
type Engine struct {
	group *reactor.Group
	lanes []*lane
	turn  chan int // the next lane; a channel of one is a counter with a lock
	plain *relay.Loops
}

// A lane is one loop and its buffers.
type lane struct {
	loop    *reactor.Loop
	batches reactor.Slab // records that leave
	parts   reactor.Slab // a record that has come in part
	chunks  reactor.Slab // bytes that nobody has taken yet
	vecs    []unix.Iovec // of one call
	slices  [][][]byte   // arrays for pieces
	touched []*Stream    // have pieces of what was read last
	left    []byte       // the end of what was read last: the beginning of a record
}

// New makes an engine over the loops of group, which outlive all tunnels.
func New(group *reactor.Group) *Engine {
	e := &Engine{group: group, turn: make(chan int, 1), plain: relay.NewLoops(group)}
	for _, l := range group.Loops() {
		e.lanes = append(e.lanes, &lane{
			loop:    l,
			batches: reactor.Slab{Size: batchSize, Keep: 8},
			parts:   reactor.Slab{Size: record.MaxLength, Keep: 64},
			chunks:  reactor.Slab{Size: chunkSize, Keep: 256},
		})
	}
	e.turn <- 0
	return e
}

// Plain carries connections without a tunnel on the same loops; of no engine,
// goroutines do.
func (e *Engine) Plain() *relay.Loops {
	if e == nil {
		return nil
	}
	return e.plain
}

// Close comes after the group's, and gives back what is kept for its loops.
func (e *Engine) Close() { e.plain.Close() }

// pick names the lanes in turn.
func (e *Engine) pick() *lane {
	n := <-e.turn
	e.turn <- (n + 1) % len(e.lanes)
	return e.lanes[n]
}

// pieces lends an array for slices of the loop's buffer.
func (l *lane) pieces() [][]byte {
	if n := len(l.slices); n > 0 {
		a := l.slices[n-1]
		l.slices = l.slices[:n-1]
		return a
	}
	return make([][]byte, 0, 32)
}

// keepPieces is the longest array kept, and keepArrays how many.
const (
	keepPieces = 1024
	keepArrays = 64
)

func (l *lane) back(a [][]byte) {
	if cap(a) <= keepPieces && len(l.slices) < keepArrays {
		clear(a)
		l.slices = append(l.slices, a[:0])
	}
}

// vec makes the arguments of a gathering write from pieces.
func (l *lane) vec(pieces [][]byte) []unix.Iovec {
	l.vecs = l.vecs[:0]
	for _, p := range pieces[:min(len(pieces), sockMaxVec)] {
		l.vecs = append(l.vecs, sockVec(p))
	}
	return l.vecs
}
