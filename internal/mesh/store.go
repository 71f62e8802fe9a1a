// SPDX-License-Identifier: Apache-2.0

package mesh

import (
	"hash/maphash"
	"sync"
	"sync/atomic"
)

// A Store holds the current picture. Any number of goroutines may read it
// through a [View] while one writer changes it.
//
// A writer prepares the next state beside the current one, which it shares all
// with that does not change, and then exchanges one pointer. So readers take
// no lock, wait for nobody, and see each change whole or not at all.
//
// Waiters learn of changes by the channels that [Store.Changed],
// [Store.PoliciesChanged] and [Store.WorkloadChanged] return; mesh knows no
// clocks or contexts, so how long to wait is the waiter's business.
type Store struct {
	now atomic.Pointer[state] // never nil

	writer struct {
		sync.Mutex      // held by Apply
		last       edit // the number of the latest Apply
	}

	waiters struct {
		sync.Mutex // taken after writer
		byPod      map[podName]*waiter
	}
}

// A waiter is who waits for the workload of one pod.
type waiter struct {
	changed chan struct{}
	count   int // of those that have not said that they forget it
}

// NewStore returns an empty store.
func NewStore() *Store {
	s := &Store{}
	s.waiters.byPod = map[podName]*waiter{}
	s.now.Store(&state{
		seed:            maphash.MakeSeed(),
		changed:         make(chan struct{}),
		policiesChanged: make(chan struct{}),
	})
	return s
}

// View returns a reader of the store.
func (s *Store) View() View { return View{store: s} }

// Changed returns a channel that is closed at the next change of any kind.
// Take it before looking, so that no change between is missed.
func (s *Store) Changed() <-chan struct{} { return s.now.Load().changed }

// PoliciesChanged is [Store.Changed] for policies alone.
func (s *Store) PoliciesChanged() <-chan struct{} { return s.now.Load().policiesChanged }

// WorkloadChanged returns a channel that is closed when a workload with this
// namespace and name comes, changes or goes, and a function that says that
// nobody waits there any more, which must be called once. Of a push that
// concerns others the waiter hears nothing. Take the channel before looking.
func (s *Store) WorkloadChanged(namespace, name string) (changed <-chan struct{}, forget func()) {
	s.waiters.Lock()
	defer s.waiters.Unlock()
	pod := podName{namespace, name}
	w := s.waiters.byPod[pod]
	if w == nil {
		w = &waiter{changed: make(chan struct{})}
		s.waiters.byPod[pod] = w
	}
	w.count++
	return w.changed, func() {
		s.waiters.Lock()
		defer s.waiters.Unlock()
		if w.count--; w.count == 0 && s.waiters.byPod[pod] == w {
			delete(s.waiters.byPod, pod)
		}
	}
}

// wake tells those who wait for a pod that differs between two states. There
// are as many as pods of this node without a workload: few.
func (s *Store) wake(before, after *state) {
	s.waiters.Lock()
	defer s.waiters.Unlock()
	for pod, w := range s.waiters.byPod {
		if !samePods(before, after, pod) {
			close(w.changed)
			delete(s.waiters.byPod, pod)
		}
	}
}

func samePods(before, after *state, pod podName) bool {
	h := after.hashPair(pod.namespace, pod.name)
	was, is := before.byName.near(h), after.byName.near(h)
	if len(was) == len(is) && (len(is) == 0 || &was[0] == &is[0]) {
		return true // the same leaf
	}
	matches := func(list []item[*Workload]) (found []*Workload) {
		for _, it := range list {
			if it.hash == h && it.value.Namespace == pod.namespace && it.value.Name == pod.name {
				found = append(found, it.value)
			}
		}
		return found
	}
	a, b := matches(was), matches(is)
	if len(a) != len(b) {
		return false
	}
	for i := range a {
		if a[i] != b[i] {
			return false
		}
	}
	return true
}

// Apply runs change as one step for readers, and signals afterwards. Writers
// take turns. A change that panics has not happened.
func (s *Store) Apply(change func(*Update)) {
	s.writer.Lock()
	defer s.writer.Unlock()
	before := s.now.Load()
	next := *before
	s.writer.last++
	u := &Update{s: &next, edit: s.writer.last}
	change(u)
	if !u.touched {
		return
	}
	next.edition = s.writer.last
	next.changed = make(chan struct{})
	if u.touchedPolicies {
		next.policiesChanged = make(chan struct{})
	}
	s.now.Store(&next)
	close(before.changed)
	if u.touchedPolicies {
		close(before.policiesChanged)
	}
	s.wake(before, &next)
}

// An Update changes the next state; it is valid only inside [Store.Apply].
type Update struct {
	s                        *state
	edit                     edit
	touched, touchedPolicies bool
}
