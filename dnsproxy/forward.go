// SPDX-License-Identifier: Apache-2.0

package dnsproxy

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"sync"
	"time"

	"github.com/miekg/dns"
)

const (
	// defaultCacheEntries is the reference's cache of one pod (contract 11.7).
	defaultCacheEntries = 8192

	// maxForwarded is how many callers may wait for upstream at once. Each
	// costs a goroutine, and each new question two sockets, for up to ten
	// seconds: without a limit one pod could take all descriptors of the node.
	maxForwarded = 1024

	// localTTL is the TTL, in seconds, of what is answered without asking
	// upstream (contract 11.6).
	localTTL = 30
)

// ErrBusy says that too many questions wait for upstream already.
var ErrBusy = errors.New("too many queries in flight")

// errClosed answers those who ask after Close.
var errClosed = errors.New("forwarder is closed")

// A NoRecordsError says that upstream knows the answer and it is none.
type NoRecordsError struct {
	Name     string // fully qualified
	Type     uint16
	NXDomain bool // there is no such name; else there is, without this type
}

// Error names the question.
func (e *NoRecordsError) Error() string {
	if e.NXDomain {
		return fmt.Sprintf("no such domain: %s", e.Name)
	}
	return fmt.Sprintf("no records found: %s %v", e.Name, dns.Type(e.Type))
}

// A ForwarderConfig is what a Forwarder is made of.
type ForwarderConfig struct {
	Upstream Upstream // whom to ask; without nameservers every question fails
	Dial     DialFunc // needed
	Hosts    Hosts    // asked before upstream
	Cache    int      // entries; zero: 8192
}

// A Forwarder asks upstream servers and remembers what they said. Questions
// that are asked while the same one is on its way wait for its answer.
type Forwarder struct {
	hosts    Hosts
	cache    *cache
	upstream *upstream

	ctx    context.Context // ends with Close
	cancel context.CancelFunc
	work   sync.WaitGroup // one per flight, and one per exchange of it

	mu      sync.Mutex // guards everything below
	closed  bool
	flights map[dns.Question]*flight
	waiting int
}

// A flight is one question on its way. answer and err are set before done is
// closed.
type flight struct {
	done   chan struct{}
	answer *cached
	err    error
}

// NewForwarder returns a forwarder; nothing runs until it is asked.
func NewForwarder(cfg ForwarderConfig) *Forwarder {
	entries := cfg.Cache
	if entries == 0 {
		entries = defaultCacheEntries
	}
	f := &Forwarder{hosts: cfg.Hosts, cache: newCache(entries), flights: map[dns.Question]*flight{}}
	f.upstream = newUpstream(cfg.Upstream, cfg.Dial, &f.work)
	f.ctx, f.cancel = context.WithCancel(context.Background())
	return f
}

// Close ends what is on its way and waits for it.
func (f *Forwarder) Close() {
	f.mu.Lock()
	f.closed = true
	f.mu.Unlock()
	f.cancel()
	f.work.Wait()
}

// Ask answers a question, whose name is fully qualified. The message has a
// code, answers and additional records, with the TTLs that remain; it is the
// caller's. The error is a *[NoRecordsError] if there is nothing to answer,
// [ErrBusy], the end of ctx, or what went wrong upstream.
func (f *Forwarder) Ask(ctx context.Context, q dns.Question) (*dns.Msg, error) {
	q.Name = dns.CanonicalName(q.Name)
	m, known := f.known(q)
	if !known {
		a := f.cache.get(q, time.Now())
		if a == nil {
			var err error
			if a, err = f.fetch(ctx, q); err != nil {
				return nil, err
			}
		}
		var err error
		if m, err = a.message(time.Now()); err != nil {
			return nil, fmt.Errorf("read answer: %v", err)
		}
	}
	if m.Rcode == dns.RcodeNameError || len(m.Answer) == 0 {
		return nil, &NoRecordsError{q.Name, q.Qtype, m.Rcode == dns.RcodeNameError}
	}
	return m, nil
}

// known answers what must not leave the node: names of the hosts file, and
// those that RFC 6761 and RFC 7686 reserve.
func (f *Forwarder) known(q dns.Question) (*dns.Msg, bool) {
	m := new(dns.Msg)
	isAddr := q.Qtype == dns.TypeA || q.Qtype == dns.TypeAAAA
	if isAddr {
		if addrs := f.hosts.lookup(q.Name, q.Qtype == dns.TypeAAAA); len(addrs) > 0 {
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

// fetch joins the flight of a question, or starts it.
func (f *Forwarder) fetch(ctx context.Context, q dns.Question) (*cached, error) {
	fl, err := f.board(q)
	if err != nil {
		return nil, err
	}
	defer func() {
		f.mu.Lock()
		f.waiting--
		f.mu.Unlock()
	}()
	select {
	case <-fl.done:
		return fl.answer, fl.err
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

// board counts the caller as waiting and returns his flight.
func (f *Forwarder) board(q dns.Question) (*flight, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.closed {
		return nil, errClosed
	}
	fl := f.flights[q]
	// A flight may outlast those who wait for it, so both are limited.
	if f.waiting >= maxForwarded || fl == nil && len(f.flights) >= maxForwarded {
		return nil, ErrBusy
	}
	f.waiting++
	if fl == nil {
		fl = &flight{done: make(chan struct{})}
		f.flights[q] = fl
		f.work.Go(func() { f.fly(q, fl) }) // ends with its timeouts, or f.ctx
	}
	return fl, nil
}

func (f *Forwarder) fly(q dns.Question, fl *flight) {
	m, err := f.upstream.ask(f.ctx, q)
	if err == nil {
		fl.answer, err = keep(q, m, time.Now())
	}
	if fl.err = err; err == nil {
		f.cache.put(fl.answer)
	}
	f.mu.Lock()
	delete(f.flights, q)
	f.mu.Unlock()
	close(fl.done)
}

// keep reduces an answer to what is handed on: its code, its answers as they
// came, CNAMEs and all, and its additional records. The authority section
// only tells how long a bad answer holds (contract 11.7).
func keep(q dns.Question, m *dns.Msg, now time.Time) (*cached, error) {
	kept := new(dns.Msg)
	kept.Compress = true
	kept.Rcode = m.Rcode
	if m.Rcode == dns.RcodeSuccess {
		kept.Answer = m.Answer
		for _, rr := range m.Extra {
			switch rr.Header().Rrtype {
			case dns.TypeOPT, dns.TypeTSIG, dns.TypeSIG: // they speak of one hop or one message
			default:
				kept.Extra = append(kept.Extra, rr)
			}
		}
	}
	packed, err := kept.Pack()
	if err != nil {
		return nil, fmt.Errorf("keep answer: %v", err)
	}
	return &cached{key: q, packed: packed, stored: now, expires: now.Add(lifetime(m))}, nil
}
