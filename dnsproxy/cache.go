// SPDX-License-Identifier: Apache-2.0

package dnsproxy

import (
	"container/list"
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

func newCache(entries int) *cache {
	return &cache{entries: entries, byKey: map[dns.Question]*list.Element{}, order: list.New()}
}

func (c *cache) get(key dns.Question, now time.Time) *cached {
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
	if !a.stored.Before(a.expires) {
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

// message unpacks the answer, with the TTLs that remain at now.
func (a *cached) message(now time.Time) (*dns.Msg, error) {
	m := new(dns.Msg)
	if err := m.Unpack(a.packed); err != nil {
		return nil, err
	}
	age := uint32(max(0, now.Sub(a.stored)) / time.Second)
	for _, section := range [][]dns.RR{m.Answer, m.Extra} {
		for _, rr := range section {
			h := rr.Header()
			h.Ttl -= min(age, h.Ttl)
		}
	}
	return m, nil
}

// lifetime is how long an answer may be kept (RFC 2308 section 5): a good one
// as long as its shortest record, a bad one as its SOA says, and without SOA
// not at all.
func lifetime(m *dns.Msg) time.Duration {
	var ttl uint32
	if len(m.Answer) > 0 && m.Rcode == dns.RcodeSuccess {
		ttl = sane(m.Answer[0].Header().Ttl)
		for _, rr := range m.Answer[1:] {
			ttl = min(ttl, sane(rr.Header().Ttl))
		}
	} else {
		for _, rr := range m.Ns {
			if soa, ok := rr.(*dns.SOA); ok {
				ttl = min(sane(soa.Hdr.Ttl), sane(soa.Minttl))
				break
			}
		}
	}
	return min(time.Duration(ttl)*time.Second, maxTTL)
}

// sane reads a TTL with its top bit set as zero (RFC 2181 section 8).
func sane(ttl uint32) uint32 {
	if ttl > 1<<31-1 {
		return 0
	}
	return ttl
}
