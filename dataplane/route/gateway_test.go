// SPDX-License-Identifier: Apache-2.0

package route

import (
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/ztunnel-go/ztunnel/internal/mesh"
)

// Row A, and E (contract 3.2, 3.3).
func TestWaypoints(t *testing.T) {
	v := build(
		hbone("wp", "10.0.5.1 fd00:5::1"),
		hbone("wpHost", "10.0.5.2 fd00:5::2", in("wp.svc", 15008, 15018)),
		service("wp.svc", "10.1.5.2", []uint16{15008, 15008}, sans("spiffe://td/ns/ns/sa/extra")),
		hbone("wpNamed", "10.0.5.3", func(w *mesh.Workload) { w.Hostname = "wp.workload" }),
		service("wp.empty", "10.1.5.4", []uint16{15008, 15008}),
		service("wp.pass", "10.1.5.5", []uint16{15008, 15008}, balanced(mesh.BalancePassthrough)),
		hbone("wpPass", "10.0.5.5", in("wp.pass")),
		service("wp.sandwich", "10.1.5.6", nil),
		hbone("wpSandwich", "10.0.5.6", in("wp.sandwich"), withTunnel(mesh.TunnelProxy, 15088)),
		service("wp.bare", "10.1.5.7", nil),
		hbone("wpBare", "10.0.5.7", in("wp.bare"), withTunnel(mesh.TunnelNone, 0)),

		service("addr.svc", "10.1.0.1 fd01::1", []uint16{80, 80}, via("/10.0.5.1:15008")),
		service("vip.svc", "10.1.0.2", []uint16{80, 80}, via("/10.1.5.2:15008")),
		service("host.svc", "10.1.0.3 fd01::3", []uint16{80, 80}, via("wp.svc:15008")),
		service("named.svc", "10.1.0.4", []uint16{80, 80}, via("wp.workload:15009")),
		service("lost.svc", "10.1.0.5", []uint16{80, 80}, via("wp.lost:15008")),
		service("empty.svc", "10.1.0.6", []uint16{80, 80}, via("wp.empty:15008")),
		service("port.svc", "10.1.0.7", []uint16{80, 80}, via("wp.svc:1")),
		service("lostaddr.svc", "10.1.0.8", []uint16{80, 80}, via("/10.0.5.99:15008")),
		service("pass.svc", "10.1.0.9", []uint16{80, 80}, via("/10.0.5.1:15008"), balanced(mesh.BalancePassthrough)),
		service("wppass.svc", "10.1.0.10", []uint16{80, 80}, via("wp.pass:15008")),
		service("sandwich.svc", "10.1.0.11", []uint16{80, 80}, via("wp.sandwich:15008")),
		service("bare.svc", "10.1.0.12", []uint16{80, 80}, via("wp.bare:15008")),

		hbone("pod", "10.0.0.2 fd00::2", behind("/10.0.5.1:15008"), in("direct.svc")),
		plain("podTCP", "10.0.0.3", behind("wp.svc:15008")),
		hbone("podLost", "10.0.0.4", behind("wp.lost:15008")),
		service("direct.svc", "10.1.0.20", []uint16{80, 80}),
		hbone("bothPod", "10.1.0.21", behind("/10.0.5.1:15008")),
		service("both.svc", "10.1.0.21", []uint16{80, 80}, via("wp.lost:15008")),
		hbone("bothEndpoint", "10.0.0.5", in("both.svc"), behind("/10.0.5.1:15008")),
	)
	hold(t, v, []row{
		{"A: by address", "10.1.0.1:80", "HBONE 10.0.5.1:15008 asks=10.1.0.1:80 next=wp service=addr.svc expects=wp"},
		{"A: any port, for the waypoint knows them", "10.1.0.1:9", "HBONE 10.0.5.1:15008 asks=10.1.0.1:9 next=wp service=addr.svc expects=wp"},
		{"A: the family is that of the waypoint's address", "[fd01::1]:80", "HBONE 10.0.5.1:15008 asks=[fd01::1]:80 next=wp service=addr.svc expects=wp"},
		{"A: by VIP, with the port mapped", "10.1.0.2:80", "HBONE 10.0.5.2:15018 asks=10.1.0.2:80 next=wpHost service=vip.svc expects=extra,wpHost"},
		{"A: by hostname", "10.1.0.3:80", "HBONE 10.0.5.2:15018 asks=10.1.0.3:80 next=wpHost service=host.svc expects=extra,wpHost"},
		{"A: by hostname, in the client's family", "[fd01::3]:80", "HBONE [fd00:5::2]:15018 asks=[fd01::3]:80 next=wpHost service=host.svc expects=extra,wpHost"},
		{"A: by a workload's hostname", "10.1.0.4:80", "HBONE 10.0.5.3:15009 asks=10.1.0.4:80 next=wpNamed service=named.svc expects=wpNamed"},
		{"A: a passthrough service has a waypoint too", "10.1.0.9:80", "HBONE 10.0.5.1:15008 asks=10.1.0.9:80 next=wp service=pass.svc expects=wp"},
		{"A: an application tunnel takes ports its service lacks", "10.1.0.11:80", "HBONE 10.0.5.6:15008 asks=10.1.0.11:80 next=wpSandwich service=sandwich.svc expects=wpSandwich"},
		{"A: but one without a port leads nowhere", "10.1.0.12:80", "refuse: unknown waypoint: waypoint wp.bare not found"},
		{"A: an unknown name", "10.1.0.5:80", "refuse: unknown waypoint: waypoint wp.lost not found"},
		{"A: nobody behind it", "10.1.0.6:80", "refuse: unknown waypoint: waypoint wp.empty not found"},
		{"A: no such port", "10.1.0.7:80", "refuse: unknown waypoint: waypoint wp.svc not found"},
		{"A: an unknown address", "10.1.0.8:80", "refuse: unknown waypoint: waypoint /10.0.5.99:15008 not found"},
		{"A: one that passes through", "10.1.0.10:80", "refuse: unknown waypoint: waypoint wp.pass not found"},
		{"E: a pod", "10.0.0.2:80", "HBONE 10.0.5.1:15008 asks=10.0.0.2:80 next=wp expects=wp"},
		{"E: a pod by its other family", "[fd00::2]:80", "HBONE 10.0.5.1:15008 asks=[fd00::2]:80 next=wp expects=wp"},
		{"E: a pod outside the mesh", "10.0.0.3:80", "HBONE 10.0.5.2:15018 asks=10.0.0.3:80 next=wpHost expects=extra,wpHost"},
		{"E: a waypoint that is lost", "10.0.0.4:80", "refuse: unknown waypoint: waypoint wp.lost not found"},
		{"E: not for services, even if the endpoint has one", "10.1.0.20:80", "HBONE 10.0.0.2:15008 asks=10.0.0.2:80 next=pod service=direct.svc expects=pod"},
		{"E: an address that is both counts as a pod", "10.1.0.21:80", "HBONE 10.0.5.1:15008 asks=10.1.0.21:80 next=wp service=both.svc expects=wp"},
	})
}

func TestTheClientsOwnWaypointIsNoMatter(t *testing.T) {
	q := query("10.0.0.2:80")
	q.Source = hbone("client", "10.0.0.1", behind("wp.lost:15008"))
	if got, want := tell(Decide(build(hbone("pod", "10.0.0.2")), q, first)), "HBONE 10.0.0.2:15008 asks=10.0.0.2:80 next=pod expects=pod"; got != want {
		t.Errorf("got %s", got)
	}
}

// Contract 3.6: the waypoint itself is not sent back to the waypoint, unless
// it dials a service.
func TestWhatComesFromTheWaypointGoesStraight(t *testing.T) {
	waypoint := hbone("wp", "10.0.5.1", in("wp.svc"), func(w *mesh.Workload) { w.Hostname = "wp.workload" })
	v := build(
		waypoint,
		service("wp.svc", "10.1.5.1", []uint16{15008, 15008}),
		hbone("byAddr", "10.0.0.2", behind("/10.0.5.1:15008")),
		hbone("byVIP", "10.0.0.3", behind("/10.1.5.1:15008")),
		hbone("byHost", "10.0.0.4", behind("wp.svc:15008"), in("svc")),
		hbone("byWorkload", "10.0.0.5", behind("wp.workload:15008")),
		hbone("byOther", "10.0.0.6", behind("/10.0.5.2:15008")),
		hbone("wp2", "10.0.5.2"),
		service("svc", "10.1.0.1", []uint16{80, 80}, via("wp.svc:15008")),
	)
	for _, tc := range []struct {
		name, dst, ip string
		source        *mesh.Workload
		want          string
	}{
		{"by address", "10.0.0.2:80", "10.0.5.1", waypoint, "byAddr"},
		{"by VIP", "10.0.0.3:80", "10.0.5.1", waypoint, "byVIP"},
		{"by hostname", "10.0.0.4:80", "10.0.5.1", waypoint, "byHost"},
		{"by a workload's hostname", "10.0.0.5:80", "10.0.5.1", waypoint, "byWorkload"},
		{"another's waypoint", "10.0.0.6:80", "10.0.5.1", waypoint, "wp2"},
		{"the identity alone is not enough", "10.0.0.2:80", "10.0.0.1", waypoint, "wp"},
		{"the address alone is not enough", "10.0.0.2:80", "10.0.5.1", hbone("client", "10.0.5.1"), "wp"},
		{"a service leads to its waypoint again", "10.1.0.1:80", "10.0.5.1", waypoint, "wp"},
	} {
		q := query(tc.dst)
		q.Source = tc.source
		q.SourceIP = workload("x", mesh.TCP, tc.ip).IPs[0]
		o := Decide(v, q, first)
		if o.NextHop == nil || o.NextHop.UID != tc.want {
			t.Errorf("%s: %s, want %s", tc.name, tell(o), tc.want)
		}
	}
}

func TestWeightedWaypoints(t *testing.T) {
	weighted := func(weights ...uint32) mesh.View {
		svc := service("svc", "10.1.0.1", []uint16{80, 80}, via("/10.0.5.9:15008"))
		for i, w := range weights {
			svc.WeightedWaypoints = append(svc.WeightedWaypoints,
				mesh.WeightedWaypoint{Destination: *gatewayTo([]string{"/10.0.5.0:15008", "/10.0.5.1:15008"}[i]), Weight: w})
		}
		return build(svc, hbone("wp0", "10.0.5.0"), hbone("wp1", "10.0.5.1"), hbone("single", "10.0.5.9"))
	}
	random := rand.New(rand.NewPCG(1, 2))
	share := func(v mesh.View) map[string]int {
		seen := map[string]int{}
		for range 4000 {
			seen[Decide(v, query("10.1.0.1:80"), Weighted(random.Uint64N)).NextHop.UID]++
		}
		return seen
	}
	if seen := share(weighted(0, 5)); seen["wp1"] != 4000 {
		t.Errorf("zero and five: %v", seen)
	}
	if seen := share(weighted(0, 0)); seen["single"] != 4000 {
		t.Errorf("all zero: %v", seen)
	}
	if seen := share(weighted()); seen["single"] != 4000 {
		t.Errorf("none: %v", seen)
	}
	if seen := share(weighted(75, 25)); seen["wp0"] < 2800 || seen["wp0"] > 3200 || seen["wp0"]+seen["wp1"] != 4000 {
		t.Errorf("three to one: %v", seen)
	}
}

// Row D (contract 3.5).
func TestOtherNetworks(t *testing.T) {
	v := build(
		hbone("gw", "10.0.6.1 fd00:6::1", inNetwork("remote", "")),
		hbone("gwHost", "10.0.6.2", inNetwork("remote", ""), in("gw.svc", 15008, 15009)),
		service("gw.svc", "remote/10.1.6.2", []uint16{15008, 15008}, sans("spiffe://td/ns/ns/sa/gwextra")),
		hbone("gwNamed", "10.0.6.3", inNetwork("remote", ""), func(w *mesh.Workload) { w.Hostname = "gw.workload" }),

		service("svc", "10.1.0.1 fd01::1", []uint16{80, 8080}, sans("spiffe://td/ns/ns/sa/far1", "spiffe://td/ns/ns/sa/far2")),
		hbone("far1", "10.0.1.1", inNetwork("remote", "remote/10.0.6.1:15010"), in("svc")),
		service("noip.svc", "10.1.0.2", []uint16{80, 8080}),
		hbone("far2", "", inNetwork("remote", "gw.svc:15008"), in("noip.svc")),
		service("named.svc", "10.1.0.3", []uint16{80, 8080}),
		hbone("far3", "", inNetwork("remote", "gw.workload:15011"), in("named.svc")),
		service("nogw.svc", "10.1.0.4", []uint16{80, 8080}),
		hbone("far4", "10.0.1.4", inNetwork("remote", ""), in("nogw.svc")),
		service("noipnogw.svc", "10.1.0.5", []uint16{80, 8080}),
		hbone("far5", "", inNetwork("remote", ""), in("noipnogw.svc")),
		service("lostgw.svc", "10.1.0.6", []uint16{80, 8080}),
		hbone("far6", "", inNetwork("remote", "remote/10.0.6.99:15008"), in("lostgw.svc")),
		service("losthost.svc", "10.1.0.7", []uint16{80, 8080}),
		hbone("far7", "", inNetwork("remote", "gw.lost:15008"), in("losthost.svc")),
		service("noport.svc", "10.1.0.8", []uint16{80, 8080}),
		hbone("far8", "", inNetwork("remote", "gw.svc:1"), in("noport.svc")),

		service("wp.svc", "10.1.5.1", []uint16{15008, 15008}, sans("spiffe://td/ns/ns/sa/wpextra")),
		hbone("farwp", "", inNetwork("remote", "remote/10.0.6.1:15010"), in("wp.svc")),
		service("viawp.svc", "10.1.0.9", []uint16{80, 8080}, via("wp.svc:15008")),
		hbone("podviawp", "10.0.0.9", behind("wp.svc:15008")),

		hbone("both", "10.1.0.10"),
		service("both.svc", "10.1.0.10", []uint16{80, 8080}),
		hbone("far10", "10.0.1.10", inNetwork("remote", "remote/10.0.6.1:15010"), in("both.svc")),
	)
	hold(t, v, []row{
		{"a gateway by address", "10.1.0.1:80", "DOUBLEHBONE 10.0.6.1:15010 asks=svc:80 next=gw service=svc expects=gw inner=far1,far2"},
		{"the family is that of the gateway's address", "[fd01::1]:80", "DOUBLEHBONE 10.0.6.1:15010 asks=svc:80 next=gw service=svc expects=gw inner=far1,far2"},
		{"a gateway by hostname; nobody is expected within", "10.1.0.2:80", "DOUBLEHBONE 10.0.6.2:15009 asks=noip.svc:80 next=gwHost service=noip.svc expects=gwextra,gwHost inner="},
		{"a gateway by a workload's hostname", "10.1.0.3:80", "DOUBLEHBONE 10.0.6.3:15011 asks=named.svc:80 next=gwNamed service=named.svc expects=gwNamed inner="},
		{"an endpoint without a gateway", "10.1.0.4:80", "refuse: no valid routing destination for workload: far4"},
		{"nor an address: not even eligible", "10.1.0.5:80", "refuse: no healthy upstream: 10.1.0.5:80"},
		{"a gateway that nobody knows", "10.1.0.6:80", "refuse: unknown network gateway: network gateway remote/10.0.6.99:15008 not found"},
		{"a gateway's hostname that nobody knows", "10.1.0.7:80", "refuse: unknown network gateway: network gateway gw.lost not found"},
		{"a gateway's port that its service lacks", "10.1.0.8:80", "refuse: unknown network gateway: network gateway gw.svc not found"},
		{"a waypoint there", "10.1.0.9:80", "DOUBLEHBONE 10.0.6.1:15010 asks=viawp.svc:80 next=gw service=viawp.svc expects=gw inner=wpextra"},
		{"a waypoint there for a pod here", "10.0.0.9:80", "refuse: no service for target address: 10.0.0.9:80"},
		{"an address that is also a workload's here", "10.1.0.10:80", "refuse: no service for target address: 10.1.0.10:80"},
		{"a pod there by address is unknown here", "10.0.1.1:80", "TCP 10.0.1.1:80"},
	})
}

func TestExplainsTheDecision(t *testing.T) {
	v := build(
		service("svc", "10.1.0.1", []uint16{80, 8080}),
		hbone("pod", "10.0.0.2", in("svc")),
	)
	got := strings.Join(ask(v, "10.1.0.1:80").Steps, "\n")
	want := strings.Join([]string{
		"10.1.0.1 is an address of the service ns/svc.",
		"Of 1 endpoints of ns/svc, 1 are eligible and nearest.",
		"pod was chosen, port 8080.",
		"pod speaks HBONE: a tunnel to port 15008, asking for 10.0.0.2:8080.",
	}, "\n")
	if got != want {
		t.Errorf("got:\n%s\nwant:\n%s", got, want)
	}
}
