// SPDX-License-Identifier: Apache-2.0

package istiod

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"sync"
	"testing"

	"github.com/ztunnel-go/ztunnel/dataplane/hbone"
	"github.com/ztunnel-go/ztunnel/dataplane/relay"
	"github.com/ztunnel-go/ztunnel/internal/certs"
	"github.com/ztunnel-go/ztunnel/internal/identity"
	"github.com/ztunnel-go/ztunnel/internal/mtls"
)

// portHBONE is where tunnels go.
const portHBONE = 15008

// A gate takes tunnels in a pod of its own that no proxy captures, and lets
// pass what it is asked for: what waypoints and east-west gateways have in
// common. Its certificate is the pod's.
type gate struct {
	pod      *pod
	bundle   *certs.Bundle
	listener net.Listener
	ctx      context.Context    // of all tunnels; ends with stop
	stop     context.CancelFunc // called by close
	loops    sync.WaitGroup     // end with listener and ctx
	// pass reaches what a request is for. What it returns is closed by the
	// relay; release is called afterwards.
	pass func(r *hbone.Connect) (to relay.Conn, release func(), err error)

	mu    sync.Mutex
	asked []string // guarded by mu; "IDENTITY AUTHORITY" of each request
	errs  []error  // guarded by mu
}

// openGate serves until the test ends.
func (w *world) openGate(t *testing.T, p *pod, pass func(*gate) func(*hbone.Connect) (relay.Conn, func(), error)) *gate {
	t.Helper()
	id, err := identity.New("cluster.local", p.spec.namespace, p.spec.account)
	must(t, err)
	g := &gate{pod: p}
	g.bundle, err = w.istiod.issuer.Issue(t.Context(), id)
	must(t, err)
	g.listener, err = p.Listen("tcp", port(portHBONE))
	must(t, err)
	g.pass = pass(g)
	g.ctx, g.stop = context.WithCancel(context.Background())
	g.loops.Go(g.accept)
	t.Cleanup(g.close)
	t.Cleanup(func() {
		g.mu.Lock()
		defer g.mu.Unlock()
		if t.Failed() {
			t.Logf("%s was asked for %q; its errors: %v", p.Name(), g.asked, g.errs)
		}
	})
	return g
}

func (g *gate) close() {
	g.stop()
	g.listener.Close()
	g.loops.Wait()
}

func (g *gate) accept() {
	for {
		c, err := g.listener.Accept()
		if err != nil {
			return
		}
		g.loops.Go(func() {
			err := hbone.ServeConn(g.ctx, c, mtls.Server(g.bundle, mtls.Options{}), hbone.ServerConfig{Handler: g.serve})
			if err != nil && g.ctx.Err() == nil {
				g.note(err)
			}
		})
	}
}

// serve answers one request.
func (g *gate) serve(r *hbone.Connect) {
	g.mu.Lock()
	g.asked = append(g.asked, fmt.Sprint(r.Identity, " ", r.Authority))
	g.mu.Unlock()
	to, release, err := g.pass(r)
	if err != nil {
		g.note(err)
		_ = r.Reject(503)
		return
	}
	defer release()
	from, err := r.Accept(nil)
	if err != nil {
		to.Reset()
		_ = to.Close()
		return
	}
	nothing := func(int) {}
	if err := relay.Copy(g.ctx, from, to, relay.Counts{Sent: nothing, Received: nothing}); err != nil && g.ctx.Err() == nil {
		g.note(err)
	}
}

func (g *gate) note(err error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.errs = append(g.errs, err)
}

// heard wants a request of a pod's for an authority to have come.
func (g *gate) heard(t *testing.T, from *pod, authority string) {
	t.Helper()
	g.mu.Lock()
	defer g.mu.Unlock()
	if want := "spiffe://" + from.identity() + " " + authority; !slices.Contains(g.asked, want) {
		t.Errorf("%s has not been asked %q, but %q", g.pod.Name(), want, g.asked)
	}
}

// forget forgets what has been asked so far.
func (g *gate) forget() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.asked = nil
}

// waypoint passes every request on to one pod's port, in a tunnel of the
// gate's own.
func waypoint(to *pod, port uint16) func(*gate) func(*hbone.Connect) (relay.Conn, func(), error) {
	return func(g *gate) func(*hbone.Connect) (relay.Conn, func(), error) {
		return func(r *hbone.Connect) (relay.Conn, func(), error) {
			expect, err := identity.New("cluster.local", to.spec.namespace, to.spec.account)
			if err != nil {
				return nil, nil, err
			}
			c, err := g.pod.Dial(r.Context(), "tcp", to.Addr(portHBONE).String())
			if err != nil {
				return nil, nil, err
			}
			tunnel, err := hbone.NewTunnel(r.Context(), c, mtls.Client(g.bundle, []identity.ID{expect}, mtls.Options{}), hbone.Settings{})
			if err != nil {
				return nil, nil, err
			}
			release := func() { _ = tunnel.Close() }
			stream, _, err := tunnel.Open(r.Context(), hbone.Request{Authority: to.Addr(port).String()})
			if err != nil {
				release()
				return nil, nil, err
			}
			return stream, release, nil
		}
	}
}

// gateway passes the bytes within every tunnel on to the pod's proxy: they are
// a tunnel themselves.
func gateway(to *pod) func(*gate) func(*hbone.Connect) (relay.Conn, func(), error) {
	return func(g *gate) func(*hbone.Connect) (relay.Conn, func(), error) {
		return func(r *hbone.Connect) (relay.Conn, func(), error) {
			c, err := g.pod.Dial(r.Context(), "tcp", to.Addr(portHBONE).String())
			if err != nil {
				return nil, nil, err
			}
			tcp, ok := c.(*net.TCPConn)
			if !ok {
				return nil, nil, fmt.Errorf("%T is no TCP connection", c)
			}
			return relay.TCP(tcp), func() {}, nil
		}
	}
}

// waypoints has a waypoint in front of a service, then of a pod.
func (w *world) waypoints(t *testing.T) {
	vip := netip.MustParseAddr("10.96.0.40")
	const host = "way.default.svc.cluster.local"
	way := w.bare(w.n2, podSpec{
		name: "way", namespace: "default", plain: true,
		labels: map[string]string{"gateway.networking.k8s.io/gateway-name": "way"},
	})
	w.istiod.during(t, gatewayClassYAML, waypointServiceYAML("way", "default", vip.String()), waypointYAML("way", "default", "all", host))
	g := w.openGate(t, way, waypoint(w.b, portHTTP))

	t.Run("of a service", func(t *testing.T) {
		w.istiod.apply(t, serviceYAML("b", "default", "b", "  labels: {istio.io/use-waypoint: way}\n", vipB.String(), vipB6.String()))
		reaches(t, w.a.Host, at(vipB, viaHTTP), "b", way.IPv4)
		g.heard(t, w.a, at(vipB, viaHTTP).String())
		since := w.p2.Output.Mark()
		must(t, reached(w.a.Host, at(vipB, viaHTTP), "b", way.IPv4))
		w.tunnelled(t, w.p2, since, way, w.b, `direction="inbound"`)
		// Who does not call the service does not meet its waypoint.
		must(t, reached(w.a.Host, w.b.Addr(portHTTP), "b", w.a.IPv4))
		w.istiod.apply(t, serviceYAML("b", "default", "b", "", vipB.String(), vipB6.String()))
		reaches(t, w.a.Host, at(vipB, viaHTTP), "b", w.a.IPv4)
	})
	t.Run("of a pod", func(t *testing.T) {
		g.forget()
		behind := w.b.spec
		behind.labels = map[string]string{"istio.io/use-waypoint": "way"}
		w.istiod.apply(t, behind.yaml())
		reaches(t, w.a.Host, w.b.Addr(portHTTP), "b", way.IPv4)
		g.heard(t, w.a, w.b.Addr(portHTTP).String())
		w.istiod.apply(t, w.b.spec.yaml())
		reaches(t, w.a.Host, w.b.Addr(portHTTP), "b", w.a.IPv4)
	})
	w.istiod.remove(t, way.spec.yaml())
}
