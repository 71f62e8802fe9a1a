// SPDX-License-Identifier: Apache-2.0

package mesh

import (
	"hash/maphash"
	"math/bits"
	"net/netip"
)

// A state is the whole picture at one moment. What can be reached from a
// published state never changes.
type state struct {
	seed maphash.Seed

	workloads      trie[*Workload] // by UID
	byAddr         trie[*Workload] // without those of the host's network
	byName         trie[*Workload] // by podName
	byWorkloadHost trie[*Workload]

	services trie[*serviceEntry] // by key; those without a service are staged
	byVIP    trie[*Service]
	byHost   trie[*Service]
	ranges   trie[*rangeEntry] // by masked prefix
	lengths  rangeLengths
	listed   trie[*listedEndpoint] // by the UID of the workload

	policies trie[*NamedPolicy]
	scoped   trie[*scopeList] // global and namespace scopes only

	edition         edit          // the Apply that made it
	changed         chan struct{} // closed when the next state is there
	policiesChanged chan struct{} // closed when one with other policies is
}

type podName struct{ namespace, name string }

// A serviceEntry is a service and its members, or only members that wait for
// their service.
type serviceEntry struct {
	owner   edit
	key     NamespacedHostname
	service *Service     // nil: staged
	members trie[member] // by the UID of the workload
}

// A member is a workload's place in a service: by the workload's own word, or
// by an endpoint that was listed apart from it.
type member struct {
	workload *Workload         // nil: listed, but not known
	ports    map[uint16]uint16 // where listed is nil
	listed   *Endpoint
}

func (m member) uid() string {
	if m.listed != nil {
		return m.listed.WorkloadUID
	}
	return m.workload.UID
}

func (m member) status() Status {
	if m.listed != nil {
		return m.listed.Status
	}
	return m.workload.Status
}

func (m member) endpoint() Endpoint {
	if m.listed != nil {
		return *m.listed
	}
	return Endpoint{WorkloadUID: m.workload.UID, Ports: m.ports, Status: m.workload.Status}
}

// accepts applies the service's health policy to an endpoint.
func (e *serviceEntry) accepts(m member) bool {
	return m.status() == Healthy || e.service.TakesUnhealthy()
}

// A listedEndpoint remembers where a workload is listed, so that the workload
// finds its places when it comes after them.
type listedEndpoint struct {
	uid string
	key NamespacedHostname
}

type rangeEntry struct {
	prefix  NetworkPrefix // masked
	service *Service
}

// rangeLengths counts the lengths of the ranges in use, of IPv4 and IPv6, so
// that only these are looked for.
type rangeLengths struct {
	v4 [33]int32
	v6 [129]int32
}

func (l *rangeLengths) add(p netip.Prefix, by int32) {
	if p.Addr().Is4() {
		l.v4[p.Bits()] += by
	} else {
		l.v6[p.Bits()] += by
	}
}

func (l *rangeLengths) of(a netip.Addr) []int32 {
	if a.Is4() {
		return l.v4[:]
	}
	return l.v6[:]
}

type scopeKey struct {
	scope     PolicyScope
	namespace string // empty for global
}

type scopeList struct {
	key      scopeKey
	policies []NamedPolicy // sorted by key; never changed in place
}

// Hashes are of 32 bits: a trie looks at no more, and keys are compared anyway.
// The seed keeps those who choose names from choosing where they collide; no
// answer depends on it, but for the order of what has no order.

func (s *state) hash(text string) uint32 { return uint32(maphash.String(s.seed, text)) }

func (s *state) hashPair(a, b string) uint32 {
	return uint32(bits.RotateLeft64(maphash.String(s.seed, a), 21) ^ maphash.String(s.seed, b))
}

func (s *state) hashKey(key NamespacedHostname) uint32 {
	return s.hashPair(key.Namespace, key.Hostname)
}

func (s *state) hashAddr(a NetworkAddr) uint32 {
	b := a.Addr.As16()
	h := uint32(maphash.Bytes(s.seed, b[:]))
	if a.Network != "" {
		h ^= s.hash(a.Network)
	}
	return h
}

func (s *state) hashPrefix(p NetworkPrefix) uint32 {
	return s.hashAddr(NetworkAddr{p.Network, p.Prefix.Addr()}) + uint32(p.Prefix.Bits())
}

func (s *state) hashScope(k scopeKey) uint32 { return s.hash(k.namespace) + uint32(k.scope) }

func (s *state) workload(uid string) *Workload {
	h := s.hash(uid)
	for _, it := range s.workloads.near(h) {
		if it.hash == h && it.value.UID == uid {
			return it.value
		}
	}
	return nil
}

// entry finds a service or those who wait for it.
func (s *state) entry(key NamespacedHostname) *serviceEntry {
	h := s.hashKey(key)
	for _, it := range s.services.near(h) {
		if it.hash == h && it.value.key == key {
			return it.value
		}
	}
	return nil
}

func (s *state) service(key NamespacedHostname) *Service {
	if e := s.entry(key); e != nil {
		return e.service
	}
	return nil
}

func (s *state) policy(key string) *Policy {
	h := s.hash(key)
	for _, it := range s.policies.near(h) {
		if it.hash == h && it.value.Key == key {
			return it.value.Policy
		}
	}
	return nil
}

func (s *state) inScope(k scopeKey) *scopeList {
	h := s.hashScope(k)
	for _, it := range s.scoped.near(h) {
		if it.hash == h && it.value.key == k {
			return it.value
		}
	}
	return nil
}

func (s *state) scopePolicies(k scopeKey) []NamedPolicy {
	if list := s.inScope(k); list != nil {
		return list.policies
	}
	return nil
}

// member finds a workload's place in a service.
func (e *serviceEntry) member(h uint32, uid string) (member, bool) {
	for _, it := range e.members.near(h) {
		if it.hash == h && it.value.uid() == uid {
			return it.value, true
		}
	}
	return member{}, false
}
