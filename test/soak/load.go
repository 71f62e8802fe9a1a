// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/miekg/dns"
)

// A load keeps so many connections going.
type load struct {
	s      *soak
	paused atomic.Bool
	busy   atomic.Int64
	lanes  sync.WaitGroup
}

// run starts the lanes, which end with ctx and the connection that each has.
func (l *load) run(ctx context.Context) {
	for i := range l.s.lanes {
		r := rand.New(rand.NewPCG(l.s.seed, uint64(i)))
		l.lanes.Go(func() {
			for ctx.Err() == nil {
				if !l.paused.Load() {
					l.busy.Add(1)
					l.s.connection(r, i%2 == 0)
					l.busy.Add(-1)
				}
				sleep(ctx, time.Duration(r.IntN(60))*time.Millisecond)
			}
		})
	}
}

// quiet lets what is open end, and begins nothing.
func (l *load) quiet(ctx context.Context) error {
	l.paused.Store(true)
	deadline := time.Now().Add(3 * patience)
	for l.busy.Load() > 0 {
		if time.Now().After(deadline) {
			return fmt.Errorf("%d connections do not end", l.busy.Load())
		}
		if err := ctx.Err(); err != nil {
			return err
		}
		time.Sleep(20 * time.Millisecond)
	}
	return nil
}

// connection plans one, has it and returns when both sides have ended.
// In a quick lane all are over soon.
func (s *soak) connection(r *rand.Rand, quick bool) {
	e := s.draw(r, quick)
	if e.plan.dns {
		s.ask(e)
		return
	}
	s.connect(e)
	e.mu.Lock()
	reached := e.to != nil
	e.mu.Unlock()
	if reached {
		<-e.sides[server].done // bounded: each of its steps has a deadline
	}
}

// draw is the next connection.
func (s *soak) draw(r *rand.Rand, quick bool) *entry {
	e := &entry{port: portMain, from: s.pick(r)}
	const ofDNS = 8 // in a hundred
	if r.IntN(100) < ofDNS {
		e.plan, e.route = plan{kind: "a name", dns: true}, [...]string{"UDP", "TCP"}[r.IntN(2)]
		e.target = s.pick(r)
		return s.ledger.open(e)
	}
	e.plan = choose(r, kinds(quick))
	if s.brief() {
		for i := range e.plan.flows {
			e.plan.flows[i].idle /= 4
		}
	}
	six := r.IntN(3) == 0
	e.target = s.pick(r)
	for e.target == e.from { // which would not be captured
		e.target = s.pick(r)
	}
	switch n := r.IntN(100); {
	case n < 40:
		e.route = "pod IP"
		if r.IntN(8) == 0 {
			e.port = portBarred
		}
		e.addr = e.target.at(six, e.port)
	case n < 55 && e.target.vip > 0:
		e.route = "VIP"
		e.addr = virtual(six, e.target.vip)
	case n < 65:
		e.route, e.target, e.anyOf = "VIP of all", nil, true
		e.addr = virtual(six, 1)
	case n < 73 && e.target.vip > 0:
		e.route = [...]string{"name by UDP", "name by TCP"}[r.IntN(2)]
	case n < 81 && e.target.vip > 0:
		e.route = "SOCKS5"
	case n < 90:
		e.route, e.target = "to outside", s.far
		e.addr = s.far.at(six, portMain)
	default:
		e.route, e.from = "from a stranger", s.stranger
		e.addr = e.target.at(six, portMain)
	}
	if e.addr.Addr().Is6() {
		e.route += " (IPv6)"
	}
	return s.ledger.open(e)
}

func (p *pod) at(six bool, port uint16) netip.AddrPort {
	if six {
		return netip.AddrPortFrom(p.v6, port)
	}
	return netip.AddrPortFrom(p.v4, port)
}

func virtual(six bool, n int) netip.AddrPort {
	v4, v6 := vips(n)
	if six {
		return netip.AddrPortFrom(v6, serviceMain)
	}
	return netip.AddrPortFrom(v4, serviceMain)
}

// connect is the client's side of a connection.
func (s *soak) connect(e *entry) {
	defer e.over(client)
	c, err := s.dial(e)
	if err != nil {
		e.note(client, classify(err), err)
		return
	}
	defer e.from.drop(c)
	defer c.Close()
	e.mu.Lock()
	e.local = c.LocalAddr().(*net.TCPAddr).AddrPort()
	e.mu.Unlock()
	_ = c.SetDeadline(time.Now().Add(patience))
	hello := binary.BigEndian.AppendUint64([]byte(magic), e.id)
	if _, err := c.Write(hello); err != nil {
		e.note(client, classify(err), err)
		return
	}
	var b [1]byte
	if _, err := io.ReadFull(c, b[:]); err != nil {
		how := classify(err)
		if errors.Is(err, io.EOF) {
			how = "was closed before it began"
		}
		e.note(client, how, err)
		return
	}
	e.mu.Lock()
	e.established = time.Now()
	e.mu.Unlock()
	e.play(context.Background(), c, client)
}

func (s *soak) dial(e *entry) (*net.TCPConn, error) {
	to := e.addr
	var err error
	switch {
	case strings.HasPrefix(e.route, "name by"):
		var addr netip.Addr
		if addr, err = s.lookUp(e.from, e.target.name+suffix, strings.HasSuffix(e.route, "TCP"), dns.TypeA); err != nil {
			return nil, err
		}
		to = netip.AddrPortFrom(addr, serviceMain)
	case e.route == "SOCKS5":
		to = netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), 15080)
	}
	conn, err := e.from.DialWith(context.Background(), &net.Dialer{Timeout: patience}, "tcp", to.String())
	if err != nil {
		return nil, fmt.Errorf("connect: %w", err)
	}
	c := conn.(*net.TCPConn)
	if err := e.from.hold(c); err != nil {
		return nil, err
	}
	if e.route == "SOCKS5" {
		err = socks(c, e.target.name+suffix)
	}
	if err != nil {
		e.from.drop(c)
		c.Close()
		return nil, err
	}
	return c, nil
}

// socks asks for a service by name (RFC 1928).
func socks(c net.Conn, name string) error {
	_ = c.SetDeadline(time.Now().Add(patience))
	request := append([]byte{5, 1, 0, 5, 1, 0, 3, byte(len(name))}, name...)
	if _, err := c.Write(append(request, 0, serviceMain)); err != nil {
		return fmt.Errorf("SOCKS5: %w", err)
	}
	var got [12]byte
	if _, err := io.ReadFull(c, got[:]); err != nil {
		return fmt.Errorf("SOCKS5: %w", err)
	}
	if got[3] != 0 {
		return fmt.Errorf("SOCKS5: the answer is % x", got)
	}
	return nil
}

// ask is a question to a nameserver, of the mesh or of the world outside.
func (s *soak) ask(e *entry) {
	name, want := outsideName, s.outside.IPv4
	if e.target.vip > 0 {
		name = e.target.name + suffix
		want, _ = vips(e.target.vip)
	}
	got, err := s.lookUp(e.from, name, e.route == "TCP", dns.TypeA)
	if err == nil && got != want {
		err = fmt.Errorf("%s is %v", name, got)
	}
	if err != nil {
		e.note(client, classify(err), err)
		return
	}
	e.note(client, finished, nil)
}

// lookUp asks once, so that a lost answer is seen.
func (s *soak) lookUp(from *pod, name string, tcp bool, kind uint16) (netip.Addr, error) {
	network := "udp"
	if tcp {
		network = "tcp"
	}
	const limit = 15 * time.Second
	conn, err := from.DialWith(context.Background(), &net.Dialer{Timeout: limit}, network, netip.AddrPortFrom(s.resolver, 53).String())
	if err != nil {
		return netip.Addr{}, fmt.Errorf("ask for %s: %w", name, err)
	}
	defer conn.Close()
	if err := from.hold(conn); err != nil {
		return netip.Addr{}, err
	}
	defer from.drop(conn)
	c := dns.Client{Net: network, Timeout: limit}
	reply, _, err := c.ExchangeWithConn(new(dns.Msg).SetQuestion(dns.Fqdn(name), kind), &dns.Conn{Conn: conn})
	if err != nil {
		return netip.Addr{}, fmt.Errorf("ask for %s: %w", name, err)
	}
	for _, rr := range reply.Answer {
		if a, ok := rr.(*dns.A); ok {
			addr, _ := netip.AddrFromSlice(a.A.To4())
			return addr, nil
		}
	}
	return netip.Addr{}, fmt.Errorf("ask for %s: the answer is %s with %d records", name, dns.RcodeToString[reply.Rcode], len(reply.Answer))
}
