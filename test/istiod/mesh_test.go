// SPDX-License-Identifier: Apache-2.0

package istiod

import (
	"context"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/miekg/dns"

	"github.com/ztunnel-go/ztunnel/test/netlab/serve"
)

// captures are the ways that pods' connections come to the proxy: the rules of
// Istio's node agent, and our programs in place of them.
var captures = []string{"istio-cni", "ebpf"}

// TestMesh is what every mesh has, once with each way to capture.
func TestMesh(t *testing.T) {
	for _, capture := range captures {
		t.Run(capture, func(t *testing.T) {
			w := newWorld(t, capture, nil)
			t.Run("by VIP and by pod IP over mTLS", w.reachable)
			t.Run("STRICT refuses plaintext", w.strict)
			t.Run("a policy denies, then allows, live connections", w.policies)
			t.Run("a policy allows nobody else", w.allow)
			t.Run("a service entry with a VIP", w.entryVIP)
			t.Run("a service entry with endpoints by name", w.entryName)
			t.Run("a service entry without resolution", w.entryNone)
			t.Run("a headless service", w.headless)
			t.Run("the nearest endpoint, then the next", w.failover)
			t.Run("a pod comes, changes and goes", w.lifeOfAPod)
			t.Run("a waypoint", w.waypoints)
			t.Run("istioctl understands config_dump", w.istioctl)
		})
	}
}

func (w *world) reachable(t *testing.T) {
	for name, to := range map[string]netip.AddrPort{
		"VIP": at(vipB, viaHTTP), "IPv6 VIP": at(vipB6, viaHTTP),
		"pod IP": w.b.Addr(portHTTP), "pod IPv6": w.b.Addr6(portHTTP),
	} {
		t.Run(name, func(t *testing.T) {
			peer := w.a.IPv4
			if to.Addr().Is6() {
				peer = w.a.IPv6
			}
			// Until istiod has told that b is in the mesh, connections to it
			// are passed through.
			eventually(t, func() error {
				since := w.p1.Output.Mark()
				if err := reached(w.a.Host, to, "b", peer); err != nil {
					return err
				}
				ctx, cancel := context.WithTimeout(t.Context(), time.Second)
				defer cancel()
				_, err := w.p1.Output.Await(ctx, since, `direction="outbound"`, "dst.hbone_addr=")
				return err
			})
			since1, since2 := w.p1.Output.Mark(), w.p2.Output.Mark()
			reaches(t, w.a.Host, to, "b", peer)
			w.tunnelled(t, w.p1, since1, w.a, w.b, `direction="outbound"`, "dst.hbone_addr=", ":15008")
			w.tunnelled(t, w.p2, since2, w.a, w.b, `direction="inbound"`)
		})
	}
}

func (w *world) strict(t *testing.T) {
	reaches(t, w.outside.Host, w.b.Addr(portHTTP), "b", w.outside.IPv4)
	w.istiod.apply(t, strictYAML("default"))
	refused(t, w.outside.Host, w.b.Addr(portHTTP))
	must(t, reached(w.a.Host, at(vipB, viaHTTP), "b", w.a.IPv4))
	w.istiod.remove(t, strictYAML("default"))
	reaches(t, w.outside.Host, w.b.Addr(portHTTP), "b", w.outside.IPv4)
}

func (w *world) policies(t *testing.T) {
	live := dial(t, w.a.Host, at(vipB, viaEcho))
	must(t, echo(live, "before"))
	other := dial(t, w.c.Host, w.b.Addr(portEcho))
	must(t, echo(other, "before"))

	deny := policyYAML("no-a", "default", "", "DENY", w.a.identity())
	w.istiod.apply(t, deny)
	ends(t, live)
	refused(t, w.a.Host, w.b.Addr(portHTTP))
	must(t, echo(other, "after"))

	w.istiod.remove(t, deny)
	eventually(t, func() error { return talk(w.a.Host, at(vipB, viaEcho)) })
	must(t, echo(other, "to the end"))
}

// allow has policies of one pod. A connection is judged by those that its pod
// had when it began (contract 5.5): by their newest content, but not by others.
func (w *world) allow(t *testing.T) {
	w.istiod.during(t, policyYAML("only", "default", "b", "ALLOW", w.c.identity()))
	refused(t, w.outside.Host, w.b.Addr(portHTTP))
	eventually(t, func() error { return talk(w.c.Host, w.b.Addr(portEcho)) })
	if talk(w.a.Host, w.b.Addr(portEcho)) == nil {
		t.Error("a reaches b, which only c may")
	}

	live := dial(t, w.c.Host, w.b.Addr(portEcho))
	must(t, echo(live, "before"))
	w.istiod.apply(t, policyYAML("only", "default", "b", "ALLOW", w.a.identity()))
	ends(t, live)
	eventually(t, func() error { return talk(w.a.Host, w.b.Addr(portEcho)) })
}

// serveOutside runs a server that no mesh knows, and a resolver that does.
func (w *world) serveOutside(t *testing.T, records map[string][]netip.Addr) {
	t.Helper()
	s, err := w.outside.Serve(serve.Options{Name: "outside", HTTP: port(portHTTP), DNS: port(53), Records: records})
	must(t, err)
	t.Cleanup(func() {
		if err := s.Stop(); err != nil {
			t.Error(err)
		}
	})
}

func (w *world) entryVIP(t *testing.T) {
	w.serveOutside(t, nil)
	vip := netip.MustParseAddr("240.240.1.1")
	w.istiod.during(t, serviceEntryYAML("static", "default", "static.example", vip.String(), "STATIC", w.outside.IPv4.String()))
	must(t, w.p1.AwaitPage(w.patience(), dumpPage, "static.example"))
	since := w.p1.Output.Mark()
	reaches(t, w.a.Host, at(vip, viaHTTP), "outside", w.a.IPv4)
	w.logged(t, w.p1, since, `direction="outbound"`, `dst.service="static.example"`)
}

func (w *world) entryName(t *testing.T) {
	const name = "real.outside.example"
	w.serveOutside(t, map[string][]netip.Addr{name: {w.outside.IPv4}})
	vip := netip.MustParseAddr("240.240.1.2")
	w.istiod.during(t, serviceEntryYAML("dynamic", "default", "dynamic.example", vip.String(), "DNS", name))
	must(t, w.p1.AwaitPage(w.patience(), dumpPage, "dynamic.example"))
	since := w.p1.Output.Mark()
	reaches(t, w.a.Host, at(vip, viaHTTP), "outside", w.a.IPv4)
	w.logged(t, w.p1, since, `direction="outbound"`, `dst.service="dynamic.example"`)
}

func (w *world) entryNone(t *testing.T) {
	w.serveOutside(t, nil)
	w.istiod.during(t, serviceEntryYAML("none", "default", "none.example", w.outside.IPv4.String(), "NONE"))
	must(t, w.p1.AwaitPage(w.patience(), dumpPage, "none.example"))
	must(t, reached(w.a.Host, at(w.outside.IPv4, portHTTP), "outside", w.a.IPv4))
}

// headless asks for a headless service's addresses as a pod's resolver does,
// and finds a pod in the mesh there.
func (w *world) headless(t *testing.T) {
	w.istiod.during(t, serviceYAML("b-headless", "default", "b", ""))
	must(t, w.p1.AwaitPage(w.patience(), dumpPage, "b-headless"))
	var found netip.Addr
	eventually(t, func() (err error) {
		found, err = lookup(w.a, "b-headless.default.svc.cluster.local")
		return err
	})
	if found != w.b.IPv4 {
		t.Fatalf("the headless service is at %v; want %v", found, w.b.IPv4)
	}
	since := w.p1.Output.Mark()
	must(t, reached(w.a.Host, at(found, portHTTP), "b", w.a.IPv4))
	w.tunnelled(t, w.p1, since, w.a, w.b)
}

// lookup asks a resolver that is not there for an IPv4 address; the proxy
// answers in its place.
func lookup(from *pod, name string) (netip.Addr, error) {
	const limit = 2 * time.Second
	pc, err := from.ListenPacket("udp4", "0.0.0.0:0")
	if err != nil {
		return netip.Addr{}, err
	}
	defer pc.Close()
	_ = pc.SetDeadline(time.Now().Add(limit))
	packed, err := new(dns.Msg).SetQuestion(dns.Fqdn(name), dns.TypeA).Pack()
	if err != nil {
		return netip.Addr{}, err
	}
	resolver := &net.UDPAddr{IP: net.IPv4(10, 96, 0, 10), Port: 53}
	if _, err := pc.WriteTo(packed, resolver); err != nil {
		return netip.Addr{}, err
	}
	buf := make([]byte, dns.DefaultMsgSize)
	n, _, err := pc.ReadFrom(buf)
	if err != nil {
		return netip.Addr{}, err
	}
	var reply dns.Msg
	if err := reply.Unpack(buf[:n]); err != nil {
		return netip.Addr{}, err
	}
	for _, rr := range reply.Answer {
		if a, ok := rr.(*dns.A); ok {
			addr, _ := netip.AddrFromSlice(a.A)
			return addr.Unmap(), nil
		}
	}
	return netip.Addr{}, &net.DNSError{Err: reply.String(), Name: name}
}
