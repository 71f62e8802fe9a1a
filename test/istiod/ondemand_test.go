// SPDX-License-Identifier: Apache-2.0

package istiod

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/ztunnel-go/ztunnel/test/netlab/serve"
)

// TestOnDemand has proxies that ask istiod for what they need. istiod answers
// no second subscription to a name, and pushes by resource name alone: so that
// an address is answered a second time is to be seen with the real one.
func TestOnDemand(t *testing.T) {
	w := newWorld(t, "ebpf", map[string]string{"XDS_ON_DEMAND": "true", "ISTIO_META_DNS_CAPTURE": "false"})
	_, err := w.outside.Serve(serve.Options{Name: "outside", HTTP: port(portHTTP)})
	must(t, err)
	t.Run("by VIP and by pod IP over mTLS", w.reachable)
	t.Run("an address that nobody has, again and again", w.unknownAddress)
	t.Run("a pod that comes where nobody was", w.lateComer)
	t.Run("istiod away and back", func(t *testing.T) {
		w.istiod.stop()
		reaches(t, w.a.Host, at(vipB, viaHTTP), "b", w.a.IPv4)
		w.istiod.start()
		w.unknownAddress(t)
		w.reachable(t)
	})
}

// asked is how many names came to a result.
func (w *world) asked(t *testing.T, p *member, result string) (n int) {
	t.Helper()
	_, text, err := p.Get(t.Context(), "15020/metrics")
	must(t, err)
	for line := range strings.Lines(text) {
		if _, err := fmt.Sscanf(line, "ztunnel_on_demand_requests_total{result=\""+result+"\"} %d", &n); err == nil {
			return n
		}
	}
	return 0
}

// unknownAddress waits until istiod has been asked twice more, and has
// answered.
func (w *world) unknownAddress(t *testing.T) {
	before := w.asked(t, w.p1, "absent")
	eventually(t, func() error {
		if err := reached(w.a.Host, at(w.outside.IPv4, portHTTP), "outside", w.a.IPv4); err != nil {
			return err
		}
		if n := w.asked(t, w.p1, "absent") - before; n < 2 {
			return fmt.Errorf("asked %d times more", n)
		}
		return nil
	})
	if n := w.asked(t, w.p1, "given_up"); n > 0 {
		t.Errorf("%d names were not answered", n)
	}
}

// lateComer asks for an address before there is a pod, and finds the pod then.
func (w *world) lateComer(t *testing.T) {
	made, err := w.n2.Pod("late")
	must(t, err)
	late := &pod{Pod: made, member: w.p2, spec: podSpec{
		name: "late", namespace: "default", account: "late", node: w.n2.Name(), ips: []netip.Addr{made.IPv4, made.IPv6},
	}}
	w.serve(late, "late")
	reaches(t, w.a.Host, late.Addr(portHTTP), "late", w.a.IPv4) // in plaintext: istiod knows nothing of it
	w.istiod.apply(t, late.spec.yaml())
	must(t, late.enrol())
	eventually(t, func() error {
		since := w.p1.Output.Mark()
		if err := reached(w.a.Host, late.Addr(portHTTP), "late", w.a.IPv4); err != nil {
			return err
		}
		for _, line := range w.p1.Output.Lines(since) {
			if strings.Contains(line, "dst.hbone_addr=") {
				return nil
			}
		}
		return fmt.Errorf("no tunnel to the pod that came late")
	})
}
