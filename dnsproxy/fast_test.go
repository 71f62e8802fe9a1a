// SPDX-License-Identifier: Apache-2.0

package dnsproxy

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/miekg/dns"

	"github.com/ztunnel-go/ztunnel/internal/mesh"
)

// shortWay is a server with something of everything, whose upstream is in
// memory.
func shortWay(m *memory, change ...func(*Config)) *Server {
	var many []string
	for i := range 256 {
		many = append(many, fmt.Sprintf("10.0.%d.%d", i/16, i%16+1))
	}
	st := store([]*mesh.Service{
		service("ns1/one.ns1.svc.cluster.local", "10.0.0.1", "2001:db8::1"),
		service("ns1/some.ns1.svc.cluster.local", "10.0.0.1", "10.0.0.2", "10.0.0.3", "2001:db8::1", "2001:db8::2"),
		service("ns1/many.ns1.svc.cluster.local", many...),
		with(service("ns1/four.ns1.svc.cluster.local", "10.0.0.4"), families(mesh.IPv4Only)),
		service("ns1/www.google.com", "1.1.1.1"),
		service("ns1/*.wild.example", "1.1.1.2"),
		service("ns1/elsewhere.ns1.svc.cluster.local", there+"/10.0.0.9"),
	})
	m.delay = func(netip.AddrPort) time.Duration { return 0 }
	if m.answer == nil {
		m.answer = func(q *dns.Msg) *dns.Msg { return world(q, false) }
	}
	cfg := Config{
		View: st.View(), Client: knownClient, IPv6: true, Shuffle: sorted,
		Upstream: Upstream{Nameservers: servers(1), Attempts: 1}, Dial: m.dial,
	}
	for _, c := range change {
		c(&cfg)
	}
	return New(cfg)
}

// again is the question of a query with another header and OPT.
func again(p plain, id, bits uint16, opt []byte) []byte {
	out := binary.BigEndian.AppendUint16(nil, id)
	out = binary.BigEndian.AppendUint16(out, bits)
	out = append(out, 0, 1, 0, 0, 0, 0, 0, byte(min(1, len(opt))))
	return append(append(out, p.key...), opt...)
}

func optRecord(size uint16, ttl uint32, data ...byte) []byte {
	out := binary.BigEndian.AppendUint16([]byte{0, 0, byte(dns.TypeOPT)}, size)
	out = binary.BigEndian.AppendUint32(out, ttl)
	out = binary.BigEndian.AppendUint16(out, uint16(len(data)))
	return append(out, data...)
}

// same wants the short way to say what the long one says, if it says anything,
// and tells whether it does.
func same(t *testing.T, s *Server, query []byte) bool {
	t.Helper()
	var w scratch
	var got, want []byte
	for range 3 { // times go on between the two
		if got = s.quick(query, &w); got == nil {
			return false
		}
		if want = s.handle(s.ctx, query, "udp"); bytes.Equal(got, want) {
			return true
		}
	}
	t.Errorf("query %x\nthe short way %x\nthe long way  %x", query, got, want)
	return true
}

func FuzzShortWay(f *testing.F) {
	for _, c := range packetCases() {
		f.Add(packet(f, c.query), uint16(7), uint16(0x0100), uint16(0), uint32(0), []byte(nil))
	}
	for _, name := range []string{
		"one", "some.ns1.svc.cluster.local", "many.ns1.svc.cluster.local", "SOME.ns1", "www.google.com.ns1.svc.cluster.local",
		"a.b.wild.example", "elsewhere", "four", "alias.example.org", "www.example.org", "nobody.example.org", "localhost",
	} {
		for _, qtype := range []uint16{dns.TypeA, dns.TypeAAAA} {
			b, err := question(name, qtype).Pack()
			if err != nil {
				f.Fatal(err)
			}
			for _, size := range []uint16{0, 100, 512, 1232, 4096, 65535} {
				f.Add(b, uint16(0xbeef), uint16(0x0130), size, uint32(0x8000), []byte(nil))
			}
			f.Add(b, uint16(1), uint16(0), uint16(1232), uint32(0x00ff0000), []byte{0, 10, 0, 8, 1, 2, 3, 4, 5, 6, 7, 8})
		}
	}
	m := new(memory)
	s := shortWay(m)
	f.Cleanup(func() { s.Close(); m.work.Wait() })
	f.Fuzz(func(t *testing.T, first []byte, id, bits, size uint16, ttl uint32, data []byte) {
		if len(data) > 64 {
			return
		}
		s.handle(s.ctx, first, "udp")
		same(t, s, first)
		p, ok := readPlain(first)
		if !ok {
			return
		}
		same(t, s, again(p, id, bits, nil))
		same(t, s, again(p, id, bits, optRecord(size, ttl, data...)))
	})
}

// TestPlainQueriesTakeTheShortWay wants those of stub resolvers to do, once
// their answer is known.
func TestPlainQueriesTakeTheShortWay(t *testing.T) {
	m := new(memory)
	s := shortWay(m)
	defer func() { s.Close(); m.work.Wait() }()
	for _, name := range []string{
		"one", "some.ns1.svc.cluster.local", "SOME.ns1", "www.google.com.ns1.svc.cluster.local", "x.wild.example",
		"elsewhere", "four", "alias.example.org", "www.example.org", "nobody.example.org",
	} {
		for _, qtype := range []uint16{dns.TypeA, dns.TypeAAAA} {
			b, err := question(name, qtype).Pack()
			if err != nil {
				t.Fatal(err)
			}
			p, ok := readPlain(b)
			if !ok {
				t.Fatalf("%s is not plain", name)
			}
			s.handle(s.ctx, b, "udp")
			for _, query := range [][]byte{
				b, again(p, 1, 0, nil), again(p, 2, bitRD|bitCD|bitAD, nil),
				again(p, 3, bitRD, optRecord(1232, 0)), again(p, 4, bitRD, optRecord(512, 0x8000)),
			} {
				if !same(t, s, query) {
					t.Errorf("%s %v went the long way: %x", name, dns.Type(qtype), query)
				}
			}
		}
	}
}

// TestWhatIsNotPlainTakesTheLongWay includes every proper prefix of a query.
func TestWhatIsNotPlainTakesTheLongWay(t *testing.T) {
	m := new(memory)
	s := shortWay(m)
	defer func() { s.Close(); m.work.Wait() }()
	b, err := question("one", dns.TypeA).Pack()
	if err != nil {
		t.Fatal(err)
	}
	s.handle(s.ctx, b, "udp")
	p, _ := readPlain(b)
	long := map[string][]byte{
		"a byte after it":       append(slices.Clone(b), 0),
		"an answer":             again(p, 1, 1<<15, nil),
		"another opcode":        again(p, 1, 1<<11, nil),
		"a cookie":              again(p, 1, 0, optRecord(1232, 0, 0, 10, 0, 8, 1, 2, 3, 4, 5, 6, 7, 8)),
		"an extended code":      again(p, 1, 0, optRecord(1232, 1<<24)),
		"OPT of some name":      again(p, 1, 0, append([]byte{1, 'a'}, optRecord(1232, 0)...)),
		"a pointer":             packet(t, "1234 0100 0001 0000 0000 0000 03'one' c00c 0001 0001"),
		"truncation in a query": again(p, 1, 1<<9, nil),
	}
	withOPT := again(p, 1, 0, optRecord(1232, 0))
	for n := range withOPT {
		long[fmt.Sprintf("%d bytes of a query with OPT", n)] = withOPT[:n]
	}
	for n := range b {
		long[fmt.Sprintf("%d bytes of a query", n)] = b[:n]
	}
	var w scratch
	for name, query := range long {
		if got := s.quick(query, &w); got != nil {
			t.Errorf("%s took the short way: %x", name, got)
		}
	}
	if s.quick(b, &w) == nil || s.quick(withOPT, &w) == nil {
		t.Error("and so did the whole query")
	}
}

func TestTheShortWayKeepsNothingThatHasChanged(t *testing.T) {
	st := store([]*mesh.Service{service("ns1/a.ns1.svc.cluster.local", "10.0.0.1")})
	conf := defaultResolvConf()
	conf.Nameservers = servers(1)
	source := NewSource(conf)
	m := new(memory)
	who := client()
	s := shortWay(m, func(c *Config) {
		c.View, c.Source, c.Upstream = st.View(), source, Upstream{}
		c.Client = func(context.Context) (*mesh.Workload, error) { return who, nil }
	})
	defer func() { s.Close(); m.work.Wait() }()
	var w scratch
	answer := func(name string) string {
		b, err := question(name, dns.TypeA).Pack()
		if err != nil {
			t.Fatal(err)
		}
		out := s.quick(b, &w)
		way := "short"
		if out == nil {
			out, way = s.handle(s.ctx, b, "udp"), "long"
		}
		msg := new(dns.Msg)
		if err := msg.Unpack(out); err != nil {
			t.Fatal(err)
		}
		return way + ": " + show(msg)
	}
	const forwarded = "NOERROR ra www.example.org./A/192.0.2.1"
	for i, step := range []struct {
		change     func()
		name, want string
	}{
		{nil, "a", "long: NOERROR aa ra a./A/10.0.0.1"},
		{nil, "a", "short: NOERROR aa ra a./A/10.0.0.1"},
		{nil, "A", "long: NOERROR aa ra a./A/10.0.0.1"}, // another question, byte for byte
		{nil, "A", "short: NOERROR aa ra a./A/10.0.0.1"},
		{nil, "www.example.org", "long: " + forwarded},
		{nil, "www.example.org", "short: " + forwarded},
		{func() {
			st.Apply(func(u *mesh.Update) { u.PutService(service("ns1/a.ns1.svc.cluster.local", "10.0.0.2")) })
		}, "a", "long: NOERROR aa ra a./A/10.0.0.2"},
		{nil, "a", "short: NOERROR aa ra a./A/10.0.0.2"},
		{func() {
			who = client()
			who.Network = there
			st.Apply(func(u *mesh.Update) { u.PutWorkload(who) })
		}, "a", "long: NOERROR aa ra"},
		{nil, "a", "short: NOERROR aa ra"},
		{nil, "www.example.org", "long: " + forwarded},
		{nil, "www.example.org", "short: " + forwarded},
		{func() {
			m.answer = func(q *dns.Msg) *dns.Msg {
				return answerWith(q, dns.RcodeSuccess, "www.example.org. 300 IN A 192.0.2.2")
			}
			conf.Nameservers = servers(2)[1:]
			source.Set(conf)
		}, "www.example.org", "long: NOERROR ra www.example.org./A/192.0.2.2"},
		{nil, "www.example.org", "short: NOERROR ra www.example.org./A/192.0.2.2"},
		{func() {
			st.Apply(func(u *mesh.Update) { u.PutService(service("ns1/www.example.org", there+"/10.0.0.5")) })
		}, "www.example.org", "long: NOERROR aa ra www.example.org./A/10.0.0.5"},
	} {
		if step.change != nil {
			step.change()
		}
		if got := answer(step.name); got != step.want {
			t.Errorf("step %d, %s: %s, want %s", i, step.name, got, step.want)
		}
	}
}

func TestTheShortWayEndsWithTheTimeOfAnswers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := &memory{answer: func(q *dns.Msg) *dns.Msg {
			switch q.Question[0].Name {
			case "mail.example.org.":
				a := answerWith(q, dns.RcodeSuccess, "mail.example.org. 60 IN CNAME b.", "b. 100 IN A 192.0.2.1")
				a.Extra = rr("ns. 10 IN A 192.0.2.2", "ns2. 50 IN A 192.0.2.3")
				return a
			case "no.example.org.":
				return world(q, false) // SOA: 30 s
			default:
				return answerWith(q, dns.RcodeSuccess, q.Question[0].Name+" 0 IN A 192.0.2.1")
			}
		}}
		s := shortWay(m)
		defer func() { s.Close(); m.work.Wait() }()
		var w scratch
		for i, step := range []struct {
			wait  time.Duration
			name  string
			short bool
			want  string
		}{
			{0, "mail.example.org", false, "60 100 10 50"},
			{500 * time.Millisecond, "mail.example.org", true, "60 100 10 50"},
			{9*time.Second + 499*time.Millisecond, "mail.example.org", true, "51 91 1 41"},
			{time.Millisecond, "mail.example.org", false, "50 90 40"}, // the first additional record is over
			{39*time.Second + 999*time.Millisecond, "mail.example.org", true, "11 51 1"},
			{time.Millisecond, "mail.example.org", false, "10 50"},
			{9*time.Second + 999*time.Millisecond, "mail.example.org", true, "1 41"},
			{time.Millisecond, "mail.example.org", false, "60 100 10 50"},
			{0, "no.example.org", false, ""},
			{30*time.Second - 1, "no.example.org", true, ""},
			{1, "no.example.org", false, ""},
			{0, "zero.example.org", false, "0"},
			{0, "zero.example.org", false, "0"},
		} {
			time.Sleep(step.wait)
			b, err := question(step.name, dns.TypeA).Pack()
			if err != nil {
				t.Fatal(err)
			}
			out := s.quick(b, &w)
			if short := out != nil; short != step.short {
				t.Errorf("step %d: the short way: %v", i, short)
			}
			if out == nil {
				out = s.handle(s.ctx, b, "udp")
			}
			msg := new(dns.Msg)
			if err := msg.Unpack(out); err != nil {
				t.Fatal(err)
			}
			var ttls []string
			for _, rr := range append(msg.Answer, msg.Extra...) {
				ttls = append(ttls, fmt.Sprint(rr.Header().Ttl))
			}
			if got := strings.Join(ttls, " "); got != step.want {
				t.Errorf("step %d: TTLs %s, want %s", i, got, step.want)
			}
		}
	})
}

func TestTheShortWayIsCountedAsTheLongOne(t *testing.T) {
	r := start(t, Config{View: oneName().View(), Upstream: fakeUpstream(t, world).config()})
	for range 5 {
		for _, name := range []string{"a", "www.example.org", "nobody.example.org"} {
			r.ask("udp", question(name, dns.TypeA))
		}
	}
	got := r.counts()
	for name, want := range map[string]float64{
		"istio_dns_requests_total": 15, "istio_dns_upstream_requests_total": 10,
		"istio_dns_upstream_failures_total": 5, "istio_dns_upstream_request_duration_seconds": 10,
	} {
		if n := got[name+" udp,a,v1,clients"]; n != want {
			t.Errorf("%s: %v, want %v", name, n, want)
		}
	}
	if ours := r.ours(); ours["ztunnel_dns_cache_total hit"] != 8 || ours["ztunnel_dns_cache_total miss"] != 2 {
		t.Errorf("%v", ours)
	}
}

func TestAccessLinesAreWrittenForEveryQuery(t *testing.T) {
	log, text := records(slog.LevelDebug)
	r := start(t, Config{View: oneName().View(), Access: log})
	for range 3 {
		r.ask("udp", question("a", dns.TypeA))
	}
	if n := strings.Count(text(), "domain=a."); n != 3 {
		t.Errorf("%d lines:\n%s", n, text())
	}
}

func TestAddressesAreShuffledOnTheShortWay(t *testing.T) {
	m := new(memory)
	s := shortWay(m, func(c *Config) { c.Shuffle = nil })
	defer func() { s.Close(); m.work.Wait() }()
	b, err := question("some", dns.TypeA).Pack()
	if err != nil {
		t.Fatal(err)
	}
	s.handle(s.ctx, b, "udp")
	seen := map[string]bool{}
	var w scratch
	for range 1000 {
		msg := new(dns.Msg)
		if err := msg.Unpack(s.quick(b, &w)); err != nil {
			t.Fatal(err)
		}
		seen[show(msg)] = true
	}
	if len(seen) != 6 {
		t.Errorf("%d orders of three addresses", len(seen))
	}
}

func TestTheShelfIsBounded(t *testing.T) {
	m := new(memory)
	s := shortWay(m)
	defer func() { s.Close(); m.work.Wait() }()
	full := false
	for i := range 10_000 {
		b, err := question(fmt.Sprintf("n%d.wild.example", i), dns.TypeA).Pack()
		if err != nil {
			t.Fatal(err)
		}
		before := s.shelf.bytes
		s.handle(s.ctx, b, "udp")
		full = full || s.shelf.bytes < before
		var w scratch
		if s.shelf.bytes > maxKept || s.quick(b, &w) == nil {
			t.Fatalf("after %d names: %d bytes", i, s.shelf.bytes)
		}
	}
	if !full {
		t.Error("it was never full")
	}
	sum := 0
	for _, k := range s.shelf.byKey {
		sum += k.cost
	}
	if sum != s.shelf.bytes {
		t.Errorf("%d bytes are counted, %d are there", s.shelf.bytes, sum)
	}
}

// TestAnAnswerTooLongForAQueryIsKeptOnce has one that fits with TCP's or a
// large OPT's limit only.
func TestAnAnswerTooLongForAQueryIsKeptOnce(t *testing.T) {
	m := new(memory)
	s := shortWay(m)
	defer func() { s.Close(); m.work.Wait() }()
	b, err := question("many", dns.TypeA).Pack()
	if err != nil {
		t.Fatal(err)
	}
	s.handle(s.ctx, b, "udp")
	p, _ := readPlain(b)
	kept := s.shelf.byKey[string(p.key)]
	var w scratch
	for range 3 {
		if s.quick(b, &w) != nil {
			t.Fatal("256 addresses in 4096 bytes")
		}
		s.handle(s.ctx, b, "udp")
	}
	if kept == nil || s.shelf.byKey[string(p.key)] != kept {
		t.Error("it was not kept, or kept again")
	}
	if !same(t, s, again(p, 1, bitRD, optRecord(65535, 0))) {
		t.Error("with a large OPT it takes the long way")
	}
}
