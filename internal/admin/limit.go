// SPDX-License-Identifier: Apache-2.0

package admin

import (
	"net"
	"net/http"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"
)

/*
 * The pages must cost the data path nothing, whoever asks for them how often:
 * the ports of metrics and readiness are open to every pod.
 *
 *	connections      of one address and in all; beyond they are closed at once
 *	a header         within quiet, and so a body, which nobody reads
 *	an answer        each piece is taken within takeTime
 *	large answers    few at a time, and each within wholeTime
 */
const (
	maxConns          = 1024
	maxConnsOfAddress = 32

	takeTime  = 10 * time.Second
	wholeTime = time.Minute

	// piece is what is written at a time, in bytes.
	piece = 64 << 10

	// maxDumps is how many dumps of the configuration are held at a time. One of
	// a large mesh has hundreds of megabytes.
	maxDumps = 2
)

// A gate counts the connections of one server.
type gate struct {
	refused atomic.Uint64
	take    time.Duration // takeTime, but in tests

	mu  sync.Mutex
	all int                // guarded by mu
	of  map[netip.Addr]int // guarded by mu; none is 0
}

func newGate() *gate { return &gate{take: takeTime, of: map[netip.Addr]int{}} }

// enter reports whether there is room for one more from an address.
func (g *gate) enter(from netip.Addr) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.all >= maxConns || g.of[from] >= maxConnsOfAddress {
		g.refused.Add(1)
		return false
	}
	g.all++
	g.of[from]++
	return true
}

func (g *gate) leave(from netip.Addr) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.all--
	if g.of[from]--; g.of[from] == 0 {
		delete(g.of, from)
	}
}

// gated lets connections in as far as there is room.
type gated struct {
	net.Listener
	gate *gate
}

// A stream is a TCP connection, or one of a Unix socket. net/http closes its
// write side where it has answered what it could not read.
type stream interface {
	net.Conn
	CloseWrite() error
}

func (l gated) Accept() (net.Conn, error) {
	for {
		accepted, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		c := accepted.(stream)
		var from netip.Addr // of a Unix socket all are from one place
		if addr, ok := c.RemoteAddr().(*net.TCPAddr); ok {
			from = addr.AddrPort().Addr().Unmap()
		}
		if l.gate.enter(from) {
			return &conn{stream: c, gate: l.gate, from: from}, nil
		}
		if tcp, ok := c.(*net.TCPConn); ok {
			_ = tcp.SetLinger(0) // no state stays behind of what is refused
		}
		_ = c.Close()
	}
}

// A conn leaves the gate when it is closed, and does not wait for ever for its
// reader.
type conn struct {
	stream
	gate  *gate
	from  netip.Addr
	close sync.Once
}

// Write takes as long as the reader takes something every takeTime.
func (c *conn) Write(b []byte) (written int, err error) {
	if replaced, is := plainError(b); is {
		if _, err := c.put(replaced); err != nil {
			return 0, err
		}
		return len(b), nil
	}
	for {
		n, err := c.put(b[written:min(len(b), written+piece)])
		written += n
		if err != nil || written == len(b) {
			return written, err
		}
	}
}

func (c *conn) put(b []byte) (int, error) {
	if err := c.SetWriteDeadline(time.Now().Add(c.gate.take)); err != nil {
		return 0, err
	}
	return c.stream.Write(b)
}

// Close implements [net.Conn].
func (c *conn) Close() error {
	c.close.Do(func() { c.gate.leave(c.from) })
	return c.stream.Close()
}

// few lets a handler run so often at a time; others wait in line, or go.
func few(most int, next http.HandlerFunc) http.HandlerFunc {
	slots := make(chan struct{}, most)
	return func(w http.ResponseWriter, r *http.Request) {
		select {
		case slots <- struct{}{}:
			defer func() { <-slots }()
			next(w, r)
		case <-r.Context().Done():
		}
	}
}

// writeWhole writes a large answer, and cuts the connection if that takes too
// long.
func writeWhole(w http.ResponseWriter, body []byte) {
	until := time.Now().Add(wholeTime)
	for len(body) > 0 {
		if time.Now().After(until) {
			panic(http.ErrAbortHandler)
		}
		n, err := w.Write(body[:min(len(body), piece)])
		if err != nil {
			return // the client's trouble
		}
		body = body[n:]
	}
}
