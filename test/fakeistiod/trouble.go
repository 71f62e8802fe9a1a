// SPDX-License-Identifier: Apache-2.0

package fakeistiod

import (
	"errors"
	"net"
	"sync"
	"time"
)

// trouble is what befalls connections.
type trouble struct {
	mu    sync.Mutex
	cut   int // bytes until the end, where armed
	armed bool
	piece int // bytes written at a time; 0: all
	pause time.Duration
}

// CutAfter makes the next connection that is accepted break, with a reset,
// when the server has sent so many bytes on it, TLS and all.
func (s *Server) CutAfter(bytes int) {
	s.trouble.mu.Lock()
	defer s.trouble.mu.Unlock()
	s.trouble.cut, s.trouble.armed = bytes, true
}

// Slow makes connections accepted from now on send in pieces of so many bytes
// with a pause after each; 0 bytes: as they come.
func (s *Server) Slow(piece int, pause time.Duration) {
	s.trouble.mu.Lock()
	defer s.trouble.mu.Unlock()
	s.trouble.piece, s.trouble.pause = piece, pause
}

type troubledListener struct {
	net.Listener
	t *trouble
}

func (l *troubledListener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	l.t.mu.Lock()
	defer l.t.mu.Unlock()
	out := &troubledConn{Conn: c, left: -1, piece: l.t.piece, pause: l.t.pause}
	if l.t.armed {
		out.left, l.t.armed = l.t.cut, false
	}
	return out, nil
}

// A troubledConn is written to by one goroutine at a time, as crypto/tls does.
type troubledConn struct {
	net.Conn
	left  int // bytes until it breaks; -1: never
	piece int
	pause time.Duration
}

var errCut = errors.New("cut as told")

func (c *troubledConn) Write(b []byte) (int, error) {
	written := 0
	for len(b) > 0 {
		n := len(b)
		if c.piece > 0 {
			n = min(n, c.piece)
		}
		if c.left >= 0 {
			n = min(n, c.left)
		}
		if n == 0 {
			return written, c.reset()
		}
		m, err := c.Conn.Write(b[:n])
		written += m
		if err != nil {
			return written, err
		}
		b = b[m:]
		if c.left > 0 {
			c.left -= m
		}
		time.Sleep(c.pause)
	}
	if c.left == 0 {
		return written, c.reset()
	}
	return written, nil
}

func (c *troubledConn) reset() error {
	if tcp, ok := c.Conn.(*net.TCPConn); ok {
		_ = tcp.SetLinger(0) // only makes the end a reset instead of a close
	}
	c.Conn.Close()
	return errCut
}
