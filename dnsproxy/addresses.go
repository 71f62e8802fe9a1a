// SPDX-License-Identifier: Apache-2.0

package dnsproxy

import (
	"context"
	"errors"
	"math"
	"net/netip"
	"strings"

	"github.com/miekg/dns"
)

// maxAliases is how many CNAMEs an answer may lead through.
const maxAliases = 16

// A ResolverConfig is what a Resolver is made of. Source and Dial are needed.
type ResolverConfig struct {
	Source *Source  // whom to ask, and what to add to names
	Dial   DialFunc // from where the proxy itself is
	Hosts  Hosts    // asked before servers
	IPv6   bool     // ask for AAAA too
	Cache  int      // answers; zero: 8192; below: none is kept
}

// A Resolver finds the addresses of hosts for the proxy itself: of workloads
// that the mesh knows by name only (contract 3.8). One serves all pods.
type Resolver struct {
	forward *Forwarder
	source  *Source
	types   []uint16
}

// NewResolver returns a resolver; nothing runs until it is asked.
func NewResolver(cfg ResolverConfig) *Resolver {
	r := &Resolver{source: cfg.Source, types: []uint16{dns.TypeA}}
	if cfg.IPv6 {
		r.types = append(r.types, dns.TypeAAAA)
	}
	r.forward = NewForwarder(ForwarderConfig{Source: cfg.Source, Dial: cfg.Dial, Hosts: cfg.Hosts, Cache: cfg.Cache})
	// Whoever waits here holds a connection, which is limit enough: with one
	// for all, the connections of one pod could keep those of others waiting.
	r.forward.limit = math.MaxInt
	return r
}

// Close ends what is on its way and waits for it.
func (r *Resolver) Close() { r.forward.Close() }

// Addresses lists the addresses of a host, of both families. A name that does
// not end in a dot is tried with the search domains of resolv.conf, before or
// after it is tried as it is, as ndots says; the first that has an address
// counts. asked says that a server had to be asked. The error is that of the
// last name: a *[NoRecordsError], [ErrBusy], the end of ctx, or what went wrong
// upstream.
func (r *Resolver) Addresses(ctx context.Context, host string) (addrs []netip.Addr, asked bool, err error) {
	for _, name := range candidates(host, r.source.now()) {
		var more bool
		addrs, more, err = r.addresses(ctx, name)
		asked = asked || more
		if len(addrs) > 0 {
			return addrs, asked, nil
		}
		if ctx.Err() != nil || errors.Is(err, context.DeadlineExceeded) || errors.Is(err, ErrBusy) {
			break // servers that are silent are so for the next name too
		}
	}
	return nil, asked, err
}

// candidates lists the names that a host's name may stand for.
func candidates(host string, conf *ResolvConf) []string {
	bare, whole := strings.CutSuffix(host, ".")
	if whole || within(dns.CanonicalName(host), "onion.") {
		return []string{dns.Fqdn(host)}
	}
	var out []string
	for _, domain := range conf.Search {
		if name := bare + "." + domain + "."; len(name) <= 254 { // RFC 1035 section 2.3.4
			out = append(out, name)
		}
	}
	if strings.Count(bare, ".") >= conf.Ndots {
		return append([]string{bare + "."}, out...)
	}
	return append(out, bare+".")
}

// addresses asks for both families of one name at once.
func (r *Resolver) addresses(ctx context.Context, name string) (addrs []netip.Addr, asked bool, err error) {
	if _, ok := dns.IsDomainName(name); !ok {
		return nil, false, &NoRecordsError{Name: name, Type: dns.TypeA, NXDomain: true}
	}
	type result struct {
		addrs []netip.Addr
		asked bool
		err   error
	}
	results := make([]chan result, len(r.types))
	for i, qtype := range r.types {
		results[i] = make(chan result, 1)
		go func() { // ends with ctx, or the timeouts of upstream; awaited below
			got, err := r.forward.ask(ctx, dns.Question{Name: name, Qtype: qtype, Qclass: dns.ClassINET})
			res := result{asked: got.asked, err: err}
			if err == nil {
				if res.addrs = addressesOf(got.msg.Answer, name, qtype); len(res.addrs) == 0 {
					res.err = &NoRecordsError{Name: name, Type: qtype}
				}
			}
			results[i] <- res
		}()
	}
	for _, c := range results {
		res := <-c
		addrs, asked = append(addrs, res.addrs...), asked || res.asked
		err = graver(err, res.err)
	}
	if len(addrs) > 0 {
		err = nil
	}
	return addrs, asked, err
}

// graver chooses between the errors of two families: that there are no records
// of one says less than that the other could not be asked.
func graver(a, b error) error {
	none := (*NoRecordsError)(nil)
	if a == nil || b != nil && errors.As(a, &none) {
		return b
	}
	return a
}

// addressesOf lists the addresses that records give a name, by way of aliases
// if need be. What belongs to other names was not asked for, and is nobody's.
func addressesOf(records []dns.RR, name string, qtype uint16) []netip.Addr {
	owner := dns.CanonicalName(name)
	for range maxAliases {
		var out []netip.Addr
		next := ""
		for _, rr := range records {
			h := rr.Header()
			if dns.CanonicalName(h.Name) != owner {
				continue
			}
			switch v := rr.(type) {
			case *dns.CNAME:
				next = dns.CanonicalName(v.Target)
			case *dns.A:
				out = appendAddr(out, v.A, qtype == dns.TypeA)
			case *dns.AAAA:
				out = appendAddr(out, v.AAAA, qtype == dns.TypeAAAA)
			}
		}
		if len(out) > 0 || next == "" {
			return out
		}
		owner = next
	}
	return nil
}

func appendAddr(to []netip.Addr, ip []byte, wanted bool) []netip.Addr {
	if a, ok := netip.AddrFromSlice(ip); ok && wanted {
		return append(to, a.Unmap())
	}
	return to
}
