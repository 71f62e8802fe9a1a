// SPDX-License-Identifier: Apache-2.0

package mesh

import (
	"net/netip"
	"strings"
	"testing"
)

// svc reads "namespace/hostname address..." where an address is "ip", "net/ip"
// or a range "net:ip/bits"; canonical and private are words of their own.
func svc(text string) *Service {
	words := strings.Fields(text)
	ns, hostname, _ := strings.Cut(words[0], "/")
	s := &Service{Namespace: ns, Hostname: hostname, Name: hostname}
	for _, w := range words[1:] {
		network, rest, isRange := strings.Cut(w, ":/")
		switch {
		case w == "canonical":
			s.Canonical = true
		case w == "private":
			s.Visibility = NamespaceOnly
		case isRange:
			s.CIDRVIPs = append(s.CIDRVIPs, NetworkPrefix{network, netip.MustParsePrefix(rest)})
		default:
			s.VIPs = append(s.VIPs, addr(w))
		}
	}
	return s
}

func TestServiceByAddress(t *testing.T) {
	for _, tc := range []struct {
		name     string
		services string // one to a line
		at, from string
		want     string
	}{
		{"exact before range", "ns/range :/10.0.0.0/8\nns/exact 10.0.0.1", "10.0.0.1", "ns", "exact"},
		{"exact before range in IPv6", "ns/range :/fd00::/8\nns/exact fd00::1", "fd00::1", "ns", "exact"},
		{"range", "ns/range :/10.0.0.0/8", "10.9.9.9", "ns", "range"},
		{"range in IPv6", "ns/range :/fd00::/8", "fd12::9", "ns", "range"},
		{"outside of the range", "ns/range :/10.0.0.0/8", "11.0.0.1", "ns", ""},
		{"longest range", "ns/wide :/10.0.0.0/8\nns/narrow :/10.1.0.0/16", "10.1.0.1", "ns", "narrow"},
		{"longest range, told of first", "ns/narrow :/10.1.0.0/16\nns/wide :/10.0.0.0/8", "10.1.0.1", "ns", "narrow"},
		{"longest range in IPv6", "ns/wide :/fd00::/8\nns/narrow :/fd00:1::/32", "fd00:1::1", "ns", "narrow"},
		{"first of equal ranges", "ns/one :/10.0.0.0/8\nns/two :/10.0.0.0/8", "10.0.0.1", "ns", "one"},
		{"canonical of equal ranges", "a/one :/10.0.0.0/8\nb/two :/10.0.0.0/8 canonical", "10.0.0.1", "ns", "two"},
		{"range of another network", "ns/range net:/10.0.0.0/8", "10.0.0.1", "ns", ""},
		{"range of the network", "ns/range net:/10.0.0.0/8", "net/10.0.0.1", "ns", "range"},
		{"range of another family", "ns/range :/::/0", "10.0.0.1", "ns", ""},
		{"both families", "ns/range :/10.0.0.0/8 :/fd00::/8", "fd00::1", "ns", "range"},
		{"exact in one family, range in the other", "ns/both 10.0.0.1 :/fd00::/8", "fd00::1", "ns", "both"},
		{"overlapping ranges, own namespace first", "a/one :/10.0.0.0/8\nns/two :/10.0.0.0/8", "10.0.0.1", "ns", "two"},
		{"own namespace before a longer range", "a/narrow :/10.1.0.0/16\nns/wide :/10.0.0.0/8", "10.1.0.1", "ns", "wide"},
		{"a longer range before a canonical one", "a/wide :/10.0.0.0/8 canonical\nb/narrow :/10.1.0.0/16", "10.1.0.1", "ns", "narrow"},
		{"shared VIP, own namespace", "a/one 10.0.0.1\nns/two 10.0.0.1", "10.0.0.1", "ns", "two"},
		{"shared VIP, own namespace before canonical", "a/one 10.0.0.1 canonical\nns/two 10.0.0.1", "10.0.0.1", "ns", "two"},
		{"shared VIP, canonical", "a/one 10.0.0.1\nb/two 10.0.0.1 canonical\nc/three 10.0.0.1", "10.0.0.1", "ns", "two"},
		{"shared VIP, last canonical", "a/one 10.0.0.1 canonical\nb/two 10.0.0.1 canonical", "10.0.0.1", "ns", "two"},
		{"shared VIP, first", "a/one 10.0.0.1\nb/two 10.0.0.1", "10.0.0.1", "ns", "one"},
		{"private VIP of the namespace", "ns/one 10.0.0.1 private", "10.0.0.1", "ns", "one"},
		{"private VIP of another", "a/one 10.0.0.1 private", "10.0.0.1", "ns", ""},
		{"private VIP gives way to a public one", "a/one 10.0.0.1 private canonical\nb/two 10.0.0.1", "10.0.0.1", "ns", "two"},
		{"private VIP gives way to a range", "a/one 10.0.0.1 private\nb/range :/10.0.0.0/8", "10.0.0.1", "ns", "range"},
		{"private range of another", "a/one :/10.0.0.0/8 private", "10.0.0.1", "ns", ""},
		{"nobody in particular sees public ones", "a/one 10.0.0.1 private\nb/two 10.0.0.1", "10.0.0.1", "", "two"},
	} {
		s := NewStore()
		for line := range strings.SplitSeq(tc.services, "\n") {
			apply(s, func(u *Update) { u.PutService(svc(line)) })
		}
		got := ""
		if found := s.View().ServiceByVIP(addr(tc.at), tc.from); found != nil {
			got = found.Name
		}
		want(t, tc.name, got, tc.want)
	}
}

func TestAnyServiceByAddressSeesPrivateOnes(t *testing.T) {
	s := NewStore()
	apply(s, func(u *Update) {
		u.PutService(svc("a/one 10.0.0.1 private"))
		u.PutService(svc("a/range :/10.0.0.0/8 private"))
	})
	if got := s.View().AnyServiceByVIP(addr("10.0.0.1")); got == nil || got.Name != "one" {
		t.Errorf("exact: %v", got)
	}
	if got := s.View().AnyServiceByVIP(addr("10.0.0.2")); got == nil || got.Name != "range" {
		t.Errorf("range: %v", got)
	}
}

func TestServiceByHostname(t *testing.T) {
	s := NewStore()
	apply(s, func(u *Update) {
		for _, text := range []string{"a/h", "b/h canonical", "c/h private", "d/h"} {
			u.PutService(svc(text))
		}
	})
	for from, namespace := range map[string]string{"a": "a", "c": "c", "x": "b", "": "b"} {
		if got := s.View().ServiceByHostname("h", from); got == nil || got.Namespace != namespace {
			t.Errorf("from %q: %+v, want %s", from, got, namespace)
		}
	}
	if got := len(s.View().ServicesByHostname("h")); got != 4 {
		t.Errorf("%d services", got)
	}
}

func TestAReplacedServiceLeavesNothingBehind(t *testing.T) {
	s := NewStore()
	apply(s, func(u *Update) {
		u.PutService(svc("ns/h 10.0.0.1 :/10.1.0.0/16"))
		u.PutService(svc("ns/h 10.0.0.2 :/10.2.0.0/16"))
	})
	v := s.View()
	for at, known := range map[string]bool{"10.0.0.1": false, "10.1.0.1": false, "10.0.0.2": true, "10.2.0.1": true} {
		if got := v.ServiceByVIP(addr(at), "ns") != nil; got != known {
			t.Errorf("%s: %v", at, got)
		}
	}
	apply(s, func(u *Update) { u.RemoveService(host("h")) })
	empty(t, s)
}

// A member that joins a service with ranges is there at once (the reference
// keeps the members that the service had when it came: contract 3.4).
func TestARangeServesTheMembersOfToday(t *testing.T) {
	s := NewStore()
	apply(s, func(u *Update) {
		u.PutService(svc("ns/h :/10.0.0.0/8"))
		u.PutWorkload(pod("a", "", Healthy, "h"))
	})
	found := s.View().ServiceByVIP(addr("10.0.0.1"), "ns")
	want(t, "endpoints", endpoints(s.View(), found.Hostname), "a")
}

func TestNames(t *testing.T) {
	for _, tc := range []struct{ got, want string }{
		{HBONE.String(), "HBONE"}, {HostNetwork.String(), "HostNetwork"}, {Unhealthy.String(), "Unhealthy"}, {CronJob.String(), "cronjob"},
		{TunnelProxy.String(), "PROXY"}, {ScopeNetwork.String(), "Network"}, {BalanceFailover.String(), "Failover"}, {AllowAll.String(), "AllowAll"},
		{IPv6Only.String(), "IPv6"}, {NamespaceOnly.String(), "Namespace"}, {ScopeWorkloadSelector.String(), "WorkloadSelector"},
		{Deny.String(), "Deny"}, {Presence.String(), "Presence"}, {Action(9).String(), "unknown"},
	} {
		want(t, "name", tc.got, tc.want)
	}
}

func TestParseNamespacedHostname(t *testing.T) {
	for in, ok := range map[string]bool{"ns/h": true, "/h": true, "h": false, "ns/h/x": false, "": false} {
		if _, got := ParseNamespacedHostname(in); got != ok {
			t.Errorf("%q: %v", in, got)
		}
	}
}
