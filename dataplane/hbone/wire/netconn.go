// SPDX-License-Identifier: Apache-2.0

package wire

import (
	"io"
	"net"
	"sync"
	"time"

	"github.com/ztunnel-go/ztunnel/internal/sock"
)

// A Line is what [NetConn] needs of a stream.
type Line interface {
	io.Reader
	io.Writer
	CloseWrite() error
	ResetWith(Code)
	Close() error
	TCPInfo() (sock.TCPInfo, error)
}

// NetConn shows a stream as a net.Conn, so that a tunnel can be made within it
// (contract 4.9). The addresses are those of the tunnel. A deadline that
// passes resets the stream; one that is moved in time does nothing.
func NetConn(s Line, local, remote net.Addr) net.Conn {
	return &netConn{Line: s, local: local, remote: remote}
}

type netConn struct {
	Line
	local, remote net.Addr

	mu    sync.Mutex
	timer *time.Timer // guarded by mu: the earliest deadline set last
}

func (c *netConn) LocalAddr() net.Addr  { return c.local }
func (c *netConn) RemoteAddr() net.Addr { return c.remote }

func (c *netConn) SetReadDeadline(t time.Time) error  { return c.SetDeadline(t) }
func (c *netConn) SetWriteDeadline(t time.Time) error { return c.SetDeadline(t) }

// SetDeadline serves the two uses that TLS and the engine make of deadlines: a
// last write that must not hang, and nothing.
func (c *netConn) SetDeadline(t time.Time) error {
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
func (c *netConn) Close() error {
	if err := c.SetDeadline(time.Time{}); err != nil {
		return err
	}
	_ = c.CloseWrite() // the stream may be broken, and is closed all the same
	return c.Line.Close()
}
