// SPDX-License-Identifier: Apache-2.0

package route

import (
	"net/netip"
	"testing"

	"github.com/ztunnel-go/ztunnel/internal/mesh"
)

// The rows of contract 3.2 and the examples of 3.9 that need no waypoint or
// gateway.
func TestTheDecisionTable(t *testing.T) {
	hostNetwork := func(w *mesh.Workload) { w.NetworkMode = mesh.HostNetwork }
	v := build(
		hbone("pod", "10.0.0.2 fd00::2"),
		plain("outside", "10.0.0.3"),
		plain("elsewhere", "10.0.0.2", inNetwork("remote", "")), // the same address is another's there
		hbone("client", "10.0.0.1", in("own.svc")),

		service("svc", "10.1.0.1 fd01::1", []uint16{80, 8080, 443, 0}),
		hbone("one", "10.0.1.1 fd00:1::1", in("svc")),
		service("plain.svc", "10.1.0.2", []uint16{80, 8080}),
		plain("two", "10.0.1.2", in("plain.svc", 80, 9090)),
		service("own.svc", "10.1.0.3", []uint16{80, 8080}),
		service("empty.svc", "10.1.0.4", []uint16{80, 8080}),
		service("pass.svc", "10.1.0.5", []uint16{80, 8080}, balanced(mesh.BalancePassthrough)),
		hbone("three", "10.0.1.3", in("pass.svc")),

		hbone("node", "10.0.9.9", hostNetwork),
		hbone("onNode", "10.0.9.9", hostNetwork, in("node.svc")),
		service("node.svc", "10.1.0.6", []uint16{80, 8080}),

		hbone("both", "10.1.0.7"),
		service("both.svc", "10.1.0.7", []uint16{80, 8080}),
		hbone("four", "10.0.1.4", in("both.svc")),
		hbone("both2", "10.1.0.8"),
		service("both2.svc", "10.1.0.8", []uint16{80, 8080}),
	)
	hold(t, v, []row{
		{"B: a VIP with nobody behind it", "10.1.0.4:80", "refuse: no healthy upstream: 10.1.0.4:80"},
		{"B: a VIP with an unknown port", "10.1.0.1:81", "refuse: no healthy upstream: 10.1.0.1:81"},
		{"B: in IPv6", "[fd01::1]:81", "refuse: no healthy upstream: [fd01::1]:81"},
		{"B: a named port that no endpoint maps", "10.1.0.1:443", "refuse: no healthy upstream: 10.1.0.1:443"},
		{"C: an unknown address", "1.2.3.4:80", "TCP 1.2.3.4:80"},
		{"C: an unknown address in IPv6", "[2001:db8::1]:80", "TCP [2001:db8::1]:80"},
		{"C: a passthrough service has no labels", "10.1.0.5:80", "TCP 10.1.0.5:80"},
		{"C: a node's address is nobody's", "10.0.9.9:80", "TCP 10.0.9.9:80"},
		{"C: a workload's address that is also an empty service's", "10.1.0.8:80", "TCP 10.1.0.8:80"},
		{"F: a pod by address", "10.0.0.2:80", "HBONE 10.0.0.2:15008 asks=10.0.0.2:80 next=pod expects=pod"},
		{"F: a pod by its other address", "[fd00::2]:80", "HBONE [fd00::2]:15008 asks=[fd00::2]:80 next=pod expects=pod"},
		{"F: a mapped address is the IPv4 one", "[::ffff:10.0.0.2]:80", "HBONE 10.0.0.2:15008 asks=10.0.0.2:80 next=pod expects=pod"},
		{"F: a service", "10.1.0.1:80", "HBONE 10.0.1.1:15008 asks=10.0.1.1:8080 next=one service=svc expects=one"},
		{"F: a service in IPv6", "[fd01::1]:80", "HBONE [fd00:1::1]:15008 asks=[fd00:1::1]:8080 next=one service=svc expects=one"},
		{"F: a host network endpoint of a service", "10.1.0.6:80", "HBONE 10.0.9.9:15008 asks=10.0.9.9:8080 next=onNode service=node.svc expects=onNode"},
		{"F: an address that is both is balanced", "10.1.0.7:80", "HBONE 10.0.1.4:15008 asks=10.0.1.4:8080 next=four service=both.svc expects=four"},
		{"F: one's own port 15001 is the receiver's to refuse", "10.0.0.1:15001", "HBONE 10.0.0.1:15008 asks=10.0.0.1:15001 next=client expects=client"},
		{"G: a pod outside the mesh", "10.0.0.3:80", "TCP 10.0.0.3:80 next=outside"},
		{"F: one's own service is asked through a tunnel", "10.1.0.3:80", "HBONE 10.0.0.1:15008 asks=10.0.0.1:8080 next=client service=own.svc expects=client"},
		{"G: a service outside the mesh, by the endpoint's port", "10.1.0.2:80", "TCP 10.0.1.2:9090 next=two service=plain.svc"},
	})
}

func TestWhoseNetworkCounts(t *testing.T) {
	v := build(
		hbone("here", "10.0.0.2", inNetwork("home", "")),
		hbone("there", "10.0.0.3", inNetwork("away", "")),
	)
	q := query("10.0.0.2:80")
	q.Source = hbone("client", "10.0.0.1", inNetwork("home", ""))
	q.Network = "home"
	if got, want := tell(Decide(v, q, first)), "HBONE 10.0.0.2:15008 asks=10.0.0.2:80 next=here expects=here"; got != want {
		t.Errorf("the own network: %s", got)
	}
	q.Dst = netip.MustParseAddrPort("10.0.0.3:80")
	if got, want := tell(Decide(v, q, first)), "TCP 10.0.0.3:80"; got != want {
		t.Errorf("an address of another network: %s", got)
	}
}

func TestServicesAreSeenByWhomTheyAreFor(t *testing.T) {
	private := func(namespace string) func(*mesh.Service) {
		return func(s *mesh.Service) { s.Namespace, s.Visibility = namespace, mesh.NamespaceOnly }
	}
	v := build(
		service("mine", "10.1.0.1", []uint16{80, 80}, private("ns")),
		service("theirs", "10.1.0.2", []uint16{80, 80}, private("other")),
	)
	hold(t, v, []row{
		{"of the client's namespace", "10.1.0.1:80", "refuse: no healthy upstream: 10.1.0.1:80"},
		{"of another", "10.1.0.2:80", "TCP 10.1.0.2:80"},
	})
}

func TestRangesOfAddresses(t *testing.T) {
	wide := service("wide", "", []uint16{80, 80})
	wide.CIDRVIPs = []mesh.NetworkPrefix{{Prefix: netip.MustParsePrefix("10.1.0.0/16")}}
	narrow := service("narrow", "", []uint16{80, 80})
	narrow.CIDRVIPs = []mesh.NetworkPrefix{{Prefix: netip.MustParsePrefix("10.1.1.0/24")}}
	v := build(wide, narrow, service("exact", "10.1.1.1", []uint16{80, 80}),
		hbone("w", "10.0.0.2", in("wide")), hbone("n", "10.0.0.3", in("narrow")), hbone("e", "10.0.0.4", in("exact")))
	hold(t, v, []row{
		{"only the wide one", "10.1.9.9:80", "HBONE 10.0.0.2:15008 asks=10.0.0.2:80 next=w service=wide expects=w"},
		{"the narrower one", "10.1.1.9:80", "HBONE 10.0.0.3:15008 asks=10.0.0.3:80 next=n service=narrow expects=n"},
		{"the exact one", "10.1.1.1:80", "HBONE 10.0.0.4:15008 asks=10.0.0.4:80 next=e service=exact expects=e"},
		{"none", "10.2.0.1:80", "TCP 10.2.0.1:80"},
	})
}

func TestWhoMayAnswerForAService(t *testing.T) {
	v := build(
		service("svc", "10.1.0.1", []uint16{80, 80}, sans("spiffe://td/ns/ns/sa/first", "not an id", "spiffe://td/ns/ns/sa/second")),
		hbone("pod", "10.0.0.2", in("svc")),
	)
	o := ask(v, "10.1.0.1:80")
	if got, want := accounts(o.Expect), "first,second,pod"; got != want {
		t.Errorf("expects %s, want %s", got, want)
	}
	if len(o.Warnings) != 1 || o.Warnings[0] != "ignoring invalid SAN not an id of service ns/svc" {
		t.Errorf("warnings %q", o.Warnings)
	}
	// By its own address nobody else may answer for it.
	if got, want := accounts(ask(v, "10.0.0.2:80").Expect), "pod"; got != want {
		t.Errorf("by address expects %s, want %s", got, want)
	}
}

func TestTheProxysOwnPorts(t *testing.T) {
	ports := IllegalPorts{15001, 15006, 15008}
	for _, tc := range []struct {
		dst  string
		want error
	}{
		{"127.0.0.1:15001", ErrRecursive}, {"127.9.9.9:15008", ErrRecursive}, {"[::1]:15006", ErrRecursive},
		{"[::ffff:127.0.0.1]:15001", ErrRecursive}, {"127.0.0.1:80", nil}, {"10.0.0.1:15001", nil},
	} {
		if got := ports.Outbound(netip.MustParseAddrPort(tc.dst)); got != tc.want {
			t.Errorf("%s: %v", tc.dst, got)
		}
	}
	if ports.Inbound(15001) != ErrRecursive || ports.Inbound(80) != nil {
		t.Error("inbound")
	}
	if got := ErrRecursive.Error(); got != "attempted recursive call to ourselves" {
		t.Errorf("text %q", got)
	}
}

func TestWithoutASourceThereIsNoDecision(t *testing.T) {
	if o := Decide(build(), Query{Dst: netip.MustParseAddrPort("1.2.3.4:80")}, first); o.Kind != Refuse {
		t.Errorf("decided: %s", tell(o))
	}
}

func TestStepsAreOnlyForThoseWhoAsk(t *testing.T) {
	q := query("1.2.3.4:80")
	q.Explain = false
	if o := Decide(build(), q, first); o.Steps != nil {
		t.Errorf("steps %q", o.Steps)
	}
}
