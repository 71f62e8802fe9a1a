// SPDX-License-Identifier: Apache-2.0

package xds

import (
	"net/netip"
	"os"
	"reflect"
	"strings"
	"testing"

	"github.com/ztunnel-go/ztunnel/internal/mesh"
)

const samplePath = "testdata/localhost.yaml"

func sample(t testing.TB) []byte {
	t.Helper()
	data, err := os.ReadFile(samplePath)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

func parse(t testing.TB, text string) *Static {
	t.Helper()
	s, err := ParseLocal("test.yaml", []byte(text))
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestReadsEveryKeyOfAWorkload(t *testing.T) {
	s := parse(t, string(sample(t)))
	if len(s.Warnings) != 0 {
		t.Errorf("warnings: %q", s.Warnings)
	}
	host := func(s string) mesh.NamespacedHostname { n, _ := mesh.ParseNamespacedHostname(s); return n }
	want := &mesh.Workload{
		UID: "cluster1//Pod/default/local", Name: "local", Namespace: "default", ServiceAccount: "local",
		TrustDomain: "cluster.local", Node: "local", Protocol: mesh.HBONE,
		IPs:          []netip.Addr{netip.MustParseAddr("127.0.0.1"), netip.MustParseAddr("::1")},
		WorkloadName: "local", WorkloadType: mesh.Pod, CanonicalName: "local", CanonicalRevision: "v1",
		AuthorizationPolicies: []string{"default/not-9999"}, ClusterID: "cluster1", Capacity: 1,
		Locality: mesh.Locality{Region: "here", Zone: "room", Subzone: "desk"},
		Services: map[mesh.NamespacedHostname]map[uint16]uint16{
			host("default/example.com"): {80: 8080}, host("default/example2.com"): {80: 8080},
		},
	}
	if got := s.Workloads[0]; !reflect.DeepEqual(got, want) {
		t.Errorf("got  %+v\nwant %+v", got, want)
	}
	if got, want := s.Workloads[2].Waypoint, (&mesh.GatewayAddress{Address: mesh.NetworkAddr{Addr: netip.MustParseAddr("127.0.0.4")}, HBONEMTLSPort: 15008}); !reflect.DeepEqual(got, want) {
		t.Errorf("waypoint by address: got %+v", got)
	}
	if got, want := s.Workloads[3].ApplicationTunnel, (&mesh.ApplicationTunnel{Kind: mesh.TunnelProxy, Port: 15088}); !reflect.DeepEqual(got, want) {
		t.Errorf("application tunnel: got %+v", got)
	}
	far := s.Workloads[4]
	if got, want := far.NetworkGateway, (&mesh.GatewayAddress{Hostname: host("shop/gateway.remote"), HBONEMTLSPort: 15008}); !reflect.DeepEqual(got, want) {
		t.Errorf("gateway by hostname: got %+v", got)
	}
	if far.Status != mesh.Unhealthy || far.Capacity != 2 || far.Network != "remote" || len(far.IPs) != 0 {
		t.Errorf("far: %+v", far)
	}
	if s.Workloads[5].NetworkMode != mesh.HostNetwork || s.Workloads[5].WorkloadType != mesh.Job {
		t.Errorf("agent: %+v", s.Workloads[5])
	}
}

func TestReadsEveryKeyOfAService(t *testing.T) {
	s := parse(t, string(sample(t)))
	v4 := mesh.IPv4Only
	byName := mesh.GatewayAddress{Hostname: mesh.NamespacedHostname{Namespace: "shop", Hostname: "waypoint.shop"}, HBONEMTLSPort: 15008}
	byAddr := mesh.GatewayAddress{Address: mesh.NetworkAddr{Addr: netip.MustParseAddr("127.0.0.4")}, HBONEMTLSPort: 15008}
	want := &StaticService{
		Service: &mesh.Service{
			Name: "cart", Namespace: "shop", Hostname: "cart.shop",
			VIPs:     []mesh.NetworkAddr{{Addr: netip.MustParseAddr("127.10.0.3")}},
			CIDRVIPs: []mesh.NetworkPrefix{{Prefix: netip.MustParsePrefix("127.20.0.0/16")}},
			Ports:    map[uint16]uint16{80: 8080, 443: 0},
			Waypoint: &byName, WeightedWaypoints: []mesh.WeightedWaypoint{{Destination: byName, Weight: 90}, {Destination: byAddr, Weight: 10}},
			LoadBalancer: &mesh.LoadBalancer{
				Preferences: []mesh.Scope{mesh.ScopeNetwork, mesh.ScopeRegion, mesh.ScopeZone, mesh.ScopeSubzone, mesh.ScopeNode, mesh.ScopeCluster},
				Mode:        mesh.BalanceFailover, HealthPolicy: mesh.AllowAll,
			},
			IPFamilies: &v4, Visibility: mesh.NamespaceOnly,
		},
		Endpoints: []mesh.Endpoint{{WorkloadUID: "cluster1//Pod/shop/cart", Ports: map[uint16]uint16{80: 8080}}},
	}
	if got := s.Services[2]; !reflect.DeepEqual(got, want) {
		t.Errorf("got  %+v\nwant %+v", got.Service, want.Service)
	}
	first := s.Services[0]
	if !first.Canonical || *first.IPFamilies != mesh.DualStack || first.SubjectAltNames[0] != "spiffe://cluster.local/ns/default/sa/local" {
		t.Errorf("first: %+v", first.Service)
	}
}

func TestReadsEveryKeyOfAPolicy(t *testing.T) {
	s := parse(t, string(sample(t)))
	prefixes := func(list ...string) (out []netip.Prefix) {
		for _, p := range list {
			out = append(out, netip.MustParsePrefix(p))
		}
		return out
	}
	want := &mesh.Policy{
		Name: "who", Namespace: "shop", Scope: mesh.ScopeNamespace, Action: mesh.Deny, DryRun: true,
		Rules: []mesh.Rule{{
			{{
				Namespaces:    []mesh.StringMatch{{Kind: mesh.Exact, Value: "default"}},
				NotNamespaces: []mesh.StringMatch{{Kind: mesh.Prefix, Value: "kube-"}},
				Principals:    []mesh.StringMatch{{Kind: mesh.Suffix, Value: "/sa/local"}, {Kind: mesh.Presence}},
				NotPrincipals: []mesh.StringMatch{{Kind: mesh.Exact, Value: "cluster.local/ns/default/sa/other"}},
			}},
			{{
				ServiceAccounts:    []mesh.ServiceAccountMatch{{Namespace: "default", ServiceAccount: "local"}},
				NotServiceAccounts: []mesh.ServiceAccountMatch{{Namespace: "default", ServiceAccount: "other"}},
			}},
			{{
				SourceIPs: prefixes("127.0.0.0/8", "::/0"), NotSourceIPs: prefixes("127.0.0.9/32"),
				DestinationIPs: prefixes("127.0.0.3/32"), NotDestinationIPs: prefixes("10.0.0.0/8"),
				DestinationPorts: []uint16{80, 8080},
			}},
		}},
	}
	if got := s.Policies[1]; !reflect.DeepEqual(got, want) {
		t.Errorf("got  %+v\nwant %+v", got, want)
	}
	if p := s.Policies[0]; p.Scope != mesh.ScopeWorkloadSelector || p.Rules[0][0][0].NotDestinationPorts[0] != 9999 {
		t.Errorf("first: %+v", p)
	}
}

func TestDefaultsAreTheContractsAndNoMore(t *testing.T) {
	s := parse(t, "workloads: [{namespace: n, workloadIps: [], services: {}}]\nservices: [{namespace: n, hostname: h}]")
	w := s.Workloads[0]
	if w.Capacity != 1 || w.TrustDomain != "" || w.ServiceAccount != "" || w.ClusterID != "" || w.Protocol != mesh.TCP ||
		w.WorkloadType != mesh.Deployment || w.Status != mesh.Healthy || w.NetworkMode != mesh.Standard {
		t.Errorf("workload: %+v", w)
	}
	if id := w.Identity().String(); id != "spiffe:///ns/n/sa/" {
		t.Errorf("identity %q", id)
	}
	svc := s.Services[0]
	if svc.LoadBalancer != nil || svc.IPFamilies != nil || svc.Canonical || svc.Visibility != mesh.Public {
		t.Errorf("service: %+v", svc.Service)
	}
	zero := parse(t, "workloads: [{namespace: n, workloadIps: [], services: {}, capacity: 0}]")
	if zero.Workloads[0].Capacity != 0 {
		t.Error("an explicit capacity of zero was changed")
	}
}

const (
	wl  = "workloads: [{namespace: n, workloadIps: [], services: {}, "
	svc = "services: [{namespace: n, hostname: h, "
	pol = "policies: [{name: p, namespace: n, scope: Global, action: Deny, rules: "
)

func TestRefusesWithLineColumnAndFile(t *testing.T) {
	for _, tc := range []struct{ in, want string }{
		{"workloads:\n- namespace: n\n  bogus: 1\n", "workloads[0]: unknown field `bogus` at line 3 column 3 of test.yaml"},
		{"bogus: 1", "unknown field `bogus` at line 1 column 1 of test.yaml"},
		{"bogus: [a]", "unknown field `bogus` at line 1 column 1 of test.yaml"},
		{"bogus:\n- a\n", "unknown field `bogus` at line 1 column 1 of test.yaml"},
		{`{"bogus": [{}]}`, "unknown field `bogus` at line 1 column 2 of test.yaml"},
		{"workloads: []\nbogus: [a]", "unknown field `bogus` at line 2 column 1 of test.yaml"},
		{"workloads: []\nworkloads: [{}]", "duplicate field `workloads` at line 2 column 1 of test.yaml"},
		{wl + "waypoint: {destination: a/b, x: 1}}]", "workloads[0].waypoint: unknown field `x`"},
		{wl + "applicationTunnel: {protocol: NONE, x: 1}}]", "workloads[0].applicationTunnel: unknown field `x`"},
		{svc + "x: 1}]", "services[0]: unknown field `x`"},
		{svc + "loadBalancer: {x: 1}}]", "services[0].loadBalancer: unknown field `x`"},
		{svc + "endpoints: {u: {x: 1}}}]", "services[0].endpoints.u: unknown field `x`"},
		{svc + "weightedWaypoints: [{x: 1}]}]", "services[0].weightedWaypoints[0]: unknown field `x`"},
		{pol + "[], x: 1}]", "policies[0]: unknown field `x`"},
		{"workloads: [{workloadIps: [], services: {}}]", "workloads[0]: missing field `namespace` at line 1 column 13"},
		{"workloads: [{namespace: n, services: {}}]", "missing field `workloadIps`"},
		{"workloads: [{namespace: n, workloadIps: []}]", "missing field `services`"},
		{wl + "name: a, name: b}]", "duplicate field `name`"},
		{wl + "name: }]", "workloads[0].name: invalid type: unit value, expected a string"},
		{wl + "name: [a]}]", "invalid type: sequence, expected a string"},
		{wl + "protocol: hbone}]", "unknown variant `hbone`, expected one of `TCP`, `HBONE`"},
		{wl + "capacity: -1}]", "invalid type: int `-1`, expected u32"},
		{wl + "capacity: 4294967296}]", "invalid value: integer `4294967296`, expected u32"},
		{wl + "nativeTunnel: yes}]", "expected a boolean"},
		{wl + "waypoint: {}}]", "missing field `destination`"},
		{wl + "waypoint: {destination: a}}]", "invalid gateway destination `a`"},
		{wl + "waypoint: {destination: a/b/c}}]", "invalid gateway destination `a/b/c`"},
		{"workloads: [{namespace: n, workloadIps: [1.2.3], services: {}}]", "workloads[0].workloadIps[0]: invalid IP address syntax: `1.2.3`"},
		{"workloads: [{namespace: n, workloadIps: [\"fe80::1%lo\"], services: {}}]", "invalid IP address syntax"},
		{"workloads: [{namespace: n, workloadIps: [], services: {h: {}}}]", "failed to parse namespaced hostname: h"},
		{"workloads: [{namespace: n, workloadIps: [], services: {n/h: {80: 65536}}}]", "workloads[0].services.n/h.80: invalid value: integer `65536`, expected u16"},
		{svc + "vips: [1.2.3.4]}]", "invalid address `1.2.3.4`, expected `network/address`"},
		{svc + "cidrVips: [{cidr: 10.0.0.0/33}]}]", "invalid IP address syntax"},
		{pol + "[[[{principals: [a]}]]]}]", "invalid type: str `a`, expected a YAML tag"},
		{pol + "[[[{principals: [!Regex a]}]]]}]", "unknown variant `Regex`"},
		{pol + "[[[{principals: [!Presence x]}]]]}]", "expected nothing"},
		{pol + "[[[{principals: [{Exact: a, Prefix: b}]}]]]}]", "expected a YAML tag"},
		{"policies: [{name: p, namespace: n, scope: Global, rules: []}]", "missing field `action`"},
		{"policies: [{name: p, namespace: n, scope: Global, action: Deny}]", "missing field `rules`"},
		{"workloads:", "workloads: invalid type: unit value, expected a sequence"},
		{"[]", "invalid type: sequence, expected a map"},
		{"", "the document is empty at line 1 column 1 of test.yaml"},
		{"# nothing\n", "the document is empty"},
		{"{}\n---\n{}\n", "more than one document in test.yaml"},
		{"workloads: [", " at line 1 of test.yaml"},
		{"x: &x [*x]", "unknown field `x`"},
	} {
		_, err := ParseLocal("test.yaml", []byte(tc.in))
		if err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%q: error %v, want %q in it", tc.in, err, tc.want)
		}
	}
}

func TestUnknownFieldsThatAreIgnoredAreToldOf(t *testing.T) {
	s := parse(t, wl+"locality: {region: r, x: 1}}]\n"+svc+"cidrVips: [{cidr: 10.0.0.0/8, x: 1}]}]\n"+pol+"[[[{destinationPort: [80]}]]]}]")
	want := []string{
		"workloads[0].locality: ignoring unknown field `x`",
		"services[0].cidrVips[0]: ignoring unknown field `x`",
		"policies[0].rules[0][0][0]: ignoring unknown field `destinationPort`",
	}
	if len(s.Warnings) != len(want) {
		t.Fatalf("warnings: %q", s.Warnings)
	}
	for i, w := range want {
		if !strings.HasPrefix(s.Warnings[i], w) || !strings.HasSuffix(s.Warnings[i], "of test.yaml") {
			t.Errorf("warning %q, want %q", s.Warnings[i], w)
		}
	}
}

func TestOfEqualKeysTheLastCountsAndIsToldOf(t *testing.T) {
	s := parse(t, `workloads:
- {uid: u, name: a, namespace: n, workloadIps: [], services: {}}
- {uid: u, name: b, namespace: n, workloadIps: [], services: {}}`)
	if len(s.Workloads) != 1 || s.Workloads[0].Name != "b" || len(s.Warnings) != 1 {
		t.Errorf("workloads %v, warnings %q", s.Workloads, s.Warnings)
	}
}

func TestTakesWhatYAMLAllows(t *testing.T) {
	s := parse(t, `
workloads:
- &base {uid: 7, namespace: n, workloadIps: &ips ["::ffff:10.0.0.1"], services: {n/h: {0x50: "8080"}}, waypoint: null, applicationTunnel: {protocol: NONE, port: null}}
- {uid: 2020-01-01, namespace: n, workloadIps: *ips, services: {}}
`)
	w := s.Workloads[0]
	if w.UID != "7" || w.Waypoint != nil || w.ApplicationTunnel.Port != 0 || s.Workloads[1].UID != "2020-01-01" {
		t.Errorf("workloads: %+v, %+v", w, s.Workloads[1])
	}
	if w.Services[mesh.NamespacedHostname{Namespace: "n", Hostname: "h"}][80] != 8080 {
		t.Errorf("services: %v", w.Services)
	}
	if !s.Workloads[1].HasIP(netip.MustParseAddr("10.0.0.1")) {
		t.Errorf("aliased addresses: %v", s.Workloads[1].IPs)
	}
}

func TestTakesJSON(t *testing.T) {
	s := parse(t, "{\n\t\"policies\": [{\"name\": \"p\", \"namespace\": \"n\", \"scope\": \"Global\", \"action\": \"Deny\",\n"+
		"\t\t\"rules\": [[[{\"principals\": [{\"Exact\": \"a\\/b\\ud83d\\ude00\\u00e9\"}, {\"Presence\": []}], \"destinationPorts\": [80]}]]]}],\n"+
		"\t\"services\": [{\"namespace\": \"n\", \"hostname\": \"h\", \"ports\": {\"80\": 8080}}]}\n")
	m := s.Policies[0].Rules[0][0][0]
	if m.Principals[0] != (mesh.StringMatch{Kind: mesh.Exact, Value: "a/b😀é"}) || m.Principals[1].Kind != mesh.Presence || m.DestinationPorts[0] != 80 {
		t.Errorf("match: %+v", m)
	}
	if s.Services[0].Ports[80] != 8080 {
		t.Errorf("ports: %v", s.Services[0].Ports)
	}
}

func TestAliasesCannotMultiply(t *testing.T) {
	var b strings.Builder
	b.WriteString("policies:\n- {name: p, namespace: n, scope: Global, action: Deny, rules: [[[ &m {destinationPorts: &p [")
	b.WriteString(strings.Repeat("1,", 200) + "]} ]]]}\n")
	b.WriteString("- {name: q, namespace: n, scope: Global, action: Deny, rules: [ &r [ &c [" + strings.Repeat("*m,", 200) + "],")
	b.WriteString(strings.Repeat("*c,", 200) + "]," + strings.Repeat("*r,", 200) + "]}\n")
	if _, err := ParseLocal("bomb", []byte(b.String())); err == nil || !strings.Contains(err.Error(), "too many aliases") {
		t.Errorf("error: %v", err)
	}
}

// A file cut short is an error or a smaller mesh, and never a crash; that a
// smaller mesh is not taken for the wish of the writer is the watcher's
// concern.
func TestEveryProperPrefixIsRefusedOrSmaller(t *testing.T) {
	data := sample(t)
	whole := parse(t, string(data))
	for i := range data {
		s, err := ParseLocal("test.yaml", data[:i])
		if err != nil {
			if !strings.Contains(err.Error(), "of test.yaml") || !strings.Contains(err.Error(), "line ") {
				t.Fatalf("prefix of %d bytes: error without a place: %v", i, err)
			}
			continue
		}
		if len(s.Workloads) > len(whole.Workloads) || len(s.Services) > len(whole.Services) || len(s.Policies) > len(whole.Policies) {
			t.Fatalf("prefix of %d bytes holds more than the whole", i)
		}
	}
}

func FuzzParseLocal(f *testing.F) {
	f.Add(sample(f))
	f.Add([]byte(`{"workloads": [{"namespace": "n", "workloadIps": ["::1"], "services": {"n/h": {"80": 1}}}]}`))
	f.Add([]byte(pol + "[[[{principals: [!Presence [], !Exact a, {Suffix: b}], sourceIps: [1.2.3.4]}]]]}]"))
	f.Add([]byte("workloads: &a [*a]"))
	f.Fuzz(func(t *testing.T, data []byte) {
		s, err := ParseLocal("fuzz", data)
		if err != nil {
			return
		}
		store := mesh.NewStore()
		s.Apply(store, nil)
		if len(store.View().Workloads()) != len(s.Workloads) || len(store.View().Policies()) != len(s.Policies) {
			t.Fatalf("%d workloads and %d policies in the file, %d and %d in the store", len(s.Workloads), len(s.Policies),
				len(store.View().Workloads()), len(store.View().Policies()))
		}
		again, err := ParseLocal("fuzz", data)
		if err != nil {
			t.Fatal(err)
		}
		changed := store.Changed()
		again.Apply(store, s)
		select {
		case <-changed:
			if !hasEndpoints(s) {
				t.Fatal("an equal version changed the store")
			}
		default:
		}
	})
}

func hasEndpoints(s *Static) bool {
	for _, svc := range s.Services {
		if len(svc.Endpoints) > 0 {
			return true
		}
	}
	return false
}
