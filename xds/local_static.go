// SPDX-License-Identifier: Apache-2.0

package xds

import (
	"reflect"

	"github.com/ztunnel-go/ztunnel/internal/mesh"
)

// A Static is the content of one local state document. Its values are shared
// with the store it was applied to and must not be changed.
type Static struct {
	Workloads []*mesh.Workload
	Services  []*StaticService
	Policies  []*mesh.Policy

	Warnings []string // what was passed over, with file and line; to be logged
}

// A StaticService is a service and the endpoints that its own entry lists.
// Those that workloads name are in the workloads.
type StaticService struct {
	*mesh.Service
	Endpoints []mesh.Endpoint
}

// applyBatch is how many changes readers wait for at a time. One takes about a
// microsecond, so a connection that needs the view waits well under the time
// of a packet's way.
const applyBatch = 256

// Apply brings the store from previous, which was applied to it before or is
// nil, to s. Only what differs is touched, in batches. What somebody else has
// put under the same key since (the control plane, which overlays the file)
// is left alone.
//
// Between batches readers see a mixture, in an order that is safe: policies
// come before the workloads that name them and go after them, and what is new
// is there before what it replaces is gone.
func (s *Static) Apply(store *mesh.Store, previous *Static) {
	if previous == nil {
		previous = &Static{}
	}
	workloads := match(s.Workloads, previous.Workloads, func(w *mesh.Workload) string { return w.UID })
	policies := match(s.Policies, previous.Policies, (*mesh.Policy).Key)
	services := matchServices(s, previous)

	// Policies in one step: a set of them means something only as a whole.
	store.Apply(func(u *mesh.Update) {
		for _, c := range policies.changed {
			if now := u.Policy(c.value.Key()); now == nil || now == c.old {
				u.PutPolicy(c.value.Key(), c.value)
			}
		}
	})
	inBatches(store, services.changed, func(u *mesh.Update, c change[*mesh.Service]) {
		if now := u.Service(c.value.Key()); now == nil || now == c.old {
			u.PutService(c.value)
		}
	})
	inBatches(store, workloads.changed, func(u *mesh.Update, c change[*mesh.Workload]) {
		if now := u.Workload(c.value.UID); now == nil || now == c.old {
			u.PutWorkload(c.value)
		}
	})
	applyEndpoints(store, s, previous)
	removeGone(store, workloads.gone, services.gone, policies.gone)
}

func removeGone(store *mesh.Store, workloads []*mesh.Workload, services []*mesh.Service, policies []*mesh.Policy) {
	inBatches(store, workloads, func(u *mesh.Update, w *mesh.Workload) {
		if u.Workload(w.UID) == w {
			u.RemoveWorkload(w.UID)
		}
	})
	inBatches(store, services, func(u *mesh.Update, svc *mesh.Service) {
		if u.Service(svc.Key()) == svc {
			u.RemoveService(svc.Key())
		}
	})
	store.Apply(func(u *mesh.Update) {
		for _, p := range policies {
			if u.Policy(p.Key()) == p {
				u.RemovePolicy(p.Key())
			}
		}
	})
}

// applyEndpoints puts the endpoints that services list. They are put again at
// each change, since a workload that was replaced took them along.
func applyEndpoints(store *mesh.Store, s, previous *Static) {
	type member struct {
		key mesh.NamespacedHostname
		ep  mesh.Endpoint
	}
	listed := map[mesh.NamespacedHostname]map[string]bool{}
	var put, gone []member
	for _, svc := range s.Services {
		for _, ep := range svc.Endpoints {
			if listed[svc.Key()] == nil {
				listed[svc.Key()] = map[string]bool{}
			}
			listed[svc.Key()][ep.WorkloadUID] = true
			put = append(put, member{svc.Key(), ep})
		}
	}
	for _, svc := range previous.Services {
		for _, ep := range svc.Endpoints {
			if !listed[svc.Key()][ep.WorkloadUID] {
				gone = append(gone, member{svc.Key(), ep})
			}
		}
	}
	inBatches(store, put, func(u *mesh.Update, m member) { u.PutEndpoint(m.key, m.ep) })
	inBatches(store, gone, func(u *mesh.Update, m member) {
		u.RemoveEndpoint(m.key, m.ep.WorkloadUID)
		if w := u.Workload(m.ep.WorkloadUID); w != nil {
			if ports, member := w.Services[m.key]; member { // by its own word
				u.PutEndpoint(m.key, mesh.Endpoint{WorkloadUID: w.UID, Ports: ports, Status: w.Status})
			}
		}
	})
}

// A change is a value and the one it replaces, or nil.
type change[T any] struct{ value, old T }

type differences[T any] struct {
	changed []change[T]
	gone    []T
}

// match compares two lists by key. Equal values in now are exchanged for the
// old ones, so that it is the value in the store that the next comparison
// meets.
func match[K comparable, V any](now, before []*V, key func(*V) K) differences[*V] {
	old := make(map[K]*V, len(before))
	for _, v := range before {
		old[key(v)] = v
	}
	var d differences[*V]
	for i, v := range now {
		k := key(v)
		was := old[k]
		delete(old, k)
		if was != nil && reflect.DeepEqual(was, v) {
			now[i] = was
			continue
		}
		d.changed = append(d.changed, change[*V]{v, was})
	}
	for _, v := range before { // not over old: the order of maps is random
		if old[key(v)] == v {
			d.gone = append(d.gone, v)
		}
	}
	return d
}

func matchServices(s, previous *Static) differences[*mesh.Service] {
	plain := func(list []*StaticService) []*mesh.Service {
		out := make([]*mesh.Service, len(list))
		for i, e := range list {
			out[i] = e.Service
		}
		return out
	}
	now := plain(s.Services)
	d := match(now, plain(previous.Services), (*mesh.Service).Key)
	for i := range now {
		s.Services[i].Service = now[i]
	}
	return d
}

func inBatches[T any](store *mesh.Store, items []T, apply func(*mesh.Update, T)) {
	for len(items) > 0 {
		n := min(applyBatch, len(items))
		store.Apply(func(u *mesh.Update) {
			for _, item := range items[:n] {
				apply(u, item)
			}
		})
		items = items[n:]
	}
}
