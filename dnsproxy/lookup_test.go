// SPDX-License-Identifier: Apache-2.0

package dnsproxy

import (
	"net/netip"
	"testing"

	"github.com/miekg/dns"
	"github.com/ztunnel-go/ztunnel/internal/mesh"
	"github.com/ztunnel-go/ztunnel/test/leak"
)

func lookupStore() *mesh.Store {
	return store([]*mesh.Service{
		service("ns1/productpage.ns1.svc.cluster.local", "9.9.9.9"),
		service("ns1/details.ns1.svc.cluster.local", "9.9.9.10", "2001:db8::10"),
		service("ns2/reviews.ns2.svc.cluster.local", "10.10.10.10"),
		with(service("ns2/secret.ns2.svc.cluster.local", "10.10.10.11"), hidden),
		with(service("ns1/own-secret.ns1.svc.cluster.local", "10.10.10.12"), hidden),
		service("ns1/details.ns1.svc.clusterset.local", "3.0.0.1", "3.0.0.2", "3.0.0.3", "3.0.0.4"),
		service("ns1/www.google.com", "1.1.1.1"),
		service("ns1/both.example.com", "1.1.1.2", "2001:db8::2"),
		service("ns1/*.wild.example.com", "1.1.1.3"),
		service("ns1/*.deep.wild.example.com", "1.1.1.4"),
		service("ns1/exact.deep.wild.example.com", "1.1.1.5"),
		service("ns1/away.example.com", there+"/1.1.1.6"),
		service("ns1/half-away.example.com", there+"/1.1.1.7", "1.1.1.8"),
		with(service("ns1/only4.ns1.svc.cluster.local", "9.9.9.4", "2001:db8::4"), families(mesh.IPv4Only)),
		with(service("ns1/only6.ns1.svc.cluster.local", "9.9.9.6", "2001:db8::6"), families(mesh.IPv6Only)),
		with(service("ns1/dual.ns1.svc.cluster.local", "9.9.9.7", "2001:db8::7"), families(mesh.DualStack)),
		service("ns1/headless.ns1.svc.cluster.local"),
		service("ns1/sick.ns1.svc.cluster.local"),
		service("ns1/void.ns1.svc.cluster.local"),
		service("ns1/headless.example.com"),
		with(service("ns1/range.example.com"), func(s *mesh.Service) {
			s.CIDRVIPs = []mesh.NetworkPrefix{{Network: here}}
		}),
		service("ns3/preferred.example.com", "4.4.4.3"),
		service("preferred-ns/preferred.example.com", "4.4.4.4"),
		service("ns3/local.example.com", "4.4.4.5"),
		with(service("ns3/local.example.com", "4.4.4.6"), canonical),
		service("preferred-ns/local.example.com", "4.4.4.7"),
		service("ns1/local.example.com", "4.4.4.8"),
		service("ns3/canonical.example.com", "4.4.4.9"),
		service("preferred-ns/canonical.example.com", "4.4.4.10"),
		with(service("ns4/canonical.example.com", "4.4.4.11"), canonical),
		service("ns3/first.example.com", "4.4.4.12"),
		service("ns4/first.example.com", "4.4.4.13"),
		service("ns1/Capitals.example.com", "4.4.4.14"),
		service("ns1/*.apps.svc.cluster.local", "4.4.4.15"),
	},
		endpoint("a", "ns1/headless.ns1.svc.cluster.local", "11.0.0.1", "2001:db8:1::1", "11.9.9.9"),
		endpoint("b", "ns1/headless.ns1.svc.cluster.local", "11.0.0.2"),
		func() *mesh.Workload {
			w := endpoint("c", "ns1/headless.ns1.svc.cluster.local", "11.0.0.3")
			w.Network = there // a headless address is given whatever its network
			return w
		}(),
		func() *mesh.Workload {
			w := endpoint("d", "ns1/sick.ns1.svc.cluster.local", "11.0.0.4")
			w.Status = mesh.Unhealthy
			return w
		}(),
		endpoint("e", "ns1/headless.example.com", "11.0.0.5"),
		func() *mesh.Workload {
			w := endpoint("f", "ns1/headless.ns1.svc.cluster.local", "11.0.0.6")
			w.Hostname = "pod0.headless.ns1.svc.cluster.local"
			return w
		}(),
	)
}

type lookupCase struct {
	about, name string
	qtype       uint16
	want        string
}

func lookupCases() []lookupCase {
	const (
		ok       = "NOERROR aa ra"
		headless = " headless.ns1.svc.cluster.local./A/11.0.0.1 headless.ns1.svc.cluster.local./A/11.0.0.2" +
			" headless.ns1.svc.cluster.local./A/11.0.0.3 headless.ns1.svc.cluster.local./A/11.0.0.6"
		remote = " details.ns1.svc.clusterset.local./A/3.0.0.1 details.ns1.svc.clusterset.local./A/3.0.0.2" +
			" details.ns1.svc.clusterset.local./A/3.0.0.3 details.ns1.svc.clusterset.local./A/3.0.0.4"
		a, aaaa = dns.TypeA, dns.TypeAAAA
	)
	return []lookupCase{
		{"other types are forwarded, though the name is ours", "www.google.com", dns.TypeNS, "NOERROR ra www.google.com./NS/ns.example.org."},
		{"a name of nobody is forwarded", "www.example.org", a, "NOERROR ra www.example.org./A/192.0.2.1"},
		{"the world's NXDOMAIN", "nowhere.example.org", a, "NXDOMAIN"},
		{"the world's NODATA", "www.example.org", aaaa, "NOERROR"},
		{"the root is forwarded", ".", a, "NXDOMAIN"},
		{"external", "www.google.com", a, ok + " www.google.com./A/1.1.1.1"},
		{"external, in capitals", "wWw.GOOGLE.com", a, ok + " www.google.com./A/1.1.1.1"},
		{"external with the first search domain", "www.google.com.ns1.svc.cluster.local", a, ok + " www.google.com.ns1.svc.cluster.local./CNAME/www.google.com. www.google.com./A/1.1.1.1"},
		{"external with the second search domain", "www.google.com.svc.cluster.local", a, ok + " www.google.com.svc.cluster.local./CNAME/www.google.com. www.google.com./A/1.1.1.1"},
		{"external with the third search domain", "www.google.com.cluster.local", a, ok + " www.google.com.cluster.local./CNAME/www.google.com. www.google.com./A/1.1.1.1"},
		{"another namespace's search domain is none", "www.google.com.ns2.svc.cluster.local", a, "NXDOMAIN"},
		{"service by name", "productpage", a, ok + " productpage./A/9.9.9.9"},
		{"service by name and namespace", "productpage.ns1", a, ok + " productpage.ns1./A/9.9.9.9"},
		{"service by name, namespace and svc", "productpage.ns1.svc", a, ok + " productpage.ns1.svc./A/9.9.9.9"},
		{"service by full name", "productpage.ns1.svc.cluster.local", a, ok + " productpage.ns1.svc.cluster.local./A/9.9.9.9"},
		{"service by full name and search domain", "productpage.ns1.svc.cluster.local.ns1.svc.cluster.local", a, ok + " productpage.ns1.svc.cluster.local.ns1.svc.cluster.local./CNAME/productpage.ns1.svc.cluster.local. productpage.ns1.svc.cluster.local./A/9.9.9.9"},
		{"service of another namespace by name", "reviews", a, "NXDOMAIN"},
		{"service of another namespace", "reviews.ns2", a, ok + " reviews.ns2./A/10.10.10.10"},
		{"service of another namespace, searched", "reviews.ns2.svc.cluster.local", a, ok + " reviews.ns2.svc.cluster.local./A/10.10.10.10"},
		{"short name searched in our namespace first", "reviews.ns2.ns1.svc.cluster.local", a, ok + " reviews.ns2.ns1.svc.cluster.local./CNAME/reviews.ns2. reviews.ns2./A/10.10.10.10"},
		{"another namespace's private service", "secret.ns2.svc.cluster.local", a, "NXDOMAIN"},
		{"our namespace's private service", "own-secret", a, ok + " own-secret./A/10.10.10.12"},
		{"service of another domain with four addresses", "details.ns1.svc.clusterset.local", a, ok + remote},
		{"A of two families", "details", a, ok + " details./A/9.9.9.10"},
		{"AAAA of two families", "details", aaaa, ok + " details./AAAA/2001:db8::10"},
		{"external A of two families", "both.example.com", a, ok + " both.example.com./A/1.1.1.2"},
		{"external AAAA of two families", "both.example.com", aaaa, ok + " both.example.com./AAAA/2001:db8::2"},
		{"empty rather than NXDOMAIN", "productpage", aaaa, ok},
		{"empty, external", "www.google.com", aaaa, ok},
		{"empty, searched, has no CNAME", "www.google.com.cluster.local", aaaa, ok},
		{"wildcard", "x.wild.example.com", a, ok + " x.wild.example.com./A/1.1.1.3"},
		{"wildcard for two labels", "x.y.wild.example.com", a, ok + " x.y.wild.example.com./A/1.1.1.3"},
		{"wildcard is not its own domain", "wild.example.com", a, "NXDOMAIN"},
		{"the more precise wildcard", "x.deep.wild.example.com", a, ok + " x.deep.wild.example.com./A/1.1.1.4"},
		{"no wildcard where the name is known", "exact.deep.wild.example.com", a, ok + " exact.deep.wild.example.com./A/1.1.1.5"},
		{"wildcard with search domain has no CNAME", "x.wild.example.com.ns1.svc.cluster.local", a, ok + " x.wild.example.com.ns1.svc.cluster.local./A/1.1.1.3"},
		{"wildcard of the first alias before a name of the second", "productpage.apps.svc.cluster.local", a, ok + " productpage.apps.svc.cluster.local./A/4.4.4.15"},
		{"address on another network", "away.example.com", a, ok},
		{"one address on another network", "half-away.example.com", a, ok + " half-away.example.com./A/1.1.1.8"},
		{"IPv4 only, A", "only4", a, ok + " only4./A/9.9.9.4"},
		{"IPv4 only, AAAA", "only4", aaaa, ok},
		{"IPv6 only, A", "only6", a, ok},
		{"IPv6 only, AAAA", "only6", aaaa, ok + " only6./AAAA/2001:db8::6"},
		{"dual stack, AAAA", "dual", aaaa, ok + " dual./AAAA/2001:db8::7"},
		{"headless, A", "headless.ns1.svc.cluster.local", a, ok + headless},
		{"headless, AAAA", "headless", aaaa, ok + " headless./AAAA/2001:db8:1::1"},
		{"headless with a sick endpoint", "sick", a, ok},
		{"headless without endpoints", "void", a, ok},
		{"pods of headless services are forwarded", "pod0.headless.ns1.svc.cluster.local", a, "NXDOMAIN"},
		{"headless external is forwarded", "headless.example.com", a, "NXDOMAIN"},
		{"external with a range only is forwarded", "range.example.com", a, "NXDOMAIN"},
		{"preferred namespace", "preferred.example.com", a, ok + " preferred.example.com./A/4.4.4.4"},
		{"our namespace over all", "local.example.com", a, ok + " local.example.com./A/4.4.4.8"},
		{"canonical over preferred", "canonical.example.com", a, ok + " canonical.example.com./A/4.4.4.11"},
		{"the oldest of equals", "first.example.com", a, ok + " first.example.com./A/4.4.4.12"},
		{"hostnames in capitals never match", "capitals.example.com", a, "NXDOMAIN"},
		{"localhost", "localhost", a, "NOERROR ra localhost./A/127.0.0.1"},
		{"localhost, AAAA", "db.localhost", aaaa, "NOERROR ra db.localhost./AAAA/::1"},
		{"localhost has no mail", "localhost", dns.TypeMX, "NOERROR"},
		{"invalid", "www.invalid", a, "NXDOMAIN"},
		{"onion", "abcdef.onion", aaaa, "NXDOMAIN"},
		{"hosts file", "node.lab", a, "NOERROR ra node.lab./A/192.0.2.77"},
		{"hosts file, other family", "node.lab", aaaa, "NXDOMAIN"},
	}
}

func TestLookup(t *testing.T) {
	leak.Check(t)
	up := fakeUpstream(t, world)
	hosts := parseHosts(t, "192.0.2.77\tNode.lab node # comment\n")
	r := start(t, Config{
		PreferredNamespace: "preferred-ns", IPv6: true,
		View: lookupStore().View(), Upstream: up.config(), Hosts: hosts,
	})
	for _, protocol := range []string{"udp", "tcp"} {
		for _, c := range lookupCases() {
			t.Run(protocol+"/"+c.about, func(t *testing.T) {
				q := question(c.name, c.qtype)
				got := r.ask(protocol, q)
				if show(got) != c.want {
					t.Errorf("%s %s:\n got %s\nwant %s", c.name, dns.TypeToString[c.qtype], show(got), c.want)
				}
				if len(got.Question) != 1 || got.Question[0] != q.Question[0] {
					t.Errorf("question echoed as %v", got.Question)
				}
				if len(got.Ns)+len(got.Extra) != 0 {
					t.Errorf("records beyond the answer: %v %v", got.Ns, got.Extra)
				}
				for _, rr := range got.Answer {
					if got.Authoritative && rr.Header().Ttl != localTTL {
						t.Errorf("TTL %d", rr.Header().Ttl)
					}
				}
			})
		}
	}
}

func TestNoAAAAWithoutIPv6(t *testing.T) {
	leak.Check(t)
	r := start(t, Config{View: lookupStore().View()})
	if got := show(r.ask("udp", question("details", dns.TypeAAAA))); got != "NOERROR aa ra" {
		t.Error(got)
	}
	if got := show(r.ask("udp", question("details", dns.TypeA))); got != "NOERROR aa ra details./A/9.9.9.10" {
		t.Error(got)
	}
}

func TestSearchDomainsOfDedicatedMode(t *testing.T) {
	leak.Check(t)
	conf := defaultResolvConf()
	conf.Nameservers = []netip.AddrPort{fakeUpstream(t, world).addr}
	conf.Search = []string{"corp.example", "lan"}
	source := NewSource(conf)
	r := start(t, Config{View: lookupStore().View(), Source: source, SearchOfSource: true})
	for name, want := range map[string]string{
		"www.google.com.corp.example":  "NOERROR aa ra www.google.com.corp.example./CNAME/www.google.com. www.google.com./A/1.1.1.1",
		"productpage.lan":              "NOERROR aa ra productpage.lan./CNAME/productpage. productpage./A/9.9.9.9",
		"www.google.com.cluster.local": "NXDOMAIN",
		"corp.example":                 "NXDOMAIN",
	} {
		if got := show(r.ask("tcp", question(name, dns.TypeA))); got != want {
			t.Errorf("%s:\n got %s\nwant %s", name, got, want)
		}
	}
	conf.Search = []string{"cluster.local"}
	source.Set(conf)
	for name, want := range map[string]string{
		"productpage.lan":              "NXDOMAIN",
		"www.google.com.cluster.local": "NOERROR aa ra www.google.com.cluster.local./CNAME/www.google.com. www.google.com./A/1.1.1.1",
	} {
		if got := show(r.ask("udp", question(name, dns.TypeA))); got != want {
			t.Errorf("%s after the list changed:\n got %s\nwant %s", name, got, want)
		}
	}
}
