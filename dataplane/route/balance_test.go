// SPDX-License-Identifier: Apache-2.0

package route

import (
	"errors"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/ztunnel-go/ztunnel/internal/mesh"
)

// chosen lists, sorted, the endpoints that connections to 10.1.0.1:80 meet.
func chosen(t *testing.T, v mesh.View, source *mesh.Workload) string {
	t.Helper()
	q := query("10.1.0.1:80")
	if source != nil {
		q.Source = source
	}
	random := rand.New(rand.NewPCG(1, 2))
	seen := map[string]bool{}
	for range 200 {
		o := Decide(v, q, Weighted(random.Uint64N))
		switch {
		case o.Err != nil:
			seen[o.Err.Error()] = true
		case o.NextHop != nil:
			seen[o.NextHop.UID] = true
		}
	}
	var names []string
	for name := range seen {
		names = append(names, name)
	}
	slices.Sort(names)
	return strings.Join(names, " ")
}

func place(region, zone, subzone string) func(*mesh.Workload) {
	return func(w *mesh.Workload) { w.Locality = mesh.Locality{Region: region, Zone: zone, Subzone: subzone} }
}

func capacity(n uint32) func(*mesh.Workload) { return func(w *mesh.Workload) { w.Capacity = n } }

const none = "no healthy upstream: 10.1.0.1:80"

func TestModesAndScopes(t *testing.T) {
	svc := in("svc")
	far := inNetwork("remote", "remote/10.0.6.1:15008")
	regional := []*mesh.Workload{
		hbone("same", "10.0.0.2", svc, place("r", "z", "s")),
		hbone("zone", "10.0.0.3", svc, place("r", "z", "x")),
		hbone("region", "10.0.0.4", svc, place("r", "x", "s")),
		hbone("away", "10.0.0.5", svc, place("x", "z", "s")),
	}
	nodes := []*mesh.Workload{
		hbone("same", "10.0.0.2", svc, func(w *mesh.Workload) { w.Node, w.ClusterID = "n", "c" }),
		hbone("cluster", "10.0.0.3", svc, func(w *mesh.Workload) { w.Node, w.ClusterID = "x", "c" }),
		hbone("away", "10.0.0.4", svc, func(w *mesh.Workload) { w.Node, w.ClusterID = "x", "x" }),
	}
	remote := []*mesh.Workload{
		hbone("farBest", "", svc, far, place("r", "z", "")),
		hbone("farRegion", "", svc, far, place("r", "x", "")),
	}
	local := hbone("hereWorst", "10.0.0.2", svc, place("x", "x", ""))
	gw := hbone("gw", "10.0.6.1", inNetwork("remote", ""))

	const (
		R, Z, S  = mesh.ScopeRegion, mesh.ScopeZone, mesh.ScopeSubzone
		N, C, W  = mesh.ScopeNode, mesh.ScopeCluster, mesh.ScopeNetwork
		failover = mesh.BalanceFailover
		strictly = mesh.BalanceStrict
		standard = mesh.BalanceStandard
	)
	for _, tc := range []struct {
		name      string
		mode      mesh.BalanceMode
		scopes    []mesh.Scope
		endpoints []*mesh.Workload
		want      string
	}{
		{"standard", standard, []mesh.Scope{R}, regional, "away region same zone"},
		{"failover to the nearest", failover, []mesh.Scope{R, Z, S}, regional, "same"},
		{"failover to the next", failover, []mesh.Scope{R, Z, S}, regional[1:], "zone"},
		{"failover, then the region", failover, []mesh.Scope{R, Z, S}, regional[2:], "region"},
		{"failover to anywhere", failover, []mesh.Scope{R, Z, S}, regional[3:], "away"},
		{"the first mismatch ends the count", failover, []mesh.Scope{R, Z, S}, []*mesh.Workload{regional[2], regional[3]}, "region"},
		{"a zone does not ask for its region", failover, []mesh.Scope{Z}, regional, "away same zone"},
		{"strict", strictly, []mesh.Scope{R}, regional, "region same zone"},
		{"strict in all", strictly, []mesh.Scope{R, Z, S}, regional, "same"},
		{"strict with nobody", strictly, []mesh.Scope{R, Z, S}, regional[1:], none},
		{"strict without preferences", strictly, nil, regional, "away region same zone"},
		{"the node", failover, []mesh.Scope{N}, nodes, "same"},
		{"the cluster", strictly, []mesh.Scope{C}, nodes, "cluster same"},
		{"an unknown scope matches nobody", strictly, []mesh.Scope{0}, nodes, none},
		{"the network first outweighs the rest", failover, []mesh.Scope{W, R, Z}, append(slices.Clone(remote), local), "hereWorst"},
		{"and its mismatch does not end the count", failover, []mesh.Scope{W, R, Z}, remote, "farBest"},
		{"the network alone", failover, []mesh.Scope{W}, append(slices.Clone(remote), local), "hereWorst"},
		{"the network later is one of many", failover, []mesh.Scope{R, W}, append(slices.Clone(remote), local), "farBest farRegion"},
	} {
		things := []any{service("svc", "10.1.0.1", []uint16{80, 80}, balanced(tc.mode, tc.scopes...)), gw}
		for _, w := range tc.endpoints {
			things = append(things, w)
		}
		source := hbone("client", "10.0.0.1", place("r", "z", "s"), func(w *mesh.Workload) { w.Node, w.ClusterID = "n", "c" })
		v := build(things...)
		var got string
		if got = chosen(t, v, source); got == "gw" { // which remote one stands behind the gateway shows in the steps
			got = behindGateway(v, source)
		}
		if got != tc.want {
			t.Errorf("%s: %s, want %s", tc.name, got, tc.want)
		}
	}
}

// behindGateway lists the remote endpoints that were chosen.
func behindGateway(v mesh.View, source *mesh.Workload) string {
	q := query("10.1.0.1:80")
	q.Source = source
	random := rand.New(rand.NewPCG(1, 2))
	var names []string
	for range 200 {
		for _, step := range Decide(v, q, Weighted(random.Uint64N)).Steps {
			if name, ok := strings.CutSuffix(step, " was chosen, port 80."); ok && !slices.Contains(names, name) {
				names = append(names, name)
			}
		}
	}
	slices.Sort(names)
	return strings.Join(names, " ")
}

func TestPlacesThatAreBothUnknownAreOne(t *testing.T) {
	v := build(service("svc", "10.1.0.1", []uint16{80, 80}, balanced(mesh.BalanceStrict, mesh.ScopeRegion)),
		hbone("unknown", "10.0.0.2", in("svc")), hbone("known", "10.0.0.3", in("svc"), place("r", "", "")))
	if got := chosen(t, v, nil); got != "unknown" {
		t.Errorf("chosen: %s", got)
	}
}

func TestCapacityIsAWeight(t *testing.T) {
	v := build(service("svc", "10.1.0.1", []uint16{80, 80}),
		hbone("zero", "10.0.0.2", in("svc"), capacity(0)),
		hbone("one", "10.0.0.3", in("svc"), capacity(1)),
		hbone("three", "10.0.0.4", in("svc"), capacity(3)))
	random := rand.New(rand.NewPCG(1, 2))
	seen := map[string]int{}
	for range 4000 {
		seen[Decide(v, query("10.1.0.1:80"), Weighted(random.Uint64N)).NextHop.UID]++
	}
	if seen["zero"] != 0 || seen["one"] < 800 || seen["one"] > 1200 || seen["one"]+seen["three"] != 4000 {
		t.Errorf("shares: %v", seen)
	}
	allZero := build(service("svc", "10.1.0.1", []uint16{80, 80}), hbone("zero", "10.0.0.2", in("svc"), capacity(0)))
	if got := chosen(t, allZero, nil); got != none {
		t.Errorf("all zero: %s", got)
	}
}

func TestUnhealthyEndpointsAreLeftOut(t *testing.T) {
	sick := func(w *mesh.Workload) { w.Status = mesh.Unhealthy }
	endpoints := []any{hbone("well", "10.0.0.2", in("svc")), hbone("sick", "10.0.0.3", in("svc"), sick)}
	if got := chosen(t, build(append([]any{service("svc", "10.1.0.1", []uint16{80, 80})}, endpoints...)...), nil); got != "well" {
		t.Errorf("healthy only: %s", got)
	}
	tolerant := service("svc", "10.1.0.1", []uint16{80, 80}, func(s *mesh.Service) {
		s.LoadBalancer = &mesh.LoadBalancer{HealthPolicy: mesh.AllowAll}
	})
	if got := chosen(t, build(append([]any{tolerant}, endpoints...)...), nil); got != "sick well" {
		t.Errorf("all: %s", got)
	}
	// A pod that is dialled by its address is not asked how it is.
	if got := tell(ask(build(endpoints...), "10.0.0.3:80")); got != "HBONE 10.0.0.3:15008 asks=10.0.0.3:80 next=sick expects=sick" {
		t.Errorf("by address: %s", got)
	}
}

func TestEndpointsThatCannotBeReachedAreLeftOut(t *testing.T) {
	v := build(service("svc", "10.1.0.1", []uint16{80, 80}),
		hbone("noaddress", "", in("svc")),
		hbone("nogateway", "", in("svc"), inNetwork("remote", "")),
		hbone("gatewayButHere", "", in("svc"), inNetwork("", "remote/10.0.6.1:15008")))
	if got := chosen(t, v, nil); got != none {
		t.Errorf("chosen: %s", got)
	}
}

func TestTargetPorts(t *testing.T) {
	for _, tc := range []struct {
		name     string
		ports    []uint16
		endpoint *mesh.Workload
		want     string
	}{
		{"the endpoint's comes first", []uint16{80, 8080}, hbone("e", "10.0.0.2", in("svc", 80, 9090)), "10.0.0.2:9090"},
		{"then the service's", []uint16{80, 8080}, hbone("e", "10.0.0.2", in("svc", 81, 9090)), "10.0.0.2:8080"},
		{"a named port is the endpoint's to say", []uint16{80, 0}, hbone("e", "10.0.0.2", in("svc", 80, 9090)), "10.0.0.2:9090"},
		{"or nobody's", []uint16{80, 0}, hbone("e", "10.0.0.2", in("svc")), none},
		{"an application tunnel does not help there", []uint16{80, 0}, hbone("e", "10.0.0.2", in("svc"), withTunnel(mesh.TunnelNone, 1)), none},
		{"nor where the service lacks the port", nil, hbone("e", "10.0.0.2", in("svc", 80, 9090), withTunnel(mesh.TunnelNone, 1)), none},
		{"an endpoint's zero is no port", []uint16{80, 8080}, hbone("e", "10.0.0.2", in("svc", 80, 0)), "10.0.0.2:8080"},
	} {
		o := ask(build(service("svc", "10.1.0.1", tc.ports), tc.endpoint), "10.1.0.1:80")
		got := o.Authority
		if o.Err != nil {
			got = o.Err.Error()
		}
		if got != tc.want {
			t.Errorf("%s: %s, want %s", tc.name, got, tc.want)
		}
	}
	// An endpoint without the mapping is passed over, not failed on.
	v := build(service("svc", "10.1.0.1", []uint16{80, 0}), hbone("a", "10.0.0.2", in("svc")), hbone("b", "10.0.0.3", in("svc", 80, 9090)))
	if got := chosen(t, v, nil); got != "b" {
		t.Errorf("chosen: %s", got)
	}
}

func TestWhichAddressOfAWorkload(t *testing.T) {
	const both = "10.0.0.2 fd00::2"
	for _, tc := range []struct {
		name, ips, dst string
		families       *mesh.IPFamilies
		want           string
	}{
		{"the family of the VIP", both, "10.1.0.1:80", nil, "10.0.0.2"},
		{"in IPv6", both, "[fd01::1]:80", nil, "fd00::2"},
		{"the only one there is", "10.0.0.2", "[fd01::1]:80", nil, "10.0.0.2"},
		{"the first of a family", "10.0.0.2 10.0.0.3", "10.1.0.1:80", nil, "10.0.0.2"},
		{"IPv4 only", both, "[fd01::1]:80", ptr(mesh.IPv4Only), "10.0.0.2"},
		{"IPv6 only", both, "10.1.0.1:80", ptr(mesh.IPv6Only), "fd00::2"},
		{"dual", both, "[fd01::1]:80", ptr(mesh.DualStack), "fd00::2"},
		{"automatic", both, "[fd01::1]:80", ptr(mesh.AutomaticFamilies), "fd00::2"},
		{"none that is allowed", "10.0.0.2", "10.1.0.1:80", ptr(mesh.IPv6Only), "no valid routing destination for workload: e"},
		{"the one that was dialled, whatever is allowed", "10.1.0.9 fd00::2", "10.1.0.9:80", ptr(mesh.IPv6Only), "10.1.0.9"},
	} {
		svc := service("svc", "10.1.0.1 fd01::1 10.1.0.9", []uint16{80, 80}, func(s *mesh.Service) { s.IPFamilies = tc.families })
		o := ask(build(svc, hbone("e", tc.ips, in("svc"))), tc.dst)
		got := o.Dial.Addr().String()
		if o.Err != nil {
			got = o.Err.Error()
		}
		if got != tc.want {
			t.Errorf("%s: %s, want %s", tc.name, got, tc.want)
		}
	}
}

func ptr[T any](v T) *T { return &v }

func TestHostnamesAreAskedFor(t *testing.T) {
	named := func(w *mesh.Workload) { w.Hostname = "db.example.com" }
	v := build(service("svc", "10.1.0.1 fd01::1", []uint16{80, 8080}), plain("db", "", in("svc"), named))
	ips := func(list ...string) (out []netip.Addr) {
		for _, ip := range list {
			out = append(out, netip.MustParseAddr(ip))
		}
		return out
	}
	for _, tc := range []struct {
		name, dst string
		addrs     []netip.Addr
		err       error
		want      string
	}{
		{"of the family", "10.1.0.1:80", ips("2001:db8::1", "192.0.2.1"), nil, "TCP 192.0.2.1:8080 next=db service=svc"},
		{"in IPv6", "[fd01::1]:80", ips("192.0.2.1", "2001:db8::1"), nil, "TCP [2001:db8::1]:8080 next=db service=svc"},
		{"of the other if need be", "10.1.0.1:80", ips("2001:db8::1"), nil, "TCP [2001:db8::1]:8080 next=db service=svc"},
		{"mapped", "10.1.0.1:80", ips("::ffff:192.0.2.1"), nil, "TCP 192.0.2.1:8080 next=db service=svc"},
		{"failed", "10.1.0.1:80", nil, errors.New("x"), "refuse: no ip addresses were resolved for workload: db"},
		{"empty", "10.1.0.1:80", nil, nil, "refuse: ip addresses were resolved for workload db, but valid dns response had no A/AAAA records"},
	} {
		o := ask(v, tc.dst)
		if got := tell(o); got != "resolve db.example.com" {
			t.Fatalf("%s: %s", tc.name, got)
		}
		if got := tell(Decide(v, o.Again(tc.addrs, tc.err), first)); got != tc.want {
			t.Errorf("%s: %s, want %s", tc.name, got, tc.want)
		}
	}
}

func TestAnEndpointWithAnAddressIsNotLookedUp(t *testing.T) {
	v := build(service("svc", "10.1.0.1", []uint16{80, 80}), plain("db", "10.0.0.2", in("svc"), func(w *mesh.Workload) { w.Hostname = "db" }))
	if got, want := tell(ask(v, "10.1.0.1:80")), "TCP 10.0.0.2:80 next=db service=svc"; got != want {
		t.Errorf("got %s", got)
	}
}

func TestTheChoiceStaysWhileANameIsLookedUp(t *testing.T) {
	named := func(name string) func(*mesh.Workload) { return func(w *mesh.Workload) { w.Hostname = name } }
	v := build(service("svc", "10.1.0.1", []uint16{80, 80}), plain("a", "", in("svc"), named("a")), plain("b", "", in("svc"), named("b")))
	turn := 0
	inTurn := func(c []Candidate) int { turn++; return turn % len(c) }
	for range 4 {
		o := Decide(v, query("10.1.0.1:80"), inTurn)
		name := o.Resolve
		o = Decide(v, o.Again([]netip.Addr{netip.MustParseAddr("192.0.2.1")}, nil), inTurn)
		if o.Kind != Direct || o.NextHop.UID != name {
			t.Errorf("%s was looked up: %s", name, tell(o))
		}
	}
}

func TestAConnectionDoesNotWaitForNamesForEver(t *testing.T) {
	v := build(service("svc", "10.1.0.1", []uint16{80, 80}), plain("a", "", in("svc"), func(w *mesh.Workload) { w.Hostname = "a" }))
	q := query("10.1.0.1:80")
	for range 2 * maxNames {
		o := Decide(v, q, first)
		if o.Kind == Refuse {
			return
		}
		o.Resolve += ".else" // as if the mesh had changed in the meantime
		q = o.Again(nil, nil)
	}
	t.Error("it would have gone on")
}

func TestWeightedNeverPicksZero(t *testing.T) {
	for at := range uint64(4) {
		pick := Weighted(func(n uint64) uint64 { return at % n })
		got := pick(weighing(0, 1, 0, 3, 0))
		if want := []int{1, 3, 3, 3}[at]; got != want {
			t.Errorf("at %d: %d, want %d", at, got, want)
		}
	}
	if got := Weighted(func(uint64) uint64 { return 0 })(weighing(0, 0)); got != -1 {
		t.Errorf("all zero: %d", got)
	}
	if got := Weighted(func(n uint64) uint64 { return n - 1 })(weighing(1<<31, 1<<31, 1<<31)); got != 2 {
		t.Errorf("large weights: %d", got)
	}
}

func weighing(weights ...uint32) []Candidate {
	var all []Candidate
	for _, w := range weights {
		all = append(all, Candidate{Weight: w})
	}
	return all
}
