// SPDX-License-Identifier: Apache-2.0

package mesh

import (
	"net/netip"
	"slices"
	"strings"
)

// A View reads a [Store]. It is a small value; copies see the same store. Its
// methods return shared values, which the caller must not change.
//
// Two calls may see two states of the store; one call sees one.
type View struct{ store *Store }

// Workload finds a workload by its UID, or nil.
func (v View) Workload(uid string) *Workload {
	s := v.store
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.workloads[uid]
}

// WorkloadAt finds the workload with an address; of several the best one: a
// pod before others, HBONE before TCP, the latest of equals (contract 3.4).
// Host-network workloads are never found here.
func (v View) WorkloadAt(addr NetworkAddr) *Workload {
	s := v.store
	s.mu.RLock()
	defer s.mu.RUnlock()
	return bestAtAddress(s.byAddr[addr])
}

func bestAtAddress(candidates []*Workload) *Workload {
	var best *Workload
	bestRank := -1
	for _, w := range candidates {
		rank := 0
		if strings.Contains(w.UID, "//Pod/") {
			rank += 2
		}
		if w.Protocol == HBONE {
			rank++
		}
		if rank >= bestRank { // >=: later insertions win ties
			best, bestRank = w, rank
		}
	}
	return best
}

// LocalWorkload finds the workload of a pod by what its node agent says of
// it, among those on node; an empty node means any (contract 3.1 step 3).
func (v View) LocalWorkload(node, name, namespace, serviceAccount string) *Workload {
	s := v.store
	s.mu.RLock()
	defer s.mu.RUnlock()
	for _, w := range s.byName[podName{namespace, name}] {
		if w.ServiceAccount == serviceAccount && (node == "" || w.Node == node) {
			return w
		}
	}
	return nil
}

// WorkloadByHostname finds a workload by namespace and hostname, or nil.
func (v View) WorkloadByHostname(host NamespacedHostname) *Workload {
	s := v.store
	s.mu.RLock()
	defer s.mu.RUnlock()
	if found := s.byWorkloadHost[host]; len(found) > 0 {
		return found[0]
	}
	return nil
}

// Service finds a service by its key, or nil.
func (v View) Service(key NamespacedHostname) *Service {
	s := v.store
	s.mu.RLock()
	defer s.mu.RUnlock()
	if e := s.services[key]; e != nil {
		return e.service
	}
	return nil
}

// ServiceByVIP finds the best service with an address that clients in
// namespace may see: an exact VIP first, then the longest range
// (contract 3.4). An empty namespace sees public services only and prefers
// none.
func (v View) ServiceByVIP(addr NetworkAddr, namespace string) *Service {
	s := v.store
	s.mu.RLock()
	defer s.mu.RUnlock()
	if svc := bestService(s.byVIP[addr], namespace); svc != nil {
		return svc
	}
	return bestRange(s.ranges, addr, namespace)
}

// AnyServiceByVIP finds the best service with an address whoever may see it.
// It is for checking a request that a client has already been routed by
// (contract 5.3), where visibility has had its say; choosing a destination
// goes through [View.ServiceByVIP].
func (v View) AnyServiceByVIP(addr NetworkAddr) *Service {
	s := v.store
	s.mu.RLock()
	defer s.mu.RUnlock()
	if svc := bestService(s.byVIP[addr], everywhere); svc != nil {
		return svc
	}
	return bestRange(s.ranges, addr, everywhere)
}

// ServiceByHostname finds the best service of any namespace with a hostname:
// the client's namespace first, then canonical ones, then the oldest
// (contract 5.4).
func (v View) ServiceByHostname(hostname, namespace string) *Service {
	s := v.store
	s.mu.RLock()
	defer s.mu.RUnlock()
	return bestService(s.byHost[hostname], namespace)
}

// ServicesByHostname lists the services of all namespaces with a hostname,
// oldest first. The caller judges visibility and rank (contract 11.4).
func (v View) ServicesByHostname(hostname string) []*Service {
	s := v.store
	s.mu.RLock()
	defer s.mu.RUnlock()
	return slices.Clone(s.byHost[hostname])
}

// everywhere stands for a client that sees all services and prefers none. No
// namespace has this name: a slash may not be in one.
const everywhere = "/"

func sees(namespace string, svc *Service) bool {
	return namespace == everywhere || svc.VisibleTo(namespace)
}

func bestService(candidates []*Service, namespace string) *Service {
	var best *Service
	for _, svc := range candidates {
		if !sees(namespace, svc) {
			continue
		}
		switch {
		case namespace != "" && svc.Namespace == namespace:
			return svc
		case best == nil, svc.Canonical: // the last canonical one wins (contract 3.4)
			best = svc
		}
	}
	return best
}

func bestRange(ranges []rangeEntry, addr NetworkAddr, namespace string) *Service {
	var best *Service
	var bestRank rangeRank
	for _, r := range ranges {
		if r.prefix.Network != addr.Network || !r.prefix.Prefix.Contains(addr.Addr) || !sees(namespace, r.service) {
			continue
		}
		rank := rangeRank{
			local:     namespace != "" && r.service.Namespace == namespace,
			bits:      r.prefix.Prefix.Bits(),
			canonical: r.service.Canonical,
		}
		if best == nil || rank.above(bestRank) { // the earliest of equals stays
			best, bestRank = r.service, rank
		}
	}
	return best
}

// A rangeRank says what makes one range better than another, the weightiest
// first (contract 3.4).
type rangeRank struct {
	local     bool // of the client's namespace
	bits      int
	canonical bool
}

func (r rangeRank) above(other rangeRank) bool {
	switch {
	case r.local != other.local:
		return r.local
	case r.bits != other.bits:
		return r.bits > other.bits
	default:
		return r.canonical && !other.canonical
	}
}

// Endpoints calls yield for each endpoint of a service whose workload is
// known, until yield returns false. The order means nothing, but it is the
// same from call to call while the members are. yield must not call the View.
func (v View) Endpoints(key NamespacedHostname, yield func(Endpoint, *Workload) bool) {
	s := v.store
	s.mu.RLock()
	defer s.mu.RUnlock()
	e := s.services[key]
	if e == nil {
		return
	}
	for _, ep := range e.endpoints {
		if w := s.workloads[ep.WorkloadUID]; w != nil && !yield(ep, w) {
			return
		}
	}
}

// Endpoint finds one workload's membership in a service.
func (v View) Endpoint(key NamespacedHostname, uid string) (Endpoint, bool) {
	s := v.store
	s.mu.RLock()
	defer s.mu.RUnlock()
	e := s.services[key]
	if e == nil {
		return Endpoint{}, false
	}
	i, ok := e.places[uid]
	if !ok {
		return Endpoint{}, false
	}
	return e.endpoints[i], true
}

// Policy finds a policy by its key (namespace/name), or nil.
func (v View) Policy(key string) *Policy {
	s := v.store
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.policies[key]
}

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
	s := v.store
	s.mu.RLock()
	defer s.mu.RUnlock()
	found = append(found, s.scoped[scopeKey{ScopeGlobal, ""}]...)
	found = append(found, s.scoped[scopeKey{ScopeNamespace, w.Namespace}]...)
	for _, key := range w.AuthorizationPolicies {
		p := s.policies[key]
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
	s := v.store
	s.mu.RLock()
	defer s.mu.RUnlock()
	out := make([]*Workload, 0, len(s.workloads))
	for _, w := range s.workloads {
		out = append(out, w)
	}
	slices.SortFunc(out, func(a, b *Workload) int { return strings.Compare(a.UID, b.UID) })
	return out
}

// Services lists all services by hostname, then namespace.
func (v View) Services() []*Service {
	s := v.store
	s.mu.RLock()
	defer s.mu.RUnlock()
	out := make([]*Service, 0, len(s.services))
	for _, e := range s.services {
		out = append(out, e.service)
	}
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
	s := v.store
	s.mu.RLock()
	defer s.mu.RUnlock()
	out := make([]NamedPolicy, 0, len(s.policies))
	for key, p := range s.policies {
		out = append(out, NamedPolicy{key, p})
	}
	slices.SortFunc(out, func(a, b NamedPolicy) int { return strings.Compare(a.Key, b.Key) })
	return out
}

// StagedEndpoints lists endpoints whose service has not arrived, by service
// key.
func (v View) StagedEndpoints() map[NamespacedHostname][]Endpoint {
	s := v.store
	s.mu.RLock()
	defer s.mu.RUnlock()
	out := make(map[NamespacedHostname][]Endpoint, len(s.staged))
	for key, eps := range s.staged {
		for _, ep := range eps {
			out[key] = append(out[key], ep)
		}
		slices.SortFunc(out[key], func(a, b Endpoint) int { return strings.Compare(a.WorkloadUID, b.WorkloadUID) })
	}
	return out
}

// ServesAddr reports whether ip is one of the service's exact VIPs in network.
func (s *Service) ServesAddr(network string, ip netip.Addr) bool {
	return slices.Contains(s.VIPs, NetworkAddr{network, ip})
}
