// SPDX-License-Identifier: Apache-2.0

package dnsproxy

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/miekg/dns"
	"github.com/ztunnel-go/ztunnel/internal/mesh"
	"github.com/ztunnel-go/ztunnel/test/leak"
)

func TestMetricsCountQueriesAndWhatUpstreamSays(t *testing.T) {
	leak.Check(t)
	r := start(t, Config{View: lookupStore().View(), Upstream: fakeUpstream(t, world).config()})
	r.ask("udp", question("productpage", dns.TypeA))
	r.ask("udp", question("productpage", dns.TypeA))
	r.ask("tcp", question("productpage", dns.TypeAAAA))
	r.ask("tcp", question("www.example.org", dns.TypeA))
	r.ask("tcp", question("www.example.org", dns.TypeA)) // from the cache, and counted all the same
	r.ask("udp", question("www.example.org", dns.TypeAAAA))
	r.ask("udp", question("nowhere.example.org", dns.TypeSRV))
	r.ask("udp", question("nowhere.example.org", 65280))
	want := map[string]float64{
		"istio_dns_requests_total udp,a":       2,
		"istio_dns_requests_total tcp,aaaa":    1,
		"istio_dns_requests_total tcp,a":       2,
		"istio_dns_requests_total udp,aaaa":    1,
		"istio_dns_requests_total udp,srv":     1,
		"istio_dns_requests_total udp,unknown": 1,

		"istio_dns_upstream_requests_total tcp,a":       2,
		"istio_dns_upstream_requests_total udp,aaaa":    1,
		"istio_dns_upstream_requests_total udp,srv":     1,
		"istio_dns_upstream_requests_total udp,unknown": 1,

		"istio_dns_upstream_request_duration_seconds tcp,a":       2,
		"istio_dns_upstream_request_duration_seconds udp,aaaa":    1,
		"istio_dns_upstream_request_duration_seconds udp,srv":     1,
		"istio_dns_upstream_request_duration_seconds udp,unknown": 1,

		"istio_dns_upstream_failures_total udp,aaaa":    1,
		"istio_dns_upstream_failures_total udp,srv":     1,
		"istio_dns_upstream_failures_total udp,unknown": 1,
	}
	got := r.counts() // labels by name: protocol, type, revision, service
	for key, n := range want {
		if key += ",v1,clients"; got[key] != n {
			t.Errorf("%s = %v, want %v", key, got[key], n)
		}
		delete(got, key)
	}
	for key, n := range got {
		t.Errorf("%s = %v, want none", key, n)
	}
}

func TestHistogramHasTheBucketsOfTheContract(t *testing.T) {
	leak.Check(t)
	r := start(t, Config{})
	r.ask("udp", question("localhost", dns.TypeA))
	families, err := r.metrics.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		if f.GetMetric()[0].GetHistogram() == nil {
			continue
		}
		var bounds []float64
		for _, b := range f.GetMetric()[0].GetHistogram().GetBucket() {
			bounds = append(bounds, b.GetUpperBound())
		}
		if got := fmt.Sprint(bounds, " ", f.GetUnit()); got != "[0.0005 0.001 0.01 0.1 1 5] seconds" {
			t.Error(got)
		}
	}
}

func TestUnknownClientIsServfail(t *testing.T) {
	leak.Check(t)
	access, lines := records(slog.LevelDebug)
	for about, found := range map[string]func(context.Context) (*mesh.Workload, error){
		"error":   func(context.Context) (*mesh.Workload, error) { return nil, errUnknownClient },
		"nothing": func(context.Context) (*mesh.Workload, error) { return nil, nil },
	} {
		r := start(t, Config{View: lookupStore().View(), Client: found, Access: access})
		if got := show(r.ask("udp", question("productpage", dns.TypeA))); got != "SERVFAIL" {
			t.Errorf("%s: %s", about, got)
		}
		if n := r.counts()["istio_dns_requests_total udp,a,unknown,unknown"]; n != 1 {
			t.Errorf("%s: counted %v", about, n)
		}
	}
	if lines() != "" {
		t.Errorf("access lines: %s", lines())
	}
}

func TestAClientIsAwaitedForFiveSeconds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := New(Config{View: oneName().View(), Dial: dial, Client: func(ctx context.Context) (*mesh.Workload, error) {
			<-ctx.Done()
			return nil, ctx.Err()
		}})
		defer s.Close()
		packet, _ := question("a", dns.TypeA).Pack()
		begun := time.Now()
		m := new(dns.Msg)
		if err := m.Unpack(s.handle(s.ctx, packet, "udp")); err != nil || m.Rcode != dns.RcodeServerFailure {
			t.Errorf("%v, %v", m, err)
		}
		if took := time.Since(begun); took != 5*time.Second {
			t.Errorf("waited %v", took)
		}
	})
}

func TestAccessLines(t *testing.T) {
	leak.Check(t)
	access, lines := records(slog.LevelDebug)
	r := start(t, Config{View: lookupStore().View(), Upstream: fakeUpstream(t, world).config(), Access: access})
	for _, q := range []*dns.Msg{
		question("Productpage", dns.TypeA),
		question("www.google.com.cluster.local", dns.TypeA),
		question("productpage", dns.TypeAAAA),
		question("away.example.com", dns.TypeA),
		question("alias.example.org", dns.TypeA),
		question("nowhere.example.org", dns.TypeA),
		question("www.example.org", dns.TypeAAAA),
	} {
		r.ask("tcp", q)
	}
	const who = `level=DEBUG msg="" src.workload=client src.namespace=ns1 `
	want := strings.Join([]string{
		who + `query=A domain=productpage. result=success endpoints=0`,
		who + `query=A domain=www.google.com.cluster.local. result=success endpoints=1`,
		who + `query=AAAA domain=productpage. result="service does not support this record type" endpoints=0`,
		who + `query=A domain=away.example.com. result="no records" endpoints=0`,
		who + `query=A domain=alias.example.org. result=forwarded endpoints=3`,
		who + `query=A domain=nowhere.example.org. result="forwarding failed (no such domain: nowhere.example.org.)" endpoints=0`,
		who + `query=AAAA domain=www.example.org. result="forwarding failed (no records found: www.example.org. AAAA)" endpoints=0`,
	}, "\n") + "\n"
	if lines() != want {
		t.Errorf("got\n%swant\n%s", lines(), want)
	}
}

func manyAddresses() (*mesh.Store, []netip.Addr) {
	svc := service("ns1/large.example.com")
	var all []netip.Addr
	for i := range 256 {
		a := netip.AddrFrom4([4]byte{240, 0, 0, byte(i)})
		all = append(all, a)
		svc.VIPs = append(svc.VIPs, mesh.NetworkAddr{Network: here, Addr: a})
	}
	return store([]*mesh.Service{svc}), all
}

func TestLargeResponse(t *testing.T) {
	leak.Check(t)
	large, all := manyAddresses()
	r := start(t, Config{View: large.View()})
	for _, c := range []struct {
		protocol string
		edns     uint16
		answers  int
		tc       bool
	}{
		{"tcp", 0, 256, false},
		{"tcp", 512, 256, false}, // it speaks of UDP only
		{"udp", 1232, 74, true},
		{"udp", 512, 29, true},
		{"udp", 100, 29, true}, // less than 512 means 512 (RFC 6891 section 6.2.3)
		{"udp", 0, 253, true},  // 4096 bytes
		{"udp", 5000, 256, false},
		{"udp", 65535, 256, false},
	} {
		q := question("large.example.com", dns.TypeA)
		if c.edns > 0 {
			q.SetEdns0(c.edns, false)
		}
		m := r.ask(c.protocol, q)
		if len(m.Answer) != c.answers || m.Truncated != c.tc {
			t.Errorf("%s, EDNS %d: %d answers, TC %v; want %d, %v", c.protocol, c.edns, len(m.Answer), m.Truncated, c.answers, c.tc)
		}
		for i, rr := range m.Answer {
			if got := rr.(*dns.A).A.String(); got != all[i].String() {
				t.Fatalf("answer %d is %s", i, got)
			}
		}
		if (m.IsEdns0() != nil) != (c.edns > 0) {
			t.Errorf("%s, EDNS %d: OPT %v", c.protocol, c.edns, m.IsEdns0())
		}
	}
}

func TestMoreThanAMessageHoldsIsTruncatedByTCPToo(t *testing.T) {
	leak.Check(t)
	svc := service("ns1/huge.example.com")
	for i := range 5000 {
		svc.VIPs = append(svc.VIPs, mesh.NetworkAddr{Network: here, Addr: netip.AddrFrom4([4]byte{10, 0, byte(i >> 8), byte(i)})})
	}
	r := start(t, Config{View: store([]*mesh.Service{svc}).View()})
	if m := r.ask("tcp", question("huge.example.com", dns.TypeA)); !m.Truncated || len(m.Answer) < 4000 {
		t.Errorf("TC %v, %d answers", m.Truncated, len(m.Answer))
	}
}

func TestAddressesAreShuffled(t *testing.T) {
	leak.Check(t)
	large, all := manyAddresses()
	s := New(Config{View: large.View(), Client: knownClient, Dial: dial})
	defer s.Close()
	packet, _ := question("large.example.com", dns.TypeA).Pack()
	seen := map[string]bool{}
	for range 8 {
		m := new(dns.Msg)
		if err := m.Unpack(s.handle(s.ctx, packet, "tcp")); err != nil || len(m.Answer) != len(all) {
			t.Fatal(m, err)
		}
		seen[m.Answer[0].String()] = true
	}
	if len(seen) < 2 {
		t.Error("the first address was the same eight times")
	}
}

func TestEDNSIsAnsweredInKind(t *testing.T) {
	leak.Check(t)
	r := start(t, Config{View: lookupStore().View(), Upstream: fakeUpstream(t, world).config()})
	for name, wantOPT := range map[string]bool{
		"productpage": true, "alias.example.org": true, "nowhere.example.org": false,
	} {
		q := question(name, dns.TypeA)
		q.SetEdns0(1400, true)
		q.IsEdns0().SetVersion(3)
		q.IsEdns0().Option = []dns.EDNS0{&dns.EDNS0_COOKIE{Code: dns.EDNS0COOKIE, Cookie: "24a5ac1122334455"}}
		opt := r.ask("udp", q).IsEdns0()
		if (opt != nil) != wantOPT {
			t.Errorf("%s: OPT %v", name, opt)
		}
		if opt != nil && (opt.UDPSize() != 1400 || opt.Version() != 3 || !opt.Do() || len(opt.Option) > 0) {
			t.Errorf("%s: OPT %v", name, opt)
		}
	}
}

func TestHeaderBitsAreCopied(t *testing.T) {
	leak.Check(t)
	r := start(t, Config{View: lookupStore().View(), Upstream: fakeUpstream(t, world).config()})
	for _, name := range []string{"productpage", "www.example.org", "nowhere.example.org"} {
		for _, set := range []bool{false, true} {
			q := question(name, dns.TypeA)
			q.RecursionDesired, q.CheckingDisabled, q.AuthenticatedData, q.Zero = set, set, set, set
			m := r.ask("udp", q)
			if m.RecursionDesired != set || m.CheckingDisabled != set || m.AuthenticatedData || m.Zero {
				t.Errorf("%s %v: %v", name, set, m.MsgHdr)
			}
		}
	}
}

func TestQuestionIsEchoedByteForByteAndOwnersAreLowerCase(t *testing.T) {
	leak.Check(t)
	odd := append([]byte{0x12, 0x34, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0}, "\x06X.\\\"\x00\xff\x04WiLd\x07exAMPle\x03cOm\x00\x00\x01\x00\x03"...)
	r := start(t, Config{View: lookupStore().View()})
	for _, protocol := range []string{"udp", "tcp"} {
		got := r.raw(protocol, odd)
		if len(got) < len(odd) || !bytes.Equal(got[headerLen:len(odd)], odd[headerLen:]) {
			t.Fatalf("%s: asked %q, got %q", protocol, odd, got)
		}
		m := new(dns.Msg)
		if err := m.Unpack(got); err != nil || len(m.Answer) != 1 {
			t.Fatal(m, err)
		}
		if owner := m.Answer[0].Header().Name; owner != dns.CanonicalName(owner) {
			t.Errorf("owner %s", owner)
		}
	}
}
