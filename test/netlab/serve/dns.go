// SPDX-License-Identifier: Apache-2.0

package serve

import (
	"context"
	"net"
	"net/netip"
	"strings"

	"github.com/miekg/dns"
)

// recordTTL is that of every DNS answer, in seconds.
const recordTTL = 30

// truncateAbove is how many addresses fit a plain UDP answer by our choice:
// more are left out there with TC set, so that clients must come back by TCP.
const truncateAbove = 20

// DNS answers for the names in records (fully qualified, lower case, without
// the last dot) over UDP on pc and TCP on l until ctx ends, and NXDOMAIN for
// every other name.
func DNS(ctx context.Context, pc net.PacketConn, l net.Listener, records map[string][]netip.Addr) error {
	handler := dns.HandlerFunc(func(w dns.ResponseWriter, q *dns.Msg) {
		_, udp := w.RemoteAddr().(*net.UDPAddr)
		_ = w.WriteMsg(dnsAnswer(q, records, udp))
	})
	servers := []*dns.Server{{PacketConn: pc, Handler: handler}, {Listener: l, Handler: handler}}
	failed := make(chan error, len(servers))
	for _, s := range servers {
		go func() { failed <- s.ActivateAndServe() }()
	}
	var err error
	running := len(servers)
	select {
	case <-ctx.Done():
	case err = <-failed:
		running--
	}
	pc.Close()
	l.Close()
	for range running {
		<-failed
	}
	if ctx.Err() != nil {
		return nil
	}
	return err
}

func dnsAnswer(q *dns.Msg, records map[string][]netip.Addr, udp bool) *dns.Msg {
	m := new(dns.Msg)
	m.SetReply(q)
	m.Authoritative = true
	if len(q.Question) != 1 {
		m.Rcode = dns.RcodeFormatError
		return m
	}
	asked := q.Question[0]
	addrs, ok := records[strings.ToLower(strings.TrimSuffix(asked.Name, "."))]
	if !ok {
		m.Rcode = dns.RcodeNameError
		return m
	}
	for _, a := range addrs {
		head := dns.RR_Header{Name: asked.Name, Rrtype: asked.Qtype, Class: dns.ClassINET, Ttl: recordTTL}
		switch {
		case asked.Qtype == dns.TypeA && a.Is4():
			m.Answer = append(m.Answer, &dns.A{Hdr: head, A: a.AsSlice()})
		case asked.Qtype == dns.TypeAAAA && a.Is6():
			m.Answer = append(m.Answer, &dns.AAAA{Hdr: head, AAAA: a.AsSlice()})
		}
	}
	if udp && len(m.Answer) > truncateAbove {
		m.Answer, m.Truncated = m.Answer[:truncateAbove], true
	}
	return m
}
