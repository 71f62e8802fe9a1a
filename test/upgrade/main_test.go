// SPDX-License-Identifier: Apache-2.0

// Package upgrade replaces the proxies of both nodes of a lab, again and again,
// under connections that stay open: not one may break, lose a byte or be told
// of. A short form is part of make test; make test-upgrade has the long one.
package upgrade

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

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

// long says that this is make test-upgrade.
func long() bool { return os.Getenv("ZTUNNEL_TESTS_UPGRADE") == "long" }

const (
	patience    = 30 * time.Second
	portEcho    = 7007
	portSink    = 9009
	serviceName = "b.default.svc.cluster.local"
)

// A world is a pod on each of two nodes, whose proxies are replaced.
type world struct {
	t       *testing.T
	lab     *netlab.Lab
	mesh    *rig.Mesh
	a, b    *netlab.Pod
	proxies [2]*rig.Proxy
	nodes   [2]*netlab.Node
	rounds  int
	stops   []time.Duration
	// complaints are what processes said of connections that failed.
	complaints []string
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func newWorld(t *testing.T) *world {
	t.Helper()
	privileged.Need(t)
	leak.Check(t)
	w := &world{t: t, lab: netlab.NewTest(t)}
	for i, name := range []string{"node1", "node2"} {
		n, err := w.lab.Node(name)
		must(t, err)
		w.nodes[i] = n
	}
	var err error
	w.a, err = w.nodes[0].Pod("a")
	must(t, err)
	w.b, err = w.nodes[1].Pod("b")
	must(t, err)
	for _, pod := range []*netlab.Pod{w.a, w.b} { // 500 connections a second use up all ports in a minute of TIME_WAIT
		must(t, pod.Sysctl("net/ipv4/tcp_max_tw_buckets", "1000"))
		must(t, pod.Sysctl("net/ipv4/ip_local_port_range", "1024 65000"))
	}
	_, err = w.b.Serve(serve.Options{Echo: ":" + strconv.Itoa(portEcho), Sink: ":" + strconv.Itoa(portSink)})
	must(t, err)
	w.mesh, err = rig.New(w.lab, ztunnel)
	must(t, err)
	t.Cleanup(w.close)
	wa, wb := rig.WorkloadOf(w.a, "default"), rig.WorkloadOf(w.b, "default")
	service := (&rig.Service{Name: "b", Namespace: "default", Hostname: serviceName, VIPs: []string{"/10.96.0.1"},
		Ports: map[uint16]uint16{7: portEcho}}).Join(wb)
	must(t, w.mesh.SetState(rig.State{Workloads: []*rig.Workload{wa, wb}, Services: []*rig.Service{service}}))
	for i, pod := range []*netlab.Pod{w.a, w.b} {
		w.proxies[i] = w.start(i, nil)
		must(t, w.proxies[i].Enrol(pod, "default"))
		must(t, w.proxies[i].AwaitReady(w.patience()))
	}
	return w
}

func (w *world) close() {
	if err := w.mesh.Close(); err != nil {
		w.t.Errorf("close mesh: %v", err)
	}
	if !w.t.Failed() {
		return
	}
	w.t.Logf("of connections:\n%s", strings.Join(w.complaints[:min(len(w.complaints), 20)], "\n"))
	for _, p := range w.proxies {
		if p != nil {
			found := complaints(p)
			w.t.Logf("%s of connections:\n%s", p.Node().Name(), strings.Join(found[:min(len(found), 20)], "\n"))
			w.t.Logf("%s printed:\n%s", p.Node().Name(), strings.Join(tail(p), "\n"))
		}
	}
}

func complaints(p *rig.Proxy) (found []string) {
	for _, line := range p.Output.Lines(0) {
		if strings.Contains(line, "\taccess\t") && strings.Contains(line, "error=") || strings.Contains(line, "tunnel ended") {
			found = append(found, line)
		}
	}
	return found
}

func tail(p *rig.Proxy) []string {
	lines := slices.DeleteFunc(p.Output.Lines(0), func(line string) bool {
		return strings.Contains(line, "running with config") || strings.Contains(line, "\taccess\t")
	})
	return lines[max(0, len(lines)-60):]
}

func (w *world) patience() context.Context {
	ctx, cancel := context.WithTimeout(w.t.Context(), patience)
	w.t.Cleanup(cancel)
	return ctx
}

// start starts a proxy of a node, in a network namespace of its own.
func (w *world) start(node int, beside *rig.Proxy) *rig.Proxy {
	w.t.Helper()
	w.rounds++
	own, err := w.lab.Bare(fmt.Sprintf("proxy-%d", w.rounds))
	must(w.t, err)
	p, err := w.mesh.Start(w.nodes[node], rig.Options{In: own, Beside: beside, Env: map[string]string{
		"CONNECTION_TERMINATION_DEADLINE": "20s", "RUST_LOG": "info,proxy::inbound=debug", "ZTUNNEL_WORKER_THREADS": "2",
	}})
	must(w.t, err)
	return p
}

var longestStop = regexp.MustCompile(`connections="?(\d+)"? longest_stop="?([0-9.µmns]+)`)

// replace puts another process in the place of a node's, as a DaemonSet with
// maxSurge does: when the new one is ready the old one is told to end. It ends
// at once if it has nothing left.
func (w *world) replace(node int) (connections int) {
	t := w.t
	t.Helper()
	old := w.proxies[node]
	taken := old.Agent.Snapshots()
	next := w.start(node, old)
	must(t, old.Agent.AwaitSnapshots(w.patience(), taken+1))
	must(t, next.AwaitReady(w.patience()))
	w.proxies[node] = next
	told := time.Now()
	must(t, old.Signal(unix.SIGTERM))
	if code, err := old.Wait(w.patience()); code != 0 || err != nil {
		t.Errorf("the old process ended with %d, %v", code, err)
	}
	if took := time.Since(told); took > 15*time.Second {
		t.Errorf("the old process took %v to end: it had connections left\n%s", took, strings.Join(tail(old), "\n"))
	}
	for _, line := range old.Output.Lines(0) {
		if found := longestStop.FindStringSubmatch(line); found != nil {
			stop, err := time.ParseDuration(found[2])
			must(t, err)
			connections, err = strconv.Atoi(found[1])
			must(t, err)
			w.stops = append(w.stops, stop)
		}
		for _, bad := range []string{"panic:", "DATA RACE", "\terror\thandover", "lost in a handover", "forcefully"} {
			if strings.Contains(line, bad) {
				t.Errorf("the old process said %s", line)
			}
		}
	}
	w.complaints = append(w.complaints, complaints(old)...)
	if t.Failed() {
		t.Logf("the old process printed:\n%s", strings.Join(tail(old), "\n"))
	}
	w.mesh.Retire(old)
	return connections
}

// dial connects a's application with b's.
func (w *world) dial() (net.Conn, error) { return w.dialTo(portEcho) }

func (w *world) dialTo(port uint16) (net.Conn, error) {
	d := net.Dialer{Timeout: patience}
	return w.a.DialWith(w.t.Context(), &d, "tcp", netip.AddrPortFrom(w.b.IPv4, port).String())
}
