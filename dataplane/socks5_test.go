// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"testing"
	"time"

	"github.com/ztunnel-go/ztunnel/dataplane/capture"
)

// socksTo is a greeting and a request, whose address and port are given.
func socksTo(kind byte, target ...byte) []byte {
	return append([]byte{5, 1, 0, 5, 1, 0, kind}, target...)
}

func socksName(name string, port byte) []byte {
	return socksTo(3, append(append([]byte{byte(len(name))}, name...), 0, port)...)
}

// socksReply is the answer to both.
func socksReply(code byte) []byte { return []byte{5, 0, 5, code, 0, 1, 0, 0, 0, 0, 0, 0} }

// withNames has a pod's proxy answer SOCKS clients, and know the names of web.
func withNames(s *Sockets) {
	s.Resolve = func(_ context.Context, name string, v6 bool) (netip.Addr, error) {
		if name != webHost || v6 {
			return netip.Addr{}, errors.New("dns response had no valid IP addresses")
		}
		return addr("10.96.0.1"), nil
	}
}

// proxied opens a connection to the pod's port 15080.
func (p *pod) proxied() *net.TCPConn {
	p.lan.t.Helper()
	return p.lan.client(func(ctx context.Context) (*net.TCPConn, error) {
		return p.socksListener.dial(ctx, p.ip, netip.AddrPort{})
	})
}

// hears wants bytes from the other end.
func hears(t *testing.T, c net.Conn, want []byte) {
	t.Helper()
	got := make([]byte, len(want))
	if n, err := io.ReadFull(c, got); err != nil || !bytes.Equal(got, want) {
		t.Fatalf("heard % x, %v; want % x", got[:n], err, want)
	}
}

// tells sends bytes.
func tells(t *testing.T, c net.Conn, b []byte) {
	t.Helper()
	if _, err := c.Write(b); err != nil {
		t.Fatal(err)
	}
}

func socksPair(t *testing.T) (client *pod) {
	t.Helper()
	n := newLAN(t)
	n.put(clientWorkload(), serverWorkload(), web())
	server := n.start(serverWorkload())
	server.app(8080, echo)
	return n.startWith(clientWorkload(), withNames)
}

func TestASOCKSClientIsTakenWhereItSays(t *testing.T) {
	client := socksPair(t)
	for _, request := range [][]byte{
		socksName(webHost, 80),
		socksTo(1, 10, 96, 0, 1, 0, 80),
		socksTo(4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 10, 96, 0, 1, 0, 80),
	} {
		c := client.proxied()
		tells(t, c, append(request, "early"...)) // before any answer, as some clients do
		hears(t, c, append(socksReply(0), "early"...))
		say(t, c, "hello")
		finish(t, c)
		client.out.await("access\tconnection complete\t"+srcFields, `dst.hbone_addr=10.0.0.2:8080`,
			`dst.service="web.ns.svc.cluster.local"`, `direction="outbound" bytes_sent=10 bytes_recv=10`)
	}
	if got := client.count("istio_tcp_connections_closed_total", "reporter=source", "connection_security_policy=mutual_tls"); got != 3 {
		t.Errorf("%v connections were counted", got)
	}
	eventually(t, "no socket is open", func() bool { return client.count("istio_tcp_sockets_open", "reporter=source") == 0 })
	client.out.await("listener established", `component="socks5"`)
}

func TestASOCKSClientIsToldWhyNot(t *testing.T) {
	client := socksPair(t)
	for _, c := range []struct {
		request, answer []byte
		log             string
	}{
		{socksName("nobody.example", 80), socksReply(4), "HostUnreachable: nobody.example: dns response had no valid IP addresses"},
		{[]byte{5, 1, 0, 5, 2, 0, 1}, socksReply(7), "CommandNotSupported: command 2 is not CONNECT"},
		{[]byte{4, 1}, socksReply(7)[2:], "CommandNotSupported: version 4 is not 5"},
	} {
		conn := client.proxied()
		tells(t, conn, c.request)
		hears(t, conn, c.answer)
		if rest, err := io.ReadAll(conn); len(rest) > 0 || errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("after the answer: %q, %v", rest, err)
		}
		client.out.await("warn\tproxy::socks5:", "socks5{id=TRACE}", "failed to negotiate socks connection: "+c.log)
	}
	if got := client.counts("-"); got != [3]float64{} {
		t.Errorf("counted %v of connections that were never opened", got)
	}
}

func TestNamesNeedADNSProxy(t *testing.T) {
	n := newLAN(t)
	n.put(clientWorkload())
	client := n.start(clientWorkload())
	c := client.proxied()
	tells(t, c, socksName(webHost, 80))
	hears(t, c, socksReply(7))
	client.out.await("failed to negotiate socks connection: CommandNotSupported:", "there is no DNS proxy")
}

// Success was said before anybody was asked (contract 6), so that a reset is
// what is left to say.
func TestASOCKSClientWhoseTargetCannotBeReached(t *testing.T) {
	client := socksPair(t)
	c := client.proxied()
	tells(t, c, socksTo(1, 10, 9, 9, 9, 0, 80))
	hears(t, c, socksReply(0))
	wantReset(t, c)
	client.out.await("access\tconnection complete", "dst.addr=10.9.9.9:80", "Connection refused (os error 111)")
}

func TestASOCKSClientCannotReachUsThroughUs(t *testing.T) {
	n := newLAN(t)
	n.put(clientWorkload())
	client := n.start(clientWorkload())
	c := client.proxied()
	tells(t, c, socksTo(1, 127, 0, 0, 1, 0x3a, 0x99))
	hears(t, c, socksReply(0))
	wantReset(t, c)
	client.out.await("attempted recursive call to ourselves")
}

func TestTheEndOfAProxyEndsNegotiations(t *testing.T) {
	client := socksPair(t)
	c := client.proxied()
	tells(t, c, []byte{5, 1, 0})
	hears(t, c, []byte{5, 0})
	client.Stop(0)
	if _, err := io.ReadAll(c); errors.Is(err, os.ErrDeadlineExceeded) {
		t.Error(err)
	}
	client.out.await("failed to negotiate socks connection: " + ErrDrained.Error())
}

func TestASOCKSClientIsNotWaitedForWithoutEnd(t *testing.T) {
	n := newLAN(t)
	n.put(clientWorkload())
	client := n.start(clientWorkload(), func(c *Config) { c.SOCKSWait = 20 * time.Millisecond })
	c := client.proxied()
	tells(t, c, []byte{5, 1, 0, 5})
	hears(t, c, []byte{5, 0})
	if _, err := io.ReadAll(c); errors.Is(err, os.ErrDeadlineExceeded) {
		t.Error("it was")
	}
	client.out.await("failed to negotiate socks connection: General: read request:", "i/o timeout")
}

// A client that is known by IPv6 asks for IPv6.
func TestNamesAreLookedUpInTheClientsFamily(t *testing.T) {
	var asked []bool
	p := &Proxy{sockets: Sockets{Resolve: func(_ context.Context, _ string, v6 bool) (netip.Addr, error) {
		asked = append(asked, v6)
		return netip.Addr{}, nil
	}}}
	for _, peer := range []string{"127.0.0.1:1", "[::1]:1"} {
		if _, err := p.resolver(&capture.Conn{Peer: addrPort(peer)})(t.Context(), "x"); err != nil {
			t.Fatal(err)
		}
	}
	if len(asked) != 2 || asked[0] || !asked[1] {
		t.Errorf("asked for IPv6: %v", asked)
	}
}
