// SPDX-License-Identifier: Apache-2.0

package admin

import (
	"encoding/json"
	"net/http"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/ztunnel-go/ztunnel/internal/mesh"
)

func ip(s string) netip.Addr           { return netip.MustParseAddr(s) }
func addrPort(s string) netip.AddrPort { return netip.MustParseAddrPort(s) }

func host(namespace, name string) mesh.NamespacedHostname {
	return mesh.NamespacedHostname{Namespace: namespace, Hostname: name}
}

// fullWorkload has every field, fullService too.
func fullWorkload() *mesh.Workload {
	return &mesh.Workload{
		UID: "u1", Name: "pod", Namespace: "ns", TrustDomain: "cluster.local", ServiceAccount: "sa", Network: "n",
		Node: "node1", Hostname: "h", IPs: []netip.Addr{ip("10.0.0.1"), ip("2001:db8::1")}, Protocol: mesh.HBONE,
		NativeTunnel: true, WorkloadName: "d", CanonicalName: "c", CanonicalRevision: "v1", ClusterID: "Kubernetes",
		Locality: mesh.Locality{Region: "r", Zone: "z"}, Capacity: 1,
		Waypoint:              &mesh.GatewayAddress{Hostname: host("ns", "wp.example"), HBONEMTLSPort: 15008},
		NetworkGateway:        &mesh.GatewayAddress{Address: mesh.NetworkAddr{Network: "m", Addr: ip("192.0.2.1")}, HBONEMTLSPort: 15009},
		ApplicationTunnel:     &mesh.ApplicationTunnel{Kind: mesh.TunnelProxy, Port: 15088},
		AuthorizationPolicies: []string{"ns/p"},
		Services: map[mesh.NamespacedHostname]map[uint16]uint16{
			host("ns", "a.ns.svc.cluster.local"): {80: 8080, 443: 0},
			host("ns", "b.staged"):               nil,
		},
	}
}

func fullService() *mesh.Service {
	dual := mesh.DualStack
	return &mesh.Service{
		Name: "a", Namespace: "ns", Hostname: "a.ns.svc.cluster.local",
		VIPs:              []mesh.NetworkAddr{{Network: "n", Addr: ip("10.96.0.1")}, {Addr: ip("::1")}},
		CIDRVIPs:          []mesh.NetworkPrefix{{Prefix: netip.MustParsePrefix("10.0.0.0/8")}},
		Ports:             map[uint16]uint16{80: 8080},
		SubjectAltNames:   []string{"spiffe://cluster.local/ns/x/sa/y"},
		Waypoint:          &mesh.GatewayAddress{Hostname: host("ns", "wp.example"), HBONEMTLSPort: 15008},
		WeightedWaypoints: []mesh.WeightedWaypoint{{Destination: mesh.GatewayAddress{Hostname: host("ns", "wp2.example"), HBONEMTLSPort: 15008}, Weight: 90}},
		LoadBalancer:      &mesh.LoadBalancer{Preferences: []mesh.Scope{mesh.ScopeNetwork, mesh.ScopeRegion}, Mode: mesh.BalanceFailover},
		IPFamilies:        &dual, Canonical: true,
	}
}

func fullPolicy() *mesh.Policy {
	exact := []mesh.StringMatch{{Kind: mesh.Exact, Value: "e"}}
	account := []mesh.ServiceAccountMatch{{Namespace: "ns", ServiceAccount: "<sa>"}}
	ips := []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}
	return &mesh.Policy{
		Name: "p", Namespace: "ns", Scope: mesh.ScopeWorkloadSelector, Action: mesh.Deny, DryRun: true,
		Rules: []mesh.Rule{{{{
			Namespaces:    []mesh.StringMatch{{Kind: mesh.Prefix, Value: "x"}, {Kind: mesh.Suffix, Value: "y"}, {Kind: mesh.Presence}},
			NotNamespaces: exact, Principals: exact, NotPrincipals: exact, ServiceAccounts: account, NotServiceAccounts: account,
			SourceIPs: ips, NotSourceIPs: ips, DestinationIPs: ips, NotDestinationIPs: ips,
			DestinationPorts: []uint16{80}, NotDestinationPorts: []uint16{9999},
		}, {}}}, {}},
	}
}

func fullDump() Dump {
	store := mesh.NewStore()
	store.Apply(func(u *mesh.Update) {
		u.PutWorkload(fullWorkload())
		u.PutWorkload(&mesh.Workload{UID: "u0", Name: "bare", Namespace: "ns", NetworkMode: mesh.HostNetwork, Status: mesh.Unhealthy,
			ApplicationTunnel: &mesh.ApplicationTunnel{}})
		u.PutService(fullService())
		u.PutService(&mesh.Service{Name: "z", Namespace: "ns", Hostname: "z", Visibility: mesh.NamespaceOnly})
		u.PutPolicy("ns/p", fullPolicy())
		u.PutPolicy("a/none", &mesh.Policy{Name: "none", Namespace: "a"})
	})
	at := time.Date(2026, 11, 22, 5, 51, 8, 999, time.FixedZone("", 3600))
	cert := CertificateInfo{PEM: "PEM\n", SerialNumber: "12345678901234567890123456789", ValidFrom: at, Expiration: at.Add(24 * time.Hour)}
	in := InboundConnection{Src: addrPort("10.0.0.2:4242"), ActualDst: addrPort("10.0.0.1:8080"), OriginalDst: "web.ns", Protocol: "HBONE"}
	plain := InboundConnection{Src: addrPort("10.0.0.2:4243"), ActualDst: addrPort("10.0.0.1:8080"), Protocol: "TCP"}
	out := OutboundConnection{Src: addrPort("10.0.0.1:5555"), ActualDst: addrPort("10.0.0.3:15008"), OriginalDst: addrPort("10.96.0.1:80"), Protocol: "HBONE"}
	return Dump{
		View: store.View(),
		Certificates: func() []Certificate {
			return []Certificate{
				{Identity: "spiffe://cluster.local/ns/ns/sa/a", State: "Available", Chain: []CertificateInfo{cert}, Roots: []CertificateInfo{cert, cert}},
				{Identity: "spiffe://cluster.local/ns/ns/sa/b", State: "Unavailable: no CA"},
			}
		},
		Config: func() any {
			return struct {
				Z     int               `json:"z"`
				Large uint64            `json:"large"`
				A     map[string]string `json:"a"`
			}{1, 1<<63 + 1, map[string]string{"k": "<v>"}}
		},
		Version: func() any { return map[string]string{"version": "1", "istioVersion": "unknown"} },
		Static: func() Static {
			return Static{
				Workloads: []*mesh.Workload{{Name: "w", Namespace: "ns", Services: map[mesh.NamespacedHostname]map[uint16]uint16{host("ns", "s"): {80: 81}}}},
				Services:  []StaticService{{&mesh.Service{Name: "s", Namespace: "ns", Hostname: "s"}, []mesh.Endpoint{{WorkloadUID: "u", Ports: map[uint16]uint16{80: 81}}}}},
				Policies:  []*mesh.Policy{{Name: "p", Namespace: "ns", Rules: []mesh.Rule{{{}}}}},
			}
		},
		Pods: func() []Pod {
			return []Pod{
				{UID: "b", Name: "pod", Namespace: "ns", ServiceAccount: "sa", State: "Up", Capture: "ebpf",
					Connections: &Connections{[]InboundConnection{in, plain, in}, []OutboundConnection{out, out}}},
				{UID: "a", Name: "p2", Namespace: "ns", State: "Pending", Health: "canary lost"},
				{UID: "c", Name: "p3", Namespace: "ns", State: "Up", Connections: &Connections{}},
			}
		},
		Warnings: func() []string { return []string{"the embedded CA is on"} },
	}
}

func TestConfigDump(t *testing.T) {
	for name, d := range map[string]Dump{"full": fullDump(), "empty": {}} {
		t.Run(name, func(t *testing.T) {
			got := get(Pages{Dump: d, Logger: quietLogger()}.Handler(), http.MethodGet, "/config_dump")
			if got.Code != 200 || got.Header().Get("Content-Type") != "application/json" {
				t.Errorf("%d %v", got.Code, got.Header())
			}
			want, err := os.ReadFile("testdata/config_dump_" + name + ".json")
			if err != nil {
				t.Fatal(err)
			}
			if got.Body.String() != strings.TrimSuffix(string(want), "\n") {
				t.Errorf("got:\n%s", got.Body)
			}
			checkSorted(t, json.NewDecoder(got.Body), "")
		})
	}
}

// checkSorted walks one JSON value and finds fault with keys out of order.
func checkSorted(t *testing.T, d *json.Decoder, path string) {
	t.Helper()
	token, err := d.Token()
	if err != nil {
		t.Fatal(err)
	}
	var keys []string
	switch token {
	case json.Delim('{'):
		for d.More() {
			key, err := d.Token()
			if err != nil {
				t.Fatal(err)
			}
			keys = append(keys, key.(string))
			checkSorted(t, d, path+"."+key.(string))
		}
	case json.Delim('['):
		for d.More() {
			checkSorted(t, d, path+"[]")
		}
	default:
		return
	}
	if _, err := d.Token(); err != nil {
		t.Fatal(err)
	}
	if !slices.IsSorted(keys) {
		t.Errorf("%s: keys are not sorted: %q", path, keys)
	}
}

func TestADumpThatFailsIsA500(t *testing.T) {
	d := Dump{Config: func() any { return make(chan int) }}
	got := get(Pages{Dump: d, Logger: quietLogger()}.Handler(), http.MethodGet, "/config_dump")
	if got.Code != 500 || got.Body.String() != "dump config: json: unsupported type: chan int" {
		t.Errorf("%d %q", got.Code, got.Body)
	}
}
