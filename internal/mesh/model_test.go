// SPDX-License-Identifier: Apache-2.0

package mesh

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"testing"
)

// A model is the store as one would write it in an hour: everything in lists,
// and every question a walk over them.
type model struct {
	workloads []*Workload // in order of insertion
	services  []*Service  // in order of insertion
	members   map[NamespacedHostname]map[string]Endpoint
	policies  map[string]*Policy
}

func newModel() *model {
	return &model{members: map[NamespacedHostname]map[string]Endpoint{}, policies: map[string]*Policy{}}
}

func (m *model) workload(uid string) *Workload {
	for _, w := range m.workloads {
		if w.UID == uid {
			return w
		}
	}
	return nil
}

func (m *model) service(key NamespacedHostname) *Service {
	for _, s := range m.services {
		if s.Key() == key {
			return s
		}
	}
	return nil
}

func (m *model) putEndpoint(key NamespacedHostname, ep Endpoint) {
	if s := m.service(key); s != nil && ep.Status != Healthy && !s.TakesUnhealthy() {
		m.removeEndpoint(key, ep.WorkloadUID)
		return
	}
	if m.members[key] == nil {
		m.members[key] = map[string]Endpoint{}
	}
	m.members[key][ep.WorkloadUID] = ep
}

func (m *model) removeEndpoint(key NamespacedHostname, uid string) { delete(m.members[key], uid) }

func (m *model) putWorkload(w *Workload) {
	m.removeWorkload(w.UID)
	m.workloads = append(m.workloads, w)
	for key, ports := range w.Services {
		m.putEndpoint(key, Endpoint{w.UID, ports, w.Status})
	}
}

func (m *model) removeWorkload(uid string) {
	if w := m.workload(uid); w != nil {
		m.workloads = slices.DeleteFunc(m.workloads, func(o *Workload) bool { return o == w })
		for key := range w.Services {
			m.removeEndpoint(key, uid)
		}
	}
}

func (m *model) putService(s *Service) {
	m.removeService(s.Key())
	m.services = append(m.services, s)
	for _, ep := range maps.Clone(m.members[s.Key()]) {
		m.putEndpoint(s.Key(), ep)
	}
}

func (m *model) removeService(key NamespacedHostname) {
	m.services = slices.DeleteFunc(m.services, func(s *Service) bool { return s.Key() == key })
}

func (m *model) workloadAt(a NetworkAddr) *Workload {
	var best *Workload
	for _, w := range m.workloads {
		if w.Network == a.Network && w.NetworkMode == Standard && w.HasIP(a.Addr) && (best == nil || addressRank(w) >= addressRank(best)) {
			best = w
		}
	}
	return best
}

func (m *model) serviceByVIP(a NetworkAddr, ns string) *Service {
	exact := choice{namespace: ns}
	for _, s := range m.services {
		if s.ServesAddr(a.Network, a.Addr) {
			exact.offer(s)
		}
	}
	if exact.service != nil {
		return exact.service
	}
	var best *Service
	var bestRank rangeRank
	for _, s := range m.services {
		for _, p := range s.CIDRVIPs {
			rank := rangeRank{ns != "" && s.Namespace == ns, p.Prefix.Bits(), s.Canonical}
			if p.Network == a.Network && p.Prefix.Contains(a.Addr) && sees(ns, s) && (best == nil || rank.above(bestRank)) {
				best, bestRank = s, rank
			}
		}
	}
	return best
}

func (m *model) policiesFor(w *Workload) (found, missing []string) {
	keys := slices.Sorted(maps.Keys(m.policies))
	for _, k := range keys {
		if m.policies[k].Scope == ScopeGlobal {
			found = append(found, k)
		}
	}
	for _, k := range keys {
		if p := m.policies[k]; p.Scope == ScopeNamespace && p.Namespace == w.Namespace {
			found = append(found, k)
		}
	}
	for _, k := range w.AuthorizationPolicies {
		switch p := m.policies[k]; {
		case p == nil:
			missing = append(missing, k)
		case p.Scope == ScopeWorkloadSelector || p.Scope == ScopeNamespace && p.Namespace != w.Namespace:
			found = append(found, k)
		}
	}
	return found, missing
}

// A world makes values from small sets of names, so that they meet.
type world struct {
	*rand.Rand
	size int
}

func (r world) uid() string             { return fmt.Sprintf("c/%s/w%d", r.any("", "/Pod/"), r.IntN(r.size)) }
func (r world) any(of ...string) string { return of[r.IntN(len(of))] }
func (r world) namespace() string       { return r.any("a", "b") }
func (r world) key() NamespacedHostname {
	return NamespacedHostname{r.namespace(), fmt.Sprint("s", r.IntN(r.size/4+1))}
}
func (r world) ip() netip.Addr {
	return netip.AddrFrom4([4]byte{10, 0, byte(r.IntN(2)), byte(r.IntN(r.size))})
}
func (r world) ip6() netip.Addr          { return netip.MustParseAddr(fmt.Sprintf("fd00::%x", r.IntN(r.size))) }
func (r world) at() NetworkAddr          { return NetworkAddr{r.any("", "net"), r.ip()} }
func (r world) ports() map[uint16]uint16 { return map[uint16]uint16{80: uint16(r.IntN(3))} }
func (r world) policyKey() string        { return fmt.Sprint(r.namespace(), "/p", r.IntN(6)) }
func (r world) status() Status           { return Status(r.IntN(4) / 3) }
func (r world) times(n int, do func()) {
	for range r.IntN(n + 1) {
		do()
	}
}

func (r world) workload() *Workload {
	w := &Workload{UID: r.uid(), Name: r.any("n1", "n2"), Namespace: r.namespace(), ServiceAccount: r.any("sa", "sb"), Node: r.any("x", "y"),
		Network: r.any("", "net"), Hostname: r.any("", "", "h"), Status: r.status(), Protocol: Protocol(r.IntN(2)), NetworkMode: NetworkMode(r.IntN(5) / 4)}
	r.times(2, func() { w.IPs = append(w.IPs, r.ip()) })
	r.times(1, func() { w.IPs = append(w.IPs, r.ip6()) })
	w.Services = map[NamespacedHostname]map[uint16]uint16{}
	r.times(3, func() { w.Services[r.key()] = r.ports() })
	r.times(2, func() { w.AuthorizationPolicies = append(w.AuthorizationPolicies, r.policyKey()) })
	return w
}

func (r world) service() *Service {
	key := r.key()
	s := &Service{Namespace: key.Namespace, Hostname: key.Hostname, Canonical: r.IntN(3) == 0, Visibility: Visibility(r.IntN(4) / 3)}
	if r.IntN(3) == 0 {
		s.LoadBalancer = &LoadBalancer{HealthPolicy: AllowAll}
	}
	r.times(2, func() { s.VIPs = append(s.VIPs, r.at()) })
	r.times(2, func() {
		s.CIDRVIPs = append(s.CIDRVIPs, NetworkPrefix{r.any("", "net"), netip.PrefixFrom(r.ip(), r.IntN(33))})
	})
	r.times(1, func() { s.CIDRVIPs = append(s.CIDRVIPs, NetworkPrefix{"", netip.PrefixFrom(r.ip6(), r.IntN(129))}) })
	return s
}

// change is one random change of both.
func (r world) change(u *Update, m *model) {
	switch r.IntN(11) {
	case 0, 1, 2, 3:
		w := r.workload()
		u.PutWorkload(w)
		m.putWorkload(w)
	case 4:
		uid := r.uid()
		if u.RemoveWorkload(uid) != (m.workload(uid) != nil) {
			panic("a removal that is not told as what it was")
		}
		m.removeWorkload(uid)
	case 5, 6:
		s := r.service()
		u.PutService(s)
		m.putService(s)
	case 7:
		key := r.key()
		if u.RemoveService(key) != (m.service(key) != nil) {
			panic("a removal that is not told as what it was")
		}
		m.removeService(key)
	case 8:
		key, ep := r.key(), Endpoint{r.uid(), r.ports(), r.status()}
		u.PutEndpoint(key, ep)
		m.putEndpoint(key, ep)
	case 9:
		key, uid := r.key(), r.uid()
		u.RemoveEndpoint(key, uid)
		m.removeEndpoint(key, uid)
	case 10:
		key := r.policyKey()
		if r.IntN(3) == 0 {
			u.RemovePolicy(key)
			delete(m.policies, key)
			return
		}
		p := &Policy{Namespace: key[:1], Scope: PolicyScope(r.IntN(3))}
		u.PutPolicy(key, p)
		m.policies[key] = p
	}
}

// compare asks both everything.
func (r world) compare(t *testing.T, v View, m *model) {
	t.Helper()
	same := func(what string, got, want any) {
		t.Helper()
		if !reflect.DeepEqual(got, want) {
			t.Fatalf("%s: %v, want %v", what, got, want)
		}
	}
	byUID := slices.Clone(m.workloads)
	slices.SortFunc(byUID, func(a, b *Workload) int { return strings.Compare(a.UID, b.UID) })
	same("workloads", append([]*Workload{}, v.Workloads()...), append([]*Workload{}, byUID...))
	same("services", len(v.Services()), len(m.services))
	for _, w := range m.workloads {
		if v.Workload(w.UID) != w {
			t.Fatalf("%s is not there", w.UID)
		}
		found, missing := v.PoliciesFor(w)
		var keys []string
		for _, p := range found {
			keys = append(keys, p.Key)
		}
		wantFound, wantMissing := m.policiesFor(w)
		same("policies", keys, wantFound)
		same("missing", missing, wantMissing)
	}
	for range 20 {
		at, ns := r.at(), r.any("", "a", "b", everywhere)
		if r.IntN(3) == 0 {
			at.Addr = r.ip6()
		}
		same(at.String(), v.WorkloadAt(at), m.workloadAt(at))
		same(at.String()+" for "+ns, v.ServiceByVIP(at, ns), m.serviceByVIP(at, ns))
	}
	r.compareMembers(t, v, m)
}

func (r world) compareMembers(t *testing.T, v View, m *model) {
	t.Helper()
	stagedNow := v.StagedEndpoints()
	for key, members := range m.members {
		shown := map[string]Endpoint{}
		v.Endpoints(key, func(ep Endpoint, w *Workload) bool {
			if _, twice := shown[ep.WorkloadUID]; twice || w != m.workload(ep.WorkloadUID) {
				t.Fatalf("%v: %s is shown twice, or as somebody else", key, ep.WorkloadUID)
			}
			shown[ep.WorkloadUID] = ep
			return true
		})
		if m.service(key) == nil {
			if len(shown) != 0 || len(stagedNow[key]) != len(members) {
				t.Fatalf("%v: %v and staged %v, want staged %v", key, shown, stagedNow[key], members)
			}
			for _, ep := range stagedNow[key] {
				if !reflect.DeepEqual(ep, members[ep.WorkloadUID]) {
					t.Fatalf("%v: staged %v, want %v", key, ep, members[ep.WorkloadUID])
				}
			}
			continue
		}
		for uid, ep := range members {
			if got, ok := v.Endpoint(key, uid); !ok || !reflect.DeepEqual(got, ep) {
				t.Fatalf("%v %s: %v %v, want %v", key, uid, got, ok, ep)
			}
			if m.workload(uid) == nil {
				continue
			}
			if !reflect.DeepEqual(shown[uid], ep) {
				t.Fatalf("%v %s: shown %v, want %v", key, uid, shown[uid], ep)
			}
			delete(shown, uid)
		}
		if len(shown) != 0 {
			t.Fatalf("%v: more than there is: %v", key, shown)
		}
	}
}

// Every question of every kind is put to the store and to the model, in small
// worlds, where everything collides, and in one that makes the tries deep.
func TestTheStoreAgreesWithANaiveModel(t *testing.T) {
	for seed, rounds := range map[uint64]struct{ size, count, batch int }{
		1: {3, 1000, 1}, 2: {12, 700, 4}, 3: {200, 60, 100},
	} {
		r := world{rand.New(rand.NewPCG(seed, 0)), rounds.size}
		s, m := NewStore(), newModel()
		for range rounds.count {
			s.Apply(func(u *Update) {
				for range 1 + r.IntN(rounds.batch) {
					r.change(u, m)
				}
			})
			r.compare(t, s.View(), m)
		}
		s.Apply(func(u *Update) {
			for key, members := range m.members {
				u.RemoveService(key)
				for uid := range members {
					u.RemoveEndpoint(key, uid)
				}
			}
			for _, svc := range m.services {
				u.RemoveService(svc.Key())
			}
			for _, w := range m.workloads {
				u.RemoveWorkload(w.UID)
			}
			for key := range m.policies {
				u.RemovePolicy(key)
			}
		})
		empty(t, s)
	}
}

// empty says that nothing at all is left in a store.
func empty(t *testing.T, s *Store) {
	t.Helper()
	now := s.now.Load()
	for name, size := range map[string]int{
		"workloads": now.workloads.count(), "byAddr": now.byAddr.count(), "byName": now.byName.count(), "byWorkloadHost": now.byWorkloadHost.count(),
		"services": now.services.count(), "byVIP": now.byVIP.count(), "byHost": now.byHost.count(), "ranges": now.ranges.count(),
		"listed": now.listed.count(), "policies": now.policies.count(), "scoped": now.scoped.count(),
	} {
		if size != 0 {
			t.Errorf("%s: %d are left", name, size)
		}
	}
	if now.lengths != (rangeLengths{}) {
		t.Errorf("lengths: %v", now.lengths)
	}
}

// count is the size and the nodes that are left.
func (t *trie[V]) count() int {
	n := t.size
	if t.root != nil {
		n++
	}
	return n
}
