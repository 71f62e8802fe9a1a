// SPDX-License-Identifier: Apache-2.0

package explain

import (
	"encoding/json"
	"net/netip"
	"strings"
	"testing"

	"github.com/ztunnel-go/ztunnel/dataplane/route"
	"github.com/ztunnel-go/ztunnel/internal/mesh"
)

func ip(s string) netip.Addr { return netip.MustParseAddr(s) }

func pod(name, addr string, change ...func(*mesh.Workload)) *mesh.Workload {
	w := &mesh.Workload{
		UID: "c//Pod/ns/" + name, Name: name, Namespace: "ns", TrustDomain: "td", ServiceAccount: name, Node: "node1",
		Protocol: mesh.HBONE, Capacity: 1, IPs: []netip.Addr{ip(addr)}, Services: map[mesh.NamespacedHostname]map[uint16]uint16{},
	}
	for _, c := range change {
		c(w)
	}
	return w
}

func in(host string, ports map[uint16]uint16) func(*mesh.Workload) {
	return func(w *mesh.Workload) { w.Services[mesh.NamespacedHostname{Namespace: "ns", Hostname: host}] = ports }
}

func plain(w *mesh.Workload) { w.Protocol = mesh.TCP }

func service(namespace, name, vip string, change ...func(*mesh.Service)) *mesh.Service {
	s := &mesh.Service{Name: name, Namespace: namespace, Hostname: name + ".example", Ports: map[uint16]uint16{80: 8080, 443: 8443},
		VIPs: []mesh.NetworkAddr{{Addr: ip(vip)}}}
	for _, c := range change {
		c(s)
	}
	return s
}

// world: a client, a server behind the service web, which a policy protects
// from all but friend; guarded is behind a waypoint.
func world() Question {
	store := mesh.NewStore()
	waypoint := &mesh.GatewayAddress{Hostname: mesh.NamespacedHostname{Namespace: "ns", Hostname: "waypoint.example"}, HBONEMTLSPort: 15008}
	store.Apply(func(u *mesh.Update) {
		for _, w := range []*mesh.Workload{
			pod("client", "10.0.0.1"), pod("friend", "10.0.0.2"), pod("old", "10.0.0.3", plain),
			pod("server", "10.0.0.4", in("web.example", map[uint16]uint16{80: 8080}), func(w *mesh.Workload) {
				w.AuthorizationPolicies = []string{"ns/friends", "ns/trial", "ns/gone"}
			}),
			pod("guarded", "10.0.0.5", in("guarded.example", map[uint16]uint16{80: 8080}), func(w *mesh.Workload) { w.AuthorizationPolicies = []string{"ns/waypoint"} }),
			pod("waypoint", "10.0.0.6", in("waypoint.example", map[uint16]uint16{15008: 15008})),
			pod("nameless", "10.0.0.7", func(w *mesh.Workload) { w.IPs, w.Hostname = nil, "far.example" }),
			pod("twin", "10.0.0.8"), pod("twin", "10.0.0.9", func(w *mesh.Workload) { w.UID += "2" }),
		} {
			u.PutWorkload(w)
		}
		u.PutService(service("ns", "web", "10.96.0.1"))
		u.PutService(service("other", "web", "10.96.0.2"))
		u.PutService(service("ns", "guarded", "10.96.0.3", func(s *mesh.Service) { s.Waypoint = waypoint }))
		u.PutService(service("ns", "waypoint", "10.96.0.4", func(s *mesh.Service) { s.Ports = map[uint16]uint16{15008: 15008} }))
		u.PutService(service("ns", "headless", "10.96.0.5", func(s *mesh.Service) { s.VIPs = nil }))
		u.PutService(service("x", "both", "10.96.0.6"))
		u.PutService(service("y", "both", "10.96.0.7"))
		allow := func(name, who string, dry bool) {
			u.PutPolicy("ns/"+name, &mesh.Policy{Name: name, Namespace: "ns", Scope: mesh.ScopeWorkloadSelector, DryRun: dry, Rules: []mesh.Rule{{{{
				Principals: []mesh.StringMatch{{Value: "td/ns/ns/sa/" + who}},
			}}}}})
		}
		allow("friends", "friend", false)
		allow("trial", "client", true)
		allow("waypoint", "waypoint", false)
	})
	return Question{View: store.View(), Illegal: []uint16{15001, 15008}, Choose: route.Weighted(func(uint64) uint64 { return 0 })}
}

// TestExplanations asks and looks for lines, in this order.
func TestExplanations(t *testing.T) {
	for _, tc := range []struct {
		from, to string
		allowed  bool
		want     []string
	}{
		{"ns/client", "web.example:80", false, []string{
			"from   ns/client, workload c//Pod/ns/client, 10.0.0.1, spiffe://td/ns/ns/sa/client, node node1",
			"to     web.example:80, service ns/web.example, 10.96.0.1:80",
			"10.96.0.1 is an address of the service ns/web.example.",
			"=> HBONE to 10.0.0.4:15008, asking for 10.0.0.4:8080, expecting spiffe://td/ns/ns/sa/server",
			"At c//Pod/ns/server, for 10.0.0.1 to 10.0.0.4:8080 as spiffe://td/ns/ns/sa/client.",
			"Policies that apply to it: ns/friends (Allow), ns/trial (Allow, dry run).",
			"It names the policy ns/gone, which is not known.",
			"dry-run: allow policy match: ns/trial.",
			"=> DENIED: allow policies exist, but none allowed",
			"The connection is NOT carried.",
		}},
		{"10.0.0.2", "ns/web", true, []string{"no port was named: taken for 80", "=> allowed: allow policy match (ns/friends)", "The connection is carried."}},
		{"ns/client", "ns/server", false, []string{"no port was named: taken for 8080", "=> HBONE", "DENIED", "if the server connected back", "No policy applies to it.", "=> allowed"}},
		{"ns/server", "10.0.0.2:80", true, []string{"=> allowed", "back", "=> allowed: allow policy match (ns/friends)"}},
		{"ns/client", "[2001:db8::1]:80", true, []string{"nobody in the mesh", "passed through as it is", "=> TCP to [2001:db8::1]:80", "nothing of the mesh is there"}},
		{"ns/client", "10.0.0.3:80", true, []string{"does not speak HBONE", "=> TCP to 10.0.0.3:80", "speaks no HBONE, so no proxy is before it"}},
		{"ns/client", "127.0.0.1:15001", false, []string{"=> refuse", "(recursive_call)", "the connection does not leave", "NOT carried"}},
		{"ns/client", "10.96.0.1:81", false, []string{"=> refuse", "(no_healthy_upstream)", "Look at: The service's endpoints"}},
		{"ns/client", "guarded.example:80", true, []string{"waypoint c//Pod/ns/waypoint decides first", "as spiffe://td/ns/ns/sa/waypoint", "=> allowed: allow policy match (ns/waypoint)"}},
		{"ns/old", "ns/server", false, []string{"it is not in the mesh", "=> not captured to 10.0.0.4:8080", "as nobody (in plaintext)", "DENIED"}},
		{"192.0.2.1", "ns/client:80", true, []string{"Nobody in the mesh has the address 192.0.2.1", "=> not captured", "=> allowed: no allow policies"}},
		{"192.0.2.1", "ns/web:80", true, []string{"=> not captured", "which endpoint of the service gets it"}},
		{"192.0.2.1", "ns/old", true, []string{"taken for 80", "the server is not in the mesh"}},
	} {
		q := world()
		q.From, q.To = tc.from, tc.to
		a, err := Explain(q)
		if err != nil {
			t.Errorf("%s to %s: %v", tc.from, tc.to, err)
			continue
		}
		text, rest := a.Text(), a.Text()
		for _, want := range tc.want {
			_, after, found := strings.Cut(rest, want)
			if !found {
				t.Errorf("%s to %s: no %q, after what comes before, in\n%s", tc.from, tc.to, want, text)
				break
			}
			rest = after
		}
		if a.Allowed != tc.allowed {
			t.Errorf("%s to %s: allowed is %v:\n%s", tc.from, tc.to, a.Allowed, text)
		}
		var back Answer // as the command reads it
		if b, err := json.Marshal(a); err != nil || json.Unmarshal(b, &back) != nil || back.Text() != text {
			t.Errorf("%s to %s is another after the page: %v\n%s", tc.from, tc.to, err, back.Text())
		}
	}
}

func TestEndsThatAreNotFound(t *testing.T) {
	for _, tc := range []struct{ from, to, want string }{
		{"ns/nobody", "ns/server", `nobody in the mesh is named "ns/nobody"`},
		{"", "ns/server", `nobody in the mesh is named ""`},
		{"ns/client", "nowhere.example:80", `nobody in the mesh is named "nowhere.example"`},
		{"ns/client", "ns/server:http", "has no port behind its last colon"},
		{"ns/client", "ns/server:0", "has no port behind its last colon"},
		{"ns/client", "ns/server:65536", "has no port behind its last colon"},
		{"ns/client", "ns/nameless:80", `has no address, only the hostname "far.example"`},
		{"ns/client", "headless.example:80", `has no address in network ""`},
		{"ns/client", "both.example:80", "several services are named"},
		{"ns/twin", "ns/server", "several pods are named"},
	} {
		q := world()
		q.From, q.To = tc.from, tc.to
		if _, err := Explain(q); err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s to %s: %v, want %q", tc.from, tc.to, err, tc.want)
		}
	}
}
