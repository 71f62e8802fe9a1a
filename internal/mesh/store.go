// SPDX-License-Identifier: Apache-2.0

package mesh

import (
	"slices"
	"strings"
	"sync"
)

// A Store holds the current picture. Any number of goroutines may read it
// through a [View] while one writer changes it.
//
// Each change is atomic for readers. Waiters learn of changes by the channels
// that [Store.Changed] and [Store.PoliciesChanged] return; mesh knows no
// clocks or contexts, so how long to wait is the waiter's business.
type Store struct {
	mu sync.RWMutex // guards everything below; never held while calling out, but for View.Endpoints

	workloads      map[string]*Workload
	byAddr         map[NetworkAddr][]*Workload // in order of insertion
	byName         map[podName][]*Workload
	byWorkloadHost map[NamespacedHostname][]*Workload

	services map[NamespacedHostname]*serviceEntry
	byVIP    map[NetworkAddr][]*Service // in order of insertion
	byHost   map[string][]*Service      // in order of insertion
	ranges   []rangeEntry               // in order of insertion
	staged   map[NamespacedHostname]map[string]Endpoint

	policies map[string]*Policy
	scoped   map[scopeKey][]NamedPolicy // sorted by key; global and namespace scopes only

	changed         chan struct{}
	policiesChanged chan struct{}
}

type podName struct{ namespace, name string }

type rangeEntry struct {
	prefix  NetworkPrefix
	service *Service
}

type scopeKey struct {
	scope     PolicyScope
	namespace string // empty for global
}

// A serviceEntry keeps endpoints sorted by UID, so that reading them in order
// needs no sorting and finding one is a binary search.
type serviceEntry struct {
	service   *Service
	endpoints []Endpoint
}

func (e *serviceEntry) find(uid string) (int, bool) {
	return slices.BinarySearchFunc(e.endpoints, uid, func(ep Endpoint, uid string) int {
		return strings.Compare(ep.WorkloadUID, uid)
	})
}

func (e *serviceEntry) put(ep Endpoint) {
	i, found := e.find(ep.WorkloadUID)
	if found {
		e.endpoints[i] = ep
		return
	}
	e.endpoints = slices.Insert(e.endpoints, i, ep)
}

func (e *serviceEntry) remove(uid string) {
	if i, found := e.find(uid); found {
		e.endpoints = slices.Delete(e.endpoints, i, i+1)
	}
}

// accepts applies the service's health policy to an endpoint.
func (e *serviceEntry) accepts(ep Endpoint) bool {
	return ep.Status == Healthy || e.service.TakesUnhealthy()
}

// NewStore returns an empty store.
func NewStore() *Store {
	return &Store{
		workloads:       map[string]*Workload{},
		byAddr:          map[NetworkAddr][]*Workload{},
		byName:          map[podName][]*Workload{},
		byWorkloadHost:  map[NamespacedHostname][]*Workload{},
		services:        map[NamespacedHostname]*serviceEntry{},
		byVIP:           map[NetworkAddr][]*Service{},
		byHost:          map[string][]*Service{},
		staged:          map[NamespacedHostname]map[string]Endpoint{},
		policies:        map[string]*Policy{},
		scoped:          map[scopeKey][]NamedPolicy{},
		changed:         make(chan struct{}),
		policiesChanged: make(chan struct{}),
	}
}

// View returns a reader of the store.
func (s *Store) View() View { return View{s} }

// Changed returns a channel that is closed at the next change of any kind.
// Take it before looking, so that no change between is missed.
func (s *Store) Changed() <-chan struct{} {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.changed
}

// PoliciesChanged is [Store.Changed] for policies alone.
func (s *Store) PoliciesChanged() <-chan struct{} {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.policiesChanged
}

// Apply runs change with the store locked, as one step for readers, and
// signals afterwards.
func (s *Store) Apply(change func(*Update)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	u := &Update{s: s}
	change(u)
	if u.touched {
		close(s.changed)
		s.changed = make(chan struct{})
	}
	if u.touchedPolicies {
		close(s.policiesChanged)
		s.policiesChanged = make(chan struct{})
	}
}

// An Update changes a locked store; it is valid only inside [Store.Apply].
type Update struct {
	s                        *Store
	touched, touchedPolicies bool
}
