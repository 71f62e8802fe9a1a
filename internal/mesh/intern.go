// SPDX-License-Identifier: Apache-2.0

package mesh

import (
	"cmp"
	"slices"
	"strings"
)

// internLimit is how many values a generation of an [Interner] holds: more
// than there are names of namespaces, accounts, nodes and applications in a
// mesh of the size that we promise, and a few megabytes.
const internLimit = 1 << 16

// An Interner makes equal values share their memory. A mesh repeats itself: a
// hundred thousand workloads have a few thousand owners, nodes and sets of
// services, and apart from their names nothing of their own.
//
// It forgets what has not been asked for while many others were, so it may
// live as long as its owner. It is for one goroutine; the zero value is ready.
type Interner struct {
	strings  generations[string, string]
	ports    generations[string, map[uint16]uint16]
	services generations[string, map[NamespacedHostname]map[uint16]uint16]
	gateways generations[GatewayAddress, *GatewayAddress]
	key      []byte
}

// generations are a map and the one before it: when one is full it becomes the
// old one, and what nobody asks for goes with it.
type generations[K comparable, V any] struct{ now, before map[K]V }

func (g *generations[K, V]) keep(key K, value V) {
	if g.now == nil || len(g.now) >= internLimit {
		g.before, g.now = g.now, map[K]V{}
	}
	g.now[key] = value
}

func (g *generations[K, V]) find(key K) (value V, found bool) {
	if value, found = g.now[key]; found {
		return value, true
	}
	if value, found = g.before[key]; found {
		g.keep(key, value)
	}
	return value, found
}

// findBytes is find for a key that is only made to be looked for: if it is
// there, no string is made of it.
func findBytes[V any](g *generations[string, V], key []byte) (value V, found bool) {
	if value, found = g.now[string(key)]; found {
		return value, true
	}
	return g.find(string(key))
}

// String returns a string equal to s that is shared with all who asked for it,
// and keeps nothing else in memory.
func (t *Interner) String(s string) string {
	if s == "" {
		return ""
	}
	if shared, found := t.strings.find(s); found {
		return shared
	}
	s = strings.Clone(s)
	t.strings.keep(s, s)
	return s
}

// Suffix returns a string equal to s, which is a part of whole if whole ends
// with it, as the UID of a workload ends with its name.
func (t *Interner) Suffix(whole, s string) string {
	if strings.HasSuffix(whole, s) {
		return whole[len(whole)-len(s):]
	}
	return strings.Clone(s)
}

// A PortPair says that a port of a service is served at a target port.
type PortPair struct{ Port, Target uint16 }

// A Membership is a service that a workload is part of, and its ports there.
type Membership struct {
	Service NamespacedHostname
	Ports   map[uint16]uint16
}

// Ports returns the map of these pairs, of which the last with a port counts.
// It is shared and must not be changed.
func (t *Interner) Ports(pairs []PortPair) map[uint16]uint16 {
	t.key = t.key[:0]
	for _, p := range pairs {
		t.key = append(t.key, byte(p.Port>>8), byte(p.Port), byte(p.Target>>8), byte(p.Target))
	}
	if shared, found := findBytes(&t.ports, t.key); found {
		return shared
	}
	ports := make(map[uint16]uint16, len(pairs))
	for _, p := range pairs {
		ports[p.Port] = p.Target
	}
	t.ports.keep(string(t.key), ports)
	return ports
}

// Services returns the map of these memberships, of which the last in a service
// counts. It is shared and must not be changed.
func (t *Interner) Services(list []Membership) map[NamespacedHostname]map[uint16]uint16 {
	t.key = t.key[:0]
	for _, m := range list {
		t.key = appendText(appendText(t.key, m.Service.Namespace), m.Service.Hostname)
		t.key = appendPorts(t.key, m.Ports)
	}
	if shared, found := findBytes(&t.services, t.key); found {
		return shared
	}
	services := make(map[NamespacedHostname]map[uint16]uint16, len(list))
	for _, m := range list {
		services[m.Service] = m.Ports
	}
	t.services.keep(string(t.key), services)
	return services
}

// appendText appends a string and its length, so that no two lists of strings
// make one key.
func appendText(key []byte, s string) []byte {
	return append(append(key, byte(len(s)>>16), byte(len(s)>>8), byte(len(s))), s...)
}

// appendPorts appends ports in order.
func appendPorts(key []byte, ports map[uint16]uint16) []byte {
	var room [8]PortPair
	pairs := room[:0]
	for port, target := range ports {
		pairs = append(pairs, PortPair{port, target})
	}
	slices.SortFunc(pairs, func(a, b PortPair) int { return cmp.Compare(a.Port, b.Port) })
	key = append(key, byte(len(pairs)>>8), byte(len(pairs)))
	for _, p := range pairs {
		key = append(key, byte(p.Port>>8), byte(p.Port), byte(p.Target>>8), byte(p.Target))
	}
	return key
}

// Gateway returns a shared copy of g, which must not be changed.
func (t *Interner) Gateway(g GatewayAddress) *GatewayAddress {
	if shared, found := t.gateways.find(g); found {
		return shared
	}
	t.gateways.keep(g, &g)
	return &g
}

// Workload makes a workload that has not been given to a store yet share what
// it can with others, so that it keeps nothing else in memory: not the message
// that its strings were cut from, nor maps of its own.
func (t *Interner) Workload(w *Workload) {
	w.UID = strings.Clone(w.UID)
	w.Name = t.Suffix(w.UID, w.Name)
	for _, s := range []*string{
		&w.Namespace, &w.TrustDomain, &w.ServiceAccount, &w.Network, &w.Node, &w.Hostname, &w.WorkloadName,
		&w.CanonicalName, &w.CanonicalRevision, &w.ClusterID, &w.Locality.Region, &w.Locality.Zone, &w.Locality.Subzone,
	} {
		*s = t.String(*s)
	}
	for i, key := range w.AuthorizationPolicies {
		w.AuthorizationPolicies[i] = t.String(key)
	}
	for _, g := range []**GatewayAddress{&w.Waypoint, &w.NetworkGateway} {
		if *g != nil {
			*g = t.Gateway(**g)
		}
	}
	if w.Services == nil {
		return
	}
	list := make([]Membership, 0, len(w.Services))
	for key, ports := range w.Services {
		list = append(list, Membership{NamespacedHostname{t.String(key.Namespace), t.String(key.Hostname)}, ports})
	}
	slices.SortFunc(list, func(a, b Membership) int {
		return cmp.Or(cmp.Compare(a.Service.Hostname, b.Service.Hostname), cmp.Compare(a.Service.Namespace, b.Service.Namespace))
	})
	w.Services = t.Services(list)
}
