// SPDX-License-Identifier: Apache-2.0

package dnsproxy

import (
	"fmt"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/miekg/dns"
	"github.com/ztunnel-go/ztunnel/test/leak"
)

func TestTruncatedAnswersAreAskedForByTCP(t *testing.T) {
	leak.Check(t)
	var lines []string
	for i := range 100 {
		lines = append(lines, fmt.Sprintf("big.example.org. 300 IN A 192.0.2.%d", i))
	}
	up := fakeUpstream(t, func(q *dns.Msg, tcp bool) *dns.Msg {
		m := answerWith(q, dns.RcodeSuccess, lines...)
		if !tcp {
			m.Truncate(512)
		}
		return m
	})
	f := forwarder(t, ForwarderConfig{Upstream: up.config()})
	m, err := f.Ask(t.Context(), askFor("big.example.org."))
	if err != nil || len(m.Answer) != 100 {
		t.Fatalf("%v, %v", m, err)
	}
	if up.udp.Load() != 1 || up.tcp.Load() != 1 {
		t.Errorf("%d queries by UDP, %d by TCP", up.udp.Load(), up.tcp.Load())
	}
	direct := forwarder(t, ForwarderConfig{Upstream: Upstream{Nameservers: []netip.AddrPort{up.addr}, UseTCP: true}})
	if m, err := direct.Ask(t.Context(), askFor("big.example.org.")); err != nil || len(m.Answer) != 100 || up.udp.Load() != 1 {
		t.Errorf("use-vc: %v, %v", m, err)
	}
}

// rawUpstream answers each datagram with others, byte by byte as given; a nil
// function is a port where nobody listens.
func rawUpstream(t *testing.T, answer func(query []byte) [][]byte) netip.AddrPort {
	t.Helper()
	return rawUpstreamFrom(t, answer, nil)
}

// rawUpstreamFrom lets intrude write to the client, from a socket of its own,
// before the answers go out.
func rawUpstreamFrom(t *testing.T, answer func(query []byte) [][]byte, intrude func(net.PacketConn, net.Addr, []byte)) netip.AddrPort {
	t.Helper()
	pc, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	at := pc.LocalAddr().(*net.UDPAddr).AddrPort()
	if answer == nil {
		pc.Close()
		return at
	}
	other, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		buf := make([]byte, 4096)
		for {
			n, from, err := pc.ReadFrom(buf)
			if err != nil {
				return
			}
			if intrude != nil {
				intrude(other, from, buf[:n])
			}
			for _, b := range answer(buf[:n]) {
				pc.WriteTo(b, from)
			}
		}
	}()
	t.Cleanup(func() {
		pc.Close()
		other.Close()
		<-ended
	})
	return at
}

// forge is an answer to a packed query, changed at will.
func forge(query []byte, change func(*dns.Msg)) []byte {
	q := new(dns.Msg)
	if err := q.Unpack(query); err != nil {
		panic(err)
	}
	m := answerWith(q, dns.RcodeSuccess, q.Question[0].Name+" 300 IN A 203.0.113.66")
	change(m)
	b, err := m.Pack()
	if err != nil {
		panic(err)
	}
	return b
}

func right(m *dns.Msg) { m.Answer = rr("www.example.org. 300 IN A 192.0.2.1") }

func TestAnswersThatDoNotMatchAreIgnored(t *testing.T) {
	leak.Check(t)
	up := rawUpstream(t, func(q []byte) [][]byte {
		return [][]byte{
			{},
			q[:5],
			q, // no answer at all, but the query
			forge(q, func(m *dns.Msg) { m.Id ^= 1 }),
			forge(q, func(m *dns.Msg) { m.Response = false }),
			forge(q, func(m *dns.Msg) { m.Opcode = dns.OpcodeNotify }),
			forge(q, func(m *dns.Msg) { m.Question[0].Name = "www.example.com." }),
			forge(q, func(m *dns.Msg) { m.Question[0].Qtype = dns.TypeAAAA }),
			forge(q, func(m *dns.Msg) { m.Question[0].Qclass = dns.ClassCHAOS }),
			forge(q, func(m *dns.Msg) { m.Question = nil }),
			forge(q, func(m *dns.Msg) { m.Question = nil; m.Answer = nil; m.Rcode = dns.RcodeNameError }),
			forge(q, func(m *dns.Msg) { m.Question = append(m.Question, m.Question[0]) }),
			forge(q, func(m *dns.Msg) { m.Id ^= 1; m.Truncated = true }),
			forge(q, func(*dns.Msg) {})[:40], // ends within a record
			forge(q, right),
		}
	})
	f := forwarder(t, ForwarderConfig{Upstream: Upstream{Nameservers: []netip.AddrPort{up}, Attempts: 1}})
	if got := told(f.Ask(t.Context(), askFor("www.example.org."))); got != good {
		t.Error(got)
	}
}

func TestAnswersOfOthersAreIgnored(t *testing.T) {
	leak.Check(t)
	var intruded atomic.Int64
	up := rawUpstreamFrom(t,
		func(q []byte) [][]byte { return [][]byte{forge(q, right)} },
		func(other net.PacketConn, client net.Addr, q []byte) {
			if _, err := other.WriteTo(forge(q, func(*dns.Msg) {}), client); err == nil {
				intruded.Add(1)
			}
		})
	f := forwarder(t, ForwarderConfig{Upstream: Upstream{Nameservers: []netip.AddrPort{up}, Attempts: 1}})
	if got := told(f.Ask(t.Context(), askFor("www.example.org."))); got != good || intruded.Load() != 1 {
		t.Error(got, intruded.Load())
	}
}

func TestAnswersInCapitalsMatch(t *testing.T) {
	leak.Check(t)
	up := rawUpstream(t, func(q []byte) [][]byte {
		return [][]byte{forge(q, func(m *dns.Msg) { m.Question[0].Name = "WWW.example.ORG."; right(m) })}
	})
	f := forwarder(t, ForwarderConfig{Upstream: Upstream{Nameservers: []netip.AddrPort{up}, Attempts: 1}})
	if got := told(f.Ask(t.Context(), askFor("www.example.org."))); got != good {
		t.Error(got)
	}
}

func TestADatagramCutInARecordLeadsToTCP(t *testing.T) {
	leak.Check(t)
	inq, err := inquire(askFor("www.example.org."), false)
	if err != nil {
		t.Fatal(err)
	}
	whole := forge(inq.packed, func(m *dns.Msg) { m.Truncated = true })
	for n := headerLen; n < len(whole); n++ {
		m := inq.accept(whole[:n], false)
		if hasQuestion := n >= len(inq.packed); (m != nil) != hasQuestion || m != nil && !m.Truncated {
			t.Errorf("%d bytes: %v", n, m)
		}
	}
	whole = forge(inq.packed, right)
	if m := inq.accept(whole, true); m == nil || !m.Truncated {
		t.Errorf("an answer that filled the buffer: %v", m)
	}
	if m := inq.accept(whole, false); m == nil || m.Truncated {
		t.Errorf("a good answer: %v", m)
	}
}

func TestQueriesUpstream(t *testing.T) {
	leak.Check(t)
	for _, edns := range []bool{false, true} {
		type seen struct {
			id   uint16
			port string
		}
		var mu sync.Mutex
		var all []*dns.Msg
		ids := map[seen]bool{}
		up := rawUpstreamFrom(t,
			func(q []byte) [][]byte { return [][]byte{forge(q, func(*dns.Msg) {})} },
			func(_ net.PacketConn, client net.Addr, q []byte) {
				m := new(dns.Msg)
				if err := m.Unpack(q); err != nil {
					t.Error(err)
				}
				mu.Lock()
				defer mu.Unlock()
				all = append(all, m)
				ids[seen{m.Id, client.String()}] = true
			})
		f := forwarder(t, ForwarderConfig{Upstream: Upstream{Nameservers: []netip.AddrPort{up}, EDNS: edns}})
		for i := range 20 {
			if _, err := f.Ask(t.Context(), askFor(fmt.Sprintf("WWW%d.Example.org.", i))); err != nil {
				t.Fatal(err)
			}
		}
		mu.Lock() // for the race detector: the last answer came after the last write
		defer mu.Unlock()
		if len(all) != 20 || len(ids) < 19 {
			t.Errorf("%d queries with %d ids and ports", len(all), len(ids))
		}
		for i, m := range all {
			opt := m.IsEdns0()
			if !m.RecursionDesired || m.CheckingDisabled || m.AuthenticatedData || (opt != nil) != edns ||
				opt != nil && (opt.UDPSize() != 1232 || opt.Do()) ||
				m.Question[0].Name != fmt.Sprintf("www%d.example.org.", i) {
				t.Errorf("EDNS %v: asked %v", edns, m)
			}
		}
	}
}
