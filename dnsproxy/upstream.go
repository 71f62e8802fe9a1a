// SPDX-License-Identifier: Apache-2.0

package dnsproxy

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/miekg/dns"
)

// parallel is how many servers are asked at once (contract 11.7).
const parallel = 2

// A DialFunc connects to addr by "udp" or "tcp" within ctx. UDP connections
// must be connected, so that the kernel refuses datagrams of others, and of a
// random port of the kernel's choice.
type DialFunc func(ctx context.Context, network string, addr netip.AddrPort) (net.Conn, error)

// Upstream is whom to ask, and how. [ResolvConf.Upstream] makes one.
type Upstream struct {
	Nameservers []netip.AddrPort
	Timeout     time.Duration // of one attempt at all servers; zero: 5 s
	Attempts    int           // zero: 2
	EDNS        bool          // send OPT and take answers up to 1232 bytes
	UseTCP      bool          // never UDP
}

// An upstream asks servers, two at a time, the quicker ones first.
type upstream struct {
	Upstream
	dial DialFunc
	work *sync.WaitGroup // its owner's; one per exchange

	mu      sync.Mutex // guards latency
	latency []time.Duration
}

func newUpstream(cfg Upstream, dial DialFunc, work *sync.WaitGroup) *upstream {
	defaults := defaultResolvConf()
	if cfg.Timeout <= 0 {
		cfg.Timeout = defaults.Timeout
	}
	if cfg.Attempts <= 0 {
		cfg.Attempts = defaults.Attempts
	}
	return &upstream{
		Upstream: cfg, dial: dial, work: work,
		latency: make([]time.Duration, len(cfg.Nameservers)),
	}
}

// ask returns the first answer of any server that is a success or says that
// there is no such name. It takes at most Attempts times Timeout.
func (u *upstream) ask(ctx context.Context, q dns.Question) (*dns.Msg, error) {
	if len(u.Nameservers) == 0 {
		return nil, ErrNoNameservers
	}
	batches := (len(u.Nameservers) + parallel - 1) / parallel
	limit := u.Timeout / time.Duration(batches)
	var failure error
	for range u.Attempts {
		for batch := range slices.Chunk(u.order(), parallel) {
			m, err := u.race(ctx, batch, q, limit)
			if err == nil {
				return m, nil
			}
			if ctx.Err() != nil {
				return nil, context.Cause(ctx)
			}
			failure = err
		}
	}
	return nil, failure
}

// race asks the servers of batch, numbers into Nameservers, all at once.
func (u *upstream) race(ctx context.Context, batch []int, q dns.Question, limit time.Duration) (*dns.Msg, error) {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel() // ends those who lost
	type result struct {
		m   *dns.Msg
		err error
	}
	results := make(chan result, len(batch))
	for _, server := range batch {
		u.work.Go(func() { // ends with ctx
			start := time.Now()
			m, err := u.exchange(ctx, u.Nameservers[server], q)
			u.observe(server, time.Since(start), err)
			results <- result{m, err}
		})
	}
	var failure error
	for range batch {
		r := <-results
		switch {
		case r.err == nil:
			return r.m, nil
		case failure == nil:
			failure = r.err
		default:
			failure = fmt.Errorf("%w; %w", failure, r.err)
		}
	}
	return nil, failure
}

// order sorts servers by latency. Those that it leaves behind come forward
// little by little, so that a server which was slow once is tried again.
func (u *upstream) order() []int {
	u.mu.Lock()
	defer u.mu.Unlock()
	order := make([]int, len(u.latency))
	for i := range order {
		order[i] = i
	}
	slices.SortStableFunc(order, func(a, b int) int { return int(u.latency[a] - u.latency[b]) })
	for _, i := range order[min(parallel, len(order)):] {
		u.latency[i] -= u.latency[i] / 50
	}
	return order
}

// observe learns how quick a server is: a moving average of its answers. A
// failure counts as its time and half a second more, so that a server that
// refuses at once does not look quick. The loser of a race has its time so
// far as the least it would have taken.
func (u *upstream) observe(server int, took time.Duration, err error) {
	const penalty = 500 * time.Millisecond
	u.mu.Lock()
	defer u.mu.Unlock()
	l := &u.latency[server]
	switch {
	case errors.Is(err, context.Canceled):
		*l = max(*l, took)
	case err != nil:
		*l = max(*l, took+penalty)
	case *l == 0:
		*l = took
	default:
		*l += (took - *l) / 4
	}
}
