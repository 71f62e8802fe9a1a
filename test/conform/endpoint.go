// SPDX-License-Identifier: Apache-2.0

package conform

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"syscall"
	"time"
)

// An endpoint is a connection that a scenario holds: TCP, or a stream of a
// tunnel.
type endpoint interface {
	io.ReadWriter
	// setDeadline bounds reads and writes.
	setDeadline(t time.Time)
	shut() error
	// reset ends both directions as an application's crash does.
	reset() error
	close()
	addrs() (local, remote netip.AddrPort)
	// ended says how an error of Read came about: "fin", "rst" or "rst CODE";
	// empty if it is no end.
	ended(err error) string
}

// tcpEnd is a TCP connection.
type tcpEnd struct{ net.Conn }

// A halfCloser is what TCP connections of every stage are.
type halfCloser interface{ CloseWrite() error }

// A lingerer may be closed with a reset.
type lingerer interface{ SetLinger(sec int) error }

func (c tcpEnd) setDeadline(t time.Time) { c.Conn.SetDeadline(t) }

func (c tcpEnd) shut() error {
	h, ok := c.Conn.(halfCloser)
	if !ok {
		return fmt.Errorf("%T: %w", c.Conn, ErrUnsupported)
	}
	return h.CloseWrite()
}

func (c tcpEnd) reset() error {
	l, ok := c.Conn.(lingerer)
	if !ok {
		return fmt.Errorf("%T: %w", c.Conn, ErrUnsupported)
	}
	if err := l.SetLinger(0); err != nil {
		return err
	}
	return c.Close()
}

func (c tcpEnd) close() { c.Conn.Close() }

func (c tcpEnd) addrs() (local, remote netip.AddrPort) {
	return addrPort(c.LocalAddr()), addrPort(c.RemoteAddr())
}

func addrPort(a net.Addr) netip.AddrPort {
	if a == nil {
		return netip.AddrPort{}
	}
	ap, _ := netip.ParseAddrPort(a.String())
	return netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port())
}

func (c tcpEnd) ended(err error) string {
	switch {
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return "fin"
	case errors.Is(err, syscall.ECONNRESET), errors.Is(err, syscall.EPIPE):
		return "rst"
	}
	return ""
}

// within gives an endpoint until ctx ends.
func within(ctx context.Context, e endpoint) {
	if at, ok := ctx.Deadline(); ok {
		e.setDeadline(at)
	}
}

// receive reads n bytes.
func receive(e endpoint, n int) ([]byte, error) {
	b := make([]byte, n)
	got, err := io.ReadFull(e, b)
	if err != nil {
		how := e.ended(err)
		if how == "" {
			how = err.Error()
		}
		return b[:got], fmt.Errorf("%d bytes of %d came, %.80q, then %s", got, n, b[:got], how)
	}
	return b, nil
}

// awaitEnd reads until the end and says how it came: data before it is an
// error.
func awaitEnd(e endpoint) (string, error) {
	var got []byte
	b := make([]byte, 512)
	for {
		n, err := e.Read(b)
		got = append(got, b[:n]...)
		if err == nil {
			continue
		}
		how := e.ended(err)
		if how == "" {
			return "", fmt.Errorf("it did not end: %w", err)
		}
		if len(got) > 0 {
			return how, fmt.Errorf("before its end (%s) came %.80q", how, got)
		}
		return how, nil
	}
}
