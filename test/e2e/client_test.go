// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ztunnel-go/ztunnel/test/netlab"
	"github.com/ztunnel-go/ztunnel/test/netlab/serve"
)

// get asks an HTTP server of a lab what it saw.
func get(t *testing.T, from *netlab.Host, to netip.AddrPort) serve.Answer {
	t.Helper()
	saw, err := tryGet(from, to)
	must(t, err)
	return saw
}

func tryGet(from *netlab.Host, to netip.AddrPort) (saw serve.Answer, err error) {
	client := from.HTTPClient()
	client.Timeout = patience
	resp, err := client.Get("http://" + to.String() + "/")
	if err != nil {
		return saw, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return saw, fmt.Errorf("status %s", resp.Status)
	}
	return saw, json.NewDecoder(resp.Body).Decode(&saw)
}

// peerOf is the address that a server saw.
func peerOf(t *testing.T, saw serve.Answer) netip.Addr {
	t.Helper()
	peer, err := netip.ParseAddrPort(saw.Peer)
	must(t, err)
	return peer.Addr().Unmap()
}

// echo sends b to an echo server and wants it back.
func echo(t *testing.T, c io.ReadWriter, b []byte) {
	t.Helper()
	_, err := c.Write(b)
	must(t, err)
	got := make([]byte, len(b))
	if _, err := io.ReadFull(c, got); err != nil || !bytes.Equal(got, b) {
		t.Fatalf("the echo of %.40q is %.40q, %v", b, got, err)
	}
}

// upload sends n bytes to a sink and wants it to have seen all of them.
func upload(c *net.TCPConn, n int64) error {
	if _, err := io.Copy(c, serve.Pattern(n)); err != nil {
		return err
	}
	if err := c.CloseWrite(); err != nil {
		return err
	}
	line, err := io.ReadAll(c)
	if want := fmt.Sprintf("%d %s\n", n, serve.PatternSum(n)); err != nil || string(line) != want {
		return fmt.Errorf("the sink said %q, %v; want %q", line, err, want)
	}
	return nil
}

// download asks a source for n bytes and wants them unchanged, then its end.
func download(c *net.TCPConn, n int64) error {
	if _, err := fmt.Fprintln(c, n); err != nil {
		return err
	}
	sum := sha256.New()
	got, err := io.Copy(sum, c)
	if sum := fmt.Sprintf("%x", sum.Sum(nil)); err != nil || got != n || sum != serve.PatternSum(n) {
		return fmt.Errorf("the source gave %d bytes with sum %s, %v", got, sum, err)
	}
	return nil
}

// A socket is one made by hand in a pod, for what package net cannot do.
type socket struct{ fd int }

// newSocket makes a blocking TCP socket of a family, which ends with the test.
func newSocket(t *testing.T, h *netlab.Host, family, protocol int) socket {
	t.Helper()
	s := socket{-1}
	must(t, h.Do(func() (err error) {
		s.fd, err = unix.Socket(family, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, protocol)
		return err
	}))
	limit := unix.NsecToTimeval(int64(patience))
	must(t, unix.SetsockoptTimeval(s.fd, unix.SOL_SOCKET, unix.SO_SNDTIMEO, &limit)) // also of connect
	must(t, unix.SetsockoptTimeval(s.fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &limit))
	return s
}

// conn hands the socket over to package net.
func (s socket) conn(t *testing.T) *net.TCPConn {
	t.Helper()
	f := os.NewFile(uintptr(s.fd), "socket")
	defer f.Close()
	c, err := net.FileConn(f)
	must(t, err)
	return ready(t, c)
}

func (s socket) close() { unix.Close(s.fd) }

// sockaddr is to as a socket of family takes it; v4-mapped where that is
// AF_INET6 and to is IPv4.
func sockaddr(family int, to netip.AddrPort) unix.Sockaddr {
	if family == unix.AF_INET {
		return &unix.SockaddrInet4{Port: int(to.Port()), Addr: to.Addr().As4()}
	}
	return &unix.SockaddrInet6{Port: int(to.Port()), Addr: to.Addr().As16()}
}

// A server accepts in a pod, for tests that play the application themselves.
type server struct {
	net.Listener
	conns chan *net.TCPConn
	loop  sync.WaitGroup
}

func listen(t *testing.T, h *netlab.Host, addr string) *server {
	t.Helper()
	l, err := h.Listen("tcp", addr)
	must(t, err)
	const many = 16
	s := &server{Listener: l, conns: make(chan *net.TCPConn, many)}
	s.loop.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			s.conns <- c.(*net.TCPConn)
		}
	})
	t.Cleanup(func() {
		l.Close()
		s.loop.Wait()
		close(s.conns)
		for c := range s.conns {
			c.Close()
		}
	})
	return s
}

// accept waits for a connection.
func (s *server) accept(t *testing.T) *net.TCPConn {
	t.Helper()
	select {
	case c := <-s.conns:
		return ready(t, c)
	case <-time.After(patience):
		t.Fatal("no connection came")
		return nil
	}
}

// untouched fails the test if a connection has come.
func (s *server) untouched(t *testing.T) {
	t.Helper()
	select {
	case c := <-s.conns:
		t.Errorf("%v was reached by %v", s.Addr(), c.RemoteAddr())
		c.Close()
	default:
	}
}

// ended waits for a connection to be over, and says how: io.EOF, ECONNRESET.
func ended(c net.Conn) error {
	_ = c.SetReadDeadline(time.Now().Add(patience))
	n, err := io.Copy(io.Discard, c)
	switch {
	case err == nil && n == 0:
		return io.EOF
	case err == nil:
		return fmt.Errorf("the end after %d bytes", n)
	}
	return err
}

// wasReset says whether an error is what a reset makes of a connection.
func wasReset(err error) bool { return errors.Is(err, syscall.ECONNRESET) }

// isRefused says whether an error is what a closed port makes of an attempt.
func isRefused(err error) bool { return errors.Is(err, syscall.ECONNREFUSED) }

// refused says how an attempt to talk ended, or nil if b came back from an
// echo server.
func refused(from *netlab.Host, to netip.AddrPort, b []byte) error {
	d := net.Dialer{Timeout: patience}
	c, err := from.DialWith(context.Background(), &d, "tcp", to.String())
	if err != nil {
		return err
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(patience))
	if _, err := c.Write(b); err != nil {
		return err
	}
	if _, err := io.ReadFull(c, make([]byte, len(b))); err != nil {
		return err
	}
	return nil
}

func containsAll(line string, texts ...string) bool {
	return !slices.ContainsFunc(texts, func(text string) bool { return !strings.Contains(line, text) })
}
