// SPDX-License-Identifier: Apache-2.0

package dnsproxy

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/miekg/dns"
)

// hosts are servers in memory that know a few hosts, all others being NXDOMAIN.
// log is what they were asked.
type hosts struct {
	memory
	mu    sync.Mutex
	zones map[string][]string // by name and type; nil: NODATA
	codes map[string]int      // by name
	log   []string
}

func newHosts() *hosts {
	h := &hosts{zones: map[string][]string{}, codes: map[string]int{}}
	h.delay = func(netip.AddrPort) time.Duration { return time.Millisecond }
	h.memory.answer = h.answer
	return h
}

func (h *hosts) answer(q *dns.Msg) *dns.Msg {
	h.mu.Lock()
	defer h.mu.Unlock()
	name, qtype := q.Question[0].Name, dns.TypeToString[q.Question[0].Qtype]
	h.log = append(h.log, qtype+" "+name)
	if code, ok := h.codes[name]; ok {
		return answerWith(q, code)
	}
	m := answerWith(q, dns.RcodeNameError)
	if lines, ok := h.zones[name+" "+qtype]; ok {
		m = answerWith(q, dns.RcodeSuccess, lines...)
	}
	m.Ns = rr("example.org. 60 IN SOA ns.example.org. admin.example.org. 1 1 1 1 30")
	return m
}

// asked tells what was asked since the last call, sorted: both families are
// asked at once.
func (h *hosts) asked() string {
	h.mu.Lock()
	defer h.mu.Unlock()
	slices.Sort(h.log)
	out := strings.Join(h.log, ", ")
	h.log = nil
	return out
}

// lookups runs in virtual time against a resolver that asks h.
func lookups(t *testing.T, h *hosts, cfg ResolverConfig, conf ResolvConf, run func(*testing.T, *Resolver)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		conf.Nameservers = servers(1)
		cfg.Source, cfg.Dial = NewSource(conf), h.dial
		r := NewResolver(cfg)
		run(t, r)
		r.Close()
		h.work.Wait()
	})
}

// outcome is the result of a lookup in one line.
func outcome(addrs []netip.Addr, asked bool, err error) string {
	if err != nil {
		return fmt.Sprintf("%v, asked %v", err, asked)
	}
	return fmt.Sprintf("%v, asked %v", addrs, asked)
}

func TestAddressesOfHosts(t *testing.T) {
	h := newHosts()
	h.zones["db.example.org. A"] = []string{"db.example.org. 60 IN A 192.0.2.1", "db.example.org. 60 IN A 192.0.2.2"}
	h.zones["db.example.org. AAAA"] = []string{"db.example.org. 60 IN AAAA 2001:db8::1"}
	h.zones["six.example.org. A"] = nil
	h.zones["six.example.org. AAAA"] = []string{"six.example.org. 60 IN AAAA 2001:db8::6"}
	h.zones["alias.example.org. A"] = []string{
		"far.example.org. 60 IN A 192.0.2.9", "ALIAS.example.org. 60 IN CNAME far.example.org.",
		"liar.example.org. 60 IN A 192.0.2.66",
	}
	h.zones["loop.example.org. A"] = []string{"loop.example.org. 60 IN CNAME loop.example.org."}
	h.zones["other.example.org. A"] = []string{"liar.example.org. 60 IN A 192.0.2.66"}
	h.zones["four.example.org. AAAA"] = []string{"four.example.org. 60 IN A 192.0.2.66"}
	h.codes["broken.example.org."] = dns.RcodeServerFailure
	for _, c := range []struct {
		name string
		ipv6 bool
		host string
		want string
	}{
		{"both families", true, "db.example.org", "[192.0.2.1 192.0.2.2 2001:db8::1], asked true"},
		{"no AAAA without IPv6", false, "db.example.org", "[192.0.2.1 192.0.2.2], asked true"},
		{"the dot at the end and capitals mean nothing", true, "DB.example.org.", "[192.0.2.1 192.0.2.2 2001:db8::1], asked true"},
		{"IPv6 alone", true, "six.example.org", "[2001:db8::6], asked true"},
		{"IPv6 alone, without IPv6", false, "six.example.org", "no records found: six.example.org. A, asked true"},
		{"an alias, and nobody's address beside it", false, "alias.example.org", "[192.0.2.9], asked true"},
		{"an alias of itself", false, "loop.example.org", "no records found: loop.example.org. A, asked true"},
		{"only an address of another name", false, "other.example.org", "no records found: other.example.org. A, asked true"},
		{"an address of the other family", true, "four.example.org", "no records found: four.example.org. AAAA, asked true"},
		{"nobody", true, "nobody.example.org", "no such domain: nobody.example.org., asked true"},
		{"a server that fails", true, "broken.example.org",
			"ask 192.0.2.1:53: answered SERVFAIL, asked true"},
		{"not a name", true, "a..example.org", "no such domain: a..example.org., asked false"},
		{"a name of the hosts file", false, "static.example.org", "[192.0.2.77], asked false"},
		{"a name whose other family the hosts file has not", true, "static.example.org", "[192.0.2.77], asked true"},
		{"localhost", true, "localhost", "[127.0.0.1 ::1], asked false"},
	} {
		t.Run(c.name, func(t *testing.T) {
			static, err := ParseHosts(strings.NewReader("192.0.2.77 static.example.org\n"))
			if err != nil {
				t.Fatal(err)
			}
			conf := defaultResolvConf()
			conf.Attempts = 1
			lookups(t, h, ResolverConfig{IPv6: c.ipv6, Hosts: static}, conf, func(t *testing.T, r *Resolver) {
				if got := outcome(r.Addresses(t.Context(), c.host)); got != c.want {
					t.Errorf("got %s, want %s", got, c.want)
				}
			})
		})
	}
}

// TestHostsAreAskedForAgainWhenTheirTimeIsOver has a host for 60 s and one that
// is not for 30 s.
func TestHostsAreAskedForAgainWhenTheirTimeIsOver(t *testing.T) {
	h := newHosts()
	h.zones["db.example.org. A"] = []string{"db.example.org. 60 IN A 192.0.2.1"}
	lookups(t, h, ResolverConfig{Cache: 4096}, defaultResolvConf(), func(t *testing.T, r *Resolver) {
		for _, step := range []struct {
			wait time.Duration
			host string
			want string
		}{
			{0, "db.example.org", "[192.0.2.1], asked true"},
			{59 * time.Second, "db.example.org", "[192.0.2.1], asked false"},
			{time.Second, "db.example.org", "[192.0.2.1], asked true"},
			{0, "no.example.org", "no such domain: no.example.org., asked true"},
			{29 * time.Second, "no.example.org", "no such domain: no.example.org., asked false"},
			{time.Second, "no.example.org", "no such domain: no.example.org., asked true"},
		} {
			time.Sleep(step.wait)
			h.asked()
			got := outcome(r.Addresses(t.Context(), step.host))
			if asked := h.asked() != ""; got != step.want || asked != strings.HasSuffix(got, "true") {
				t.Errorf("%s after %v: %s, upstream asked: %v; want %s", step.host, step.wait, got, asked, step.want)
			}
		}
		h.zones["db.example.org. A"] = []string{"db.example.org. 60 IN A 192.0.2.2"}
		time.Sleep(time.Minute)
		if got := outcome(r.Addresses(t.Context(), "db.example.org")); got != "[192.0.2.2], asked true" {
			t.Errorf("after its address changed: %s", got)
		}
	})
}

func TestHostsThatAreLookedUpAtOnceAreAskedForOnce(t *testing.T) {
	h := newHosts()
	h.zones["db.example.org. A"] = []string{"db.example.org. 60 IN A 192.0.2.1"}
	h.zones["db.example.org. AAAA"] = nil
	lookups(t, h, ResolverConfig{IPv6: true, Cache: 4096}, defaultResolvConf(), func(t *testing.T, r *Resolver) {
		var callers sync.WaitGroup
		for range 3 * maxForwarded { // more than a pod's DNS may have on its way
			callers.Go(func() {
				if got := outcome(r.Addresses(t.Context(), "db.example.org")); got != "[192.0.2.1], asked true" {
					t.Error(got)
				}
			})
		}
		callers.Wait()
		if got := h.asked(); got != "A db.example.org., AAAA db.example.org." {
			t.Error(got)
		}
	})
}

func TestTheHostsUsedLongestAgoAreForgotten(t *testing.T) {
	h := newHosts()
	name := func(i int) string { return fmt.Sprintf("n%d.example.org.", i) }
	for i := range 4 {
		h.zones[name(i)+" A"] = []string{name(i) + " 600 IN A 192.0.2.1"}
	}
	lookups(t, h, ResolverConfig{Cache: 3}, defaultResolvConf(), func(t *testing.T, r *Resolver) {
		for _, i := range []int{0, 1, 2, 0, 3} { // 3 pushes 1 out
			if _, _, err := r.Addresses(t.Context(), name(i)); err != nil {
				t.Error(err)
			}
		}
		h.asked()
		for _, i := range []int{0, 2, 3, 1} {
			if _, asked, err := r.Addresses(t.Context(), name(i)); err != nil || asked != (i == 1) {
				t.Errorf("%s: asked %v, %v", name(i), asked, err)
			}
		}
		if got := h.asked(); got != "A n1.example.org." {
			t.Error(got)
		}
	})
}

func TestSearchDomainsOfHosts(t *testing.T) {
	h := newHosts()
	h.zones["db.b.example. A"] = []string{"db.b.example. 60 IN A 192.0.2.1"}
	h.zones["www.example.org. A"] = []string{"www.example.org. 60 IN A 192.0.2.2"}
	h.codes["ill.a.example."] = dns.RcodeServerFailure
	h.zones["ill.b.example. A"] = []string{"ill.b.example. 60 IN A 192.0.2.3"}
	for _, c := range []struct {
		ndots int
		host  string
		asked string
	}{
		{1, "db", "A db.a.example., A db.b.example."},
		{1, "www.example.org", "A www.example.org."},
		{5, "www.example.org", "A www.example.org., A www.example.org.a.example., A www.example.org.b.example."},
		{5, "www.example.org.", "A www.example.org."},
		{1, "no.example.org", "A no.example.org., A no.example.org.a.example., A no.example.org.b.example."},
		{1, "ill", "A ill.a.example., A ill.a.example., A ill.b.example."}, // one server fails twice
		{5, "hidden.onion", ""},
		{5, strings.Repeat("long.", 49) + "org", "A " + strings.Repeat("long.", 49) + "org."}, // 248 and more than a name may have
	} {
		conf := defaultResolvConf()
		conf.Ndots, conf.Search = c.ndots, []string{"a.example", "b.example"}
		lookups(t, h, ResolverConfig{}, conf, func(t *testing.T, r *Resolver) {
			_, _, _ = r.Addresses(t.Context(), c.host)
			if got := h.asked(); got != c.asked {
				t.Errorf("%s with ndots %d: %s, want %s", c.host, c.ndots, got, c.asked)
			}
		})
	}
}

func TestSilentServersAreNotAskedForEachSearchDomain(t *testing.T) {
	h := newHosts()
	h.delay = func(netip.AddrPort) time.Duration { return -1 }
	conf := defaultResolvConf()
	conf.Search = []string{"a.example", "b.example"}
	lookups(t, h, ResolverConfig{IPv6: true}, conf, func(t *testing.T, r *Resolver) {
		start := time.Now()
		_, _, err := r.Addresses(t.Context(), "db")
		if took := time.Since(start); !errors.Is(err, context.DeadlineExceeded) || took != 10*time.Second {
			t.Errorf("%v after %v", err, took)
		}
	})
}

func TestALookUpEndsWithWhoWaits(t *testing.T) {
	h := newHosts()
	h.delay = func(netip.AddrPort) time.Duration { return -1 }
	lookups(t, h, ResolverConfig{IPv6: true}, defaultResolvConf(), func(t *testing.T, r *Resolver) {
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		start := time.Now()
		if _, _, err := r.Addresses(ctx, "db.example.org"); err == nil || time.Since(start) != time.Second {
			t.Errorf("%v after %v", err, time.Since(start))
		}
	})
}

// TestANewSourceIsAskedAtOnceAndTheOldOneForgotten changes resolv.conf with
// one answer in the cache and one on its way.
func TestANewSourceIsAskedAtOnceAndTheOldOneForgotten(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		before, after := servers(2)[:1], servers(2)[1:]
		m := &memory{delay: func(netip.AddrPort) time.Duration { return time.Second }}
		m.answer = func(q *dns.Msg) *dns.Msg {
			return answerWith(q, dns.RcodeSuccess, q.Question[0].Name+" 600 IN A 192.0.2.1")
		}
		conf := defaultResolvConf()
		conf.Nameservers = before
		source := NewSource(conf)
		f := NewForwarder(ForwarderConfig{Source: source, Dial: m.dial})
		defer m.work.Wait()
		defer f.Close()
		ask := func(name string) {
			if _, err := f.Ask(t.Context(), askFor(name)); err != nil {
				t.Error(err)
			}
		}
		ask("kept.example.org.")
		var waiting sync.WaitGroup
		waiting.Go(func() { ask("flying.example.org.") })
		synctest.Wait()
		source.Set(conf) // the same: nothing is forgotten
		ask("kept.example.org.")
		if n := m.count(before[0]).Load(); n != 2 {
			t.Errorf("asked %d times before the change", n)
		}
		conf.Nameservers = after
		source.Set(conf)
		ask("kept.example.org.")
		waiting.Wait() // it has its answer from the old ones
		ask("flying.example.org.")
		ask("flying.example.org.")
		if old, new := m.count(before[0]).Load(), m.count(after[0]).Load(); old != 2 || new != 2 {
			t.Errorf("the old server was asked %d times, the new one %d times; want 2 and 2", old, new)
		}
	})
}
