// SPDX-License-Identifier: Apache-2.0

package mesh

import "sync"

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

// A serviceEntry keeps endpoints side by side for the readers, who walk them
// for each connection, and their places by UID for the writer: joining and
// leaving cost the same in a service of ten endpoints and of a hundred
// thousand.
type serviceEntry struct {
	service   *Service
	endpoints []Endpoint
	places    map[string]int // WorkloadUID to its index in endpoints
}

func (e *serviceEntry) put(ep Endpoint) {
	if i, found := e.places[ep.WorkloadUID]; found {
		e.endpoints[i] = ep
		return
	}
	if e.places == nil {
		e.places = map[string]int{}
	}
	e.places[ep.WorkloadUID] = len(e.endpoints)
	e.endpoints = append(e.endpoints, ep)
}

// remove puts the last endpoint into the place of the one that leaves.
func (e *serviceEntry) remove(uid string) {
	i, found := e.places[uid]
	if !found {
		return
	}
	last := len(e.endpoints) - 1
	if i != last {
		e.endpoints[i] = e.endpoints[last]
		e.places[e.endpoints[i].WorkloadUID] = i
	}
	e.endpoints[last] = Endpoint{} // let go of the ports
	e.endpoints = e.endpoints[:last]
	delete(e.places, uid)
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
