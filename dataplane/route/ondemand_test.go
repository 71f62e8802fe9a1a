// SPDX-License-Identifier: Apache-2.0

package route

import (
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/ztunnel-go/ztunnel/internal/mesh"
)

// A teller is a control plane that tells what it is asked for: the resource of
// a name or address, and the members of a service.
type teller []any

func (all teller) about(name string) (told []any) {
	for _, thing := range all {
		switch v := thing.(type) {
		case *mesh.Workload:
			is := name == v.UID || v.Hostname != "" && name == v.Namespace+"/"+v.Hostname
			for _, ip := range v.IPs {
				is = is || name == mesh.NetworkAddr{Network: v.Network, Addr: ip}.String()
			}
			if is {
				told = append(told, v)
			}
		case *mesh.Service:
			is := name == v.Key().String()
			for _, vip := range v.VIPs {
				is = is || name == vip.String()
			}
			if is {
				told = append(told, v)
				told = append(told, all.members(v.Key())...)
			}
		}
	}
	return told
}

func (all teller) members(key mesh.NamespacedHostname) (told []any) {
	for _, thing := range all {
		if w, ok := thing.(*mesh.Workload); ok {
			if _, member := w.Services[key]; member {
				told = append(told, w)
			}
		}
	}
	return told
}

// learn decides with nothing but what was asked for.
func (all teller) learn(q Query) (o Outcome, wishes []string) {
	var known []any
	q.OnDemand = true
	for range 20 {
		o = Decide(build(known...), q, first)
		if o.Kind != Learn {
			return o, wishes
		}
		wishes = append(wishes, o.Learn)
		known = append(known, all.about(o.Learn)...)
		q = o.Learned()
	}
	return o, append(wishes, "and so on")
}

// Whatever is asked for bit by bit, the outcome is that of who knows all.
func TestOnDemandComesToTheSame(t *testing.T) {
	all := teller{
		hbone("pod", "10.0.0.2", in("svc")), hbone("pod2", "10.0.0.6", in("svc")), plain("out", "10.0.0.3"),
		service("svc", "10.1.0.1", []uint16{80, 8080}),
		service("empty", "10.1.0.2", []uint16{80, 8080}),
		service("pass", "10.1.0.3", []uint16{80, 80}, balanced(mesh.BalancePassthrough)),
		hbone("wpPod", "10.0.5.1", in("wp")),
		service("wp", "10.1.5.1", []uint16{15008, 15008}),
		service("viaHost", "10.1.0.4", []uint16{80, 80}, via("wp:15008")),
		service("viaAddr", "10.1.0.5", []uint16{80, 80}, via("/10.0.5.1:15008")),
		service("viaVIP", "10.1.0.6", []uint16{80, 80}, via("/10.1.5.1:15008")),
		service("viaLost", "10.1.0.7", []uint16{80, 80}, via("lost:15008")),
		hbone("behindHost", "10.0.0.4", behind("wp:15008")),
		hbone("behindLost", "10.0.0.5", behind("lost:15008")),
		hbone("far", "", in("farSvc"), inNetwork("remote", "gw:15008")),
		service("farSvc", "10.1.0.8", []uint16{80, 80}),
		service("gw", "", []uint16{15008, 15008}), hbone("gate", "10.0.8.1", in("gw")),
	}
	for _, tc := range []struct {
		dst    string
		wishes string
	}{
		{"10.0.0.2:80", "/10.0.0.2"},
		{"10.0.0.3:80", "/10.0.0.3"},
		{"10.9.9.9:80", "/10.9.9.9"},
		{"10.1.0.1:80", "/10.1.0.1"},
		{"10.1.0.1:81", "/10.1.0.1"},
		{"10.1.0.2:80", "/10.1.0.2 ns/empty"},
		{"10.1.0.3:80", "/10.1.0.3"},
		{"10.1.0.4:80", "/10.1.0.4 ns/wp"},
		{"10.1.0.5:80", "/10.1.0.5 /10.0.5.1"},
		{"10.1.0.6:80", "/10.1.0.6 /10.1.5.1"},
		{"10.1.0.7:80", "/10.1.0.7 ns/lost"},
		{"10.0.0.4:80", "/10.0.0.4 ns/wp"},
		{"10.0.0.5:80", "/10.0.0.5 ns/lost"},
		{"10.1.0.8:80", "/10.1.0.8 ns/gw"},
	} {
		o, wishes := all.learn(query(tc.dst))
		if got, want := tell(o), tell(ask(build(all...), tc.dst)); got != want {
			t.Errorf("%s:\ngot  %s\nwant %s", tc.dst, got, want)
		}
		for _, used := range o.Used {
			if len(all.about(used)) == 0 {
				t.Errorf("%s: used %q, which is no resource", tc.dst, used)
			}
		}
		if o.NextHop != nil && !slices.Contains(o.Used, o.NextHop.UID) || o.Service != nil && !slices.Contains(o.Used, o.Service.Key().String()) {
			t.Errorf("%s: used only %q", tc.dst, o.Used)
		}
		if got := strings.Join(wishes, " "); got != tc.wishes {
			t.Errorf("%s: asked for %q, want %q", tc.dst, got, tc.wishes)
		}
	}
}

// A waypoint that asks for who is behind it must not be sent to itself because
// it does not know itself.
func TestOnDemandAWaypointKnowsItself(t *testing.T) {
	all := teller{hbone("pod", "10.0.0.2", behind("wp:15008")), hbone("client", "10.0.0.1", in("wp")), service("wp", "", []uint16{15008, 15008})}
	o, wishes := all.learn(query("10.0.0.2:80"))
	if got := tell(o); got != "HBONE 10.0.0.2:15008 asks=10.0.0.2:80 next=pod expects=pod" {
		t.Errorf("got %s after %q", got, wishes)
	}
}

func TestTwoNetworksAreAskedAbout(t *testing.T) {
	q := query("10.0.0.9:80")
	q.Network = "ours"
	_, wishes := teller{}.learn(q)
	if want := []string{"ours/10.0.0.9", "/10.0.0.9"}; !slices.Equal(wishes, want) {
		t.Errorf("asked for %q, want %q", wishes, want)
	}
}

// What was chosen before something had to be asked for stays chosen.
func TestAChoiceOutlivesAWish(t *testing.T) {
	svc := service("svc", "10.1.0.1", []uint16{80, 80}, func(s *mesh.Service) {
		s.WeightedWaypoints = []mesh.WeightedWaypoint{
			{Destination: *gatewayTo("a:15008"), Weight: 1}, {Destination: *gatewayTo("b:15008"), Weight: 1},
		}
	})
	turn := 0
	pick := func([]Candidate) int { turn++; return turn % 2 }
	q := query("10.1.0.1:80")
	q.OnDemand = true
	o := Decide(build(svc), q, pick)
	if o.Learn != "ns/b" {
		t.Fatalf("wishes for %q", o.Learn)
	}
	o = Decide(build(svc), o.Learned(), pick)
	if got := tell(o); got != "refuse: unknown waypoint: waypoint b not found" {
		t.Errorf("then %s", got)
	}
}

func TestWishesAreBounded(t *testing.T) {
	q := query("10.0.0.2:80")
	q.OnDemand = true
	for i := range maxLearned {
		q = Outcome{query: q, Learn: string(rune('a' + i))}.Learned()
	}
	if o := Decide(build(), q, first); o.Kind != Direct {
		t.Errorf("%v %q", o.Kind, o.Learn)
	}
}

func TestWhatAnInboundRequestNeedsToBeKnown(t *testing.T) {
	pod := hbone("pod", "10.0.0.2", in("svc", 80, 9090))
	v := build(pod, service("known", "10.1.0.1", []uint16{80, 80}), hbone("other", "10.0.0.3"),
		hbone("behind", "10.0.0.4", behind("wp:15008")), service("viaAddr", "10.1.0.2", nil, via("/10.0.5.1:15008")),
		hbone("behindPod", "10.0.0.5", behind("/10.0.0.2:15008")))
	tunnelled := hbone("tunnelled", "10.0.0.2", withTunnel(mesh.TunnelProxy, 15088))
	for _, tc := range []struct {
		local  *mesh.Workload
		target string
		want   string
	}{
		{pod, "10.0.0.2:80", ""},
		{pod, "10.0.0.3:80", ""},
		{pod, "10.1.0.1:80", ""},
		{pod, "10.9.9.9:80", "/10.9.9.9"},
		{tunnelled, "10.9.9.9:80", ""},
		{pod, "10.0.0.4:80", "ns/wp"},
		{pod, "10.0.0.5:80", ""},
		{pod, "10.1.0.2:80", "/10.0.5.1"},
		{pod, "known:80", ""},
		{pod, "svc:80", "ns/svc"},
		{pod, "else:80", "ns/else"},
	} {
		target, err := ParseTarget(tc.target)
		if err != nil {
			t.Fatal(err)
		}
		in := Inbound{Local: tc.local, Addr: netip.MustParseAddr("10.0.0.2")}
		if got := strings.Join(in.Unknown(v, target), " "); got != tc.want {
			t.Errorf("%s of %s: %q, want %q", tc.target, tc.local.UID, got, tc.want)
		}
	}
}
