// SPDX-License-Identifier: Apache-2.0

package mesh

import (
	"fmt"
	"maps"
	"net/netip"
	"reflect"
	"strings"
	"testing"
)

func memory(v any) uintptr { return reflect.ValueOf(v).Pointer() }

func TestEqualWorkloadsShareWhatTheyCan(t *testing.T) {
	var table Interner
	plain := func(i int) *Workload {
		c := strings.Clone // as if each came in a message of its own
		return &Workload{
			UID: fmt.Sprint("c//Pod/ns/w", i), Name: fmt.Sprint("w", i), Namespace: c("ns"), Node: c("node"), CanonicalName: c("app"),
			Locality:              Locality{Zone: c("zone")},
			Waypoint:              &GatewayAddress{Hostname: NamespacedHostname{c("ns"), c("way")}, HBONEMTLSPort: 15008},
			NetworkGateway:        &GatewayAddress{Address: NetworkAddr{c("net"), netip.MustParseAddr("1.2.3.4")}},
			AuthorizationPolicies: []string{c("ns/p")},
			Services: map[NamespacedHostname]map[uint16]uint16{
				{c("ns"), c("h")}: {80: 8080, 443: 8443}, {c("ns"), c("i")}: {80: 8080},
			},
		}
	}
	a, b := plain(1), plain(2)
	table.Workload(a)
	table.Workload(b)
	if !reflect.DeepEqual(a, plain(1)) || !reflect.DeepEqual(b, plain(2)) {
		t.Fatalf("sharing changed them: %+v %+v", a, b)
	}
	for what, pair := range map[string][2]uintptr{
		"namespace": {memory(a.Namespace), memory(b.Namespace)}, "node": {memory(a.Node), memory(b.Node)},
		"zone": {memory(a.Locality.Zone), memory(b.Locality.Zone)}, "policy": {memory(a.AuthorizationPolicies[0]), memory(b.AuthorizationPolicies[0])},
		"services": {memory(a.Services), memory(b.Services)}, "waypoint": {memory(a.Waypoint), memory(b.Waypoint)},
		"gateway": {memory(a.NetworkGateway), memory(b.NetworkGateway)}, "name": {memory(a.Name), memory(a.UID) + uintptr(len(a.UID)-len(a.Name))},
	} {
		if pair[0] != pair[1] {
			t.Errorf("the %s is there twice", what)
		}
	}
}

func TestWhatDiffersIsNotShared(t *testing.T) {
	var table Interner
	member := func(ns, host string, ports ...PortPair) []Membership {
		return []Membership{{NamespacedHostname{ns, host}, table.Ports(ports)}}
	}
	for _, list := range [][]Membership{
		nil, member("ab", "c"), member("a", "bc"), member("a", "bc", PortPair{80, 81}), member("a", "bc", PortPair{81, 80}),
		append(member("a", "b"), member("c", "d")...), member("a", "b\x00c"),
	} {
		want := map[NamespacedHostname]map[uint16]uint16{}
		for _, m := range list {
			want[m.Service] = m.Ports
		}
		if got := table.Services(list); !reflect.DeepEqual(got, want) {
			t.Errorf("%v: %v", list, got)
		}
	}
	if got := table.Ports([]PortPair{{80, 1}, {80, 2}}); !maps.Equal(got, map[uint16]uint16{80: 2}) {
		t.Errorf("the last one counts: %v", got)
	}
}

func TestAnInternerForgets(t *testing.T) {
	var table Interner
	kept := table.String("kept")
	for i := range 3 * internLimit {
		table.String(fmt.Sprint(i))
		if i%internLimit == 0 && memory(table.String("kept")) != memory(kept) {
			t.Fatal("it forgot what it is asked for all the time")
		}
	}
	if held := len(table.strings.now) + len(table.strings.before); held > 2*internLimit {
		t.Errorf("it holds %d strings", held)
	}
}
