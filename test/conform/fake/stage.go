// SPDX-License-Identifier: Apache-2.0

// Package fake is a stage for scenarios on which no binary runs: a model of a
// proxy lives in this process, without root, on addresses of 127.0.0.0/8, of
// which each place has one.
//
// The model is made of the rooms of our own proxy, without capture: the stage
// itself brings connections to it. What it is for are its faults ([Faults]):
// switched on one at a time they show whether the scenarios would notice.
package fake

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"sync"
	"syscall"
	"time"

	"github.com/ztunnel-go/ztunnel/internal/netns"
	"github.com/ztunnel-go/ztunnel/test/conform"
	"github.com/ztunnel-go/ztunnel/test/netlab/serve"
)

// A Stage is one model world. Several may be used at once, with numbers of
// their own.
type Stage struct {
	number byte // second byte of all addresses
	fault  Fault
	dir    string
	ns     *netns.NS
	stop   context.CancelFunc
	serve  sync.WaitGroup // the name server; ends with stop

	mu       sync.Mutex
	enrolled map[string]bool             // guarded by mu; pods that a proxy serves
	going    map[netip.AddrPort]destined // guarded by mu; captured connections by their own address
	arrived  *sync.Cond                  // on mu; going has grown
}

// A destined is where a captured connection was going.
type destined struct{ dst netip.AddrPort }

var _ conform.Stage = (*Stage)(nil)

// New makes a stage with a number from 1 to 250 and a fault, or [NoFault].
func New(number byte, fault Fault) (*Stage, error) {
	dir, err := os.MkdirTemp("", "zt-fake-")
	if err != nil {
		return nil, err
	}
	ns, err := netns.Current()
	if err != nil {
		os.RemoveAll(dir)
		return nil, err
	}
	s := &Stage{number: number, fault: fault, dir: dir, ns: ns, enrolled: map[string]bool{}, going: map[netip.AddrPort]destined{}}
	s.arrived = sync.NewCond(&s.mu)
	ctx, stop := context.WithCancel(context.Background())
	s.stop = stop
	if err := s.serveNames(ctx); err != nil {
		s.Close()
		return nil, err
	}
	return s, nil
}

// namesPort is where the name server outside listens: 53 would need root.
const namesPort = 5353

func (s *Stage) serveNames(ctx context.Context) error {
	at := netip.AddrPortFrom(s.addr("outside"), namesPort)
	pc, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(at))
	if err != nil {
		return err
	}
	l, err := net.ListenTCP("tcp", net.TCPAddrFromAddrPort(at))
	if err != nil {
		pc.Close()
		return err
	}
	s.serve.Go(func() { _ = serve.DNS(ctx, pc, l, conform.OutsideNames()) })
	return nil
}

// addr is the address of a place; invalid for one that there is not.
func (s *Stage) addr(place string) netip.Addr {
	last := map[string][2]byte{"node1": {0, 1}, "node2": {0, 2}, "outside": {0, 3}, "a": {1, 1}, "c": {1, 2}, "b": {2, 1}, "stranger": {2, 2}}
	b, ok := last[place]
	if !ok {
		return netip.Addr{}
	}
	return netip.AddrFrom4([4]byte{127, s.number, b[0], b[1]})
}

func (s *Stage) placeAt(ip netip.Addr) string {
	for _, place := range []string{"node1", "node2", "outside", "a", "b", "c", "stranger"} {
		if s.addr(place) == ip {
			return place
		}
	}
	return ""
}

// Addr implements [conform.Stage]. There is no IPv6 here: of two it gives an
// address that nobody has.
func (s *Stage) Addr(place string, six bool) (netip.Addr, error) {
	a := s.addr(place)
	if !a.IsValid() {
		return a, fmt.Errorf("there is no %q", place)
	}
	if six {
		b := a.As4()
		return netip.AddrFrom16([16]byte{0: 0x20, 1: 0x01, 2: 0x0d, 3: 0xb8, 14: b[2], 15: b[3]}), nil
	}
	return a, nil
}

// ownPorts are those of the proxy in a pod.
func ownPorts() []uint16 { return []uint16{15001, 15006, 15008} }

// Dial implements [conform.Stage]: what a proxy would capture is brought to it.
func (s *Stage) Dial(ctx context.Context, place, network string, to netip.AddrPort) (net.Conn, error) {
	from := s.addr(place)
	s.mu.Lock()
	captured := s.enrolled[place]
	target := s.placeAt(to.Addr())
	receiving := s.enrolled[target]
	s.mu.Unlock()
	toPods := !slices.Contains([]string{"node1", "node2", "outside"}, target)
	switch {
	case to.Addr().Is6() && !to.Addr().IsLoopback():
		if !captured || to.Port() == 53 {
			return nil, conform.ErrUnsupported
		}
		return nil, conform.ErrUnsupported
	case to.Port() == 53 && captured:
		return s.dialDNS(ctx, from, network)
	case to.Addr() == netip.AddrFrom4([4]byte{127, 0, 0, 1}) || to.Addr() == netip.IPv6Loopback():
		if captured && slices.Contains(ownPorts(), to.Port()) {
			return s.redirect(ctx, from, netip.AddrPortFrom(from, 15001), to)
		}
		return s.plain(ctx, from, netip.AddrPortFrom(from, to.Port()), network)
	case to.Port() == 15000 && from != to.Addr():
		return nil, &net.OpError{Op: "dial", Net: network, Err: syscall.ECONNREFUSED}
	case captured && s.fault.uncaptured:
		return s.plain(ctx, from, to, network)
	case captured && from != to.Addr():
		return s.redirect(ctx, from, netip.AddrPortFrom(from, 15001), to)
	case receiving && toPods && to.Port() != 15008:
		return s.redirect(ctx, from, netip.AddrPortFrom(to.Addr(), 15006), to)
	}
	return s.plain(ctx, from, to, network)
}

func (s *Stage) plain(ctx context.Context, from netip.Addr, to netip.AddrPort, network string) (net.Conn, error) {
	var local net.Addr = &net.TCPAddr{IP: from.AsSlice()}
	if network == "udp" {
		local = &net.UDPAddr{IP: from.AsSlice()}
	}
	c, err := (&net.Dialer{LocalAddr: local}).DialContext(ctx, network, to.String())
	if tcp, ok := c.(*net.TCPConn); ok {
		return &faulty{tcp, s.fault}, err
	}
	return c, err
}

// redirect connects to a listener of the proxy, and has it know where the
// connection was going.
func (s *Stage) redirect(ctx context.Context, from netip.Addr, listener, dst netip.AddrPort) (net.Conn, error) {
	c, err := s.plain(ctx, from, listener, "tcp")
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	s.going[c.LocalAddr().(*net.TCPAddr).AddrPort()] = destined{dst}
	s.mu.Unlock()
	s.arrived.Broadcast()
	return c, nil
}

// destination waits until it is known where a connection was going.
func (s *Stage) destination(peer netip.AddrPort) netip.AddrPort {
	wake := time.AfterFunc(time.Second, s.arrived.Broadcast)
	defer wake.Stop()
	deadline := time.Now().Add(time.Second)
	s.mu.Lock()
	defer s.mu.Unlock()
	for {
		if d, ok := s.going[peer]; ok {
			delete(s.going, peer)
			return d.dst
		}
		if !time.Now().Before(deadline) {
			return netip.AddrPort{}
		}
		s.arrived.Wait()
	}
}

// dialDNS asks the DNS server of a pod.
func (s *Stage) dialDNS(ctx context.Context, from netip.Addr, network string) (net.Conn, error) {
	c, err := s.plain(ctx, from, netip.AddrPortFrom(from, 15053), network)
	if err != nil || s.fault.dns == nil {
		return c, err
	}
	return &faultyDNS{Conn: c, tcp: network == "tcp", change: s.fault.dns}, nil
}

func (s *Stage) setEnrolled(pod string, on bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.enrolled[pod] = on
}

// Listen implements [conform.Stage].
func (s *Stage) Listen(place, addr string) (net.Listener, error) {
	return net.Listen("tcp4", s.addr(place).String()+addr)
}

// Namespace implements [conform.Stage]: all pods share ours.
func (s *Stage) Namespace(string) (*netns.NS, error) { return s.ns, nil }

// Record implements [conform.Stage].
func (s *Stage) Record(string) (conform.Recording, error) { return nil, conform.ErrUnsupported }

// Inside implements [conform.Stage].
func (s *Stage) Inside(_ string, f func() error) error { return f() }

// Dir implements [conform.Stage].
func (s *Stage) Dir() string { return s.dir }

// Control implements [conform.Stage].
func (s *Stage) Control() netip.AddrPort {
	return netip.AddrPortFrom(s.addr("outside"), conform.ControlPort)
}

// Close implements [conform.Stage].
func (s *Stage) Close() error {
	s.stop()
	s.serve.Wait()
	s.ns.Close()
	return os.RemoveAll(s.dir)
}
