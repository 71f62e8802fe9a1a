// SPDX-License-Identifier: Apache-2.0

package dnsproxy

import (
	"net/netip"
	"strings"

	"github.com/miekg/dns"
)

// known answers what must not leave the node: names of the hosts file, and
// those that RFC 6761 and RFC 7686 reserve.
func (h Hosts) known(q dns.Question) (*dns.Msg, bool) {
	m := new(dns.Msg)
	isAddr := q.Qtype == dns.TypeA || q.Qtype == dns.TypeAAAA
	if isAddr {
		if addrs := h.lookup(q.Name, q.Qtype == dns.TypeAAAA); len(addrs) > 0 {
			m.Answer = addressRecords(q.Name, addrs)
			return m, true
		}
	}
	switch {
	case within(q.Name, "localhost."):
		if isAddr {
			m.Answer = addressRecords(q.Name, []netip.Addr{loopback(q.Qtype)})
		}
	case within(q.Name, "invalid."), within(q.Name, "onion."):
		m.Rcode = dns.RcodeNameError
	default:
		return nil, false
	}
	return m, true
}

func within(name, domain string) bool {
	return name == domain || strings.HasSuffix(name, "."+domain)
}

func loopback(qtype uint16) netip.Addr {
	if qtype == dns.TypeAAAA {
		return netip.IPv6Loopback()
	}
	return netip.AddrFrom4([4]byte{127, 0, 0, 1})
}

// addressRecords makes A or AAAA records of owner.
func addressRecords(owner string, addrs []netip.Addr) []dns.RR {
	out := make([]dns.RR, 0, len(addrs))
	for _, a := range addrs {
		h := dns.RR_Header{Name: owner, Class: dns.ClassINET, Ttl: localTTL}
		if a.Is4() {
			h.Rrtype = dns.TypeA
			out = append(out, &dns.A{Hdr: h, A: a.AsSlice()})
		} else {
			h.Rrtype = dns.TypeAAAA
			out = append(out, &dns.AAAA{Hdr: h, AAAA: a.AsSlice()})
		}
	}
	return out
}
