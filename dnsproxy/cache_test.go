// SPDX-License-Identifier: Apache-2.0

package dnsproxy

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"
)

func entry(i, size int, now time.Time) *cached {
	return &cached{
		key: askFor(fmt.Sprintf("n%d.", i)), packed: make([]byte, size),
		stored: now, expires: now.Add(time.Minute),
	}
}

func TestCacheKeepsTheLatestUsed(t *testing.T) {
	now := time.Now()
	c := newCache(3)
	for i := range 3 {
		c.put(entry(i, 10, now))
	}
	c.get(askFor("n0."), now)
	c.put(entry(3, 10, now))
	c.put(entry(3, 12, now)) // in the place of the first
	for i, want := range []bool{true, false, true, true} {
		if got := c.get(askFor(fmt.Sprintf("n%d.", i)), now) != nil; got != want {
			t.Errorf("n%d: %v", i, got)
		}
	}
	if c.bytes != 32 || c.order.Len() != 3 || len(c.byKey) != 3 {
		t.Errorf("%d bytes, %d entries, %d keys", c.bytes, c.order.Len(), len(c.byKey))
	}
}

func TestCacheIsBoundedInBytes(t *testing.T) {
	now := time.Now()
	c := newCache(8192)
	for i := range 1000 {
		c.put(entry(i, dns.MaxMsgSize, now))
	}
	if c.bytes > maxCacheBytes || c.order.Len() != maxCacheBytes/dns.MaxMsgSize {
		t.Errorf("%d bytes in %d entries", c.bytes, c.order.Len())
	}
}

func TestCacheForgets(t *testing.T) {
	now := time.Now()
	c := newCache(10)
	c.put(entry(1, 10, now))
	if c.get(askFor("n1."), now.Add(time.Minute-1)) == nil {
		t.Error("forgotten too early")
	}
	if c.get(askFor("n1."), now.Add(time.Minute)) != nil || c.bytes != 0 || len(c.byKey) != 0 {
		t.Error("kept beyond its time")
	}
	dead := entry(2, 10, now)
	dead.expires = now
	c.put(dead)
	if len(c.byKey) != 0 {
		t.Error("an entry with no time left was kept")
	}
}

func TestACacheWithoutRoomKeepsNothing(t *testing.T) {
	c := newCache(-1)
	c.put(entry(1, 10, time.Now()))
	if c.get(askFor("n1."), time.Now()) != nil {
		t.Error("kept")
	}
}

func TestAdditionalRecordsThatAreOverAreLeftOut(t *testing.T) {
	now := time.Now()
	m := &dns.Msg{Answer: rr("a. 60 IN MX 1 b."), Extra: rr("b. 5 IN A 1.1.1.1", "b. 50 IN AAAA 2001:db8::1")}
	a, err := keep(dns.Question{Name: "a.", Qtype: dns.TypeMX}, m, now)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		age  time.Duration
		want string
	}{
		{0, "60 5 50"},
		{4 * time.Second, "56 1 46"},
		{5 * time.Second, "55 45"},
		{55 * time.Second, "5"},
	} {
		got, err := a.message(a.age(now.Add(c.age)))
		if err != nil {
			t.Fatal(err)
		}
		var ttls []string
		for _, rr := range append(got.Answer, got.Extra...) {
			ttls = append(ttls, fmt.Sprint(rr.Header().Ttl))
		}
		if have := strings.Join(ttls, " "); have != c.want {
			t.Errorf("after %v: %s, want %s", c.age, have, c.want)
		}
	}
}

func TestLifetime(t *testing.T) {
	soa := "e.org. 60 IN SOA ns.e.org. admin.e.org. 1 1 1 1 30"
	for _, c := range []struct {
		about  string
		rcode  int
		answer []string
		ns     []string
		want   time.Duration
	}{
		{"shortest record", 0, []string{"a. 60 IN A 1.1.1.1", "a. 50 IN A 1.1.1.2", "a. 70 IN A 1.1.1.3"}, nil, 50 * time.Second},
		{"a day at most", 0, []string{"a. 999999 IN A 1.1.1.1"}, nil, 24 * time.Hour},
		{"top bit", 0, []string{"a. 2147483648 IN A 1.1.1.1"}, nil, 0},
		{"NODATA, minimum of SOA", 0, nil, []string{soa}, 30 * time.Second},
		{"NXDOMAIN, TTL of SOA", 3, nil, []string{"e.org. 20 IN SOA ns.e.org. admin.e.org. 1 1 1 1 30"}, 20 * time.Second},
		{"NXDOMAIN after a CNAME", 3, []string{"a. 999 IN CNAME b."}, []string{soa}, 30 * time.Second},
		{"an alias to nothing", 0, []string{"a. 999 IN CNAME b."}, []string{soa}, 30 * time.Second},
		{"an alias to nothing, shorter than that", 0, []string{"a. 9 IN CNAME b."}, []string{soa}, 9 * time.Second},
		{"an alias to nothing without SOA", 0, []string{"a. 999 IN CNAME b."}, nil, 0},
		{"a type nobody asked for", 0, []string{"a. 90 IN HINFO a b"}, nil, 90 * time.Second}, // RFC 8482
		{"no SOA", 3, nil, []string{"e.org. 20 IN NS ns.e.org."}, 0},
	} {
		m := &dns.Msg{Answer: rr(c.answer...), Ns: rr(c.ns...)}
		m.Rcode = c.rcode
		if got := lifetime(m, dns.TypeA); got != c.want {
			t.Errorf("%s: %v", c.about, got)
		}
	}
}
