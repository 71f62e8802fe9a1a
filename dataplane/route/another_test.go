// SPDX-License-Identifier: Apache-2.0

package route

import (
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/ztunnel-go/ztunnel/internal/mesh"
)

// attempts lists the outcomes of a connection to which nobody answers.
func attempts(v mesh.View, dst string, pick Chooser) string {
	var all []string
	o := Decide(v, query(dst), pick)
	for range 5 {
		all = append(all, tell(o))
		if !o.Rivals {
			break
		}
		o = Decide(v, o.Another(), pick)
	}
	return strings.Join(all, "; ")
}

func TestAnotherEndpoint(t *testing.T) {
	twice := []uint16{80, 80}
	local := func(w *mesh.Workload) { w.Node = "n" }
	for _, tc := range []struct {
		name, dst string
		mesh      []any
		want      string
	}{
		{"each once", "10.1.0.1:80", []any{service("svc", "10.1.0.1", twice), plain("a", "10.0.0.2", in("svc")), plain("b", "10.0.0.3", in("svc")), plain("zero", "10.0.0.4", in("svc"), capacity(0))},
			"TCP 10.0.0.2:80 next=a service=svc; TCP 10.0.0.3:80 next=b service=svc"},
		{"only one", "10.1.0.1:80", []any{service("svc", "10.1.0.1", twice), plain("a", "10.0.0.2", in("svc"))}, "TCP 10.0.0.2:80 next=a service=svc"},
		{"a pod", "10.0.0.2:80", []any{service("svc", "10.1.0.1", twice), plain("a", "10.0.0.2", in("svc")), plain("b", "10.0.0.3", in("svc"))}, "TCP 10.0.0.2:80 next=a"},
		{"unknown", "10.9.0.1:80", nil, "TCP 10.9.0.1:80"},
		{"strict does not", "10.1.0.1:80", []any{service("svc", "10.1.0.1", twice, balanced(mesh.BalanceStrict, mesh.ScopeNode)),
			plain("far", "10.0.0.2", in("svc"), local), plain("near", "10.0.0.3", in("svc"))}, "TCP 10.0.0.3:80 next=near service=svc"},
		{"of a waypoint", "10.1.0.1:80", []any{service("svc", "10.1.0.1", twice, via("wp:15008")), service("wp", "", []uint16{15008, 15008}),
			hbone("w1", "10.0.8.1", in("wp")), hbone("w2", "10.0.8.2", in("wp"))},
			"HBONE 10.0.8.1:15008 asks=10.1.0.1:80 next=w1 service=svc expects=w1; HBONE 10.0.8.2:15008 asks=10.1.0.1:80 next=w2 service=svc expects=w2"},
		{"of a gateway", "10.1.0.1:80", []any{service("svc", "10.1.0.1", twice), hbone("far", "", in("svc"), inNetwork("remote", "gw:15008")),
			service("gw", "", []uint16{15008, 15008}), hbone("g1", "10.0.8.1", in("gw")), hbone("g2", "10.0.8.2", in("gw"))},
			"DOUBLEHBONE 10.0.8.1:15008 asks=svc:80 next=g1 service=svc expects=g1 inner=; DOUBLEHBONE 10.0.8.2:15008 asks=svc:80 next=g2 service=svc expects=g2 inner="},
	} {
		if got := attempts(build(tc.mesh...), tc.dst, first); got != tc.want {
			t.Errorf("%s:\ngot  %s\nwant %s", tc.name, got, tc.want)
		}
	}
}

func TestFailoverReachesTheNextBest(t *testing.T) {
	at := func(node string) func(*mesh.Workload) { return func(w *mesh.Workload) { w.Node = node } }
	v := build(service("svc", "10.1.0.1", []uint16{80, 80}, balanced(mesh.BalanceFailover, mesh.ScopeNode)),
		plain("far", "10.0.0.2", in("svc"), at("n2")), plain("near", "10.0.0.3", in("svc"), at("n1")))
	q := query("10.1.0.1:80")
	q.Source.Node = "n1"
	o := Decide(v, q, first)
	if o.NextHop.UID != "near" || !o.Rivals {
		t.Fatalf("%s, rivals: %v", tell(o), o.Rivals)
	}
	if o = Decide(v, o.Another(), first); o.NextHop.UID != "far" || o.Rivals {
		t.Errorf("%s, rivals: %v", tell(o), o.Rivals)
	}
}

func TestAnotherKeepsWhatWasChosenBefore(t *testing.T) {
	v := build(service("svc", "10.1.0.1", []uint16{80, 80}, func(s *mesh.Service) {
		s.WeightedWaypoints = []mesh.WeightedWaypoint{{Destination: *gatewayTo("one:15008"), Weight: 1}, {Destination: *gatewayTo("two:15008"), Weight: 1}}
	}), service("one", "", []uint16{15008, 15008}), hbone("a", "10.0.8.1", in("one")),
		service("two", "", []uint16{15008, 15008}), hbone("b", "10.0.8.2", in("two")), hbone("c", "10.0.8.3", in("two")))
	turns := 0
	last := func(all []Candidate) int { turns++; return len(all) - 1 }
	o := Decide(v, query("10.1.0.1:80"), last)
	if o.NextHop.UID != "c" || turns != 2 {
		t.Fatalf("%s after %d choices", tell(o), turns)
	}
	// The waypoint stays, although it is not the one that would be chosen now.
	if o = Decide(v, o.Another(), first); o.NextHop.UID != "b" || o.Rivals {
		t.Errorf("then %s", tell(o))
	}
}

func TestOnceAllHaveFailedNothingIsPassedThrough(t *testing.T) {
	// The address is also a workload's, which alone would let it through.
	v := build(service("svc", "10.0.0.9", []uint16{80, 80}), plain("pod", "10.0.0.9"), plain("a", "10.0.0.2", in("svc")), plain("b", "10.0.0.3", in("svc")))
	o := Decide(v, query("10.0.0.9:80"), first)
	o = Decide(v, o.Another(), first)
	if o = Decide(v, o.Another(), first); tell(o) != "refuse: no healthy upstream: 10.0.0.9:80" {
		t.Errorf("got %s", tell(o))
	}
	if q := o.Another(); len(q.failed) != 2 {
		t.Errorf("a refusal has no other way: %v", q.failed)
	}
}

func TestTheChoiceFollowsTheEndpointAndNotItsPlace(t *testing.T) {
	named := func(w *mesh.Workload) { w.Hostname = w.UID }
	things := []any{service("svc", "10.1.0.1", []uint16{80, 80}), plain("b", "", in("svc"), named), plain("c", "", in("svc"), named)}
	last := func(all []Candidate) int { return len(all) - 1 }
	o := Decide(build(things...), query("10.1.0.1:80"), last)
	want := o.Resolve
	things = append(things, plain("a", "", in("svc"), named), plain("d", "", in("svc"), named))
	o = Decide(build(things...), o.Again([]netip.Addr{netip.MustParseAddr("192.0.2.1")}, nil), first)
	if o.NextHop == nil || o.NextHop.UID != want {
		t.Errorf("%s was looked up, then %s", want, tell(o))
	}
}

func TestWhomAConnectionIsALoadFor(t *testing.T) {
	v := build(service("svc", "10.1.0.1", []uint16{80, 80}), hbone("far", "", in("svc"), inNetwork("remote", "gw:15008")),
		service("gw", "", []uint16{15008, 15008}), hbone("g1", "10.0.8.1", in("gw")), plain("pod", "10.0.0.2"))
	for dst, want := range map[string][]string{
		"10.1.0.1:80": {"g1", "far"}, "10.0.0.2:80": {"pod"}, "10.9.9.9:80": nil, "10.1.0.1:81": nil,
	} {
		if o := ask(v, dst); !slices.Equal(o.Endpoints, want) {
			t.Errorf("%s: %v, want %v", dst, o.Endpoints, want)
		}
	}
}
