// SPDX-License-Identifier: Apache-2.0

package hbone

import (
	"net"
	"sync"
	"time"
)

// Conn shows a stream as a net.Conn, so that a tunnel can be made within it
// (contract 4.9). The addresses are those of the tunnel. A deadline that
// passes resets the stream; one that is moved in time does nothing.
func (s *Stream) Conn() net.Conn { return &streamConn{Stream: s} }

type streamConn struct {
	*Stream

	mu    sync.Mutex
	timer *time.Timer // guarded by mu: the earliest deadline set last
}

var _ net.Conn = (*streamConn)(nil)

func (c *streamConn) LocalAddr() net.Addr  { return c.c.raw.LocalAddr() }
func (c *streamConn) RemoteAddr() net.Addr { return c.c.raw.RemoteAddr() }

func (c *streamConn) SetReadDeadline(t time.Time) error  { return c.SetDeadline(t) }
func (c *streamConn) SetWriteDeadline(t time.Time) error { return c.SetDeadline(t) }

// SetDeadline serves the two uses that TLS and the engine make of deadlines: a
// last write that must not hang, and nothing.
func (c *streamConn) SetDeadline(t time.Time) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.timer != nil {
		c.timer.Stop()
		c.timer = nil
	}
	if !t.IsZero() {
		c.timer = time.AfterFunc(time.Until(t), func() { c.ResetWith(Cancel) })
	}
	return nil
}

// Close ends the stream cleanly if the peer has ended it, and gives it up
// otherwise.
func (c *streamConn) Close() error {
	if err := c.SetDeadline(time.Time{}); err != nil {
		return err
	}
	_ = c.CloseWrite() // the stream may be broken, and is closed all the same
	return c.Stream.Close()
}
