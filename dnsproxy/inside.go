// SPDX-License-Identifier: Apache-2.0

package dnsproxy

import (
	"context"
	"errors"
	"fmt"
	"net/netip"

	"github.com/miekg/dns"
)

var (
	errEnding    = errors.New("the DNS server is ending")
	errNoAddress = errors.New("dns response had no valid IP addresses") // contract 14.6
)

// Resolve looks a name up as if the pod had asked for it by UDP, and is
// counted and logged as that (contract 6): the first A record, or AAAA with
// v6. name need not be fully qualified. The error is the end of ctx, [ErrBusy],
// or says what the answer was instead.
func (s *Server) Resolve(ctx context.Context, name string, v6 bool) (netip.Addr, error) {
	if !s.begin() {
		return netip.Addr{}, errEnding
	}
	defer s.work.Done()
	defer s.packets.Add(-1)
	if s.packets.Add(1) > maxPackets {
		s.metrics.drop(dropBusy)
		return netip.Addr{}, ErrBusy
	}
	qtype := dns.TypeA
	if v6 {
		qtype = dns.TypeAAAA
	}
	question, err := new(dns.Msg).SetQuestion(dns.Fqdn(name), qtype).Pack()
	if err != nil {
		return netip.Addr{}, fmt.Errorf("ask for %q: %w", name, err)
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stop := context.AfterFunc(s.ctx, cancel)
	defer stop()
	answer := s.handle(ctx, question, "udp")
	if s.ctx.Err() != nil {
		return netip.Addr{}, errEnding
	}
	return firstAddress(ctx, answer)
}

// begin counts a query that came by no socket, unless the server is ending.
func (s *Server) begin() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.state > stateQuiet {
		return false
	}
	s.work.Add(1)
	return true
}

// firstAddress reads an answer of ours.
func firstAddress(ctx context.Context, packet []byte) (netip.Addr, error) {
	if err := context.Cause(ctx); err != nil {
		return netip.Addr{}, err
	}
	m := new(dns.Msg)
	if err := m.Unpack(packet); err != nil {
		return netip.Addr{}, fmt.Errorf("read answer: %w", err)
	}
	if m.Rcode != dns.RcodeSuccess {
		return netip.Addr{}, fmt.Errorf("answered %s", rcodeName(m.Rcode))
	}
	for _, record := range m.Answer {
		switch r := record.(type) {
		case *dns.A:
			if addr, ok := netip.AddrFromSlice(r.A); ok {
				return addr.Unmap(), nil
			}
		case *dns.AAAA:
			if addr, ok := netip.AddrFromSlice(r.AAAA); ok {
				return addr, nil
			}
		}
	}
	return netip.Addr{}, errNoAddress
}
