// SPDX-License-Identifier: Apache-2.0

package mesh

import (
	"net/netip"
	"slices"
	"strings"
)

// A View reads a [Store]. It is a small value; copies see the same store. Its
// methods take no lock and return shared values, which the caller must not
// change.
//
// Two calls may see two states of the store; one call sees one. Who needs
// several calls to agree asks [View.Pin].
type View struct {
	store  *Store
	pinned *state // nil: always the current one
}

// Pin returns a view of the current state, which stays as it is whatever
// becomes of the store. It costs nothing, but keeps the state in memory: it is
// for one decision, not to be kept.
func (v View) Pin() View { return View{pinned: v.state()} }

// Edition is the number of the state that the view reads: another one after
// each change, and never one that was there before. Whoever keeps what he made
// of a state can tell by it whether that still holds, without keeping the
// state.
func (v View) Edition() uint64 { return uint64(v.state().edition) }

func (v View) state() *state {
	if v.pinned != nil {
		return v.pinned
	}
	return v.store.now.Load()
}

// Workload finds a workload by its UID, or nil.
func (v View) Workload(uid string) *Workload { return v.state().workload(uid) }

// WorkloadAt finds the workload with an address; of several the best one: a
// pod before others, HBONE before TCP, the latest of equals (contract 3.4).
// Host-network workloads are never found here.
func (v View) WorkloadAt(addr NetworkAddr) *Workload {
	s := v.state()
	h := s.hashAddr(addr)
	var best *Workload
	for _, it := range s.byAddr.near(h) {
		if w := it.value; it.hash == h && w.Network == addr.Network && w.HasIP(addr.Addr) {
			if best == nil || addressRank(w) >= addressRank(best) { // >=: later insertions win ties
				best = w
			}
		}
	}
	return best
}

func addressRank(w *Workload) int {
	rank := 0
	if strings.Contains(w.UID, "//Pod/") {
		rank += 2
	}
	if w.Protocol == HBONE {
		rank++
	}
	return rank
}

// LocalWorkload finds the workload of a pod by what its node agent says of
// it, among those on node; an empty node means any (contract 3.1 step 3).
func (v View) LocalWorkload(node, name, namespace, serviceAccount string) *Workload {
	s := v.state()
	h := s.hashPair(namespace, name)
	for _, it := range s.byName.near(h) {
		if w := it.value; it.hash == h && w.Name == name && w.Namespace == namespace &&
			w.ServiceAccount == serviceAccount && (node == "" || w.Node == node) {
			return w
		}
	}
	return nil
}

// WorkloadByHostname finds a workload by namespace and hostname, or nil.
func (v View) WorkloadByHostname(host NamespacedHostname) *Workload {
	s := v.state()
	h := s.hashKey(host)
	for _, it := range s.byWorkloadHost.near(h) {
		if w := it.value; it.hash == h && w.Hostname == host.Hostname && w.Namespace == host.Namespace {
			return w
		}
	}
	return nil
}

// Service finds a service by its key, or nil.
func (v View) Service(key NamespacedHostname) *Service { return v.state().service(key) }

// ServiceByVIP finds the best service with an address that clients in
// namespace may see: an exact VIP first, then the longest range
// (contract 3.4). An empty namespace sees public services only and prefers
// none.
func (v View) ServiceByVIP(addr NetworkAddr, namespace string) *Service {
	return v.state().serviceByVIP(addr, namespace)
}

// AnyServiceByVIP finds the best service with an address whoever may see it.
// It is for checking a request that a client has already been routed by
// (contract 5.3), where visibility has had its say; choosing a destination
// goes through [View.ServiceByVIP].
func (v View) AnyServiceByVIP(addr NetworkAddr) *Service {
	return v.state().serviceByVIP(addr, everywhere)
}

// ServiceByHostname finds the best service of any namespace with a hostname:
// the client's namespace first, then canonical ones, then the oldest
// (contract 5.4).
func (v View) ServiceByHostname(hostname, namespace string) *Service {
	s := v.state()
	h := s.hash(hostname)
	best := choice{namespace: namespace}
	for _, it := range s.byHost.near(h) {
		if it.hash == h && it.value.Hostname == hostname {
			best.offer(it.value)
		}
	}
	return best.service
}

// ServicesByHostname lists the services of all namespaces with a hostname,
// oldest first. The caller judges visibility and rank (contract 11.4).
func (v View) ServicesByHostname(hostname string) []*Service {
	s := v.state()
	h := s.hash(hostname)
	var out []*Service
	for _, it := range s.byHost.near(h) {
		if it.hash == h && it.value.Hostname == hostname {
			out = append(out, it.value)
		}
	}
	return out
}

// Endpoints calls yield for each endpoint of a service whose workload is
// known, until yield returns false. All are of one state, and a yield that
// takes its time holds nobody up. The order means nothing, but it is the same
// from call to call while the members are.
func (v View) Endpoints(key NamespacedHostname, yield func(Endpoint, *Workload) bool) {
	e := v.state().entry(key)
	if e == nil || e.service == nil {
		return
	}
	e.members.all(func(m member) bool { return m.workload == nil || yield(m.endpoint(), m.workload) })
}

// Endpoint finds one workload's membership in a service.
func (v View) Endpoint(key NamespacedHostname, uid string) (Endpoint, bool) {
	s := v.state()
	e := s.entry(key)
	if e == nil || e.service == nil {
		return Endpoint{}, false
	}
	m, found := e.member(s.hash(uid), uid)
	if !found {
		return Endpoint{}, false
	}
	return m.endpoint(), true
}

// Policy finds a policy by its key (namespace/name), or nil.
func (v View) Policy(key string) *Policy { return v.state().policy(key) }

// A NamedPolicy is a policy with the key it is stored under, which is the xDS
// resource name.
type NamedPolicy struct {
	Key    string
	Policy *Policy
}

// PoliciesFor lists the policies that apply to a workload: global ones, those
// of its namespace, and those it names (contract 5.5), in that order and
// sorted by key within each. missing lists the names that are not known.
func (v View) PoliciesFor(w *Workload) (found []NamedPolicy, missing []string) {
	s := v.state()
	found = s.scopePolicies(scopeKey{ScopeGlobal, ""})
	if own := s.scopePolicies(scopeKey{ScopeNamespace, w.Namespace}); len(found) == 0 {
		found = own
	} else if len(own) > 0 {
		found = slices.Concat(found, own)
	}
	found = slices.Clip(found) // it is shared: what is appended goes elsewhere
	for _, key := range w.AuthorizationPolicies {
		p := s.policy(key)
		switch {
		case p == nil:
			missing = append(missing, key)
		case p.Scope == ScopeWorkloadSelector:
			found = append(found, NamedPolicy{key, p})
		case p.Scope == ScopeNamespace && p.Namespace != w.Namespace:
			found = append(found, NamedPolicy{key, p})
		}
	}
	return found, missing
}

// Workloads lists all workloads by UID.
func (v View) Workloads() []*Workload {
	out := list(v.state().workloads)
	slices.SortFunc(out, func(a, b *Workload) int { return strings.Compare(a.UID, b.UID) })
	return out
}

// Services lists all services by hostname, then namespace.
func (v View) Services() []*Service {
	var out []*Service
	v.state().services.all(func(e *serviceEntry) bool {
		if e.service != nil {
			out = append(out, e.service)
		}
		return true
	})
	slices.SortFunc(out, func(a, b *Service) int {
		if c := strings.Compare(a.Hostname, b.Hostname); c != 0 {
			return c
		}
		return strings.Compare(a.Namespace, b.Namespace)
	})
	return out
}

// Policies lists all policies by key.
func (v View) Policies() []NamedPolicy {
	s := v.state()
	out := make([]NamedPolicy, 0, s.policies.size)
	s.policies.all(func(p *NamedPolicy) bool { out = append(out, *p); return true })
	slices.SortFunc(out, func(a, b NamedPolicy) int { return strings.Compare(a.Key, b.Key) })
	return out
}

// StagedEndpoints lists endpoints whose service has not arrived, by service
// key.
func (v View) StagedEndpoints() map[NamespacedHostname][]Endpoint {
	out := map[NamespacedHostname][]Endpoint{}
	v.state().services.all(func(e *serviceEntry) bool {
		if e.service != nil {
			return true
		}
		endpoints := make([]Endpoint, 0, e.members.size)
		e.members.all(func(m member) bool { endpoints = append(endpoints, m.endpoint()); return true })
		slices.SortFunc(endpoints, func(a, b Endpoint) int { return strings.Compare(a.WorkloadUID, b.WorkloadUID) })
		out[e.key] = endpoints
		return true
	})
	return out
}

func list[V any](t trie[V]) []V {
	out := make([]V, 0, t.size)
	t.all(func(v V) bool { out = append(out, v); return true })
	return out
}

// ServesAddr reports whether ip is one of the service's exact VIPs in network.
func (s *Service) ServesAddr(network string, ip netip.Addr) bool {
	return slices.Contains(s.VIPs, NetworkAddr{network, ip})
}
