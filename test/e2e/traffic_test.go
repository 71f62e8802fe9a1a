// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"fmt"
	"io"
	"net"
	"net/netip"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/ztunnel-go/ztunnel/test/netlab"
	"github.com/ztunnel-go/ztunnel/test/netlab/serve"
)

// TestTraffic is what applications do on a good day, in one lab.
func TestTraffic(t *testing.T) {
	w := plan(t)
	must(t, w.a.Sysctl(fastOpenSetting, fastOpenOnSYN)) // before somebody listens there
	w.up()
	w.serve(w.c.Host, serve.Options{HTTP: port(portHTTP), Echo: port(portEcho)})
	w.serve(w.outside.Host, serve.Options{HTTP: port(portHTTP)})
	secret := w.watch(t, w.a, w.b, w.c)

	t.Run("pod addresses", func(t *testing.T) { w.podAddresses(t) })
	t.Run("service addresses", func(t *testing.T) { w.serviceAddresses(t) })
	t.Run("kinds of clients", func(t *testing.T) { w.kindsOfClients(t, secret.marker) })
	t.Run("bulk", func(t *testing.T) { w.bulk(t) })
	t.Run("self-call", func(t *testing.T) { w.selfCall(t) })
	t.Run("outside the mesh", func(t *testing.T) { w.passthrough(t) })
	t.Run("from a pod out of the mesh", func(t *testing.T) { w.fromStranger(t) })
	t.Run("a probe of the node", func(t *testing.T) { w.probe(t) })
	t.Run("loops", func(t *testing.T) { w.loops(t) })
	secret.kept(t)

	// The control: what the recorders do not find above they would have seen.
	control := w.watch(t)
	must(t, refused(w.stranger.Host, w.b.Addr(portEcho), control.marker))
	echoOutside := listen(t, w.outside.Host, port(portEcho))
	c := w.dial(t, w.stranger.Host, at(w.outside.IPv4, portEcho))
	_, err := c.Write(control.marker)
	must(t, err)
	must(t, c.CloseWrite())
	ended(echoOutside.accept(t))
	if len(control.seen(t)) == 0 {
		t.Error("the recorders see nothing")
	}
}

// podAddresses reaches pods by their own addresses; servers see the client's.
func (w *world) podAddresses(t *testing.T) {
	for _, tc := range []struct {
		name string
		to   *netlab.Pod
	}{{"same node", w.c}, {"across nodes", w.b}} {
		for _, family := range []struct {
			name     string
			to, from netip.Addr
		}{{"IPv4", tc.to.IPv4, w.a.IPv4}, {"IPv6", tc.to.IPv6, w.a.IPv6}} {
			t.Run(tc.name+" "+family.name, func(t *testing.T) {
				since1 := w.p1.Output.Mark()
				target := at(family.to, portHTTP)
				saw := get(t, w.a.Host, target)
				if saw.Server != tc.to.Name() || peerOf(t, saw) != family.from {
					t.Errorf("%s saw %s, want %v at %s", saw.Server, saw.Peer, family.from, tc.to.Name())
				}
				w.logged(t, w.p1, since1, "\taccess\tconnection complete", `direction="outbound"`,
					fmt.Sprintf("dst.addr=%v dst.hbone_addr=%v", at(family.to, 15008), target),
					`src.identity="spiffe://cluster.local/ns/default/sa/a"`,
					fmt.Sprintf(`dst.identity="spiffe://cluster.local/ns/%s/sa/%s"`, namespaceOf(tc.to), tc.to.Name()))
			})
		}
	}
}

// serviceAddresses reaches b by its service's addresses, and learns its port.
func (w *world) serviceAddresses(t *testing.T) {
	for _, vip := range serviceVIPs() {
		since := w.p2.Output.Mark()
		saw := get(t, w.a.Host, at(vip, 80))
		local, err := netip.ParseAddrPort(saw.Local)
		must(t, err)
		if saw.Server != "b" || local.Port() != portHTTP || local.Addr().Unmap().Is4() != vip.Is4() {
			t.Errorf("%v led to %s at %s", vip, saw.Server, saw.Local)
		}
		w.logged(t, w.p2, since, "\taccess\tconnection complete", `direction="inbound"`,
			`src.identity="spiffe://cluster.local/ns/default/sa/a"`, `dst.service="`+serviceName+`"`)
	}
}

// kindsOfClients are sockets that are not made as most are.
func (w *world) kindsOfClients(t *testing.T, payload []byte) {
	targets := map[string]netip.AddrPort{
		"pod": w.b.Addr(portEcho), "same node": w.c.Addr(portEcho), "service": at(serviceVIPs()[0], 7),
	}
	for name, connect := range map[string]func(*testing.T, netip.AddrPort) net.Conn{
		"v4-mapped":    w.connectMapped,
		"non-blocking": w.connectNonBlocking,
		"Multipath":    w.connectMultipath,
	} {
		for where, to := range targets {
			t.Run(name+" to "+where, func(t *testing.T) { echo(t, connect(t, to), payload) })
		}
	}
	for where, to := range targets {
		t.Run("Fast Open to "+where, func(t *testing.T) { w.fastOpen(t, to, payload) })
	}
}

func (w *world) connectMapped(t *testing.T, to netip.AddrPort) net.Conn {
	s := newSocket(t, w.a.Host, unix.AF_INET6, 0)
	must(t, unix.Connect(s.fd, sockaddr(unix.AF_INET6, to)))
	return s.conn(t)
}

func (w *world) connectNonBlocking(t *testing.T, to netip.AddrPort) net.Conn {
	s := newSocket(t, w.a.Host, unix.AF_INET, 0)
	must(t, unix.SetNonblock(s.fd, true))
	if err := unix.Connect(s.fd, sockaddr(unix.AF_INET, to)); err != unix.EINPROGRESS {
		t.Fatalf("connect: %v, want EINPROGRESS", err)
	}
	fds := []unix.PollFd{{Fd: int32(s.fd), Events: unix.POLLOUT}}
	n, err := unix.Poll(fds, int(patience.Milliseconds()))
	if n != 1 || err != nil {
		t.Fatalf("poll: %d, %v", n, err)
	}
	failed, err := unix.GetsockoptInt(s.fd, unix.SOL_SOCKET, unix.SO_ERROR)
	must(t, err)
	if failed != 0 {
		t.Fatalf("connect: %v", unix.Errno(failed))
	}
	return s.conn(t)
}

func (w *world) connectMultipath(t *testing.T, to netip.AddrPort) net.Conn {
	s := newSocket(t, w.a.Host, unix.AF_INET, unix.IPPROTO_MPTCP)
	must(t, unix.Connect(s.fd, sockaddr(unix.AF_INET, to)))
	return s.conn(t)
}

// fastOpen sends with the connect (RFC 7413), without and with the data on the
// SYN itself.
func (w *world) fastOpen(t *testing.T, to netip.AddrPort, payload []byte) {
	for _, mode := range []string{"1", fastOpenOnSYN} {
		must(t, w.a.Sysctl(fastOpenSetting, mode))
		s := newSocket(t, w.a.Host, unix.AF_INET, 0)
		n, err := unix.SendmsgN(s.fd, payload, nil, sockaddr(unix.AF_INET, to), unix.MSG_FASTOPEN)
		if err != nil || n != len(payload) {
			t.Fatalf("mode %s: %d bytes sent, %v", mode, n, err)
		}
		info, err := unix.GetsockoptTCPInfo(s.fd, unix.IPPROTO_TCP, unix.TCP_INFO)
		must(t, err)
		const synData = 32 // TCPI_OPT_SYN_DATA of linux/tcp.h: it was acknowledged with the SYN
		if onSYN := info.Options&synData != 0; onSYN != (mode == fastOpenOnSYN) {
			t.Errorf("mode %s: data on the SYN was taken: %v", mode, onSYN)
		}
		c := s.conn(t)
		got := make([]byte, len(payload))
		if _, err := io.ReadFull(c, got); err != nil || string(got) != string(payload) {
			t.Fatalf("mode %s: the echo is %q, %v", mode, got, err)
		}
	}
}

// fastOpenOnSYN lets clients send data on a SYN without a cookie, and listeners
// take it, all of them (net.ipv4.tcp_fastopen, bits 0, 1, 2, 9 and 10).
const (
	fastOpenSetting = "net/ipv4/tcp_fastopen"
	fastOpenOnSYN   = "1543"
)

// bulk sends much, each way, to the pod and to the service.
func (w *world) bulk(t *testing.T) {
	const size = 50_000_000
	must(t, upload(w.dial(t, w.a.Host, w.b.Addr(portSink)), size))
	must(t, download(w.dial(t, w.a.Host, w.b.Addr6(portSource)), size))
	must(t, upload(w.dial(t, w.a.Host, at(serviceVIPs()[1], 9)), size))
	must(t, download(w.dial(t, w.a.Host, at(serviceVIPs()[0], 19)), size))
}

// selfCall reaches the pod itself: directly by its own address, through the
// proxy by its service's.
func (w *world) selfCall(t *testing.T) {
	since := w.p2.Output.Mark()
	for _, own := range []netip.Addr{w.b.IPv4, w.b.IPv6} {
		if saw := get(t, w.b.Host, at(own, portHTTP)); saw.Server != "b" || peerOf(t, saw) != own {
			t.Errorf("by %v: %+v", own, saw)
		}
	}
	if saw := get(t, w.b.Host, at(serviceVIPs()[0], 80)); saw.Server != "b" {
		t.Errorf("by the service: %+v", saw)
	}
	w.logged(t, w.p2, since, `direction="outbound"`, `src.workload="b"`, "dst.hbone_addr="+w.b.Addr(portHTTP).String())
	for _, line := range w.p2.Output.Lines(since) {
		for _, own := range []netip.Addr{w.b.IPv4, w.b.IPv6} {
			if containsAll(line, `direction="inbound"`, "dst.addr="+at(own, portHTTP).String()) {
				t.Errorf("a call of itself went through the proxy: %s", line)
			}
		}
	}
}

// passthrough reaches what the mesh does not know, as if nobody were between.
func (w *world) passthrough(t *testing.T) {
	for _, to := range []struct{ outside, from netip.Addr }{{w.outside.IPv4, w.a.IPv4}, {w.outside.IPv6, w.a.IPv6}} {
		since := w.p1.Output.Mark()
		saw := get(t, w.a.Host, at(to.outside, portHTTP))
		if saw.Server != "outside" || peerOf(t, saw) != to.from {
			t.Errorf("%v: %+v", to.outside, saw)
		}
		line := w.logged(t, w.p1, since, `direction="outbound"`, "dst.addr="+at(to.outside, portHTTP).String())
		if containsAll(line, "hbone") || containsAll(line, "identity") {
			t.Errorf("as if it were the mesh's: %s", line)
		}
	}
}

// fromStranger comes in plaintext, and is let in where no policy forbids it.
func (w *world) fromStranger(t *testing.T) {
	for _, to := range []struct{ b, from netip.Addr }{{w.b.IPv4, w.stranger.IPv4}, {w.b.IPv6, w.stranger.IPv6}} {
		since := w.p2.Output.Mark()
		if saw := get(t, w.stranger.Host, at(to.b, portHTTP)); saw.Server != "b" || peerOf(t, saw) != to.from {
			t.Errorf("%v: %+v", to.b, saw)
		}
		w.logged(t, w.p2, since, `direction="inbound"`, "dst.addr="+at(to.b, portHTTP).String())
	}
}

// probe comes from the pod's node, and past the proxy.
func (w *world) probe(t *testing.T) {
	since := w.p2.Output.Mark()
	for _, to := range []struct{ b, from netip.Addr }{{w.b.IPv4, w.n2.IPv4}, {w.b.IPv6, w.n2.IPv6}} {
		if saw := get(t, w.n2.Host, at(to.b, portHTTP)); saw.Server != "b" || peerOf(t, saw) != to.from {
			t.Errorf("%v: %+v", to.b, saw)
		}
		// Another node is nobody special.
		get(t, w.n1.Host, at(to.b, portHTTP))
		w.logged(t, w.p2, since, `direction="inbound"`, "dst.addr="+at(to.b, portHTTP).String())
	}
	for _, line := range w.p2.Output.Lines(since) {
		if containsAll(line, "src.addr="+w.n2.IPv4.String()+":") {
			t.Errorf("a probe went through the proxy: %s", line)
		}
	}
}

// loops are calls of the proxy's own ports, which it must not answer by calling
// itself.
func (w *world) loops(t *testing.T) {
	const recursive = "attempted recursive call to ourselves"
	for _, tc := range []struct {
		from  *netlab.Host
		to    netip.AddrPort
		where string // the proxy that says so; empty: nobody need say anything
	}{
		{w.a.Host, w.b.Addr(15001), "node2"}, {w.a.Host, w.b.Addr6(15006), "node2"}, {w.a.Host, w.c.Addr(15001), "node1"},
		{w.stranger.Host, w.b.Addr(15001), "node2"}, {w.stranger.Host, w.b.Addr6(15006), "node2"},
		{w.a.Host, w.a.Addr(15001), ""}, {w.a.Host, at(netip.MustParseAddr("127.0.0.1"), 15001), ""},
	} {
		p := map[string]int{"node1": w.p1.Output.Mark(), "node2": w.p2.Output.Mark()}
		if err := refused(tc.from, tc.to, []byte("anybody?")); err == nil {
			t.Errorf("%s to %v was answered", tc.from.Name(), tc.to)
		}
		switch tc.where {
		case "node1":
			w.logged(t, w.p1, p["node1"], recursive)
		case "node2":
			w.logged(t, w.p2, p["node2"], recursive)
		}
	}
}
