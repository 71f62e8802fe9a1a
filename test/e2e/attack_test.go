// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"path/filepath"
	"sync"
	"testing"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	programs "github.com/ztunnel-go/ztunnel/bpf/redirect"
	"github.com/ztunnel-go/ztunnel/test/rig"
)

// marks are those that steer routing. Any pod may set them: CAP_NET_RAW is a
// container's default.
func marks() map[string]int {
	return map[string]int{"delivery": 0x111, "proxy": 0x539, "capture": 0x1000}
}

// TestAttackers is what a hostile pod may try to get out of its capture, or
// into another pod past that pod's policy.
func TestAttackers(t *testing.T) {
	w := newWorld(t)
	const victimPort = 6000
	victims := map[string]victim{
		"same node":    {w.c.Addr(victimPort), listen(t, w.c.Host, port(victimPort))},
		"another node": {w.b.Addr6(victimPort), listen(t, w.b.Host, port(victimPort))},
	}
	// Whoever has no identity is refused, and so is the attacker's.
	w.policies(rig.Strict("default"), rig.Strict("other"), &rig.Policy{
		Name: "no-a", Namespace: "istio-system", Scope: "Global", Action: "Deny",
		Rules: [][][]rig.Match{{{{Principals: []rig.StringMatch{rig.Exact(rig.Principal("default", "a"))}}}}},
	})
	secret := w.watch(t, w.a, w.b, w.c)
	for name, v := range victims {
		t.Run("bound to eth0, "+name, func(t *testing.T) { w.boundToDevice(t, v, secret.marker) })
		for mark, value := range marks() {
			t.Run("mark "+mark+", "+name, func(t *testing.T) { w.forgedMark(t, v, value, secret.marker) })
		}
	}
	for name, value := range marks() {
		t.Run("mark "+name+" set late", func(t *testing.T) { w.lateMark(t, value, secret.marker) })
	}
	t.Run("no mark set late", func(t *testing.T) { w.lateMark(t, 0, secret.marker) })
	t.Run("link-local", func(t *testing.T) { w.linkLocal(t) })
	for reason, n := range w.captureCounts(t, w.p1, "refused_bound_to_device", "refused_link_local") {
		if n == 0 {
			t.Errorf("%s was not counted", reason)
		}
	}
	secret.kept(t)
}

// A victim is an application that only the proxy may reach.
type victim struct {
	to  netip.AddrPort
	app *server
}

func family(to netip.AddrPort) int {
	if to.Addr().Is4() {
		return unix.AF_INET
	}
	return unix.AF_INET6
}

// boundToDevice takes a socket out of our routing, for which nobody needs a
// privilege.
func (w *world) boundToDevice(t *testing.T, v victim, payload []byte) {
	for name, connect := range map[string]func(fd int) error{
		"connect": func(fd int) error { return unix.Connect(fd, sockaddr(family(v.to), v.to)) },
		"Fast Open": func(fd int) error {
			_, err := unix.SendmsgN(fd, payload, nil, sockaddr(family(v.to), v.to), unix.MSG_FASTOPEN)
			return err
		},
	} {
		s := newSocket(t, w.a.Host, family(v.to), 0)
		defer s.close()
		must(t, unix.BindToDevice(s.fd, "eth0"))
		if err := connect(s.fd); !errors.Is(err, unix.EPERM) {
			t.Errorf("%s: %v, want EPERM", name, err)
		}
	}
	v.app.untouched(t)
}

// forgedMark connects under one of our marks. It makes no difference: the
// proxy takes the connection, and policy refuses it.
func (w *world) forgedMark(t *testing.T, v victim, mark int, payload []byte) {
	since := w.p1.Output.Mark()
	s := newSocket(t, w.a.Host, family(v.to), 0)
	must(t, unix.SetsockoptInt(s.fd, unix.SOL_SOCKET, unix.SO_MARK, mark))
	must(t, unix.Connect(s.fd, sockaddr(family(v.to), v.to)))
	c := s.conn(t)
	_, err := c.Write(payload)
	if err == nil {
		err = ended(c)
	}
	if !wasReset(err) {
		t.Errorf("it ended with %v, want a reset", err)
	}
	w.logged(t, w.p1, since, `direction="outbound"`, `src.workload="a"`, "dst.hbone_addr="+v.to.String(),
		`error="http status: 401 Unauthorized"`)
	v.app.untouched(t)
}

// lateMark changes the mark of a connection that is captured already, so that
// it is routed to the network. What it sends does not get there.
func (w *world) lateMark(t *testing.T, mark int, payload []byte) {
	s := newSocket(t, w.c.Host, unix.AF_INET, 0)
	to := w.b.Addr(portEcho)
	must(t, unix.Connect(s.fd, sockaddr(unix.AF_INET, to)))
	must(t, unix.SetsockoptInt(s.fd, unix.SOL_SOCKET, unix.SO_MARK, mark))
	before := w.captureCounts(t, w.p1, "dropped_escape")["dropped_escape"]
	c := s.conn(t)
	if mark == marks()["capture"] || mark == marks()["delivery"] {
		echo(t, c, payload) // both lead to lo, where the proxy is
		return
	}
	_, err := c.Write(payload)
	must(t, err)
	w.eventually(t, func() error {
		if now := w.captureCounts(t, w.p1, "dropped_escape")["dropped_escape"]; now == before {
			return errors.New("nothing has been dropped")
		}
		return nil
	})
}

// linkLocal goes to the node by an address with a scope, and so by eth0
// whatever the mark.
func (w *world) linkLocal(t *testing.T) {
	const nodePort = 6001
	node := listen(t, w.n1.Host, port(nodePort))
	gateway := netip.MustParseAddr("fe80::1") // the node's end of each pod's link
	var eth0 *net.Interface
	must(t, w.a.Do(func() (err error) {
		eth0, err = net.InterfaceByName("eth0")
		return err
	}))
	s := newSocket(t, w.a.Host, unix.AF_INET6, 0)
	defer s.close()
	to := &unix.SockaddrInet6{Addr: gateway.As16(), Port: nodePort, ZoneId: uint32(eth0.Index)}
	if err := unix.Connect(s.fd, to); !errors.Is(err, unix.EPERM) {
		t.Errorf("connect: %v, want EPERM", err)
	}
	node.untouched(t)
}

// TestPassMapFull fills the map in which the proxy announces its deliveries
// while connections are made, and floods a pod with SYNs. Some connections may
// fail, but none gets past the proxy, and afterwards all is well.
func TestPassMapFull(t *testing.T) {
	w := newWorld(t)
	w.policies(rig.Strict("default"), rig.Strict("other"))
	app := listen(t, w.b.Host, port(6000))
	secret := w.watch(t, w.a, w.b, w.c)

	pass, err := ebpf.LoadPinnedMap(filepath.Join(w.p2.PinDir(), fmt.Sprint("v", programs.ABI), "pass"), nil)
	must(t, err)
	defer pass.Close()
	var flood sync.WaitGroup
	stop, full := make(chan struct{}), make(chan struct{})
	flood.Go(func() { fill(t, pass, stop, full) })
	flood.Go(func() { w.synFlood(t, stop) })
	const attempts = 100
	failed, tried := 0, 0
	for filled := false; !filled || tried < attempts; tried++ {
		select {
		case <-full:
			filled = true
		default:
		}
		if err := refused(w.a.Host, w.b.Addr(portEcho), secret.marker); err != nil {
			failed++
			if !wasReset(err) && !errors.Is(err, io.EOF) {
				t.Errorf("a connection failed with %v", err)
			}
		}
		// STRICT holds all the while.
		if err := refused(w.stranger.Host, w.b.Addr(6000), []byte("plain")); err == nil {
			t.Error("plaintext got through")
		}
	}
	close(stop)
	flood.Wait()
	t.Logf("%d of %d connections failed meanwhile", failed, tried)
	if n := w.captureCounts(t, w.p2, "inbound_plaintext")["inbound_plaintext"]; n < 10*attempts {
		t.Errorf("the flood was one of %d SYNs", n)
	}
	app.untouched(t)
	for range attempts {
		must(t, refused(w.a.Host, w.b.Addr(portEcho), secret.marker))
	}
	w.ready(w.p2)
	secret.kept(t)
}

// fill writes entries nobody asked for, and says when they are more than the map
// takes.
func fill(t *testing.T, m *ebpf.Map, stop <-chan struct{}, full chan<- struct{}) {
	key, value := make([]byte, m.KeySize()), make([]byte, m.ValueSize())
	for n := uint32(0); ; n++ {
		select {
		case <-stop:
			return
		default:
		}
		if n == m.MaxEntries() {
			close(full)
		}
		for i := range key {
			key[i] = byte(rand.Uint32())
		}
		if err := m.Put(key, value); err != nil {
			t.Errorf("fill: %v", err)
			if n < m.MaxEntries() {
				close(full)
			}
			return
		}
	}
}

// captureCounts are a proxy's counts of capture for some reasons.
func (w *world) captureCounts(t *testing.T, p *rig.Proxy, reasons ...string) map[string]uint64 {
	t.Helper()
	_, body, err := p.Get(t.Context(), "15000/debug/bpf")
	must(t, err)
	var all []struct {
		Reason string
		Value  uint64
	}
	must(t, json.Unmarshal([]byte(body), &all))
	counts := map[string]uint64{}
	for _, c := range all {
		for _, r := range reasons {
			if c.Reason == r {
				counts[r] += c.Value
			}
		}
	}
	for _, r := range reasons {
		if _, ok := counts[r]; !ok {
			t.Errorf("no counter %q", r)
		}
	}
	return counts
}

// synFlood sends SYNs to b from all over the place, which nobody follows up.
func (w *world) synFlood(t *testing.T, stop <-chan struct{}) {
	var fd int
	must := func(err error) bool { // not on the test's goroutine
		if err != nil {
			t.Errorf("flood: %v", err)
		}
		return err == nil
	}
	if !must(w.stranger.Do(func() (err error) {
		fd, err = unix.Socket(unix.AF_INET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_RAW)
		return err
	})) {
		return
	}
	defer unix.Close(fd)
	for {
		select {
		case <-stop:
			return
		default:
		}
		src := netip.AddrFrom4([4]byte{198, 18, byte(rand.Uint32()), byte(rand.Uint32())}) // RFC 2544
		packet := syn(at(src, uint16(rand.Uint32())|1), w.b.Addr(portEcho))
		err := unix.Sendto(fd, packet, 0, sockaddr(unix.AF_INET, w.b.Addr(0)))
		if !errors.Is(err, unix.ENOBUFS) && !must(err) {
			return
		}
	}
}

// syn is an IPv4 packet that asks for a TCP connection (RFC 9293).
func syn(src, dst netip.AddrPort) []byte {
	s, d := src.Addr().As4(), dst.Addr().As4()
	ip := []byte{0x45, 0, 0, 40, 0, 0, 0, 0, 64, unix.IPPROTO_TCP, 0, 0} // the kernel fills in the sum
	ip = append(append(ip, s[:]...), d[:]...)
	tcp := binary.BigEndian.AppendUint16(nil, src.Port())
	tcp = binary.BigEndian.AppendUint16(tcp, dst.Port())
	tcp = binary.BigEndian.AppendUint32(tcp, rand.Uint32())
	tcp = append(tcp, 0, 0, 0, 0, 5<<4, 2, 0xff, 0xff, 0, 0, 0, 0)
	pseudo := append(append(append([]byte(nil), s[:]...), d[:]...), 0, unix.IPPROTO_TCP, 0, byte(len(tcp)))
	var sum uint32
	for b := append(pseudo, tcp...); len(b) > 1; b = b[2:] {
		sum += uint32(binary.BigEndian.Uint16(b))
	}
	sum = sum>>16 + sum&0xffff
	sum += sum >> 16
	binary.BigEndian.PutUint16(tcp[16:], ^uint16(sum))
	return append(ip, tcp...)
}
