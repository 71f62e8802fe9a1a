// SPDX-License-Identifier: Apache-2.0

// Package balance chooses among the endpoints that a routing decision allows:
// by how many connections each has from this node, and by who has just failed
// to answer. It knows endpoints by their UIDs alone, opens no sockets and logs
// nothing; dataplane tells it what becomes of connections, and one [Table]
// serves all pods of a node.
//
// The cost of a choice depends on the number of candidates, never on the
// number of workloads; an endpoint that is idle and well takes no memory.
package balance

import (
	"fmt"
	"maps"
	mathrand "math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/ztunnel-go/ztunnel/dataplane/route"
)

const (
	// An endpoint that cannot be reached is avoided for firstPause, and twice
	// as long each time it fails again after that: long enough not to cost
	// each connection a timeout, short enough that one which is back gets work
	// within half a minute.
	firstPause   = time.Second
	longestPause = 30 * time.Second
	// memory is how long after its pause an endpoint that fails again counts
	// as one that failed before.
	memory = longestPause
	// fewAvoided entries are not worth looking for old ones among them.
	fewAvoided = 64
)

// A Policy is how to choose.
type Policy uint8

// The policies. LeastLoaded takes the less loaded of two that it draws by
// capacity; Random draws one by capacity, as the reference does (contract
// 3.4).
const (
	LeastLoaded Policy = iota
	Random
)

// String is the policy as LB_POLICY has it.
func (p Policy) String() string {
	if p == Random {
		return "random"
	}
	return "least-loaded"
}

// ParsePolicy reads a value of LB_POLICY.
func ParsePolicy(s string) (Policy, error) {
	for _, p := range []Policy{LeastLoaded, Random} {
		if s == p.String() {
			return p, nil
		}
	}
	return 0, fmt.Errorf("load balancing policy %q is neither %v nor %v", s, LeastLoaded, Random)
}

// Config is what a table is made of.
type Config struct {
	Policy Policy // zero: LeastLoaded
	// Random is even over [0, n), for any number of goroutines at once; nil:
	// math/rand/v2's.
	Random  func(n uint64) uint64
	Metrics *Metrics // nil: nothing is counted
}

// A Table is what is known of endpoints. Its methods may be called by any
// number of goroutines at once.
type Table struct {
	policy   Policy
	weighted route.Chooser
	metrics  *Metrics

	mu      sync.Mutex
	open    map[string]int       // guarded by mu; connections by UID, none zero
	avoided map[string]avoidance // guarded by mu; by UID, some of them over
	tidyAt  int                  // guarded by mu; how many avoided make it worth looking for old ones
}

// An avoidance is a time for which an endpoint is left alone.
type avoidance struct {
	pause time.Duration
	until time.Time
}

// New returns a table that knows of nobody.
func New(cfg Config) *Table {
	if cfg.Random == nil {
		cfg.Random = mathrand.Uint64N
	}
	return &Table{
		policy: cfg.Policy, weighted: route.Weighted(cfg.Random), metrics: cfg.Metrics,
		open: map[string]int{}, avoided: map[string]avoidance{}, tidyAt: fewAvoided,
	}
}

// Choose is the [route.Chooser] of the table's policy.
func (t *Table) Choose(candidates []route.Candidate) int {
	if t.policy == Random {
		return t.weighted(candidates)
	}
	left := t.withoutAvoided(candidates)
	a := t.weighted(left)
	if a < 0 {
		return -1
	}
	weight := left[a].Weight
	left[a].Weight = 0
	b := t.weighted(left)
	if b < 0 {
		return a
	}
	// Of two that are loaded alike the first has it. An idle service is thus
	// used in proportion to capacity, as if by chance alone.
	t.mu.Lock()
	defer t.mu.Unlock()
	if uint64(t.open[left[b].UID])*uint64(weight) < uint64(t.open[left[a].UID])*uint64(left[b].Weight) {
		return b
	}
	return a
}

// withoutAvoided returns a copy in which those that are to be left alone have
// no weight, unless that would leave nobody.
func (t *Table) withoutAvoided(candidates []route.Candidate) []route.Candidate {
	left := slices.Clone(candidates)
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(t.avoided) == 0 {
		return left
	}
	now, some := time.Now(), false
	for i, c := range left {
		if now.Before(t.avoided[c.UID].until) {
			left[i].Weight = 0
		}
		some = some || left[i].Weight > 0
	}
	if !some {
		copy(left, candidates)
	}
	return left
}

// Opened counts a connection for each endpoint, until closed is called; calls
// after the first do nothing.
func (t *Table) Opened(uids []string) (closed func()) {
	t.count(uids, 1)
	var over atomic.Bool
	return func() {
		if !over.Swap(true) {
			t.count(uids, -1)
		}
	}
}

func (t *Table) count(uids []string, delta int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, uid := range uids {
		if t.open[uid] += delta; t.open[uid] == 0 {
			delete(t.open, uid)
		}
	}
}

// Open is the number of connections of each endpoint that has any, by UID.
func (t *Table) Open() map[string]int {
	t.mu.Lock()
	defer t.mu.Unlock()
	return maps.Clone(t.open)
}

// Avoided says until when each endpoint that has failed of late is left alone,
// by UID. That may have passed.
func (t *Table) Avoided() map[string]time.Time {
	t.mu.Lock()
	defer t.mu.Unlock()
	until := make(map[string]time.Time, len(t.avoided))
	for uid, a := range t.avoided {
		until[uid] = a.until
	}
	return until
}

// Failed says that an endpoint could not be reached. It is left alone for a
// while.
func (t *Table) Failed(uid string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	now := time.Now()
	a, known := t.avoided[uid]
	switch {
	case known && now.Before(a.until):
		return // connections that began before the pause fail of the same
	case known && now.Before(a.until.Add(memory)):
		a.pause = min(2*a.pause, longestPause)
	default:
		a.pause = firstPause
	}
	a.until = now.Add(a.pause)
	t.avoided[uid] = a
	t.tidyLocked(now)
}

// tidyLocked forgets those who failed long ago. It looks only once their
// number has doubled, so that a failure costs the same however many there are.
func (t *Table) tidyLocked(now time.Time) {
	if len(t.avoided) < t.tidyAt {
		return
	}
	maps.DeleteFunc(t.avoided, func(_ string, a avoidance) bool { return now.After(a.until.Add(memory)) })
	t.tidyAt = max(2*len(t.avoided), fewAvoided)
}

// Reached says that an endpoint answered: whatever it failed at is forgotten.
func (t *Table) Reached(uid string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.avoided, uid)
}

// Retried counts a connection that is tried once more, at another endpoint.
func (t *Table) Retried() {
	if t.metrics != nil {
		t.metrics.retries.Inc()
	}
}
