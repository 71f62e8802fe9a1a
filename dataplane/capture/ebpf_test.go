// SPDX-License-Identifier: Apache-2.0

package capture

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ztunnel-go/ztunnel/test/netlab"
)

func wants(t *testing.T, what, got string, err error, want string) {
	t.Helper()
	if err != nil || !strings.HasPrefix(got, want) {
		t.Errorf("%s: got %q, %v, want %q", what, got, err, want)
	}
}

// socket makes a raw descriptor in a host's namespace, closed with the test.
func socket(t *testing.T, h *netlab.Host, family, kind, proto int) int {
	t.Helper()
	fd := -1
	must(t, h.Do(func() (err error) {
		fd, err = unix.Socket(family, kind|unix.SOCK_CLOEXEC, proto)
		return err
	}))
	t.Cleanup(func() { unix.Close(fd) })
	must(t, unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_SNDTIMEO, &unix.Timeval{Sec: 3}))
	must(t, unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: 3}))
	return fd
}

func sockaddr4(s string) *unix.SockaddrInet4 {
	ap := netip.MustParseAddrPort(s)
	return &unix.SockaddrInet4{Port: int(ap.Port()), Addr: ap.Addr().As4()}
}

func sockaddr6(s string) *unix.SockaddrInet6 {
	ap := netip.MustParseAddrPort(s)
	return &unix.SockaddrInet6{Port: int(ap.Port()), Addr: ap.Addr().As16()}
}

// readLine reads once, which on lo brings the whole greeting.
func readLine(fd int) (string, error) {
	b := make([]byte, 512)
	n, err := unix.Read(fd, b)
	return string(b[:max(n, 0)]), err
}

func TestOutboundKnowsWhereItWasGoing(t *testing.T) {
	r := newRig(t)
	pod := r.pod("a")
	p := r.capture(pod)
	if p.Tier() != TierEBPF {
		t.Errorf("tier %v", p.Tier())
	}
	v4 := "outbound dst=203.0.113.9:443 peer=" + pod.IPv4.String()
	got, err := ask(pod.Host, "203.0.113.9:443", "x")
	wants(t, "IPv4", got, err, v4)
	got, err = ask(pod.Host, "[2001:db8:9::9]:443", "x")
	wants(t, "IPv6", got, err, "outbound dst=[2001:db8:9::9]:443 peer="+pod.IPv6.String())

	fd := socket(t, pod.Host, unix.AF_INET6, unix.SOCK_STREAM, 0)
	must(t, unix.Connect(fd, sockaddr6("[::ffff:203.0.113.9]:443")))
	got, err = readLine(fd)
	wants(t, "v4-mapped", got, err, v4)

	fd = socket(t, pod.Host, unix.AF_INET, unix.SOCK_STREAM, unix.IPPROTO_MPTCP)
	must(t, unix.Connect(fd, sockaddr4("203.0.113.9:443")))
	got, err = readLine(fd)
	wants(t, "MPTCP", got, err, v4)

	fd = socket(t, pod.Host, unix.AF_INET, unix.SOCK_STREAM, 0)
	must(t, unix.SetNonblock(fd, true))
	if err := unix.Connect(fd, sockaddr4("203.0.113.9:443")); err != unix.EINPROGRESS {
		t.Errorf("non-blocking connect: %v", err)
	}
	must(t, unix.SetNonblock(fd, false))
	got, err = readLine(fd)
	wants(t, "non-blocking", got, err, v4)

	fd = socket(t, pod.Host, unix.AF_INET, unix.SOCK_STREAM, 0)
	must(t, unix.Sendto(fd, []byte("early"), unix.MSG_FASTOPEN, sockaddr4("203.0.113.9:443")))
	got, err = readLine(fd)
	wants(t, "TCP Fast Open", got, err, v4)

	fd = socket(t, pod.Host, unix.AF_INET, unix.SOCK_STREAM, 0)
	must(t, unix.Connect(fd, sockaddr4("203.0.113.8:80")))
	disconnect(t, fd)
	must(t, unix.Connect(fd, sockaddr4("203.0.113.9:443")))
	got, err = readLine(fd)
	wants(t, "after a disconnect", got, err, v4)
}

// disconnect is connect(2) to AF_UNSPEC.
func disconnect(t *testing.T, fd int) {
	t.Helper()
	var none [16]byte // sa_family 0
	must(t, connectRaw(fd, none[:]))
}

func TestLoopbackAndThePodItselfAreLeftAlone(t *testing.T) {
	r := newRig(t)
	pod := r.pod("a")
	app(t, pod.Host, "[::]:8080")
	r.capture(pod)
	for _, addr := range []string{"127.0.0.1:8080", "[::1]:8080", pod.Addr(8080).String(), pod.Addr6(8080).String()} {
		got, err := ask(pod.Host, addr, "x")
		host, _, _ := net.SplitHostPort(addr)
		wants(t, addr, got, err, "app from="+host+"\nx")
	}
}

func TestInboundComesByTheProxyAsTheClient(t *testing.T) {
	r := newRig(t)
	pod, other := r.pod("a"), r.pod("b")
	app(t, pod.Host, "[::]:8080")
	app(t, pod.Host, "[::]:15008") // an application in the way
	r.capture(pod)
	got, err := ask(other.Host, pod.Addr(8080).String(), "x")
	wants(t, "IPv4", got, err, fmt.Sprintf("inbound plaintext dst=%v peer=%v\napp from=%v\nx", pod.Addr(8080), other.IPv4, other.IPv4))
	got, err = ask(other.Host, pod.Addr6(8080).String(), "x")
	wants(t, "IPv6", got, err, fmt.Sprintf("inbound plaintext dst=%v peer=%v\napp from=%v\nx", pod.Addr6(8080), other.IPv6, other.IPv6))
	got, err = ask(other.Host, pod.Addr(15008).String(), "x")
	wants(t, "HBONE", got, err, fmt.Sprintf("inbound dst=%v", pod.Addr(15008)))
	// Our own listeners are not to be had from outside: only as a
	// destination, which is the proxy's to refuse.
	got, err = ask(other.Host, pod.Addr(15001).String(), "x")
	wants(t, "15001", got, err, fmt.Sprintf("inbound plaintext dst=%v", pod.Addr(15001)))
}

func TestAClosedPortIsRefusedAtOnce(t *testing.T) {
	r := newRig(t)
	pod := r.pod("a")
	p := r.capture(pod)
	for _, to := range []struct {
		client netip.Addr
		dst    netip.AddrPort
	}{{netip.MustParseAddr("203.0.113.7"), pod.Addr(81)}, {netip.MustParseAddr("2001:db8:7::7"), pod.Addr6(81)}} {
		ctx, cancel := context.WithTimeout(context.Background(), 100*time.Millisecond)
		_, err := p.Deliver(ctx, to.client, to.dst)
		cancel()
		if !errors.Is(err, unix.ECONNREFUSED) {
			t.Errorf("%v: %v", to.dst, err)
		}
	}
}

func TestProbesFromTheHostPassAndAreCounted(t *testing.T) {
	r := newRig(t)
	pod := r.pod("a")
	app(t, pod.Host, "[::]:8080")
	p := r.capture(pod)
	got, err := ask(r.host.Host, pod.Addr(8080).String(), "x")
	wants(t, "IPv4", got, err, "app from=10.")
	got, err = ask(r.host.Host, pod.Addr6(8080).String(), "x")
	wants(t, "IPv6", got, err, "app from=fd77")
	fd := socket(t, r.host.Host, unix.AF_INET6, unix.SOCK_STREAM, 0)
	must(t, unix.Connect(fd, sockaddr6("[::ffff:"+pod.IPv4.String()+"]:8080")))
	got, err = readLine(fd)
	wants(t, "v4-mapped", got, err, "app from=10.")
	if got := podCount(t, p, "pass_host"); got != 3 {
		t.Errorf("the pod counts %d passes of the host, want 3", got)
	}
	must(t, p.Release()) // the proxy is away
	got, err = ask(r.host.Host, pod.Addr(8080).String(), "x")
	wants(t, "without a proxy", got, err, "app from=10.")
}

func podCount(t *testing.T, p *proxy, reason string) uint64 {
	t.Helper()
	counts, err := p.Counters()
	must(t, err)
	for _, c := range counts {
		if c.Reason == reason {
			return c.Value
		}
	}
	return 0
}

func TestDNSIsAnsweredAsTheServerThatWasAsked(t *testing.T) {
	r := newRig(t)
	pod, other := r.pod("a"), r.pod("b")
	r.capture(pod)
	pc, err := pod.ListenPacket("udp4", "0.0.0.0:0")
	must(t, err)
	defer pc.Close()
	pc.SetDeadline(time.Now().Add(3 * time.Second))
	for _, server := range []string{"10.96.0.10:53", "10.96.0.11:53"} {
		_, err := pc.WriteTo([]byte(server), net.UDPAddrFromAddrPort(netip.MustParseAddrPort(server)))
		must(t, err)
		b := make([]byte, 100)
		n, from, err := pc.ReadFrom(b)
		must(t, err)
		if from.String() != server || string(b[:n]) != "dns "+server+" "+pod.IPv4.String() {
			t.Errorf("asked %s, answered by %v: %s", server, from, b[:n])
		}
	}
	c, err := pod.Dial(context.Background(), "udp", "[fd00::53]:53")
	must(t, err)
	defer c.Close()
	got, err := exchange(c, "q")
	wants(t, "IPv6", got, err, "dns q "+pod.IPv6.String())
	got, err = ask(pod.Host, "10.96.0.10:53", "")
	wants(t, "TCP", got, err, "dns-tcp 10.96.0.10:53")

	// From outside nobody answers, whatever the port.
	for _, port := range []uint16{53, 15053} {
		c, err := other.Dial(context.Background(), "udp", pod.Addr(port).String())
		must(t, err)
		defer c.Close()
		c.SetDeadline(time.Now().Add(300 * time.Millisecond))
		c.Write([]byte("q"))
		if n, err := c.Read(make([]byte, 100)); err == nil {
			t.Errorf("port %d: an outsider was answered with %d bytes", port, n)
		}
	}
}

func TestDNSIsAnsweredInAPodThatServesDNSItself(t *testing.T) {
	r := newRig(t)
	pod, other := r.pod("a"), r.pod("b")
	server, err := pod.ListenPacket("udp", "[::]:53")
	must(t, err)
	defer server.Close()
	r.capture(pod)
	for _, addr := range []string{"10.96.0.10:53", "[fd00::53]:53"} {
		c, err := pod.Dial(context.Background(), "udp", addr)
		must(t, err)
		defer c.Close()
		got, err := exchange(c, "q")
		wants(t, addr, got, err, "dns q ")
	}
	c, err := other.Dial(context.Background(), "udp", pod.Addr(53).String())
	must(t, err)
	defer c.Close()
	c.Write([]byte("for the application"))
	server.SetDeadline(time.Now().Add(3 * time.Second))
	b := make([]byte, 100)
	n, _, err := server.ReadFrom(b)
	wants(t, "the application's own clients", string(b[:n]), err, "for the application")
}

func exchange(c net.Conn, q string) (string, error) {
	c.SetDeadline(time.Now().Add(3 * time.Second))
	if _, err := io.WriteString(c, q); err != nil {
		return "", err
	}
	b := make([]byte, 512)
	n, err := c.Read(b)
	return string(b[:n]), err
}

func TestOtherUDPIsLeftAlone(t *testing.T) {
	r := newRig(t)
	pod, other := r.pod("a"), r.pod("b")
	r.capture(pod)
	server, err := other.ListenPacket("udp", other.Addr(7777).String())
	must(t, err)
	defer server.Close()
	c, err := pod.Dial(context.Background(), "udp", other.Addr(7777).String())
	must(t, err)
	defer c.Close()
	c.Write([]byte("ping"))
	server.SetDeadline(time.Now().Add(3 * time.Second))
	b := make([]byte, 10)
	n, from, err := server.ReadFrom(b)
	must(t, err)
	if string(b[:n]) != "ping" || canonicalUDP(from).Addr() != pod.IPv4 {
		t.Errorf("got %q from %v", b[:n], from)
	}
	server.WriteTo([]byte("pong"), from)
	got, err := exchange(c, "again")
	wants(t, "answer", got, err, "pong")
}

func canonicalUDP(a net.Addr) netip.AddrPort { return a.(*net.UDPAddr).AddrPort() }

func TestTheProxysOwnSocketsAreNotCaptured(t *testing.T) {
	r := newRig(t)
	pod, other := r.pod("a"), r.pod("b")
	app(t, other.Host, "[::]:8080")
	p := r.capture(pod)
	c, err := p.Dial(context.Background(), other.Addr(8080))
	must(t, err)
	defer c.Close()
	got, err := talk(c, "x")
	wants(t, "Dial", got, err, "app from="+pod.IPv4.String())
	pc, err := other.ListenPacket("udp", other.Addr(53).String())
	must(t, err)
	defer pc.Close()
	u, err := p.DialUDP(context.Background(), other.Addr(53))
	must(t, err)
	defer u.Close()
	u.Write([]byte("q"))
	pc.SetDeadline(time.Now().Add(3 * time.Second))
	if _, _, err := pc.ReadFrom(make([]byte, 10)); err != nil {
		t.Errorf("DNS query of the proxy: %v", err)
	}
}

func TestAddressesAreFollowed(t *testing.T) {
	r := newRig(t)
	pod := r.pod("a")
	p := r.capture(pod)
	app(t, pod.Host, "[::]:8080")
	added := netip.MustParseAddr("10.77.200.1")
	must(t, addAddress(pod, added))
	eventually(t, func() error {
		got, err := ask(pod.Host, netip.AddrPortFrom(added, 8080).String(), "x")
		if err != nil || !strings.HasPrefix(got, "app") {
			return fmt.Errorf("%q, %v", got, err)
		}
		p.mu.Lock()
		defer p.mu.Unlock()
		for _, a := range p.own {
			if a == added {
				return nil
			}
		}
		return errors.New("the new address is not known")
	})
}

// eventually polls until fn is content.
func eventually(t *testing.T, fn func() error) {
	t.Helper()
	deadline := time.Now().Add(5 * time.Second)
	for {
		err := fn()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatal(err)
		}
		time.Sleep(10 * time.Millisecond)
	}
}
