// SPDX-License-Identifier: Apache-2.0

package xds

import (
	"maps"
	"slices"
	"strings"

	"github.com/ztunnel-go/ztunnel/internal/mesh"
)

// sharedLimit bounds each table of [shared], in entries. A mesh of a hundred
// thousand workloads has some ten thousand distinct names among the fields
// that are looked up here; a full table is emptied, and what was given out of
// it stays shared.
const sharedLimit = 1 << 15

// shared gives equal values one place in memory. The values it returns must
// not be changed. The zero value is ready; not for concurrent use.
type shared struct {
	texts    map[string]string
	gateways map[mesh.GatewayAddress]*mesh.GatewayAddress
	services map[string]map[mesh.NamespacedHostname]map[uint16]uint16 // the latest by first name
	lists    map[string][]string                                      // the latest by first element
}

// text returns a string equal to s.
func (k *shared) text(s string) string {
	if s == "" {
		return ""
	}
	if same, ok := k.texts[s]; ok {
		return same
	}
	keep(&k.texts, s, s)
	return s
}

// gateway returns a pointer to a value equal to g.
func (k *shared) gateway(g mesh.GatewayAddress) *mesh.GatewayAddress {
	if same := k.gateways[g]; same != nil {
		return same
	}
	keep(&k.gateways, g, &g)
	return &g
}

// list returns a list of strings equal to l.
func (k *shared) list(l []string) []string {
	if len(l) == 0 {
		return nil
	}
	if same := k.lists[l[0]]; slices.Equal(same, l) {
		return same
	}
	out := make([]string, len(l))
	for i, s := range l {
		out[i] = k.text(s)
	}
	keep(&k.lists, out[0], out)
	return out
}

// memberships returns a map equal to m, whose first service has this name.
func (k *shared) memberships(first string, m map[mesh.NamespacedHostname]map[uint16]uint16) map[mesh.NamespacedHostname]map[uint16]uint16 {
	equal := func(a, b map[uint16]uint16) bool { return maps.Equal(a, b) }
	if same := k.services[first]; maps.EqualFunc(same, m, equal) {
		return same
	}
	keep(&k.services, strings.Clone(first), m)
	return m
}

func keep[K comparable, V any](table *map[K]V, key K, value V) {
	if *table == nil || len(*table) >= sharedLimit {
		*table = map[K]V{}
	}
	(*table)[key] = value
}
