// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"fmt"
	"net/netip"
	"regexp"
	"testing"

	"github.com/miekg/dns"

	"github.com/ztunnel-go/ztunnel/test/netlab/serve"
	"github.com/ztunnel-go/ztunnel/test/rig"
)

// TestNameserversChange gives a running proxy other nameservers, none, and one
// that is dead before one that is not.
func TestNameserversChange(t *testing.T) {
	w := plan(t)
	elsewhere := w.node("elsewhere")
	first, second := netip.MustParseAddr("203.0.113.7"), netip.MustParseAddr("203.0.113.8")
	records := func(a netip.Addr) serve.Options {
		return serve.Options{DNS: port(53), Records: map[string][]netip.Addr{outsideName: {a}, "more." + outsideName: {a}}}
	}
	w.serve(w.outside.Host, records(first))
	w.serve(elsewhere.Host, records(second))
	w.up()
	pc, err := w.a.ListenPacket("udp4", "0.0.0.0:0")
	must(t, err)
	defer pc.Close()
	ask(t, pc, at(w.resolvers[0], 53), outsideName, first)

	must(t, w.mesh.SetNameservers(elsewhere.IPv4))
	w.eventually(t, func() error {
		reply := exchange(t, pc, at(w.resolvers[0], 53), new(dns.Msg).SetQuestion(dns.Fqdn(outsideName), dns.TypeA))
		for _, rr := range reply.Answer {
			if a, ok := rr.(*dns.A); ok && a.A.Equal(second.AsSlice()) {
				return nil
			}
		}
		return fmt.Errorf("still %v", reply.Answer)
	})

	since := w.p1.Output.Mark()
	must(t, w.mesh.SetNameservers())
	w.logged(t, w.p1, since, "the new resolver configuration is refused", "no nameserver line")
	ask(t, pc, at(w.resolvers[0], 53), outsideName, second)
	ask(t, pc, at(w.resolvers[0], 53), "more."+outsideName, second)

	since = w.p1.Output.Mark()
	must(t, w.mesh.SetNameservers(w.n2.IPv4, elsewhere.IPv4)) // nobody answers DNS there
	w.logged(t, w.p1, since, "the resolver configuration has changed")
	ask(t, pc, at(w.resolvers[0], 53), outsideName, second)
	ask(t, pc, at(w.resolvers[0], 53), serviceName, serviceVIPs()[0])
}

// TestWorkloadsByName connects to a service whose only workload is a name: it
// is looked up once for all connections of both pods.
func TestWorkloadsByName(t *testing.T) {
	w := plan(t)
	w.serve(w.outside.Host, serve.Options{
		HTTP: port(portHTTP), DNS: port(53), Records: map[string][]netip.Addr{outsideName: {w.outside.IPv4}},
	})
	vip := netip.MustParseAddr("10.96.0.77")
	far := &rig.Workload{
		UID: "far", Name: "far", Namespace: "default", ServiceAccount: "far", TrustDomain: "cluster.local",
		IPs: []netip.Addr{}, WorkloadType: "pod", Hostname: outsideName, Protocol: "TCP", ClusterID: "Kubernetes", Services: map[string]map[uint16]uint16{},
	}
	w.state.Workloads = append(w.state.Workloads, far)
	w.state.Services = append(w.state.Services, (&rig.Service{
		Name: "far", Namespace: "default", Hostname: "far.example", VIPs: []string{"/" + vip.String()}, Ports: map[uint16]uint16{80: portHTTP},
	}).Join(far))
	must(t, w.mesh.SetState(w.state))
	// Without IPv6 no AAAA is asked for. That there is none would be asked for
	// again each time: the lab's server says for no time that it is so.
	w.up(rig.Options{Env: map[string]string{"IPV6_ENABLED": "false"}})
	for range 3 {
		get(t, w.a.Host, at(vip, 80))
		get(t, w.c.Host, at(vip, 80))
	}
	w.eventually(t, func() error {
		_, page, err := w.p1.Get(t.Context(), "15020/metrics")
		if err != nil {
			return err
		}
		for name, want := range map[string]int{"istio_on_demand_dns_total": 6, "istio_on_demand_dns_cache_misses_total": 1} {
			sum := 0
			for _, m := range regexp.MustCompile(`(?m)^`+name+`\{.*\} (\d+)$`).FindAllStringSubmatch(page, -1) {
				n := 0
				fmt.Sscan(m[1], &n)
				sum += n
			}
			if sum != want {
				return fmt.Errorf("%s: %d, want %d", name, sum, want)
			}
		}
		return nil
	})
}
