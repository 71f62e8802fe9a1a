// SPDX-License-Identifier: Apache-2.0

package istiod

import (
	"fmt"
	"net/netip"
	"testing"
)

// failover has a service that prefers close endpoints: those in the client's
// zone as long as there are any.
func (w *world) failover(t *testing.T) {
	vip := netip.MustParseAddr("10.96.0.20")
	labels := map[string]string{"tier": "spread"}
	near := w.add(w.p1, podSpec{name: "near", namespace: "default", labels: labels})
	far := w.add(w.p2, podSpec{name: "far", namespace: "default", labels: labels})
	w.serve(near, "near")
	w.serve(far, "far")
	w.istiod.during(t, fmt.Sprintf(`apiVersion: v1
kind: Service
metadata:
  name: spread
  namespace: default
spec:
  clusterIP: %[1]q
  clusterIPs: [%[1]q]
  trafficDistribution: PreferClose
  selector: {tier: spread}
  ports:
  - {name: http, port: 80, targetPort: %[2]d, protocol: TCP}
`, vip, portHTTP))
	always := func(client *pod, server string) error {
		const enough = 12 // by chance alone: 1 in 4096
		for range enough {
			if err := reached(client.Host, at(vip, viaHTTP), server, client.IPv4); err != nil {
				return err
			}
		}
		return nil
	}
	eventually(t, func() error { return always(w.a, "near") })
	eventually(t, func() error { return always(w.b, "far") })

	gone := near.spec
	gone.unready = true
	w.istiod.apply(t, gone.yaml())
	eventually(t, func() error { return always(w.a, "far") })
	w.istiod.apply(t, near.spec.yaml())
	eventually(t, func() error { return always(w.a, "near") })

	w.remove(t, near)
	eventually(t, func() error { return always(w.a, "far") })
	w.remove(t, far)
	refused(t, w.a.Host, at(vip, viaHTTP))
}

// remove ends a pod as a cluster does: the agent, then the API server, then
// its network.
func (w *world) remove(t *testing.T, p *pod) {
	t.Helper()
	must(t, p.leave())
	w.istiod.remove(t, p.spec.yaml())
	must(t, p.Delete())
}

// lifeOfAPod follows a pod that joins a service, leaves it and goes.
func (w *world) lifeOfAPod(t *testing.T) {
	vip := netip.MustParseAddr("10.96.0.30")
	w.istiod.during(t, serviceYAML("late", "default", "late", "", vip.String()))
	refused(t, w.a.Host, at(vip, viaHTTP))

	late := w.add(w.p2, podSpec{name: "late", namespace: "default"})
	w.serve(late, "late")
	since := w.p2.Output.Mark()
	reaches(t, w.a.Host, at(vip, viaHTTP), "late", w.a.IPv4)
	w.tunnelled(t, w.p2, since, w.a, late)
	must(t, reached(late.Host, at(vipB, viaHTTP), "b", late.IPv4))

	changed := late.spec
	changed.app = "another"
	w.istiod.apply(t, changed.yaml())
	refused(t, w.a.Host, at(vip, viaHTTP))
	must(t, reached(w.a.Host, late.Addr(portHTTP), "late", w.a.IPv4))
	w.istiod.apply(t, late.spec.yaml())
	reaches(t, w.a.Host, at(vip, viaHTTP), "late", w.a.IPv4)

	live := dial(t, w.a.Host, late.Addr(portEcho))
	must(t, echo(live, "before"))
	w.remove(t, late)
	ends(t, live)
	refused(t, w.a.Host, at(vip, viaHTTP))
	eventually(t, func() error {
		d, _, err := w.dump(w.p2.Proxy)
		for _, l := range d.Workloads {
			if l.Name == "late" {
				return fmt.Errorf("%s is still known", l.UID)
			}
		}
		return err
	})
}
