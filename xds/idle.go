// SPDX-License-Identifier: Apache-2.0

package xds

import (
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/ztunnel-go/ztunnel/internal/mesh"
)

// In on-demand mode the store grows by what pods connect to, which may be
// every address of the mesh, once. What nobody uses is let go, and asked for
// again when somebody does.
const (
	// keepIdle is how many resources are kept whether they are used or not:
	// some ten megabytes.
	keepIdle = 8192

	// restFor is how long one has to have been unused to be let go.
	restFor = time.Minute

	// sweepEvery bounds how often we look for such, which costs a walk over
	// all that we hold.
	sweepEvery = 10 * time.Second
)

// An idleness knows when each resource that the control plane has told of was
// last used.
type idleness struct {
	keep int
	rest time.Duration

	mu    sync.Mutex
	last  map[string]time.Time // guarded by mu; by resource name
	swept time.Time            // the client's goroutine's
}

func newIdleness() *idleness {
	return &idleness{keep: keepIdle, rest: restFor, last: map[string]time.Time{}}
}

// arrived enters a resource, and counts as a use of it.
func (i *idleness) arrived(name string, now time.Time) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.last[name] = now
}

func (i *idleness) gone(name string) {
	i.mu.Lock()
	defer i.mu.Unlock()
	delete(i.last, name)
}

// used notes that a decision rests on resources.
func (i *idleness) used(names []string, now time.Time) {
	i.mu.Lock()
	defer i.mu.Unlock()
	for _, name := range names {
		if _, held := i.last[name]; held {
			i.last[name] = now
		}
	}
}

// resting lists what has not been used for a while, the longest first, if
// there is more than is kept; and how many of them are too many.
func (i *idleness) resting(now time.Time) (names []string, excess int) {
	i.mu.Lock()
	defer i.mu.Unlock()
	excess = len(i.last) - i.keep
	if excess <= 0 || now.Sub(i.swept) < min(sweepEvery, i.rest) {
		return nil, 0
	}
	i.swept = now
	for name, last := range i.last {
		if now.Sub(last) >= i.rest {
			names = append(names, name)
		}
	}
	slices.SortFunc(names, func(a, b string) int {
		if c := i.last[a].Compare(i.last[b]); c != 0 {
			return c
		}
		return strings.Compare(a, b)
	})
	return names, excess
}

// An eviction chooses what to let go.
type eviction struct {
	view   mesh.View
	node   string // whose workloads stay; empty: none is known not to be of it
	excess int
	chosen map[string]bool
}

// choose takes workloads first that are in no service that we hold, then
// services with their workloads: one that stays keeps all its endpoints.
func (e *eviction) choose(resting []string) []string {
	var services []*mesh.Service
	asleep := map[string]bool{}
	for _, name := range resting {
		asleep[name] = true
		if w := e.view.Workload(name); w != nil {
			e.take(w)
		} else if key, ok := mesh.ParseNamespacedHostname(name); ok {
			if svc := e.view.Service(key); svc != nil {
				services = append(services, svc)
			}
		}
	}
	for _, svc := range services {
		if len(e.chosen) >= e.excess {
			break
		}
		e.chosen[svc.Key().String()] = true
		e.view.Endpoints(svc.Key(), func(_ mesh.Endpoint, w *mesh.Workload) bool {
			if asleep[w.UID] {
				e.take(w)
			}
			return true
		})
	}
	var names []string
	for name := range e.chosen {
		names = append(names, name)
	}
	return names
}

// take chooses a workload unless something rests on it.
func (e *eviction) take(w *mesh.Workload) {
	if len(e.chosen) >= e.excess || e.node == "" || w.Node == e.node {
		return
	}
	for key := range w.Services {
		if e.view.Service(key) != nil && !e.chosen[key.String()] {
			return
		}
	}
	e.chosen[w.UID] = true
}

// Used says that decisions rest on resources, by their names: those are kept.
// Of others the feed keeps in on-demand mode only so many.
func (f *Feed) Used(names []string) {
	if f.idle != nil {
		f.idle.used(names, time.Now())
	}
}

// letGo forgets what nobody uses, if we hold too much. It is called by the
// client's goroutine, like whatever else changes what we hold.
func (f *Feed) letGo(now time.Time) {
	resting, excess := f.idle.resting(now)
	if len(resting) == 0 {
		return
	}
	e := eviction{f.store.View().Pin(), f.prefetch.node, excess, map[string]bool{}}
	names := e.choose(resting)
	if len(names) == 0 {
		return
	}
	f.client.Forget(AddressType, names)
	f.removeAddresses(names)
	for _, name := range names {
		f.idle.gone(name)
	}
	f.metrics.forgotten(len(names))
	f.logger.Debug("let go of what nobody uses", "resources", len(names))
}
