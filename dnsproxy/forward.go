// SPDX-License-Identifier: Apache-2.0

package dnsproxy

import (
	"context"
	"errors"
	"fmt"
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
	Source   *Source  // whom to ask, in place of Upstream, and followed as it changes
	Dial     DialFunc // needed
	Hosts    Hosts    // asked before upstream
	Cache    int      // entries; zero: 8192; below: nothing is kept
	Metrics  *Metrics // nil: nothing is counted
}

// A Forwarder asks upstream servers and remembers what they said. Questions
// that are asked while the same one is on its way wait for its answer.
type Forwarder struct {
	cfg ForwarderConfig

	ctx    context.Context // ends with Close
	cancel context.CancelFunc
	work   sync.WaitGroup // one per flight, and one per exchange of it

	mu      sync.Mutex // guards everything below
	closed  bool
	epoch   *epoch // the current one
	limit   int    // of waiting
	waiting int
	flying  int // flights of all epochs
}

// An epoch is the time in which one choice of servers holds. What was learnt
// from servers ends with them: another resolv.conf may mean another network,
// where the same names mean something else.
type epoch struct {
	conf    *ResolvConf // of Source, which it is compared with; nil without
	cache   *cache
	servers *upstream
	flights map[dns.Question]*flight // guarded by the forwarder's mu
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
	if cfg.Cache == 0 {
		cfg.Cache = defaultCacheEntries
	}
	f := &Forwarder{cfg: cfg, limit: maxForwarded}
	f.ctx, f.cancel = context.WithCancel(context.Background())
	f.epoch = f.begin(cfg.Source.now())
	return f
}

func (f *Forwarder) begin(conf *ResolvConf) *epoch {
	servers := f.cfg.Upstream
	if conf != nil {
		servers = conf.Upstream()
	}
	return &epoch{
		conf: conf, cache: newCache(f.cfg.Cache), flights: map[dns.Question]*flight{},
		servers: newUpstream(servers, f.cfg.Dial, &f.work),
	}
}

// current is the epoch to ask in. Flights of an earlier one end by themselves,
// for those who wait for them, and leave nothing behind.
func (f *Forwarder) current() *epoch {
	conf := f.cfg.Source.now()
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.epoch.conf != conf {
		f.epoch = f.begin(conf)
	}
	return f.epoch
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
	got, err := f.ask(ctx, q)
	return got.msg, err
}

// A reply is what ask finds out, and how.
type reply struct {
	msg   *dns.Msg      // nil: there is none
	asked bool          // upstream had to be: nobody knew
	from  *cached       // what is in the cache; nil: it is in none
	age   time.Duration // of from, in whole seconds
}

// ask is Ask, and tells more. With a *[NoRecordsError] the reply may be from
// the cache as well.
func (f *Forwarder) ask(ctx context.Context, q dns.Question) (r reply, err error) {
	q.Name = dns.CanonicalName(q.Name)
	m, known := f.cfg.Hosts.known(q)
	if !known {
		e := f.current()
		a := e.cache.get(q, time.Now())
		f.cfg.Metrics.cached(a != nil)
		if r.asked = a == nil; r.asked {
			if a, err = f.fetch(ctx, e, q); err != nil {
				return r, err
			}
		}
		r.age = a.age(time.Now())
		if m, err = a.message(r.age); err != nil {
			return r, fmt.Errorf("read answer: %v", err)
		}
		if e.cache != nil {
			r.from = a
		}
	}
	if m.Rcode == dns.RcodeNameError || len(m.Answer) == 0 {
		return r, &NoRecordsError{q.Name, q.Qtype, m.Rcode == dns.RcodeNameError}
	}
	r.msg = m
	return r, nil
}

// fetch joins the flight of a question, or starts it.
func (f *Forwarder) fetch(ctx context.Context, e *epoch, q dns.Question) (*cached, error) {
	fl, err := f.board(e, q)
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
func (f *Forwarder) board(e *epoch, q dns.Question) (*flight, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.closed {
		return nil, errClosed
	}
	fl := e.flights[q]
	// A flight may outlast those who wait for it, so both are limited.
	if f.waiting >= f.limit || fl == nil && f.flying >= maxForwarded {
		return nil, ErrBusy
	}
	f.waiting++
	if fl == nil {
		fl = &flight{done: make(chan struct{})}
		e.flights[q] = fl
		f.flying++
		f.work.Go(func() { f.fly(e, q, fl) }) // ends with its timeouts, or f.ctx
	}
	return fl, nil
}

func (f *Forwarder) fly(e *epoch, q dns.Question, fl *flight) {
	m, err := e.servers.ask(f.ctx, q)
	if err == nil {
		fl.answer, err = keep(q, m, time.Now())
	}
	if fl.err = err; err == nil {
		e.cache.put(fl.answer)
	}
	f.mu.Lock()
	delete(e.flights, q)
	f.flying--
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
	// A record that ended before its last fields was read, and is written as
	// something else.
	if err := new(dns.Msg).Unpack(packed); err != nil {
		return nil, fmt.Errorf("keep answer: %v", err)
	}
	return &cached{key: q, packed: packed, stored: now, expires: now.Add(lifetime(m, q.Qtype))}, nil
}
