// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"net"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/miekg/dns"

	"github.com/ztunnel-go/ztunnel/test/netlab"
	"github.com/ztunnel-go/ztunnel/test/netlab/serve"
)

// TestDNS asks from pods, as their resolvers do.
func TestDNS(t *testing.T) {
	w := plan(t)
	forwarded := netip.MustParseAddr("203.0.113.7")
	w.serve(w.outside.Host, serve.Options{DNS: port(53), Records: map[string][]netip.Addr{outsideName: {forwarded}}})
	w.up()
	vips := serviceVIPs()
	answers := map[string]netip.Addr{serviceName: vips[0], "b.default.svc": vips[0], outsideName: forwarded}

	t.Run("two resolvers on one socket", func(t *testing.T) {
		pc, err := w.a.ListenPacket("udp4", "0.0.0.0:0")
		must(t, err)
		defer pc.Close()
		for range 2 {
			for _, server := range w.resolvers {
				for name, want := range answers {
					ask(t, pc, at(server, 53), name, want)
				}
			}
		}
	})
	t.Run("TCP", func(t *testing.T) {
		for name, want := range answers {
			c := w.dial(t, w.a.Host, at(w.resolvers[0], 53))
			q := new(dns.Msg).SetQuestion(dns.Fqdn(name), dns.TypeA)
			reply, _, err := new(dns.Client).ExchangeWithConn(q, &dns.Conn{Conn: c})
			must(t, err)
			wantAddress(t, reply, want)
		}
	})
	t.Run("names that are not", func(t *testing.T) {
		pc, err := w.a.ListenPacket("udp4", "0.0.0.0:0")
		must(t, err)
		defer pc.Close()
		q := new(dns.Msg).SetQuestion("nobody.outside.example.", dns.TypeA)
		if reply := exchange(t, pc, at(w.resolvers[0], 53), q); reply.Rcode != dns.RcodeNameError {
			t.Errorf("nobody is %v", reply)
		}
	})
	t.Run("not from outside", func(t *testing.T) { w.dnsFromOutside(t) })
}

// ask wants one A record and wants it from the server that was asked.
func ask(t *testing.T, pc net.PacketConn, server netip.AddrPort, name string, want netip.Addr) {
	t.Helper()
	wantAddress(t, exchange(t, pc, server, new(dns.Msg).SetQuestion(dns.Fqdn(name), dns.TypeA)), want)
}

func wantAddress(t *testing.T, reply *dns.Msg, want netip.Addr) {
	t.Helper()
	ok := slices.ContainsFunc(reply.Answer, func(rr dns.RR) bool {
		a, ok := rr.(*dns.A)
		return ok && a.A.Equal(want.AsSlice())
	})
	if !ok {
		t.Errorf("want %v in\n%v", want, reply)
	}
}

func exchange(t *testing.T, pc net.PacketConn, server netip.AddrPort, q *dns.Msg) *dns.Msg {
	t.Helper()
	packed, err := q.Pack()
	must(t, err)
	_, err = pc.WriteTo(packed, net.UDPAddrFromAddrPort(server))
	must(t, err)
	must(t, pc.SetReadDeadline(time.Now().Add(patience)))
	b := make([]byte, dns.MaxMsgSize)
	n, from, err := pc.ReadFrom(b)
	must(t, err)
	if from.String() != server.String() {
		t.Errorf("%v was asked, and %v answered", server, from)
	}
	reply := new(dns.Msg)
	must(t, reply.Unpack(b[:n]))
	if reply.Id != q.Id {
		t.Errorf("the answer has id %d, the question %d", reply.Id, q.Id)
	}
	return reply
}

// dnsFromOutside asks a captured pod's DNS server from everywhere else, which
// it must not answer: it is the pod's alone, and would amplify.
func (w *world) dnsFromOutside(t *testing.T) {
	q, err := new(dns.Msg).SetQuestion(dns.Fqdn(serviceName), dns.TypeA).Pack()
	must(t, err)
	for _, from := range []*netlab.Host{w.stranger.Host, w.c.Host, w.outside.Host, w.n1.Host, w.n2.Host} {
		for _, to := range []netip.AddrPort{w.b.Addr(15053), w.b.Addr6(15053), w.b.Addr(53), w.b.Addr6(53)} {
			c, err := from.Dial(t.Context(), "udp", to.String())
			must(t, err)
			_, err = c.Write(q)
			must(t, err)
			if from == w.c.Host && to.Port() == 53 {
				c.Close() // captured: c's own DNS server answers in b's name
				continue
			}
			// A closed port says so: that is what ends the wait.
			must(t, c.SetReadDeadline(time.Now().Add(patience)))
			if n, err := c.Read(make([]byte, 512)); err == nil {
				t.Errorf("%s got %d bytes from %v", from.Name(), n, to)
			} else if !isRefused(err) {
				t.Errorf("%s asked %v: %v, want a port unreachable", from.Name(), to, err)
			}
			c.Close()
		}
	}
}
