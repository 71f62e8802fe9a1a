// SPDX-License-Identifier: Apache-2.0

package report

import (
	"sync"
	"sync/atomic"
	"time"

	"github.com/ztunnel-go/ztunnel/internal/metrics"
)

/*
 * Label sets come from workloads, which come and go, and from what peers say
 * of themselves. So that a node's memory and scrape do not grow for ever:
 *
 *	up to keepSets    all are kept, as the reference does
 *	beyond            those without an open connection for keepIdle are dropped
 *	at maxSets        new ones share one set of each side, all of whose names are
 *	                  "overflow"; each connection that does is counted
 */
const (
	keepSets = 5_000
	maxSets  = 20_000
	keepIdle = time.Hour

	// sweepEvery is how long a search for idle sets is not repeated.
	sweepEvery = time.Minute
)

// overflow is the value of labels that nobody has room for.
const overflow = "overflow"

// A series holds the counters of one label set. A connection keeps a pointer
// to it, so that counting bytes is one atomic addition.
type series struct {
	labels                                 labels         // the key, to drop it by
	text                                   metrics.Labels // immutable
	opened, closed, received, sent, failed atomic.Uint64

	// users are the connections that hold it; it is not dropped meanwhile.
	users atomic.Int64
	// idle is when the last one let go, in seconds since 1970.
	idle atomic.Int64
}

// A table finds the series of label sets.
type table struct {
	now    func() time.Time
	folded atomic.Uint64 // connections that found no room

	mu    sync.RWMutex
	seen  map[labels]*series // guarded by mu
	all   []*series          // guarded by mu; the same, and only appended to, so that a copy of the slice may be read without mu
	swept time.Time          // guarded by mu
}

func newTable() *table { return &table{now: time.Now, seen: map[labels]*series{}} }

// take finds or makes the counters of a label set, for whoever gives them back.
func (t *table) take(l labels) *series {
	t.mu.RLock()
	s := t.seen[l]
	if s != nil {
		s.users.Add(1) // with the lock held: what is used is not dropped
	}
	t.mu.RUnlock()
	if s != nil {
		return s
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	s = t.findLocked(l)
	s.users.Add(1)
	return s
}

// give ends a use.
func (t *table) give(s *series) {
	s.idle.Store(t.now().Unix())
	s.users.Add(-1)
}

func (t *table) findLocked(l labels) *series {
	if s := t.seen[l]; s != nil {
		return s
	}
	if len(t.seen) >= keepSets {
		t.sweepLocked()
	}
	if len(t.seen) >= maxSets {
		t.folded.Add(1)
		l = l.fold()
		if s := t.seen[l]; s != nil {
			return s
		}
	}
	s := &series{labels: l}
	var text []byte
	l.each(func(name, value string) { text = metrics.AppendLabel(text, name, value) })
	s.text = metrics.Labels(text)
	t.seen[l] = s
	t.all = append(t.all, s)
	return s
}

// sweepLocked drops the sets that nobody has used for long.
func (t *table) sweepLocked() {
	now := t.now()
	if now.Sub(t.swept) < sweepEvery {
		return
	}
	t.swept = now
	limit := now.Add(-keepIdle).Unix()
	kept := make([]*series, 0, len(t.all)) // another array: who reads the old one may go on
	for _, s := range t.all {
		if s.users.Load() == 0 && s.idle.Load() < limit {
			delete(t.seen, s.labels)
			continue
		}
		kept = append(kept, s)
	}
	t.all = kept
}

// list is what may be read at leisure.
func (t *table) list() []*series {
	t.mu.RLock()
	defer t.mu.RUnlock()
	return t.all
}

// fold is the set that stands in for l when there is no room for it: what can
// only have few values stays.
func (l labels) fold() labels {
	both := end{
		workload: overflow, canonicalService: overflow, canonicalRevision: overflow, namespace: overflow,
		app: overflow, version: overflow, cluster: overflow, region: overflow, zone: overflow,
	}
	return labels{
		reporter: l.reporter, flag: l.flag, mutualTLS: l.mutualTLS, located: l.located,
		source: both, destination: both,
		sourcePrincipal: overflow, destinationPrincipal: overflow,
		service: overflow, serviceNamespace: overflow, serviceName: overflow,
	}
}
