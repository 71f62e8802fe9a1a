// SPDX-License-Identifier: Apache-2.0

package istiod

import (
	"fmt"
	"net/netip"
	"testing"
)

// TestTwoNetworks has two clusters with a network and an istiod each, and a
// gateway into the second: from one, its pods are reached by a tunnel to the
// gateway and another one within it, to the pod's own proxy.
func TestTwoNetworks(t *testing.T) {
	const (
		host    = "across.default.svc.cluster.local"
		network = "second"
	)
	vip := netip.MustParseAddr("10.96.0.50")
	here := plan(t, "ebpf")
	here.network = "first"
	here.istiod.apply(t, namespaceYAML("istio-system", here.network), meshConfigYAML)
	there := &world{t: t, lab: here.lab, mesh: here.mesh, outside: here.outside, capture: "ebpf", network: network}
	there.cluster("control2")
	there.n1 = there.node("node3")

	here.istiod.start()
	there.istiod.start()
	here.p1, there.p1 = here.join(here.n1, nil), there.join(there.n1, nil)
	a := here.add(here.p1, podSpec{name: "a", namespace: "default"})
	r := there.add(there.p1, podSpec{name: "r", namespace: "default"})
	there.serve(r, "r")
	gate := there.bare(there.n1, podSpec{name: "gate", namespace: "istio-system", plain: true})
	g := there.openGate(t, gate, gateway(r))

	service := serviceYAML("across", "default", "r", globalLabel, vip.String())
	here.istiod.apply(t, service, remoteGatewayYAML(gate, network), elsewhereYAML(r, network))
	there.istiod.apply(t, service)
	must(t, here.p1.AwaitReady(here.patience()))
	must(t, there.p1.AwaitReady(there.patience()))

	since1, since2 := here.p1.Output.Mark(), there.p1.Output.Mark()
	reaches(t, a.Host, at(vip, viaHTTP), "r", gate.IPv4)
	g.heard(t, a, fmt.Sprintf("%s:%d", host, viaHTTP))
	here.tunnelled(t, here.p1, since1, a, r, `direction="outbound"`, fmt.Sprintf(`dst.service="%s"`, host))
	there.tunnelled(t, there.p1, since2, a, r, `direction="inbound"`)

	c := dial(t, a.Host, at(vip, viaEcho))
	for i := range 100 {
		must(t, echo(c, fmt.Sprintf("word %d;", i)))
	}
}
