// SPDX-License-Identifier: Apache-2.0

package istiod

import (
	"context"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/ztunnel-go/ztunnel/test/leak"
	"github.com/ztunnel-go/ztunnel/test/netlab"
	"github.com/ztunnel-go/ztunnel/test/netlab/serve"
	"github.com/ztunnel-go/ztunnel/test/privileged"
	"github.com/ztunnel-go/ztunnel/test/rig"
)

// patience bounds whatever is waited for, on a machine under load.
const patience = 30 * time.Second

// Ports of pods' servers, and where services have them.
const (
	portHTTP, portEcho = 8080, 7007
	viaHTTP, viaEcho   = 80, 7
)

// A world is a mesh under Istio's control plane:
//
//	node1: a, c     node2: b           pods; b serves
//	control         istiod
//	outside         a machine and a resolver that know nothing of meshes
type world struct {
	t                *testing.T
	lab              *netlab.Lab
	mesh             *rig.Mesh
	istiod           *controlPlane
	authority        *forwarder // between proxies and istiod's authority
	n1, n2           *netlab.Node
	control, outside *netlab.Node
	capture          string
	network          string // of all its pods; empty: there is only one
	members          []*member
	p1, p2           *member
	a, b, c          *pod
}

// A member is a node of the mesh: its proxy, its agent and its token.
type member struct {
	*rig.Proxy
	agent *child
	token string
}

// A pod is one of the lab and of Kubernetes.
type pod struct {
	*netlab.Pod
	spec   podSpec
	member *member
}

// newWorld has everything up and ready, with one of the ways to capture:
// "istio-cni" is by the rules of Istio's agent, "ebpf" by the proxy itself.
// env is added to the proxies'.
func newWorld(t *testing.T, capture string, env map[string]string) *world {
	t.Helper()
	w := plan(t, capture)
	w.istiod.apply(t, serviceYAML("b", "default", "b", "", vipB.String(), vipB6.String()))
	w.istiod.start()
	w.p1, w.p2 = w.join(w.n1, env), w.join(w.n2, env)
	w.a = w.add(w.p1, podSpec{name: "a", namespace: "default"})
	w.c = w.add(w.p1, podSpec{name: "c", namespace: "other"})
	w.b = w.add(w.p2, podSpec{name: "b", namespace: "default"})
	w.serve(w.b, "b")
	for _, p := range []*member{w.p1, w.p2} {
		must(t, p.AwaitReady(w.patience()))
	}
	return w
}

// The addresses of service b.
var (
	vipB  = netip.MustParseAddr("10.96.0.1")
	vipB6 = netip.MustParseAddr("fd96::1")
)

// plan is the world without istiod and proxies.
func plan(t *testing.T, capture string) *world {
	t.Helper()
	privileged.Need(t)
	leak.Check(t)
	w := &world{t: t, lab: netlab.NewTest(t), capture: capture}
	w.outside = w.node("outside")
	mesh, err := rig.New(w.lab, ztunnel)
	must(t, err)
	w.mesh = mesh
	must(t, mesh.SetNameservers(w.outside.IPv4))
	w.n1, w.n2 = w.node("node1"), w.node("node2")
	w.cluster("control")
	w.istiod.apply(t, nodeYAML(w.n1, "one"), nodeYAML(w.n2, "two"))
	return w
}

// cluster gives the world an istiod on a node of its own.
func (w *world) cluster(name string) {
	w.t.Helper()
	w.control = w.node(name)
	w.istiod = newControlPlane(w.t, w.lab, w.control)
	w.istiod.apply(w.t, namespaceYAML("default", ""), namespaceYAML("other", ""), namespaceYAML("istio-system", w.network))
	w.authority = newForwarder(w.t, w.control, portCA, portDiscovery)
	w.t.Cleanup(w.close)
}

func (w *world) close() {
	if err := w.mesh.Close(); err != nil {
		w.t.Errorf("close mesh: %v", err)
	}
	for _, m := range w.members {
		if m.agent != nil {
			if err := m.agent.kill(); err != nil {
				w.t.Errorf("end agent: %v", err)
			}
		}
		w.look(m)
	}
	w.istiod.end()
}

// look fails the test if a proxy has printed what none may, and shows the end
// of what it printed if the test has failed.
func (w *world) look(m *member) {
	lines := m.Output.Lines(0)
	for _, line := range lines {
		if strings.Contains(line, "panic:") || strings.Contains(line, "DATA RACE") {
			w.t.Errorf("%s: %s", m.Node().Name(), line)
		}
	}
	if w.t.Failed() {
		const enough = 120
		w.t.Logf("%s printed:\n%s", m.Node().Name(), strings.Join(lines[max(0, len(lines)-enough):], "\n"))
	}
}

// join runs proxy and agent on a node, and makes the proxy known to istiod.
func (w *world) join(n *netlab.Node, env map[string]string) *member {
	w.t.Helper()
	name := "ztunnel-" + n.Name()
	w.istiod.apply(w.t, podSpec{
		name: name, namespace: "istio-system", account: "ztunnel", node: n.Name(), ips: []netip.Addr{n.IPv4}, plain: true,
	}.yaml())
	m := &member{token: filepath.Join(w.lab.Dir(), name+".token")}
	m.renew(w.t, time.Hour)
	own := map[string]string{
		"CAPTURE": w.capture, "NODE_NAME": n.Name(), "CLUSTER_ID": "Kubernetes",
		"POD_NAME": name, "POD_NAMESPACE": "istio-system", "INSTANCE_IP": n.IPv4.String(),
		"XDS_ADDRESS": fmt.Sprintf("https://%v:%d", w.control.IPv4, portDiscovery), "XDS_ROOT_CA": w.istiod.root(),
		"CA_ADDRESS": fmt.Sprintf("https://%v:%d", w.control.IPv4, portCA), "CA_ROOT_CA": w.istiod.root(),
		"ALT_XDS_HOSTNAME": "istiod.istio-system.svc", "ALT_CA_HOSTNAME": "istiod.istio-system.svc",
		"AUTH_TOKEN": m.token, "FAKE_CA": "false", "NETWORK": w.network,
	}
	maps.Copy(own, env)
	var err error
	m.Proxy, err = w.mesh.Start(n, rig.Options{Env: own, NoAgent: true})
	must(w.t, err)
	w.members = append(w.members, m)
	args := []string{"zds", "-socket", m.Socket()}
	if w.capture == "istio-cni" {
		args = append(args, "-rules")
	}
	m.agent, err = startChild(n.Host, istio, args...)
	must(w.t, err)
	return m
}

// renew writes a token that is good for so long; negative: that was.
func (m *member) renew(t *testing.T, life time.Duration) {
	t.Helper()
	name := strings.TrimSuffix(filepath.Base(m.token), ".token")
	text := fmt.Sprintf("istio-system/ztunnel/%s/%d", name, time.Now().Add(life).Unix())
	must(t, os.WriteFile(m.token+".new", []byte(text), 0o600))
	must(t, os.Rename(m.token+".new", m.token))
}

// add makes a pod on a member's node and has the agent enrol it. Of spec, what
// the lab knows is filled in.
func (w *world) add(m *member, spec podSpec) *pod {
	w.t.Helper()
	p := w.bare(m.Node(), spec)
	p.member = m
	must(w.t, p.enrol())
	return p
}

// bare makes a pod that no agent is told of.
func (w *world) bare(n *netlab.Node, spec podSpec) *pod {
	w.t.Helper()
	made, err := n.Pod(spec.name)
	must(w.t, err)
	spec.node, spec.ips = n.Name(), []netip.Addr{made.IPv4, made.IPv6}
	if spec.account == "" {
		spec.account = spec.name
	}
	w.istiod.apply(w.t, spec.yaml())
	return &pod{Pod: made, spec: spec}
}

// enrol tells the agent, which tells the proxy: at once, or with its next
// snapshot if none is connected.
func (p *pod) enrol() error {
	s := p.spec
	answer, err := p.member.agent.order("add", s.namespace, s.name, s.account, s.uid(), p.Path())
	if err == nil && answer != "ok" && !strings.Contains(answer, "no ztunnel connection") {
		err = fmt.Errorf("the agent says about pod %s: %s", s.name, answer)
	}
	return err
}

// leave has the agent take the pod out of the mesh.
func (p *pod) leave() error {
	s := p.spec
	answer, err := p.member.agent.order("del", s.namespace, s.name, s.account, s.uid())
	if err == nil && answer != "ok" {
		err = fmt.Errorf("the agent says about pod %s: %s", s.name, answer)
	}
	return err
}

// identity is the pod's, as policies write it.
func (p *pod) identity() string { return rig.Principal(p.spec.namespace, p.spec.account) }

// serve runs the usual servers in a pod; its HTTP server calls itself name.
func (w *world) serve(p *pod, name string) {
	w.t.Helper()
	_, err := p.Serve(serve.Options{Name: name, HTTP: port(portHTTP), Echo: port(portEcho)})
	must(w.t, err)
}

func (w *world) node(name string) *netlab.Node {
	w.t.Helper()
	n, err := w.lab.Node(name)
	must(w.t, err)
	return n
}

// patience is a context that ends when waiting makes no sense any more.
func (w *world) patience() context.Context {
	ctx, cancel := context.WithTimeout(w.t.Context(), patience)
	w.t.Cleanup(cancel)
	return ctx
}

// eventually calls fn until it returns nil.
func eventually(t *testing.T, fn func() error) {
	t.Helper()
	deadline := time.Now().Add(patience)
	for {
		err := fn()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("it never came true: %v", err)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func port(n int) string { return fmt.Sprintf(":%d", n) }

func at(a netip.Addr, port uint16) netip.AddrPort { return netip.AddrPortFrom(a, port) }
