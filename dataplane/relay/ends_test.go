// SPDX-License-Identifier: Apache-2.0

package relay_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"syscall"
	"testing"

	"github.com/ztunnel-go/ztunnel/dataplane/hbone"
	"github.com/ztunnel-go/ztunnel/dataplane/relay"
)

// told is Ends as one line. TCP_INFO must be there unless it says so.
func told(t *testing.T, e *relay.Ends) string {
	t.Helper()
	first, client, upstream := e.Told()
	for side, end := range map[string]relay.End{"client": client, "upstream": upstream} {
		if !end.Seen || end.TCP.SRTT <= 0 {
			t.Errorf("%s: TCP_INFO is %+v, %v", side, end.TCP, end.Seen)
		}
	}
	return fmt.Sprintf("%s first: client %s, upstream %s", first, client.How, upstream.How)
}

// A closing is what two applications do, and what is told of it.
type closing struct {
	name string
	do   func(t *testing.T, client, server *net.TCPConn)
	want string
}

func closings() []closing {
	end := func(first, second func(client, server *net.TCPConn) *net.TCPConn) func(*testing.T, *net.TCPConn, *net.TCPConn) {
		return func(t *testing.T, client, server *net.TCPConn) {
			a, b := first(client, server), second(client, server)
			a.CloseWrite()
			expectEnd(t, b)
			b.CloseWrite()
			expectEnd(t, a)
		}
	}
	client := func(c, _ *net.TCPConn) *net.TCPConn { return c }
	server := func(_, s *net.TCPConn) *net.TCPConn { return s }
	return []closing{
		{"client ends", end(client, server), "client first: client fin, upstream fin"},
		{"server ends", end(server, client), "upstream first: client fin, upstream fin"},
		{"client resets", func(t *testing.T, c, s *net.TCPConn) { reset(c); expectReset(t, s) }, "client first: client rst, upstream open"},
		{"server resets", func(t *testing.T, c, s *net.TCPConn) { reset(s); expectReset(t, c) }, "upstream first: client open, upstream rst"},
		{"client ends, server resets", func(t *testing.T, c, s *net.TCPConn) {
			c.CloseWrite()
			expectEnd(t, s)
			reset(s)
			expectReset(t, c)
		}, "client first: client fin, upstream rst"},
		{"server ends, then resets", func(t *testing.T, c, s *net.TCPConn) {
			s.CloseWrite()
			expectEnd(t, c)
			reset(s)
			eventuallyBroken(t, c)
		}, "upstream first: client open, upstream rst"},
	}
}

func TestWhoEndedFirst(t *testing.T) {
	for _, c := range closings() {
		t.Run(c.name, func(t *testing.T) {
			eachWay(t, func(t *testing.T, newPath func(*testing.T) *path) {
				p := newPath(t)
				write(t, p.client, "x")
				expect(t, p.server, "x")
				c.do(t, p.client, p.server)
				p.wait(t)
				if got := told(t, &p.ends); got != c.want {
					t.Errorf("%s; want %s", got, c.want)
				}
			})
		})
		t.Run(c.name+" through a tunnel", func(t *testing.T) {
			m := newMesh(t)
			write(t, m.client, "x")
			expect(t, m.server, "x")
			c.do(t, m.client, m.server)
			m.ended(t)
			for _, side := range []*relay.Ends{&m.nearEnds, &m.farEnds} {
				if got := told(t, side); got != c.want {
					t.Errorf("%s; want %s", got, c.want)
				}
			}
		})
	}
}

func TestTheProxyEndsFirst(t *testing.T) {
	eachWay(t, func(t *testing.T, newPath func(*testing.T) *path) {
		p := newPath(t)
		write(t, p.client, "x")
		expect(t, p.server, "x")
		p.cancel(errors.New("enough"))
		p.wait(t)
		if got, want := told(t, &p.ends), "proxy first: client open, upstream open"; got != want {
			t.Errorf("%s; want %s", got, want)
		}
	})
}

func TestATunnelThatIsLostEndsFirst(t *testing.T) {
	m := newMesh(t)
	write(t, m.client, "x")
	expect(t, m.server, "x")
	m.wire.Close()
	expectReset(t, m.client)
	m.ended(t)
	first, client, upstream := m.nearEnds.Told()
	if first != relay.Upstream || client.How != relay.Open || upstream.How != relay.Lost || !client.Seen {
		t.Errorf("%s first: client %+v, upstream %+v", first, client, upstream)
	}
}

func TestHowErrorsAreTold(t *testing.T) {
	lost := func(err error) error {
		return &relay.Error{Err: &hbone.ResetError{Code: hbone.InternalError, Cause: err}}
	}
	for _, tc := range []struct {
		err   error
		how   relay.Ending
		first relay.Party
	}{
		{nil, relay.FIN, relay.Client},
		{io.EOF, relay.FIN, relay.Client},
		{&hbone.ResetError{Code: hbone.NoError, Remote: true}, relay.FIN, relay.Client},
		{&hbone.ResetError{Code: hbone.Cancel, Remote: true}, relay.RST, relay.Client},
		{&hbone.ResetError{Code: hbone.Cancel}, relay.Open, relay.Proxy},
		{os.NewSyscallError("read", syscall.ECONNRESET), relay.RST, relay.Client},
		{os.NewSyscallError("write", syscall.EPIPE), relay.RST, relay.Client},
		{os.NewSyscallError("read", syscall.ETIMEDOUT), relay.Timeout, relay.Client},
		{lost(io.ErrUnexpectedEOF), relay.Lost, relay.Client},
		{lost(hbone.ErrPingTimeout), relay.Timeout, relay.Client},
		{lost(os.NewSyscallError("read", syscall.ETIMEDOUT)), relay.Timeout, relay.Client},
		{lost(&hbone.GoAwayError{Code: hbone.ProtocolError, Remote: true}), relay.Lost, relay.Client},
		{lost(&hbone.GoAwayError{Code: hbone.ProtocolError}), relay.Open, relay.Proxy},
		{lost(&hbone.EndedError{Cause: context.Canceled}), relay.Open, relay.Proxy},
		{lost(hbone.ErrClosed), relay.Open, relay.Proxy},
		{net.ErrClosed, relay.Open, relay.Proxy},
	} {
		var e relay.Ends
		e.Saw(true, tc.err)
		e.Saw(true, nil) // comes later, and changes nothing but what is open
		want := tc.how
		if want == relay.Open {
			want = relay.FIN
		}
		first, client, _ := e.Told()
		if first != tc.first && tc.err != net.ErrClosed || client.How != want {
			t.Errorf("%v: %s first, %s; want %s, %s", tc.err, first, client.How, tc.first, want)
		}
	}
}

func TestNobodyWhoDoesNotAskIsTold(t *testing.T) {
	var none *relay.Ends
	none.Saw(true, nil)
	none.Cut()
	none.Look(true, nil)
	if n := testing.AllocsPerRun(100, func() { none.Saw(true, io.EOF); none.Cut() }); n > 0 {
		t.Errorf("%v allocations", n)
	}
}
