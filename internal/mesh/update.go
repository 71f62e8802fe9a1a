// SPDX-License-Identifier: Apache-2.0

package mesh

import (
	"maps"
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
	s.workloads.add(u.edit, s.hash(w.UID), w)
	if w.NetworkMode != HostNetwork {
		for _, ip := range w.IPs {
			s.byAddr.add(u.edit, s.hashAddr(NetworkAddr{w.Network, ip}), w)
		}
	}
	s.byName.add(u.edit, s.hashPair(w.Namespace, w.Name), w)
	if w.Hostname != "" {
		s.byWorkloadHost.add(u.edit, s.hashKey(NamespacedHostname{w.Namespace, w.Hostname}), w)
	}
	u.attach(w.UID, w)
	for key, ports := range w.Services {
		u.putMember(key, member{workload: w, ports: ports})
	}
}

// RemoveWorkload removes a workload and its endpoints. It reports whether the
// workload was known.
func (u *Update) RemoveWorkload(uid string) bool {
	if !u.removeWorkload(uid) {
		return false
	}
	u.attach(uid, nil)
	u.touched = true
	return true
}

// removeWorkload leaves endpoints of w in place that were listed apart from it.
func (u *Update) removeWorkload(uid string) bool {
	s := u.s
	w := s.workload(uid)
	if w == nil {
		return false
	}
	is := func(other *Workload) bool { return other == w }
	s.workloads.remove(u.edit, s.hash(uid), is)
	for _, ip := range w.IPs {
		s.byAddr.remove(u.edit, s.hashAddr(NetworkAddr{w.Network, ip}), is)
	}
	s.byName.remove(u.edit, s.hashPair(w.Namespace, w.Name), is)
	if w.Hostname != "" {
		s.byWorkloadHost.remove(u.edit, s.hashKey(NamespacedHostname{w.Namespace, w.Hostname}), is)
	}
	for key := range w.Services {
		u.removeMember(key, uid)
	}
	return true
}

// attach tells the endpoints that were listed for a workload who it is now.
func (u *Update) attach(uid string, w *Workload) {
	s := u.s
	if s.listed.size == 0 {
		return
	}
	h := s.hash(uid)
	for _, it := range s.listed.near(h) {
		if it.hash != h || it.value.uid != uid {
			continue
		}
		e := u.ownEntry(it.value.key)
		if m, found := e.member(h, uid); found {
			m.workload = w
			e.members.change(u.edit, h, isMember(uid), m)
		}
	}
}

func isMember(uid string) func(member) bool {
	return func(m member) bool { return m.uid() == uid }
}

// PutEndpoint adds or replaces one endpoint of a service, or stages it. An
// unhealthy endpoint of a service that wants healthy ones is removed instead.
func (u *Update) PutEndpoint(key NamespacedHostname, ep Endpoint) {
	u.touched = true
	w := u.s.workload(ep.WorkloadUID)
	if w != nil && w.Status == ep.Status {
		if ports, own := w.Services[key]; own && maps.Equal(ports, ep.Ports) {
			u.putMember(key, member{workload: w, ports: ports})
			return
		}
	}
	u.putMember(key, member{workload: w, listed: &ep})
}

// putMember puts a member into the place of the one with its UID, or behind
// all.
func (u *Update) putMember(key NamespacedHostname, m member) {
	e := u.ownEntry(key)
	uid := m.uid()
	h := u.s.hash(uid)
	if e.service != nil && !e.accepts(m) {
		u.dropMember(e, uid)
		return
	}
	old, found := e.member(h, uid)
	switch {
	case !found:
		e.members.add(u.edit, h, m)
	default:
		e.members.change(u.edit, h, isMember(uid), m)
	}
	u.noteListed(key, uid, found && old.listed != nil, m.listed != nil)
}

// noteListed keeps the index of listed endpoints.
func (u *Update) noteListed(key NamespacedHostname, uid string, before, after bool) {
	h := u.s.hash(uid)
	switch {
	case before == after:
	case after:
		u.s.listed.add(u.edit, h, &listedEndpoint{uid, key})
	default:
		u.s.listed.remove(u.edit, h, func(l *listedEndpoint) bool { return l.uid == uid && l.key == key })
	}
}

// RemoveEndpoint removes one workload from a service, also when the service is
// not known yet.
func (u *Update) RemoveEndpoint(key NamespacedHostname, uid string) {
	u.touched = true
	u.removeMember(key, uid)
}

func (u *Update) removeMember(key NamespacedHostname, uid string) {
	if e := u.s.entry(key); e != nil {
		if _, found := e.member(u.s.hash(uid), uid); found {
			u.dropMember(u.ownEntry(key), uid)
		}
	}
}

// dropMember takes a member out of an entry of ours, and the entry away if
// nothing is left of it.
func (u *Update) dropMember(e *serviceEntry, uid string) {
	h := u.s.hash(uid)
	old, found := e.member(h, uid)
	if found {
		e.members.remove(u.edit, h, isMember(uid))
		u.noteListed(e.key, uid, old.listed != nil, false)
	}
	u.dropIfEmpty(e)
}

func (u *Update) dropIfEmpty(e *serviceEntry) {
	if e.service == nil && e.members.size == 0 {
		u.s.services.remove(u.edit, u.s.hashKey(e.key), func(other *serviceEntry) bool { return other == e })
	}
}

// ownEntry is the entry of a key, made or copied so that it may be changed.
func (u *Update) ownEntry(key NamespacedHostname) *serviceEntry {
	s := u.s
	h := s.hashKey(key)
	e := s.entry(key)
	switch {
	case e == nil:
		mine := &serviceEntry{owner: u.edit, key: key}
		s.services.add(u.edit, h, mine)
		return mine
	case e.owner == u.edit:
		return e
	}
	mine := *e
	mine.owner = u.edit
	s.services.change(u.edit, h, func(other *serviceEntry) bool { return other == e }, &mine)
	return &mine
}

// PutService adds a service or replaces the one with its key. Endpoints of
// the old one are kept as far as the new health policy takes them, and staged
// ones join (contract 8.8).
func (u *Update) PutService(svc *Service) {
	u.touched = true
	s := u.s
	e := u.ownEntry(svc.Key())
	picky := e.service != nil && !e.service.TakesUnhealthy() // so only healthy ones are in
	if e.service != nil {
		u.unindexService(e.service)
	}
	e.service = svc
	if !picky && !svc.TakesUnhealthy() {
		for _, m := range list(e.members) {
			if !e.accepts(m) {
				u.dropMember(e, m.uid())
			}
		}
	}
	for _, vip := range svc.VIPs {
		s.byVIP.add(u.edit, s.hashAddr(vip), svc)
	}
	for _, p := range svc.CIDRVIPs {
		if p.Prefix.IsValid() {
			p.Prefix = p.Prefix.Masked()
			s.ranges.add(u.edit, s.hashPrefix(p), &rangeEntry{p, svc})
			s.lengths.add(p.Prefix, 1)
		}
	}
	s.byHost.add(u.edit, s.hash(svc.Hostname), svc)
}

// RemoveService removes a service. Its endpoints are staged again, so that a
// service that comes back has them. It reports whether it was known.
func (u *Update) RemoveService(key NamespacedHostname) bool {
	if u.s.service(key) == nil {
		return false
	}
	u.touched = true
	e := u.ownEntry(key)
	u.unindexService(e.service)
	e.service = nil
	u.dropIfEmpty(e)
	return true
}

func (u *Update) unindexService(svc *Service) {
	s := u.s
	is := func(other *Service) bool { return other == svc }
	for _, vip := range svc.VIPs {
		s.byVIP.remove(u.edit, s.hashAddr(vip), is)
	}
	for _, p := range svc.CIDRVIPs {
		if p.Prefix.IsValid() {
			p.Prefix = p.Prefix.Masked()
			s.ranges.remove(u.edit, s.hashPrefix(p), func(r *rangeEntry) bool { return r.service == svc && r.prefix == p })
			s.lengths.add(p.Prefix, -1) // once for each that is listed, as it was added
		}
	}
	s.byHost.remove(u.edit, s.hash(svc.Hostname), is)
}

// PutPolicy adds or replaces the policy under key, which is the xDS resource
// name and normally the policy's own namespace/name.
func (u *Update) PutPolicy(key string, p *Policy) {
	u.touched, u.touchedPolicies = true, true
	u.removePolicy(key)
	named := &NamedPolicy{key, p}
	u.s.policies.add(u.edit, u.s.hash(key), named)
	if k, ok := scopeOf(p); ok {
		list := u.s.scopePolicies(k)
		i, _ := slices.BinarySearchFunc(list, key, byPolicyKey)
		u.setScope(k, slices.Concat(list[:i], []NamedPolicy{*named}, list[i:]))
	}
}

func byPolicyKey(n NamedPolicy, key string) int { return strings.Compare(n.Key, key) }

// RemovePolicy removes the policy under key and reports whether it was known.
func (u *Update) RemovePolicy(key string) bool {
	if !u.removePolicy(key) {
		return false
	}
	u.touched, u.touchedPolicies = true, true
	return true
}

func (u *Update) removePolicy(key string) bool {
	s := u.s
	old := s.policy(key)
	if old == nil {
		return false
	}
	s.policies.remove(u.edit, s.hash(key), func(n *NamedPolicy) bool { return n.Key == key })
	if k, ok := scopeOf(old); ok {
		kept := slices.Clone(s.scopePolicies(k))
		u.setScope(k, slices.DeleteFunc(kept, func(n NamedPolicy) bool { return n.Key == key }))
	}
	return true
}

// setScope gives a scope another list.
func (u *Update) setScope(k scopeKey, list []NamedPolicy) {
	s := u.s
	h := s.hashScope(k)
	s.scoped.remove(u.edit, h, func(l *scopeList) bool { return l.key == k })
	if len(list) > 0 {
		s.scoped.add(u.edit, h, &scopeList{k, slices.Clip(list)})
	}
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

// Workload finds a workload by UID in the state that is being made, so that a
// writer can compare with what is there.
func (u *Update) Workload(uid string) *Workload { return u.s.workload(uid) }

// Service finds a service by key in the state that is being made.
func (u *Update) Service(key NamespacedHostname) *Service { return u.s.service(key) }

// Policy finds a policy by key in the state that is being made.
func (u *Update) Policy(key string) *Policy { return u.s.policy(key) }
