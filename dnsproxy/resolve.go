// SPDX-License-Identifier: Apache-2.0

package dnsproxy

import (
	"net/netip"
	"strings"

	"github.com/miekg/dns"
	"github.com/ztunnel-go/ztunnel/internal/mesh"
)

// A zone is what turns a bare name into the names of services: the same for
// all queries of one pod.
type zone struct {
	domain    string   // the cluster's, without dots at its ends: cluster.local
	preferred string   // the namespace that wins among equals; empty: none
	search    []string // nil: the three that Kubernetes gives every pod
	ipv6      bool     // whether AAAA is ever answered
}

// with is the zone with the search domains of conf, if there is one.
func (z zone) with(conf *ResolvConf) zone {
	if conf != nil {
		z.search = append([]string{}, conf.Search...) // not nil
	}
	return z
}

// A verdict is what the mesh says of a question.
type verdict uint8

const (
	notOurs     verdict = iota // forward it
	unsupported                // our name, but never with this type
	empty                      // our name, but no such address now
	found
)

// String is the verdict as the access log shows it (contract 11.8).
func (v verdict) String() string {
	switch v {
	case unsupported:
		return "service does not support this record type"
	case empty:
		return "no records"
	case found:
		return "success"
	default:
		return "forwarded"
	}
}

// A resolution is an answer from the mesh. When target is set, the answer
// begins with a CNAME from the name that was asked to target, and the
// addresses belong to target.
type resolution struct {
	verdict verdict
	target  string // fully qualified
	addrs   []netip.Addr
}

// resolve answers a question from the mesh (contract 11.2 to 11.5). name is
// fully qualified and lower case; client is who asks. The order of addresses
// is that of the mesh; whoever answers shuffles them.
func resolve(v mesh.View, z zone, client *mesh.Workload, name string, qtype uint16) resolution {
	if qtype != dns.TypeA && qtype != dns.TypeAAAA {
		return resolution{}
	}
	m, ok := z.match(v, client, name)
	if !ok {
		return resolution{}
	}
	v6 := qtype == dns.TypeAAAA
	if v6 && !z.ipv6 || !hasFamily(m.service, v6) {
		return resolution{verdict: unsupported}
	}
	addrs := addresses(v, m.service, client.Network, v6)
	if len(addrs) == 0 {
		return resolution{verdict: empty}
	}
	r := resolution{verdict: found, addrs: addrs}
	if m.stripped != "" && !m.wildcard {
		r.target = m.stripped + "."
	}
	return r
}

// An alias is a name that a question may mean. stripped is what was left of
// the question when a search domain was taken off to arrive here; empty when
// none was.
type alias struct{ name, stripped string }

type match struct {
	service  *mesh.Service
	stripped string
	wildcard bool // the service was found under a *
}

// match finds the service a name means. The order of aliases rules over the
// precision of wildcards: all wildcards of the first alias come before the
// second alias (contract 11.3).
func (z zone) match(v mesh.View, client *mesh.Workload, name string) (match, bool) {
	for _, a := range z.aliases(strings.TrimSuffix(name, "."), client.Namespace) {
		for i, key := range keys(a.name) {
			if svc := z.choose(v.ServicesByHostname(key), client.Namespace); svc != nil {
				return match{service: svc, stripped: a.stripped, wildcard: i > 0}, true
			}
		}
	}
	return match{}, false
}

func (z zone) aliases(name, namespace string) []alias {
	if name == "" {
		return nil // the root
	}
	seen := make(map[string]bool, 8)
	var out []alias
	add := func(name, stripped string) {
		if !seen[name] {
			seen[name] = true
			out = append(out, alias{name, stripped})
		}
	}
	add(name, "")
	for _, n := range z.expand(name, namespace) {
		add(n, "")
	}
	for _, domain := range z.searchDomains(namespace) {
		short, ok := strings.CutSuffix(name, "."+domain)
		if !ok || short == "" {
			continue
		}
		add(short, short)
		for _, n := range z.expand(short, namespace) {
			add(n, short)
		}
	}
	return out
}

func (z zone) searchDomains(namespace string) []string {
	if z.search != nil {
		return z.search
	}
	return []string{namespace + ".svc." + z.domain, "svc." + z.domain, z.domain}
}

// expand lists the Kubernetes names that a short name may stand for
// (contract 11.3, by the number of labels).
func (z zone) expand(name, namespace string) []string {
	labels := dns.SplitDomainName(name)
	last := ""
	if len(labels) > 0 {
		last = labels[len(labels)-1]
	}
	switch {
	case len(labels) == 1:
		return []string{name + "." + namespace + ".svc." + z.domain}
	case len(labels) == 2:
		return []string{name + ".svc." + z.domain, name + "." + namespace + ".svc." + z.domain}
	case len(labels) == 3 && last == "svc":
		return []string{name + "." + z.domain, name + ".svc." + z.domain}
	case len(labels) == 3:
		return []string{name + ".svc." + z.domain}
	case len(labels) == 4 && last == "svc":
		return []string{name + "." + z.domain}
	default:
		return nil
	}
}

// keys lists what a name is looked up under: itself, then with ever more of
// its first labels replaced by one *, but never the * alone.
func keys(name string) []string {
	out := []string{name}
	starts := dns.Split(name)
	for _, at := range starts[min(1, len(starts)):] {
		out = append(out, "*."+name[at:])
	}
	return out
}

// choose picks among services of one hostname, oldest first (contract 11.4).
func (z zone) choose(candidates []*mesh.Service, namespace string) *mesh.Service {
	var canonical, preferred, first *mesh.Service
	for _, svc := range candidates {
		if !z.answers(svc) || !svc.VisibleTo(namespace) {
			continue
		}
		if svc.Namespace == namespace {
			return svc
		}
		if canonical == nil && svc.Canonical {
			canonical = svc
		}
		if preferred == nil && z.preferred != "" && svc.Namespace == z.preferred {
			preferred = svc
		}
		if first == nil {
			first = svc
		}
	}
	switch {
	case canonical != nil:
		return canonical
	case preferred != nil:
		return preferred
	default:
		return first
	}
}

// answers reports whether a service is ours to answer for: one with exact
// addresses, or a headless one of the cluster. An external name without an
// address of its own has its real addresses upstream.
func (z zone) answers(svc *mesh.Service) bool {
	return len(svc.VIPs) > 0 || strings.HasSuffix(svc.Hostname, ".svc."+z.domain)
}

func hasFamily(svc *mesh.Service, v6 bool) bool {
	if svc.IPFamilies == nil {
		return true
	}
	switch *svc.IPFamilies {
	case mesh.IPv4Only:
		return !v6
	case mesh.IPv6Only:
		return v6
	default:
		return true
	}
}

// addresses lists a service's addresses of one family as a client in network
// sees them: its VIPs there, or, if it has none at all, one address of each
// endpoint, whatever network that is in (contract 11.5).
func addresses(v mesh.View, svc *mesh.Service, network string, v6 bool) []netip.Addr {
	var out []netip.Addr
	if len(svc.VIPs) > 0 {
		for _, vip := range svc.VIPs {
			if vip.Network == network && isV6(vip.Addr) == v6 {
				out = append(out, vip.Addr.Unmap())
			}
		}
		return out
	}
	v.Endpoints(svc.Key(), func(_ mesh.Endpoint, w *mesh.Workload) bool {
		for _, ip := range w.IPs {
			if isV6(ip) == v6 {
				out = append(out, ip.Unmap())
				break
			}
		}
		return true
	})
	return out
}

func isV6(a netip.Addr) bool { return !a.Unmap().Is4() }
