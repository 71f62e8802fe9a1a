// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/ztunnel-go/ztunnel/test/fakeistiod"
	"github.com/ztunnel-go/ztunnel/test/netlab"
	"github.com/ztunnel-go/ztunnel/test/netlab/serve"
	"github.com/ztunnel-go/ztunnel/test/rig"
	"github.com/ztunnel-go/ztunnel/xds/pb/securitypb"
	"github.com/ztunnel-go/ztunnel/xds/pb/workloadpb"
)

// istiod runs a control plane on the machine outside the mesh, and gives the
// variables of proxies that follow it.
func (w *world) istiod(more map[string]string) (*fakeistiod.Server, rig.Options) {
	w.t.Helper()
	srv := fakeistiod.Start(w.t, fakeistiod.Options{
		Address: at(w.outside.IPv4, 15012).String(), Hosts: []string{w.outside.IPv4.String()}, Listen: w.outside.Listen,
	})
	root := filepath.Join(w.lab.Dir(), "istiod.pem")
	must(w.t, os.WriteFile(root, []byte(srv.RootPEM()), 0o600))
	env := map[string]string{
		"XDS_ADDRESS": srv.Address(), "XDS_ROOT_CA": root, "LOCAL_XDS_PATH": "", "CLUSTER_ID": "lab", "ISTIO_META_DNS_CAPTURE": "false",
	}
	for name, value := range more {
		env[name] = value
	}
	return srv, rig.Options{Env: env}
}

// uidOf is what istiod calls a pod.
func uidOf(p *netlab.Pod) string { return "lab//Pod/" + namespaceOf(p) + "/" + p.Name() }

// told is a pod as istiod tells of it, with its addresses as aliases.
func told(p *netlab.Pod, change func(*workloadpb.Workload), aliases ...string) fakeistiod.Resource {
	v4, v6 := p.IPv4.As4(), p.IPv6.As16()
	workload := &workloadpb.Workload{
		Uid: uidOf(p), Name: p.Name(), Namespace: namespaceOf(p), ServiceAccount: p.Name(), TrustDomain: rig.TrustDomain,
		Addresses: [][]byte{v4[:], v6[:]}, TunnelProtocol: workloadpb.TunnelProtocol_HBONE, Node: p.Node().Name(), ClusterId: "lab",
	}
	if change != nil {
		change(workload)
	}
	r := fakeistiod.Workload(workload)
	r.Aliases = append(aliases, "/"+p.IPv4.String(), "/"+p.IPv6.String())
	return r
}

// TestOnDemand has two proxies that know nothing but what they ask for.
func TestOnDemand(t *testing.T) {
	w := plan(t)
	w.serve(w.outside.Host, serve.Options{HTTP: port(portHTTP)})
	srv, options := w.istiod(map[string]string{"XDS_ON_DEMAND": "true", "WORKLOAD_WAIT_TIMEOUT": "3s"})
	vip := serviceVIPs()[0]
	raw := vip.As4()
	service := fakeistiod.Service(&workloadpb.Service{
		Name: "b", Namespace: "default", Hostname: serviceName,
		Addresses: []*workloadpb.NetworkAddress{{Address: raw[:]}},
		Ports:     []*workloadpb.Port{{ServicePort: 7, TargetPort: portEcho}},
	})
	service.Aliases = []string{"/" + vip.String()}
	b := func(policies ...string) fakeistiod.Resource {
		return told(w.b, func(wl *workloadpb.Workload) {
			wl.Services = map[string]*workloadpb.PortList{"default/" + serviceName: {Ports: []*workloadpb.Port{{ServicePort: 7, TargetPort: portEcho}}}}
			wl.AuthorizationPolicies = policies
		}, "default/"+serviceName, "/"+vip.String())
	}
	srv.World.Put(told(w.a, nil), told(w.c, nil), b(), service)
	w.up(options)

	secret := w.watch(t, w.a, w.b)
	for _, to := range []netip.AddrPort{w.b.Addr(portEcho), w.b.Addr6(portEcho), at(vip, 7)} {
		since := w.p1.Output.Mark()
		must(t, refused(w.a.Host, to, secret.marker))
		w.logged(t, w.p1, since, "connection complete", "dst.hbone_addr=", `dst.workload="b"`)
	}
	secret.kept(t)
	if saw := get(t, w.a.Host, at(w.outside.IPv4, portHTTP)); saw.Server != "outside" {
		t.Errorf("a reached %+v", saw)
	}
	for _, name := range []string{"/" + w.b.IPv4.String(), "/" + vip.String(), "/" + w.outside.IPv4.String()} {
		if !slices.ContainsFunc(srv.Requests(), func(r fakeistiod.Request) bool { return slices.Contains(r.GetResourceNamesSubscribe(), name) }) {
			t.Errorf("nobody asked for %s", name)
		}
	}
	t.Run("istiod away and back", func(t *testing.T) { w.istiodAwayAndBack(t, srv) })
	t.Run("a policy late", func(t *testing.T) { w.latePolicy(t, srv, b) })
}

// istiodAwayAndBack: what is known goes on, what is not known waits and is
// refused; then subscriptions are what they were.
func (w *world) istiodAwayAndBack(t *testing.T, srv *fakeistiod.Server) {
	streams := srv.Streams()
	srv.Stop()
	echo(t, w.dial(t, w.a.Host, w.b.Addr(portEcho)), []byte("known"))
	since := w.p1.Output.Mark()
	if err := refused(w.a.Host, w.stranger.Addr(portEcho), []byte("unknown")); err == nil {
		t.Error("a connection went where nobody could say what is there")
	}
	w.logged(t, w.p1, since, fmt.Sprintf("timed out waiting for '/%v' from xds", w.stranger.IPv4))
	must(t, srv.Restart())
	w.eventually(t, func() error {
		for _, r := range srv.Requests() {
			if _, held := r.GetInitialResourceVersions()[uidOf(w.b)]; r.Stream > streams && held {
				return nil
			}
		}
		return fmt.Errorf("no new stream with %s", uidOf(w.b))
	})
	w.eventually(t, func() error { // asked for again
		_, err := tryGet(w.c.Host, at(w.outside.IPv4, portHTTP))
		return err
	})
}

// latePolicy names a policy before it is there.
func (w *world) latePolicy(t *testing.T, srv *fakeistiod.Server, b func(policies ...string) fakeistiod.Resource) {
	names := func(policy string) {
		t.Helper()
		srv.World.Put(b("default/" + policy))
		must(t, w.p2.AwaitPage(w.patience(), "15000/config_dump", "default/"+policy))
	}
	names("late")
	since := w.p2.Output.Mark()
	seen := make(chan error, 1)
	go func() { seen <- refused(w.a.Host, w.b.Addr(portEcho), []byte("hello")) }()
	must(t, w.p2.AwaitPage(w.patience(), "15000/debug/pods", `"policy": 1`))
	srv.World.Put(fakeistiod.Policy(&securitypb.Authorization{
		Name: "late", Namespace: "default", Scope: securitypb.Scope_WORKLOAD_SELECTOR, Action: securitypb.Action_ALLOW,
	}))
	if err := <-seen; err == nil {
		t.Error("a connection got past a policy that came in time")
	}
	w.logged(t, w.p2, since, "allow policies exist, but none allowed")

	names("never")
	began := time.Now()
	must(t, refused(w.a.Host, w.b.Addr(portEcho), []byte("hello")))
	if took := time.Since(began); took < 2*time.Second {
		t.Errorf("let in after %v", took)
	}
	w.logged(t, w.p2, since, "skipping unknown policy default/never")
	_, metrics, err := w.p2.Get(t.Context(), "15020/metrics")
	must(t, err)
	if !strings.Contains(metrics, "ztunnel_unknown_policies_total 1\n") {
		t.Error("it was not counted")
	}
}
