// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/miekg/dns"
)

// showNames asks the address in the pod's resolv.conf, which nobody has: the
// proxy answers for it, or asks the node's nameserver.
func (d *demo) showNames(ctx context.Context) {
	a := fixed()
	claim := func(text string, q question, want ...netip.Addr) {
		d.table.check(text, func() (string, error) { return d.answered(ctx, q, want) })
	}
	claim("A of a service, over UDP", question{name: serverName, kind: dns.TypeA}, a.server4)
	claim("AAAA of a service, over TCP", question{name: serverName, kind: dns.TypeAAAA, network: "tcp"}, a.server6)
	claim("a short name", question{name: "server", kind: dns.TypeA}, a.server4)
	claim("AAAA of a service without IPv6: no data", question{name: legacyName, kind: dns.TypeAAAA})
	defer d.wire.allow("DNS upstream", forwarded(d.client.IPv4, a.outside4))()
	claim("A of a name that is not ours: forwarded", question{name: forwardedName, kind: dns.TypeA, upstream: true}, a.outside4)
	claim("AAAA of the same", question{name: forwardedName, kind: dns.TypeAAAA, upstream: true}, a.outside6)
	claim("a name that nobody has: NXDOMAIN, forwarded", question{name: missingName, kind: dns.TypeA, upstream: true, missing: true})
}

// A question is one query to the pod's resolver, and how the answer comes.
type question struct {
	name     string
	kind     uint16
	network  string // empty: udp
	upstream bool   // answered by the node's nameserver, not by the mesh
	missing  bool   // the answer is NXDOMAIN
}

// answered asks from the client, and compares the addresses.
func (d *demo) answered(ctx context.Context, q question, want []netip.Addr) (string, error) {
	r, err := d.ask(ctx, q)
	if err != nil {
		return "", err
	}
	code := dns.RcodeSuccess
	if q.missing {
		code = dns.RcodeNameError
	}
	if r.Rcode != code || r.Authoritative == q.upstream {
		return "", fmt.Errorf("the answer is %s, authoritative: %v", dns.RcodeToString[r.Rcode], r.Authoritative)
	}
	got := addressesOf(r)
	if !slices.Equal(got, want) {
		return "", fmt.Errorf("the answer has %v, want %v", got, want)
	}
	who := "answered here"
	if q.upstream {
		who = "answered by " + fixed().outside4.String()
	}
	return fmt.Sprintf("%s: %s %v, %s", q.name, dns.RcodeToString[r.Rcode], got, who), nil
}

func (d *demo) ask(ctx context.Context, q question) (*dns.Msg, error) {
	if q.network == "" {
		q.network = "udp"
	}
	// A connected socket takes answers from the address only that it asked.
	conn, err := d.client.Dial(ctx, q.network, fixed().resolver.String())
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(callWait))
	d.enterQuestion(q)
	m := new(dns.Msg).SetQuestion(dns.Fqdn(q.name), q.kind)
	c := &dns.Conn{Conn: conn}
	if err := c.WriteMsg(m); err != nil {
		return nil, err
	}
	r, err := c.ReadMsg()
	if err != nil {
		return nil, err
	}
	if r.Id != m.Id || !r.Response || len(r.Question) != 1 || r.Question[0] != m.Question[0] {
		return nil, errors.New("this is not the answer to the question: " + r.String())
	}
	return r, nil
}

// enterQuestion books what the proxy must count of a question.
func (d *demo) enterQuestion(q question) {
	kind := strings.ToLower(dns.TypeToString[q.kind])
	names := []string{asked}
	if q.upstream {
		names = append(names, upstream)
	}
	if q.missing {
		names = append(names, unmet)
	}
	for _, name := range names {
		d.ledger.query(d.client.node, name, kind, q.network, d.client.Name())
	}
}

func addressesOf(m *dns.Msg) []netip.Addr {
	var out []netip.Addr
	for _, rr := range m.Answer {
		switch rr := rr.(type) {
		case *dns.A:
			a, _ := netip.AddrFromSlice(rr.A.To4())
			out = append(out, a)
		case *dns.AAAA:
			a, _ := netip.AddrFromSlice(rr.AAAA)
			out = append(out, a)
		}
	}
	return out
}

// lookup is the first address of a name, as an application of the client has it.
func (d *demo) lookup(ctx context.Context, name string, kind uint16) (netip.Addr, error) {
	r, err := d.ask(ctx, question{name: name, kind: kind})
	if err != nil {
		return netip.Addr{}, err
	}
	addrs := addressesOf(r)
	if len(addrs) == 0 {
		return netip.Addr{}, fmt.Errorf("%s has no address: %v", name, r)
	}
	return addrs[0], nil
}
