// SPDX-License-Identifier: Apache-2.0

package xds

import (
	"fmt"
	"net/netip"
	"reflect"
	"strings"
	"testing"

	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/ztunnel-go/ztunnel/internal/mesh"
	pb "github.com/ztunnel-go/ztunnel/xds/pb/workloadpb"
)

func ptr[T any](v T) *T { return &v }

func byHost(ns, host string, port uint32) *pb.GatewayAddress {
	return &pb.GatewayAddress{HboneMtlsPort: port, Destination: &pb.GatewayAddress_Hostname{
		Hostname: &pb.NamespacedHostname{Namespace: ns, Hostname: host},
	}}
}

func byAddress(network string, ip []byte) *pb.GatewayAddress {
	return &pb.GatewayAddress{HboneMtlsPort: 15008, Destination: &pb.GatewayAddress_Address{
		Address: &pb.NetworkAddress{Network: network, Address: ip},
	}}
}

// fullWorkload has every field set.
func fullWorkload() *pb.Workload {
	return &pb.Workload{
		Uid: "cluster1//v1/Pod/ns/w", Name: "w", Namespace: "ns", Addresses: [][]byte{{10, 0, 0, 1}, append(make([]byte, 15), 1)},
		Hostname: "w.example", Network: "net", TunnelProtocol: pb.TunnelProtocol_HBONE, TrustDomain: "td", ServiceAccount: "sa",
		Waypoint: byHost("wns", "wp", 15008), NetworkGateway: byAddress("net2", []byte{10, 9, 9, 9}), Node: "node1",
		CanonicalName: "cn", CanonicalRevision: "cr", WorkloadType: pb.WorkloadType_POD, WorkloadName: "wn", NativeTunnel: true,
		ApplicationTunnel: &pb.ApplicationTunnel{Protocol: pb.ApplicationTunnel_PROXY, Port: 15088},
		Services: map[string]*pb.PortList{"ns/a.example": {Ports: []*pb.Port{
			{ServicePort: 80, TargetPort: 8080}, {ServicePort: 443, TargetPort: 8443}, {ServicePort: 80, TargetPort: 9090},
		}}},
		AuthorizationPolicies: []string{"ns/p"}, Status: pb.WorkloadStatus_UNHEALTHY, ClusterId: "c1",
		Locality: &pb.Locality{Region: "r", Zone: "z", Subzone: "s"}, NetworkMode: pb.NetworkMode_HOST_NETWORK,
		Extensions: []*pb.Extension{{Name: "ignored"}}, Capacity: wrapperspb.UInt32(7),
	}
}

func TestAWorkloadWithEverything(t *testing.T) {
	var tr translator
	got, err := tr.workload(fullWorkload())
	if err != nil {
		t.Fatal(err)
	}
	want := &mesh.Workload{
		UID: "cluster1//v1/Pod/ns/w", Name: "w", Namespace: "ns", TrustDomain: "td", ServiceAccount: "sa", Network: "net",
		Node: "node1", Hostname: "w.example", IPs: []netip.Addr{netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("::1")},
		Protocol: mesh.HBONE, NetworkMode: mesh.HostNetwork, Status: mesh.Unhealthy, NativeTunnel: true,
		WorkloadName: "wn", WorkloadType: mesh.Pod, CanonicalName: "cn", CanonicalRevision: "cr", ClusterID: "c1",
		Locality: mesh.Locality{Region: "r", Zone: "z", Subzone: "s"}, Capacity: 7,
		Waypoint:              &mesh.GatewayAddress{Hostname: mesh.NamespacedHostname{Namespace: "wns", Hostname: "wp"}, HBONEMTLSPort: 15008},
		NetworkGateway:        &mesh.GatewayAddress{Address: mesh.NetworkAddr{Network: "net2", Addr: netip.MustParseAddr("10.9.9.9")}, HBONEMTLSPort: 15008},
		ApplicationTunnel:     &mesh.ApplicationTunnel{Kind: mesh.TunnelProxy, Port: 15088},
		AuthorizationPolicies: []string{"ns/p"},
		Services:              map[mesh.NamespacedHostname]map[uint16]uint16{{Namespace: "ns", Hostname: "a.example"}: {80: 9090, 443: 8443}},
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got  %+v\nwant %+v", got, want)
	}
}

func TestWhatEmptyFieldsOfAWorkloadMean(t *testing.T) {
	var tr translator
	got, err := tr.workload(&pb.Workload{Uid: "u"})
	if err != nil {
		t.Fatal(err)
	}
	want := &mesh.Workload{UID: "u", TrustDomain: "cluster.local", ServiceAccount: "default", ClusterID: "Kubernetes", Capacity: 1}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got  %+v\nwant %+v", got, want)
	}
}

// The rows of contract 8.8 about workloads.
func TestWorkloadRules(t *testing.T) {
	for _, tc := range []struct {
		name string
		w    *pb.Workload
		want any // an error's text, or a func that looks at the result
	}{
		{"address of 5 bytes", &pb.Workload{Addresses: [][]byte{make([]byte, 5)}}, "failed to parse address, had 5 bytes"},
		{"address of none", &pb.Workload{Addresses: [][]byte{{}}}, "failed to parse address, had 0 bytes"},
		{"capacity 0", &pb.Workload{Capacity: wrapperspb.UInt32(0)}, func(w *mesh.Workload) bool { return w.Capacity == 0 }},
		{"legacy mTLS", &pb.Workload{TunnelProtocol: pb.TunnelProtocol_LEGACY_ISTIO_MTLS}, "unknown enum: unsupported tunnel protocol: legacy istio mtls"},
		{"protocol 9", &pb.Workload{TunnelProtocol: 9}, "unknown enum: unknown enumeration value 9"},
		{"status 9", &pb.Workload{Status: 9}, "unknown enum: unknown enumeration value 9"},
		{"network mode 9", &pb.Workload{NetworkMode: 9}, "unknown enum: unknown enumeration value 9"},
		{"type 9", &pb.Workload{WorkloadType: 9}, func(w *mesh.Workload) bool { return w.WorkloadType == mesh.Deployment }},
		{"type cronjob", &pb.Workload{WorkloadType: pb.WorkloadType_CRONJOB}, func(w *mesh.Workload) bool { return w.WorkloadType == mesh.CronJob }},
		{"type job", &pb.Workload{WorkloadType: pb.WorkloadType_JOB}, func(w *mesh.Workload) bool { return w.WorkloadType == mesh.Job }},
		{"gateway of nothing", &pb.Workload{Waypoint: &pb.GatewayAddress{}}, "nonempty gateway address is missing address"},
		{"network gateway of nothing", &pb.Workload{NetworkGateway: &pb.GatewayAddress{}}, "nonempty gateway address is missing address"},
		{"gateway at 3 bytes", &pb.Workload{Waypoint: byAddress("", make([]byte, 3))}, "failed to parse address, had 3 bytes"},
		{"gateway's port", &pb.Workload{Waypoint: byHost("n", "h", 65536+15008)}, func(w *mesh.Workload) bool { return w.Waypoint.HBONEMTLSPort == 15008 }},
		{"service without a slash", &pb.Workload{Services: map[string]*pb.PortList{"a": nil}}, "failed to parse namespaced hostname: a"},
		{"service with two", &pb.Workload{Services: map[string]*pb.PortList{"a/b/c": nil}}, "failed to parse namespaced hostname: a/b/c"},
		{"service without ports", &pb.Workload{Services: map[string]*pb.PortList{"a/b": nil}}, func(w *mesh.Workload) bool {
			_, ok := w.Services[mesh.NamespacedHostname{Namespace: "a", Hostname: "b"}]
			return ok
		}},
		{"ports of 17 bits", &pb.Workload{Services: map[string]*pb.PortList{"a/b": {Ports: []*pb.Port{{ServicePort: 65536 + 80, TargetPort: 2*65536 + 81}}}}},
			func(w *mesh.Workload) bool {
				return w.Services[mesh.NamespacedHostname{Namespace: "a", Hostname: "b"}][80] == 81
			}},
		{"tunnel 9", &pb.Workload{ApplicationTunnel: &pb.ApplicationTunnel{Protocol: 9}}, "unknown enum: unknown enumeration value 9"},
		{"tunnel without port", &pb.Workload{ApplicationTunnel: &pb.ApplicationTunnel{}}, func(w *mesh.Workload) bool {
			return w.ApplicationTunnel != nil && *w.ApplicationTunnel == mesh.ApplicationTunnel{}
		}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var tr translator
			got, err := tr.workload(tc.w)
			switch want := tc.want.(type) {
			case string:
				if err == nil || err.Error() != want {
					t.Errorf("got %v, want %s", err, want)
				}
			case func(*mesh.Workload) bool:
				if err != nil || !want(got) {
					t.Errorf("got %+v, %v", got, err)
				}
			}
		})
	}
}

func TestAddresses(t *testing.T) {
	for _, n := range []int{0, 1, 3, 5, 15, 17} {
		if _, err := address(make([]byte, n)); err == nil || err.Error() != fmt.Sprintf("failed to parse address, had %d bytes", n) {
			t.Errorf("%d bytes: %v", n, err)
		}
	}
	for _, tc := range []struct {
		bytes []byte
		want  string
	}{
		{[]byte{0, 0, 0, 0}, "0.0.0.0"},
		{[]byte{192, 0, 2, 1}, "192.0.2.1"},
		{netip.MustParseAddr("2001:db8::1").AsSlice(), "2001:db8::1"},
		{netip.MustParseAddr("::ffff:192.0.2.1").AsSlice(), "192.0.2.1"},
	} {
		if got, err := address(tc.bytes); err != nil || got.String() != tc.want {
			t.Errorf("%v: %v, %v", tc.bytes, got, err)
		}
	}
}

func networkAddress(prefix string, length *uint32) *pb.NetworkAddress {
	return &pb.NetworkAddress{Network: "n", Address: netip.MustParseAddr(prefix).AsSlice(), Length: length}
}

func TestAServiceWithEverything(t *testing.T) {
	var tr translator
	got, err := tr.service(&pb.Service{
		Name: "s", Namespace: "ns", Hostname: "s.example",
		Addresses: []*pb.NetworkAddress{
			networkAddress("10.0.0.1", nil), networkAddress("10.0.0.2", ptr[uint32](32)), networkAddress("10.1.2.3", ptr[uint32](16)),
			networkAddress("2001:db8::1", nil), networkAddress("2001:db8::2", ptr[uint32](128)), networkAddress("2001:db8::", ptr[uint32](32)),
			networkAddress("0.0.0.0", ptr[uint32](0)), networkAddress("::ffff:10.2.0.0", ptr[uint32](112)),
		},
		Ports:           []*pb.Port{{ServicePort: 80, TargetPort: 8080}, {ServicePort: 81}},
		SubjectAltNames: []string{"spiffe://td/ns/a/sa/b"},
		Waypoint:        byHost("wns", "wp", 15008),
		LoadBalancing: &pb.LoadBalancing{
			RoutingPreference: []pb.LoadBalancing_Scope{1, 2, 3, 4, 5, 6}, Mode: pb.LoadBalancing_FAILOVER, HealthPolicy: pb.LoadBalancing_ALLOW_ALL,
		},
		IpFamilies: pb.IPFamilies_DUAL, Canonical: true, IngressUseWaypoint: true,
		WeightedWaypoints: []*pb.WeightedWaypoint{{Destination: byHost("wns", "wp2", 15008), Weight: 3}},
		Visibility:        pb.Service_NAMESPACE,
	})
	if err != nil {
		t.Fatal(err)
	}
	vip := func(s string) mesh.NetworkAddr { return mesh.NetworkAddr{Network: "n", Addr: netip.MustParseAddr(s)} }
	cidr := func(s string) mesh.NetworkPrefix {
		return mesh.NetworkPrefix{Network: "n", Prefix: netip.MustParsePrefix(s)}
	}
	gateway := func(host string) mesh.GatewayAddress {
		return mesh.GatewayAddress{Hostname: mesh.NamespacedHostname{Namespace: "wns", Hostname: host}, HBONEMTLSPort: 15008}
	}
	want := &mesh.Service{
		Name: "s", Namespace: "ns", Hostname: "s.example",
		VIPs:            []mesh.NetworkAddr{vip("10.0.0.1"), vip("10.0.0.2"), vip("2001:db8::1"), vip("2001:db8::2")},
		CIDRVIPs:        []mesh.NetworkPrefix{cidr("10.1.0.0/16"), cidr("2001:db8::/32"), cidr("0.0.0.0/0"), cidr("10.2.0.0/16")},
		Ports:           map[uint16]uint16{80: 8080, 81: 0},
		SubjectAltNames: []string{"spiffe://td/ns/a/sa/b"},
		Waypoint:        ptr(gateway("wp")),
		LoadBalancer: &mesh.LoadBalancer{
			Preferences: []mesh.Scope{mesh.ScopeRegion, mesh.ScopeZone, mesh.ScopeSubzone, mesh.ScopeNode, mesh.ScopeCluster, mesh.ScopeNetwork},
			Mode:        mesh.BalanceFailover, HealthPolicy: mesh.AllowAll,
		},
		IPFamilies: ptr(mesh.DualStack), Canonical: true, Visibility: mesh.NamespaceOnly,
		WeightedWaypoints: []mesh.WeightedWaypoint{{Destination: gateway("wp2"), Weight: 3}},
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got  %+v\nwant %+v", got, want)
	}
}

// The rows of contract 8.8 about services.
func TestServiceRules(t *testing.T) {
	balanced := func(lb *pb.LoadBalancing) *pb.Service { return &pb.Service{LoadBalancing: lb} }
	for _, tc := range []struct {
		name string
		s    *pb.Service
		want any
	}{
		{"unspecified scope", balanced(&pb.LoadBalancing{RoutingPreference: []pb.LoadBalancing_Scope{0}}), "unknown enum: invalid target"},
		{"scope 9", balanced(&pb.LoadBalancing{RoutingPreference: []pb.LoadBalancing_Scope{9}}), "unknown enum: unknown enumeration value 9"},
		{"mode 9", balanced(&pb.LoadBalancing{Mode: 9}), "unknown enum: unknown enumeration value 9"},
		{"health policy 9", balanced(&pb.LoadBalancing{HealthPolicy: 9}), "unknown enum: unknown enumeration value 9"},
		{"no mode", balanced(&pb.LoadBalancing{}), func(s *mesh.Service) bool { return s.LoadBalancer.Mode == mesh.BalanceStandard }},
		{"strict", balanced(&pb.LoadBalancing{Mode: 1}), func(s *mesh.Service) bool { return s.LoadBalancer.Mode == mesh.BalanceStrict }},
		{"passthrough", balanced(&pb.LoadBalancing{Mode: 3}), func(s *mesh.Service) bool { return s.LoadBalancer.Mode == mesh.BalancePassthrough }},
		{"families 9", &pb.Service{IpFamilies: 9}, "unknown enum: unknown enumeration value 9"},
		{"families not said", &pb.Service{}, func(s *mesh.Service) bool { return s.IPFamilies == nil && s.LoadBalancer == nil }},
		{"IPv4", &pb.Service{IpFamilies: 1}, func(s *mesh.Service) bool { return *s.IPFamilies == mesh.IPv4Only }},
		{"IPv6", &pb.Service{IpFamilies: 2}, func(s *mesh.Service) bool { return *s.IPFamilies == mesh.IPv6Only }},
		{"visibility 9", &pb.Service{Visibility: 9}, func(s *mesh.Service) bool { return s.Visibility == mesh.Public }},
		{"waypoint of nothing", &pb.Service{Waypoint: &pb.GatewayAddress{}}, "nonempty gateway address is missing address"},
		{"weighted waypoint of nothing", &pb.Service{WeightedWaypoints: []*pb.WeightedWaypoint{{Weight: 1}}}, "weighted waypoint is missing destination"},
		{"weighted waypoint to nothing", &pb.Service{WeightedWaypoints: []*pb.WeightedWaypoint{{Destination: &pb.GatewayAddress{}}}},
			"weighted waypoint: nonempty gateway address is missing address"},
		{"VIP of 6 bytes", &pb.Service{Addresses: []*pb.NetworkAddress{{Address: make([]byte, 6)}}}, "failed to parse address, had 6 bytes"},
		{"/33", &pb.Service{Addresses: []*pb.NetworkAddress{networkAddress("10.0.0.0", ptr[uint32](33))}}, "invalid prefix length 33 for an address of 4 bytes"},
		{"/129", &pb.Service{Addresses: []*pb.NetworkAddress{networkAddress("::", ptr[uint32](129))}}, "invalid prefix length 129 for an address of 16 bytes"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var tr translator
			got, err := tr.service(tc.s)
			switch want := tc.want.(type) {
			case string:
				if err == nil || err.Error() != want {
					t.Errorf("got %v, want %s", err, want)
				}
			case func(*mesh.Service) bool:
				if err != nil || !want(got) {
					t.Errorf("got %+v, %v", got, err)
				}
			}
		})
	}
}

// Replicas share what they have in common, and only that.
func TestReplicasShareMemory(t *testing.T) {
	var tr translator
	make := func(i int) *mesh.Workload {
		p := fullWorkload()
		p.Uid = fmt.Sprint(i)
		w, err := tr.workload(p)
		if err != nil {
			t.Fatal(err)
		}
		return w
	}
	a, b := make(1), make(2)
	if a.Waypoint != b.Waypoint || reflect.ValueOf(a.Services).Pointer() != reflect.ValueOf(b.Services).Pointer() ||
		&a.AuthorizationPolicies[0] != &b.AuthorizationPolicies[0] {
		t.Error("two equal workloads share nothing")
	}
	p := fullWorkload()
	p.Services["ns/a.example"].Ports[0].TargetPort, p.Services["ns/a.example"].Ports[2].TargetPort = 1, 1
	p.AuthorizationPolicies = []string{"ns/p", "ns/q"}
	c, err := tr.workload(p)
	if err != nil {
		t.Fatal(err)
	}
	host := mesh.NamespacedHostname{Namespace: "ns", Hostname: "a.example"}
	if c.Services[host][80] != 1 || a.Services[host][80] != 9090 || len(c.AuthorizationPolicies) != 2 || len(a.AuthorizationPolicies) != 1 {
		t.Errorf("shared what differs: %+v, %+v", a, c)
	}
}

func TestTablesOfSharedValuesAreBounded(t *testing.T) {
	var k shared
	for i := range 3 * sharedLimit {
		name := fmt.Sprint("s", i)
		k.text(name)
		k.list([]string{name})
		k.gateway(mesh.GatewayAddress{Hostname: mesh.NamespacedHostname{Hostname: name}})
		k.memberships(name, map[mesh.NamespacedHostname]map[uint16]uint16{{Hostname: name}: {}})
	}
	for what, n := range map[string]int{"texts": len(k.texts), "lists": len(k.lists), "gateways": len(k.gateways), "services": len(k.services)} {
		if n > sharedLimit {
			t.Errorf("%d %s", n, what)
		}
	}
	if k.text("") != "" || k.list(nil) != nil || k.text(strings.Repeat("x", 3)) != "xxx" {
		t.Error("changed a value")
	}
}
