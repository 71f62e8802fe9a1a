// SPDX-License-Identifier: Apache-2.0

package mesh

import (
	"slices"
	"strings"
)

// PutWorkload adds a workload or replaces the one with its UID, and its
// membership in services with it. Endpoints of services that are not known yet
// are staged until the service comes (contract 8.8).
func (u *Update) PutWorkload(w *Workload) {
	u.touched = true
	u.removeWorkload(w.UID)
	s := u.s
	s.workloads[w.UID] = w
	if w.NetworkMode != HostNetwork {
		for _, ip := range w.IPs {
			a := NetworkAddr{w.Network, ip}
			s.byAddr[a] = append(s.byAddr[a], w)
		}
	}
	name := podName{w.Namespace, w.Name}
	s.byName[name] = append(s.byName[name], w)
	if w.Hostname != "" {
		host := NamespacedHostname{w.Namespace, w.Hostname}
		s.byWorkloadHost[host] = append(s.byWorkloadHost[host], w)
	}
	for key, ports := range w.Services {
		u.PutEndpoint(key, Endpoint{WorkloadUID: w.UID, Ports: ports, Status: w.Status})
	}
}

// RemoveWorkload removes a workload and its endpoints. It reports whether the
// workload was known.
func (u *Update) RemoveWorkload(uid string) bool {
	if !u.removeWorkload(uid) {
		return false
	}
	u.touched = true
	return true
}

func (u *Update) removeWorkload(uid string) bool {
	s := u.s
	w := s.workloads[uid]
	if w == nil {
		return false
	}
	delete(s.workloads, uid)
	for _, ip := range w.IPs {
		dropFrom(s.byAddr, NetworkAddr{w.Network, ip}, w)
	}
	dropFrom(s.byName, podName{w.Namespace, w.Name}, w)
	if w.Hostname != "" {
		dropFrom(s.byWorkloadHost, NamespacedHostname{w.Namespace, w.Hostname}, w)
	}
	for key := range w.Services {
		u.removeEndpoint(key, uid)
	}
	return true
}

// PutEndpoint adds or replaces one endpoint of a service, or stages it. An
// unhealthy endpoint of a service that wants healthy ones is removed instead.
func (u *Update) PutEndpoint(key NamespacedHostname, ep Endpoint) {
	u.touched = true
	s := u.s
	e := s.services[key]
	if e == nil {
		if s.staged[key] == nil {
			s.staged[key] = map[string]Endpoint{}
		}
		s.staged[key][ep.WorkloadUID] = ep
		return
	}
	if e.accepts(ep) {
		e.put(ep)
	} else {
		e.remove(ep.WorkloadUID)
	}
}

// RemoveEndpoint removes one workload from a service, also when the service is
// not known yet.
func (u *Update) RemoveEndpoint(key NamespacedHostname, uid string) {
	u.touched = true
	u.removeEndpoint(key, uid)
}

func (u *Update) removeEndpoint(key NamespacedHostname, uid string) {
	s := u.s
	if e := s.services[key]; e != nil {
		e.remove(uid)
	}
	if staged := s.staged[key]; staged != nil {
		delete(staged, uid)
		if len(staged) == 0 {
			delete(s.staged, key)
		}
	}
}

// PutService adds a service or replaces the one with its key. Endpoints of
// the old one are kept as far as the new health policy takes them, and staged
// ones join (contract 8.8).
func (u *Update) PutService(svc *Service) {
	u.touched = true
	s := u.s
	key := svc.Key()
	entry := &serviceEntry{service: svc}
	if old := s.services[key]; old != nil {
		for _, ep := range old.endpoints {
			if entry.accepts(ep) {
				entry.put(ep)
			}
		}
		u.unindexService(old.service)
	}
	for _, ep := range sortedStage(s.staged[key]) {
		if entry.accepts(ep) {
			entry.put(ep)
		}
	}
	delete(s.staged, key)
	s.services[key] = entry
	for _, vip := range svc.VIPs {
		s.byVIP[vip] = append(s.byVIP[vip], svc)
	}
	for _, p := range svc.CIDRVIPs {
		s.ranges = append(s.ranges, rangeEntry{p, svc})
	}
	s.byHost[svc.Hostname] = append(s.byHost[svc.Hostname], svc)
}

// sortedStage puts staged endpoints into an order, so that two stores that were
// told the same things answer alike.
func sortedStage(staged map[string]Endpoint) []Endpoint {
	out := make([]Endpoint, 0, len(staged))
	for _, ep := range staged {
		out = append(out, ep)
	}
	slices.SortFunc(out, func(a, b Endpoint) int { return strings.Compare(a.WorkloadUID, b.WorkloadUID) })
	return out
}

// RemoveService removes a service. Its endpoints are staged again, so that a
// service that comes back has them. It reports whether it was known.
func (u *Update) RemoveService(key NamespacedHostname) bool {
	s := u.s
	e := s.services[key]
	if e == nil {
		return false
	}
	u.touched = true
	u.unindexService(e.service)
	delete(s.services, key)
	for _, ep := range e.endpoints {
		u.PutEndpoint(key, ep)
	}
	return true
}

func (u *Update) unindexService(svc *Service) {
	s := u.s
	for _, vip := range svc.VIPs {
		dropFrom(s.byVIP, vip, svc)
	}
	dropFrom(s.byHost, svc.Hostname, svc)
	if len(svc.CIDRVIPs) > 0 {
		s.ranges = slices.DeleteFunc(s.ranges, func(r rangeEntry) bool { return r.service == svc })
	}
}

// PutPolicy adds or replaces the policy under key, which is the xDS resource
// name and normally the policy's own namespace/name.
func (u *Update) PutPolicy(key string, p *Policy) {
	u.touched, u.touchedPolicies = true, true
	u.unindexPolicy(key)
	s := u.s
	s.policies[key] = p
	if sk, ok := scopeOf(p); ok {
		list := s.scoped[sk]
		i, _ := slices.BinarySearchFunc(list, key, func(n NamedPolicy, key string) int { return strings.Compare(n.Key, key) })
		s.scoped[sk] = slices.Insert(list, i, NamedPolicy{key, p})
	}
}

// RemovePolicy removes the policy under key and reports whether it was known.
func (u *Update) RemovePolicy(key string) bool {
	if u.s.policies[key] == nil {
		return false
	}
	u.touched, u.touchedPolicies = true, true
	u.unindexPolicy(key)
	delete(u.s.policies, key)
	return true
}

func (u *Update) unindexPolicy(key string) {
	s := u.s
	old := s.policies[key]
	if old == nil {
		return
	}
	sk, ok := scopeOf(old)
	if !ok {
		return
	}
	kept := slices.DeleteFunc(s.scoped[sk], func(n NamedPolicy) bool { return n.Key == key })
	if len(kept) == 0 {
		delete(s.scoped, sk)
		return
	}
	s.scoped[sk] = kept
}

func scopeOf(p *Policy) (scopeKey, bool) {
	switch p.Scope {
	case ScopeGlobal:
		return scopeKey{ScopeGlobal, ""}, true
	case ScopeNamespace:
		return scopeKey{ScopeNamespace, p.Namespace}, true
	default:
		return scopeKey{}, false
	}
}

// Workload finds a workload by UID in the locked store, so that a writer can
// compare with what is there.
func (u *Update) Workload(uid string) *Workload { return u.s.workloads[uid] }

// Service finds a service by key in the locked store.
func (u *Update) Service(key NamespacedHostname) *Service {
	if e := u.s.services[key]; e != nil {
		return e.service
	}
	return nil
}

// Policy finds a policy by key in the locked store.
func (u *Update) Policy(key string) *Policy { return u.s.policies[key] }

// dropFrom removes one value from the list under key and the list when empty.
func dropFrom[K, V comparable](index map[K][]V, key K, value V) {
	list := slices.DeleteFunc(slices.Clone(index[key]), func(v V) bool { return v == value })
	if len(list) == 0 {
		delete(index, key)
		return
	}
	index[key] = list
}
