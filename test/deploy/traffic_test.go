// SPDX-License-Identifier: Apache-2.0

package deploy

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"
	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"

	"github.com/ztunnel-go/ztunnel/test/leak"
	"github.com/ztunnel-go/ztunnel/test/netlab"
	"github.com/ztunnel-go/ztunnel/test/netlab/serve"
	"github.com/ztunnel-go/ztunnel/test/rig"
)

// patience bounds whatever is waited for, on a machine under load.
const patience = 40 * time.Second

// A world is two nodes, each with a proxy in a container, a pod on each, and a
// machine outside of the mesh with a nameserver.
type world struct {
	t       *testing.T
	lab     *netlab.Lab
	mesh    *rig.Mesh
	n1, n2  *netlab.Node
	a, b    *netlab.Pod
	outside *netlab.Node
	img     unpacked
	pod     corev1.PodSpec
	runc    string
	state   string                // runc's directory
	proxies map[string]*rig.Proxy // by node
}

// Ports of b's servers, and of the machine outside.
const (
	portHTTP, portSink, portSource = 8080, 9009, 19019
	portClosed                     = 4444
)

const (
	serviceName = "b.default.svc.cluster.local"
	outsideName = "www.outside.example"
)

// inContainer is where the lab's directory is seen in the container: at the
// place of the directory that the proxy shares with the node's agent.
const inContainer = "/var/run/ztunnel"

func newWorld(t *testing.T, img unpacked, pod corev1.PodSpec) *world {
	t.Helper()
	leak.Check(t)
	w := &world{t: t, lab: netlab.NewTest(t), img: img, pod: pod, proxies: map[string]*rig.Proxy{}}
	w.runc, w.state = tool(t, "runc"), filepath.Join(t.TempDir(), "runc")
	for name, n := range map[string]**netlab.Node{"node1": &w.n1, "node2": &w.n2, "outside": &w.outside} {
		node, err := w.lab.Node(name)
		must(t, err)
		*n = node
	}
	var err error
	w.a, err = w.n1.Pod("a")
	must(t, err)
	w.b, err = w.n2.Pod("b")
	must(t, err)
	_, err = w.b.Serve(serve.Options{HTTP: port(portHTTP), Sink: port(portSink), Source: port(portSource), DNS: port(53)})
	must(t, err)
	_, err = w.outside.Serve(serve.Options{
		HTTP: port(portHTTP), DNS: port(53), Records: map[string][]netip.Addr{outsideName: {netip.MustParseAddr("203.0.113.7")}},
	})
	must(t, err)
	self, err := os.Executable()
	must(t, err)
	w.mesh, err = rig.New(w.lab, self)
	must(t, err)
	t.Cleanup(w.close)
	must(t, w.mesh.SetNameservers(w.outside.IPv4))
	wa, wb := rig.WorkloadOf(w.a, "default"), rig.WorkloadOf(w.b, "default")
	service := (&rig.Service{
		Name: "b", Namespace: "default", Hostname: serviceName, VIPs: []string{"/10.96.0.1"}, Ports: map[uint16]uint16{80: portHTTP},
	}).Join(wb)
	must(t, w.mesh.SetState(rig.State{Workloads: []*rig.Workload{wa, wb}, Services: []*rig.Service{service}}))
	return w
}

// start runs the container of a node.
func (w *world) start(n *netlab.Node) *rig.Proxy {
	w.t.Helper()
	// What the cluster would provide is not there: certificates and state are the lab's.
	spec := containerOf(w.t, w.pod, w.img, map[string]string{
		"ztunnel": w.lab.Dir(), "bpffs": "/sys/fs/bpf", "cgroup": "/sys/fs/cgroup", "/host/netns": n.NS().Path(),
	})
	inside := func(path string) string { return inContainer + strings.TrimPrefix(path, w.lab.Dir()) }
	env := map[string]string{
		templateVariable: template{Runc: w.runc, State: w.state, Cgroup: filepath.Base(w.lab.CgroupRoot()), Spec: spec}.write(w.t),
		"CAPTURE":        "ebpf", "CGROUP_ROOT": "/host" + w.lab.CgroupRoot(), "HOST_NETNS": "/host/netns",
		"INPOD_UDS": inside(filepath.Join(w.lab.Dir(), n.Name()+".sock")), "LOCAL_XDS_PATH": inContainer + "/state.json",
		"EMBEDDED_CA_DIR": inside(w.mesh.CADir(rig.DefaultCA)), "RESOLV_CONF": inContainer + "/resolv.conf", "XDS_ADDRESS": "",
	}
	for _, v := range w.pod.Containers[0].Env {
		if _, ours := env[v.Name]; !ours && v.Value != "" {
			env[v.Name] = v.Value
		}
	}
	p, err := w.mesh.Start(n, rig.Options{Env: env})
	must(w.t, err)
	w.proxies[n.Name()] = p
	return p
}

// up starts both proxies and enrols the pods, which has to be done in wait.
func (w *world) up(wait time.Duration) error {
	w.t.Helper()
	ctx, cancel := context.WithTimeout(w.t.Context(), wait)
	defer cancel()
	for _, p := range []struct {
		node *netlab.Node
		pod  *netlab.Pod
	}{{w.n1, w.a}, {w.n2, w.b}} {
		proxy := w.start(p.node)
		if err := proxy.Enrol(p.pod, "default"); err != nil {
			return err
		}
	}
	for _, p := range w.proxies {
		if err := p.AwaitReady(ctx); err != nil {
			return err
		}
	}
	return nil
}

func (w *world) patience() context.Context {
	ctx, cancel := context.WithTimeout(w.t.Context(), patience)
	w.t.Cleanup(cancel)
	return ctx
}

// close ends the containers in order: to kill runc does not kill what it runs.
func (w *world) close() {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	for _, node := range slices.Sorted(maps.Keys(w.proxies)) {
		p := w.proxies[node]
		if p.Running() {
			_ = p.Signal(unix.SIGTERM)
		}
		if _, err := p.Wait(ctx); err != nil {
			w.t.Errorf("%s: %v", node, err)
		}
	}
	if err := errors.Join(remove(w.runc, w.state), w.mesh.Close(), removeParents(filepath.Base(w.lab.CgroupRoot()))); err != nil {
		w.t.Errorf("close: %v", err)
	}
	if w.t.Failed() {
		const enough = 60
		for node, p := range w.proxies {
			lines := slices.DeleteFunc(p.Output.Lines(0), func(line string) bool { return strings.Contains(line, "running with config") })
			w.t.Logf("%s printed:\n%s", node, strings.Join(lines[max(0, len(lines)-enough):], "\n"))
		}
	}
}

// port is the address of a server on all of a host's.
func port(number int) string { return fmt.Sprintf(":%d", number) }

func at(addr netip.Addr, number uint16) netip.AddrPort { return netip.AddrPortFrom(addr, number) }

// carries is what has to work: each line is an error if it does not.
func (w *world) carries() error {
	const bulk = 8 << 20
	for _, step := range []struct {
		what string
		do   func() error
	}{
		{"HTTP to a pod, which sees the client", func() error { return w.get(at(w.b.IPv4, portHTTP), w.a.IPv4) }},
		{"the same by IPv6", func() error { return w.get(at(w.b.IPv6, portHTTP), w.a.IPv6) }},
		{"HTTP to a service", func() error { return w.get(netip.MustParseAddrPort("10.96.0.1:80"), w.a.IPv4) }},
		{"HTTP to the outside", func() error { return w.get(at(w.outside.IPv4, portHTTP), netip.Addr{}) }},
		{"bytes to a pod, with their sum", func() error { return w.upload(bulk) }},
		{"bytes from a pod, with their sum", func() error { return w.download(bulk) }},
		{"a closed port", w.refused},
		{"a name of the mesh", func() error { return w.ask(w.a, "udp", serviceName, "10.96.0.1") }},
		{"another name, by TCP", func() error { return w.ask(w.a, "tcp", outsideName, "203.0.113.7") }},
		{"another name", func() error { return w.ask(w.a, "udp", outsideName, "203.0.113.7") }},
		{"a name, in a pod that has a nameserver of its own", func() error { return w.ask(w.b, "udp", serviceName, "10.96.0.1") }},
	} {
		if err := step.do(); err != nil {
			return fmt.Errorf("%s: %w", step.what, err)
		}
	}
	return nil
}

func (w *world) dial(to netip.AddrPort) (*net.TCPConn, error) {
	c, err := w.a.Dial(w.patience(), "tcp", to.String())
	if err != nil {
		return nil, err
	}
	return c.(*net.TCPConn), c.SetDeadline(time.Now().Add(patience))
}

// get asks an HTTP server what it saw; a valid client is whom it must see.
func (w *world) get(to netip.AddrPort, client netip.Addr) error {
	hc := w.a.HTTPClient()
	hc.Timeout = patience
	resp, err := hc.Get("http://" + to.String() + "/")
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	var saw serve.Answer
	if err := json.NewDecoder(resp.Body).Decode(&saw); err != nil {
		return fmt.Errorf("%s: %w", resp.Status, err)
	}
	peer, err := netip.ParseAddrPort(saw.Peer)
	if err == nil && client.IsValid() && peer.Addr().Unmap() != client {
		err = fmt.Errorf("the server saw %v", peer)
	}
	return err
}

func (w *world) upload(n int64) error {
	c, err := w.dial(at(w.b.IPv4, portSink))
	if err != nil {
		return err
	}
	defer c.Close()
	if _, err := io.Copy(c, serve.Pattern(n)); err != nil {
		return err
	}
	if err := c.CloseWrite(); err != nil {
		return err
	}
	line, err := io.ReadAll(c)
	if want := fmt.Sprintf("%d %s\n", n, serve.PatternSum(n)); err == nil && string(line) != want {
		err = fmt.Errorf("the sink said %q", line)
	}
	return err
}

func (w *world) download(n int64) error {
	c, err := w.dial(at(w.b.IPv4, portSource))
	if err != nil {
		return err
	}
	defer c.Close()
	if _, err := fmt.Fprintln(c, n); err != nil {
		return err
	}
	got, err := io.ReadAll(c)
	if err != nil {
		return err
	}
	want, err := io.ReadAll(serve.Pattern(n))
	if err == nil && !bytes.Equal(got, want) {
		err = fmt.Errorf("%d bytes, and not those of the source", len(got))
	}
	return err
}

// refused wants the reset of a pod where nobody listens, not silence.
func (w *world) refused() error {
	c, err := w.dial(at(w.b.IPv4, portClosed))
	if err == nil {
		defer c.Close()
		_, err = c.Read(make([]byte, 1))
	}
	if !errors.Is(err, unix.ECONNRESET) {
		return fmt.Errorf("not reset: %w", err)
	}
	return nil
}

// ask asks a nameserver that is not there, whose answer must come from it.
func (w *world) ask(from *netlab.Pod, network, name, want string) error {
	const server = "10.96.0.10:53"
	c, err := from.Dial(w.patience(), network, server)
	if err != nil {
		return err
	}
	defer c.Close()
	q := new(dns.Msg).SetQuestion(dns.Fqdn(name), dns.TypeA)
	reply, _, err := (&dns.Client{Net: network, Timeout: patience}).ExchangeWithConn(q, &dns.Conn{Conn: c})
	if err != nil {
		return err
	}
	if len(reply.Answer) != 1 || !strings.HasSuffix(reply.Answer[0].String(), "\t"+want) {
		return fmt.Errorf("the answer is %v", reply)
	}
	return nil
}

// TestTheImageCarriesTrafficAsTheManifestsRunIt runs the image under runc, as the
// DaemonSets say, on both nodes of a lab.
func TestTheImageCarriesTrafficAsTheManifestsRunIt(t *testing.T) {
	needTools(t)
	img := buildImage(t, build(t))
	for _, dir := range []string{"least", "ztunnel"} {
		t.Run(dir, func(t *testing.T) {
			w := newWorld(t, img, proxy(t, dir).Spec.Template.Spec)
			must(t, w.up(patience))
			must(t, w.carries())
			w.isCaptured(t)
		})
	}
}

// isCaptured wants no byte of the mesh's on the link between the nodes in plain.
func (w *world) isCaptured(t *testing.T) {
	t.Helper()
	request := []byte("GET / HTTP/1.1")
	links, err := w.lab.Fabric().Record(w.n2.Port, func(p *netlab.Packet) bool { return bytes.Contains(p.Data, request) })
	must(t, err)
	must(t, w.get(at(w.b.IPv4, portHTTP), w.a.IPv4))
	plain, err := links.Stop()
	must(t, err)
	if len(plain) > 0 {
		t.Errorf("in plain: %v", plain[0])
	}
}

// TestEachCapabilityIsNeeded takes one capability away at a time, and nothing works,
// or not everything.
func TestEachCapabilityIsNeeded(t *testing.T) {
	needTools(t)
	img := buildImage(t, build(t))
	for _, name := range proxy(t, "least").Spec.Template.Spec.Containers[0].SecurityContext.Capabilities.Add {
		t.Run(string(name), func(t *testing.T) {
			pod := proxy(t, "least").Spec.Template.Spec
			held := pod.Containers[0].SecurityContext.Capabilities
			held.Add = slices.DeleteFunc(slices.Clone(held.Add), func(c corev1.Capability) bool { return c == name })
			w := newWorld(t, img, pod)
			const enough = 15 * time.Second // it takes less than one
			err := w.up(enough)
			if err == nil {
				err = w.carries()
			}
			if err == nil {
				t.Errorf("all works without it")
			}
			t.Logf("without %s: %v", name, err)
		})
	}
}
