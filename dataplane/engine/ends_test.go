// SPDX-License-Identifier: Apache-2.0

package engine

import (
	"errors"
	"fmt"
	"io"
	"net"
	"syscall"
	"testing"

	"github.com/ztunnel-go/ztunnel/dataplane/hbone/wire"
	"github.com/ztunnel-go/ztunnel/dataplane/relay"
)

// withEnds is through, where both joints tell how they ended.
func withEnds(r *rig) (near, far *net.TCPConn, nearEnds, farEnds func() string, client *Tunnel) {
	joined := func(s *Stream, isClient bool) (*net.TCPConn, func() string) {
		app, inner := pair(r)
		ends, done := &relay.Ends{}, make(chan error, 1)
		s.Join(relay.Join{
			FD: take(r, inner), Client: isClient, Counts: relay.Counts{Ends: ends},
			Done: func(err error) { done <- err },
		})
		return app, func() string {
			await(r, done)
			first, c, u := ends.Told()
			for _, end := range []relay.End{c, u} {
				if !end.Seen || end.TCP.SRTT <= 0 {
					r.Errorf("TCP_INFO is %+v, %v", end.TCP, end.Seen)
				}
			}
			return fmt.Sprintf("%s first: client %s, upstream %s", first, c.How, u.How)
		}
	}
	ready := make(chan struct{})
	client, _ = r.tunnels(wire.Settings{}, func(q *Request) {
		far, farEnds = joined(q.Accept(nil), false)
		close(ready)
	})
	s, _, err := client.Open(within(r), wire.Request{Authority: "10.0.0.1:80"})
	if err != nil {
		r.Fatal(err)
	}
	near, nearEnds = joined(s, true)
	await(r, ready)
	return near, far, nearEnds, farEnds, client
}

func TestWhoEndedFirst(t *testing.T) {
	wants := func(c *net.TCPConn, want error) {
		if _, err := c.Read(make([]byte, 1)); !errors.Is(err, want) {
			t.Errorf("read %v, want %v", err, want)
		}
	}
	reset := func(c *net.TCPConn) { c.SetLinger(0); c.Close() }
	for _, tc := range []struct {
		name string
		do   func(client, server *net.TCPConn)
		want string
	}{
		{"client ends", func(c, s *net.TCPConn) { c.CloseWrite(); wants(s, io.EOF); s.CloseWrite(); wants(c, io.EOF) },
			"client first: client fin, upstream fin"},
		{"server ends", func(c, s *net.TCPConn) { s.CloseWrite(); wants(c, io.EOF); c.CloseWrite(); wants(s, io.EOF) },
			"upstream first: client fin, upstream fin"},
		{"client resets", func(c, s *net.TCPConn) { reset(c); wants(s, syscall.ECONNRESET) }, "client first: client rst, upstream open"},
		{"server resets", func(c, s *net.TCPConn) { reset(s); wants(c, syscall.ECONNRESET) }, "upstream first: client open, upstream rst"},
		{"client ends, then resets", func(c, s *net.TCPConn) { c.CloseWrite(); wants(s, io.EOF); reset(c) },
			"client first: client rst, upstream open"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			near, far, nearEnds, farEnds, _ := withEnds(newRig(t))
			tc.do(near, far)
			for _, got := range []string{nearEnds(), farEnds()} {
				if got != tc.want {
					t.Errorf("%s; want %s", got, tc.want)
				}
			}
		})
	}
	t.Run("the tunnel is lost", func(t *testing.T) {
		_, _, nearEnds, farEnds, client := withEnds(newRig(t))
		client.EndWith(wire.ErrPingTimeout)
		if got, want := nearEnds(), "upstream first: client open, upstream timeout"; got != want {
			t.Errorf("%s; want %s", got, want)
		}
		if got, want := farEnds(), "client first: client lost, upstream open"; got != want {
			t.Errorf("%s; want %s", got, want)
		}
	})
}
