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

// Apply brings the store from previous, which was applied to it before or is
// nil, to s. Only what differs is touched, in one step: readers have the one
// document or the other. What somebody else has put under the same key since
// (the control plane, which overlays the file) is left alone.
func (s *Static) Apply(store *mesh.Store, previous *Static) {
	if previous == nil {
		previous = &Static{}
	}
	workloads := match(s.Workloads, previous.Workloads, func(w *mesh.Workload) string { return w.UID })
	policies := match(s.Policies, previous.Policies, (*mesh.Policy).Key)
	services := matchServices(s, previous)

	store.Apply(func(u *mesh.Update) {
		for _, c := range policies.changed {
			if now := u.Policy(c.value.Key()); now == nil || now == c.old {
				u.PutPolicy(c.value.Key(), c.value)
			}
		}
		for _, c := range services.changed {
			if now := u.Service(c.value.Key()); now == nil || now == c.old {
				u.PutService(c.value)
			}
		}
		for _, c := range workloads.changed {
			if now := u.Workload(c.value.UID); now == nil || now == c.old {
				u.PutWorkload(c.value)
			}
		}
		applyEndpoints(u, s, previous)
		removeGone(u, workloads.gone, services.gone, policies.gone)
	})
}

func removeGone(u *mesh.Update, workloads []*mesh.Workload, services []*mesh.Service, policies []*mesh.Policy) {
	for _, w := range workloads {
		if u.Workload(w.UID) == w {
			u.RemoveWorkload(w.UID)
		}
	}
	for _, svc := range services {
		if u.Service(svc.Key()) == svc {
			u.RemoveService(svc.Key())
		}
	}
	for _, p := range policies {
		if u.Policy(p.Key()) == p {
			u.RemovePolicy(p.Key())
		}
	}
}

// applyEndpoints puts the endpoints that services list. They are put again at
// each change, since a workload that was replaced took them along.
func applyEndpoints(u *mesh.Update, s, previous *Static) {
	type place struct {
		key mesh.NamespacedHostname
		uid string
	}
	listed := map[place]bool{}
	for _, svc := range s.Services {
		for _, ep := range svc.Endpoints {
			listed[place{svc.Key(), ep.WorkloadUID}] = true
			u.PutEndpoint(svc.Key(), ep)
		}
	}
	for _, svc := range previous.Services {
		for _, ep := range svc.Endpoints {
			if listed[place{svc.Key(), ep.WorkloadUID}] {
				continue
			}
			u.RemoveEndpoint(svc.Key(), ep.WorkloadUID)
			if w := u.Workload(ep.WorkloadUID); w != nil {
				if ports, member := w.Services[svc.Key()]; member { // by its own word
					u.PutEndpoint(svc.Key(), mesh.Endpoint{WorkloadUID: w.UID, Ports: ports, Status: w.Status})
				}
			}
		}
	}
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
