// SPDX-License-Identifier: Apache-2.0

package dnsproxy

import (
	"container/list"
	"slices"
	"sync"
	"time"

	"github.com/miekg/dns"
)

const (
	// maxCacheBytes bounds the packed messages of one cache. A pod chooses
	// what is asked, and perhaps what is answered: 8192 answers of 64 KiB
	// would be half a gigabyte of the node.
	maxCacheBytes = 8 << 20

	// maxTTL is how long anything is kept, whatever its TTL says: the
	// reference's limit.
	maxTTL = 24 * time.Hour
)

// A cached answer is a packed message, as it came at a certain time. Packed
// it is small, its size is known, and whoever reads it gets records of his
// own to change.
type cached struct {
	key     dns.Question
	packed  []byte
	stored  time.Time
	expires time.Time
}

// A cache keeps answers, good and bad, until their TTL ends or others push
// them out, the least recently used first.
type cache struct {
	entries int // how many at most

	mu    sync.Mutex // guards everything below
	byKey map[dns.Question]*list.Element
	order *list.List // of *cached, the latest used in front
	bytes int
}

// newCache makes a cache; with no room for entries it is nil, which keeps
// nothing.
func newCache(entries int) *cache {
	if entries <= 0 {
		return nil
	}
	return &cache{entries: entries, byKey: map[dns.Question]*list.Element{}, order: list.New()}
}

func (c *cache) get(key dns.Question, now time.Time) *cached {
	if c == nil {
		return nil
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	e := c.byKey[key]
	if e == nil {
		return nil
	}
	a := e.Value.(*cached)
	if !now.Before(a.expires) {
		c.removeLocked(e)
		return nil
	}
	c.order.MoveToFront(e)
	return a
}

// put keeps an answer, unless its time is over already.
func (c *cache) put(a *cached) {
	if c == nil || !a.stored.Before(a.expires) {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if old := c.byKey[a.key]; old != nil {
		c.removeLocked(old)
	}
	c.byKey[a.key] = c.order.PushFront(a)
	c.bytes += len(a.packed)
	for c.order.Len() > c.entries || c.bytes > maxCacheBytes {
		c.removeLocked(c.order.Back())
	}
}

// removeLocked takes an entry out. The caller holds mu.
func (c *cache) removeLocked(e *list.Element) {
	a := c.order.Remove(e).(*cached)
	delete(c.byKey, a.key)
	c.bytes -= len(a.packed)
}

// age is how long the answer has been here, in whole seconds.
func (a *cached) age(now time.Time) time.Duration {
	return max(0, now.Sub(a.stored)).Truncate(time.Second)
}

// message unpacks the answer, with the TTLs that remain at an age. Of additional
// records, which may have shorter ones than the answer, what is over is left
// out.
func (a *cached) message(age time.Duration) (*dns.Msg, error) {
	m := new(dns.Msg)
	if err := m.Unpack(a.packed); err != nil {
		return nil, err
	}
	passed := uint32(age / time.Second)
	if passed == 0 {
		return m, nil
	}
	m.Extra = slices.DeleteFunc(m.Extra, func(rr dns.RR) bool { return rr.Header().Ttl <= passed })
	for _, section := range [][]dns.RR{m.Answer, m.Extra} {
		for _, rr := range section {
			h := rr.Header()
			h.Ttl -= min(passed, h.Ttl)
		}
	}
	return m, nil
}

// lifetime is how long an answer to a question of qtype may be kept (RFC 2308
// section 5): a good one as long as its shortest record, a bad one as its SOA
// says, and without SOA not at all. An alias that leads to nothing is both.
func lifetime(m *dns.Msg, qtype uint16) time.Duration {
	ttl := uint32(maxTTL / time.Second)
	if m.Rcode != dns.RcodeSuccess || !answers(m.Answer, qtype) {
		ttl = min(ttl, negativeTTL(m.Ns))
	}
	if m.Rcode == dns.RcodeSuccess {
		for _, rr := range m.Answer {
			ttl = min(ttl, sane(rr.Header().Ttl))
		}
	}
	return time.Duration(ttl) * time.Second
}

// answers reports whether records are more than aliases on the way to what was
// asked for.
func answers(records []dns.RR, qtype uint16) bool {
	return slices.ContainsFunc(records, func(rr dns.RR) bool {
		t := rr.Header().Rrtype
		return t == qtype || qtype == dns.TypeANY || t != dns.TypeCNAME && t != dns.TypeDNAME && t != dns.TypeRRSIG
	})
}

func negativeTTL(authority []dns.RR) uint32 {
	for _, rr := range authority {
		if soa, ok := rr.(*dns.SOA); ok {
			return min(sane(soa.Hdr.Ttl), sane(soa.Minttl))
		}
	}
	return 0
}

// sane reads a TTL with its top bit set as zero (RFC 2181 section 8).
func sane(ttl uint32) uint32 {
	if ttl > 1<<31-1 {
		return 0
	}
	return ttl
}
