// SPDX-License-Identifier: Apache-2.0

// Package e2e holds tests of the built proxy as a whole: real processes on the
// nodes of a lab, looked at from outside. What a client and a server see, what
// is on the links, what the proxy logs and answers: nothing else counts here.
//
// Every test owns its lab. Between those that need the same, subtests share it;
// each leaves it as it was. ZTUNNEL_RACE=1 builds the proxy with the race
// detector, and a race in it fails the test.
package e2e

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/ztunnel-go/ztunnel/test/leak"
	"github.com/ztunnel-go/ztunnel/test/netlab"
	"github.com/ztunnel-go/ztunnel/test/netlab/serve"
	"github.com/ztunnel-go/ztunnel/test/privileged"
	"github.com/ztunnel-go/ztunnel/test/rig"
)

// ztunnel is the proxy under test, built once.
var ztunnel string

func TestMain(m *testing.M) {
	netlab.Main()
	os.Exit(rig.Run(m, &ztunnel))
}

// patience bounds whatever is waited for, on a machine under load.
const patience = 20 * time.Second

// A world is two nodes with proxies, and what is on them:
//
//	node1: a, c             in the mesh
//	node2: b                in the mesh, with servers
//	       stranger         a pod that nobody has enrolled
//	outside                 a machine that knows nothing of meshes
type world struct {
	t          *testing.T
	lab        *netlab.Lab
	mesh       *rig.Mesh
	n1, n2     *netlab.Node
	a, b, c    *netlab.Pod
	stranger   *netlab.Pod
	outside    *netlab.Node
	p1, p2     *rig.Proxy
	state      rig.State
	wa, wb, wc *rig.Workload
	service    *rig.Service
	resolvers  [2]netip.Addr // that pods ask; nobody lives there
}

// Ports of b's servers.
const (
	portHTTP, portEcho, portSink, portSource = 8080, 7007, 9009, 19019
	portClosed                               = 4444
)

const (
	serviceName = "b.default.svc.cluster.local"
	outsideName = "www.outside.example"
)

func serviceVIPs() [2]netip.Addr {
	return [2]netip.Addr{netip.MustParseAddr("10.96.0.1"), netip.MustParseAddr("fd96::1")}
}

// newWorld has everything up and ready. options are those of both proxies.
func newWorld(t *testing.T, options ...rig.Options) *world {
	t.Helper()
	w := plan(t)
	w.up(options...)
	return w
}

// up starts both proxies and enrols their pods.
func (w *world) up(options ...rig.Options) {
	w.t.Helper()
	var o rig.Options
	if len(options) > 0 {
		o = options[0]
	}
	w.p1, w.p2 = w.start(w.n1, o), w.start(w.n2, o)
	w.enrol(w.p1, w.a, w.c)
	w.enrol(w.p2, w.b)
	w.ready(w.p1, w.p2)
}

// plan is the world without a proxy.
func plan(t *testing.T) *world {
	t.Helper()
	privileged.Need(t)
	leak.Check(t)
	w := &world{t: t, lab: netlab.NewTest(t)}
	w.n1, w.n2, w.outside = w.node("node1"), w.node("node2"), w.node("outside")
	w.a, w.c = w.pod(w.n1, "a"), w.pod(w.n1, "c")
	w.b, w.stranger = w.pod(w.n2, "b"), w.pod(w.n2, "stranger")
	w.resolvers = [2]netip.Addr{netip.MustParseAddr("10.96.0.10"), netip.MustParseAddr("10.96.0.11")}
	w.serve(w.b.Host, serve.Options{HTTP: port(portHTTP), Echo: port(portEcho), Sink: port(portSink), Source: port(portSource)})

	mesh, err := rig.New(w.lab, ztunnel)
	must(t, err)
	w.mesh = mesh
	t.Cleanup(w.close)
	must(t, mesh.SetNameservers(w.outside.IPv4))
	w.wa, w.wb, w.wc = rig.WorkloadOf(w.a, "default"), rig.WorkloadOf(w.b, "default"), rig.WorkloadOf(w.c, "other")
	w.service = (&rig.Service{
		Name: "b", Namespace: "default", Hostname: serviceName,
		Ports: map[uint16]uint16{80: portHTTP, 7: portEcho, 9: portSink, 19: portSource},
	}).Join(w.wb)
	for _, vip := range serviceVIPs() {
		w.service.VIPs = append(w.service.VIPs, "/"+vip.String())
	}
	w.state = rig.State{Workloads: []*rig.Workload{w.wa, w.wb, w.wc}, Services: []*rig.Service{w.service}}
	must(t, mesh.SetState(w.state))
	return w
}

func (w *world) close() {
	if err := w.mesh.Close(); err != nil {
		w.t.Errorf("close mesh: %v", err)
	}
	for _, p := range []*rig.Proxy{w.p1, w.p2} {
		if p == nil {
			continue
		}
		lines := slices.DeleteFunc(p.Output.Lines(0), func(line string) bool { return strings.Contains(line, "running with config") })
		for _, line := range lines {
			if strings.Contains(line, "panic:") || strings.Contains(line, "DATA RACE") {
				w.t.Errorf("%s: %s", p.Node().Name(), line)
			}
		}
		if w.t.Failed() {
			const enough = 150
			w.t.Logf("%s printed:\n%s", p.Node().Name(), strings.Join(lines[max(0, len(lines)-enough):], "\n"))
		}
	}
}

func (w *world) node(name string) *netlab.Node {
	w.t.Helper()
	n, err := w.lab.Node(name)
	must(w.t, err)
	return n
}

func (w *world) pod(n *netlab.Node, name string) *netlab.Pod {
	w.t.Helper()
	p, err := n.Pod(name)
	must(w.t, err)
	return p
}

func (w *world) serve(h *netlab.Host, o serve.Options) {
	w.t.Helper()
	_, err := h.Serve(o)
	must(w.t, err)
}

func (w *world) start(n *netlab.Node, o rig.Options) *rig.Proxy {
	w.t.Helper()
	p, err := w.mesh.Start(n, o)
	must(w.t, err)
	return p
}

// namespaceOf is the Kubernetes namespace of a pod.
func namespaceOf(p *netlab.Pod) string {
	if p.Name() == "c" {
		return "other"
	}
	return "default"
}

func (w *world) enrol(p *rig.Proxy, pods ...*netlab.Pod) {
	w.t.Helper()
	for _, pod := range pods {
		must(w.t, p.Enrol(pod, namespaceOf(pod)))
	}
}

func (w *world) ready(proxies ...*rig.Proxy) {
	w.t.Helper()
	for _, p := range proxies {
		must(w.t, p.AwaitReady(w.patience()))
	}
}

// patience is a context that ends when waiting makes no sense any more.
func (w *world) patience() context.Context {
	ctx, cancel := context.WithTimeout(w.t.Context(), patience)
	w.t.Cleanup(cancel)
	return ctx
}

// policies puts policies in force, and takes those before out.
func (w *world) policies(policies ...*rig.Policy) {
	w.t.Helper()
	w.state.Policies = policies
	must(w.t, w.mesh.Apply(w.patience(), w.state))
}

// dial connects, and fails the test if that fails.
func (w *world) dial(t *testing.T, from *netlab.Host, to netip.AddrPort) *net.TCPConn {
	t.Helper()
	c, err := from.Dial(t.Context(), "tcp", to.String())
	must(t, err)
	return ready(t, c)
}

// ready makes a connection end with the test, and with patience.
func ready(t *testing.T, c net.Conn) *net.TCPConn {
	t.Helper()
	t.Cleanup(func() { c.Close() })
	must(t, c.SetDeadline(time.Now().Add(patience)))
	tcp, ok := c.(*net.TCPConn)
	if !ok {
		t.Fatalf("%T is no TCP connection", c)
	}
	return tcp
}

// a marker is what no packet of a mesh's pod may carry: random, so that it is
// nowhere by chance.
func newMarker() []byte {
	var b [32]byte
	rand.Read(b[:]) // never fails since Go 1.24
	return []byte(hex.EncodeToString(b[:]))
}

// secrecy watches links for a marker in plaintext.
type secrecy struct {
	marker    []byte
	recorders map[string]*netlab.Recorder
}

// watch looks at the links of both nodes to the fabric and at the veths of the
// given pods.
func (w *world) watch(t *testing.T, pods ...*netlab.Pod) *secrecy {
	t.Helper()
	s := &secrecy{marker: newMarker(), recorders: map[string]*netlab.Recorder{}}
	record := func(h *netlab.Host, link string) {
		r, err := h.Record(link, func(p *netlab.Packet) bool { return bytes.Contains(p.Data, s.marker) })
		must(t, err)
		s.recorders[h.Name()+" "+link] = r
		t.Cleanup(func() { r.Stop() })
	}
	record(w.lab.Fabric(), w.n1.Port)
	record(w.lab.Fabric(), w.n2.Port)
	for _, pod := range pods {
		record(pod.Node().Host, pod.VethName)
	}
	return s
}

// kept fails the test if the marker was seen.
func (s *secrecy) kept(t *testing.T) {
	t.Helper()
	for link, p := range s.seen(t) {
		t.Errorf("plaintext on %s: %v", link, p)
	}
}

// seen is one packet with the marker for each link that had one.
func (s *secrecy) seen(t *testing.T) map[string]*netlab.Packet {
	t.Helper()
	found := map[string]*netlab.Packet{}
	for link, r := range s.recorders {
		packets, err := r.Stop()
		if err != nil {
			t.Errorf("%s: %v", link, err)
		}
		if len(packets) > 0 {
			found[link] = packets[0]
		}
	}
	return found
}

// eventually calls fn until it returns nil.
func (w *world) eventually(t *testing.T, fn func() error) {
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

// logged waits for a line of a proxy's output since a mark.
func (w *world) logged(t *testing.T, p *rig.Proxy, since int, texts ...string) string {
	t.Helper()
	line, err := p.Output.Await(w.patience(), since, texts...)
	if err != nil {
		t.Errorf("%s: %v", p.Node().Name(), err)
	}
	return line
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func port(n int) string { return fmt.Sprintf(":%d", n) }

func at(a netip.Addr, port uint16) netip.AddrPort { return netip.AddrPortFrom(a, port) }
