// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/kubernetes/fake"
	clienttesting "k8s.io/client-go/testing"
	"k8s.io/client-go/tools/record"

	"github.com/ztunnel-go/ztunnel/cmd/zagent/kube"
	"github.com/ztunnel-go/ztunnel/cmd/zagent/podns"
	"github.com/ztunnel-go/ztunnel/internal/netns"
	"github.com/ztunnel-go/ztunnel/test/leak"
	"github.com/ztunnel-go/ztunnel/test/netlab"
	"github.com/ztunnel-go/ztunnel/test/netlab/serve"
	"github.com/ztunnel-go/ztunnel/test/privileged"
	"github.com/ztunnel-go/ztunnel/test/rig"
)

// ztunnel is the proxy, built once.
var ztunnel string

func TestMain(m *testing.M) {
	netlab.Main()
	os.Exit(rig.Run(m, &ztunnel))
}

// patience bounds whatever is waited for, on a machine under load.
const patience = 40 * time.Second

const annotation = "ambient.istio.io/redirection"

// A world is a node with a proxy, an agent over a false API, and two pods with
// echo servers whose processes are in cgroups as kubelet makes them.
type world struct {
	t     *testing.T
	lab   *netlab.Lab
	node  *netlab.Node
	mesh  *rig.Mesh
	proxy *rig.Proxy
	a, b  *netlab.Pod

	client  *fake.Clientset
	events  *record.FakeRecorder
	watches chan struct{} // gets one for each watch that has begun
	stop    func()        // of the agent; nil: it does not run
}

const echoPort = 7007

func newWorld(t *testing.T) *world {
	t.Helper()
	privileged.Need(t)
	leak.Check(t)
	w := &world{t: t, lab: netlab.NewTest(t), watches: make(chan struct{}, 100), events: record.NewFakeRecorder(1000)}
	var err error
	w.node, err = w.lab.Node("node")
	w.must(err)
	w.a, w.b = w.pod("a"), w.pod("b")
	w.mesh, err = rig.New(w.lab, ztunnel)
	w.must(err)
	t.Cleanup(func() {
		if t.Failed() && w.proxy != nil {
			lines := w.proxy.Output.Lines(0)
			t.Logf("the proxy printed:\n%s", strings.Join(lines[max(0, len(lines)-60):], "\n"))
		}
		w.must(w.mesh.Close())
	})
	w.must(w.mesh.SetState(rig.State{Workloads: []*rig.Workload{rig.WorkloadOf(w.a, "shop"), rig.WorkloadOf(w.b, "shop")}}))

	w.client = fake.NewClientset(&corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "shop"}})
	w.client.PrependWatchReactor("*", func(action clienttesting.Action) (bool, watch.Interface, error) {
		found, err := w.client.Tracker().Watch(action.GetResource(), action.GetNamespace())
		w.watches <- struct{}{}
		return true, found, err
	})
	return w
}

func (w *world) must(err error) {
	w.t.Helper()
	if err != nil {
		w.t.Fatal(err)
	}
}

// pod is one on the network, with a process in the cgroup of a pod.
func (w *world) pod(name string) *netlab.Pod {
	w.t.Helper()
	p, err := w.node.Pod(name)
	w.must(err)
	server, err := p.Serve(serve.Options{Echo: fmt.Sprintf(":%d", echoPort)})
	w.must(err)
	w.move(server.Pid(), uidOf(name))
	return p
}

// move puts a process into the cgroup of a pod.
func (w *world) move(pid int, uid string) {
	w.t.Helper()
	dir := filepath.Join(w.lab.CgroupRoot(), "kubepods", "pod"+uid, "container")
	w.must(os.MkdirAll(dir, 0o755))
	w.must(os.WriteFile(filepath.Join(dir, "cgroup.procs"), []byte(fmt.Sprint(pid)), 0o600))
}

// uidOf is an uid for a name of one letter.
func uidOf(name string) string {
	return "00000000-0000-0000-0000-" + strings.Repeat("0", 10) + hex.EncodeToString([]byte(name))
}

// object is a pod in the API.
func object(p *netlab.Pod, mode string) *corev1.Pod {
	o := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: p.Name(), Namespace: "shop", UID: types.UID(uidOf(p.Name()))},
		Spec:       corev1.PodSpec{NodeName: "node", ServiceAccountName: p.Name()},
		Status: corev1.PodStatus{
			Phase: corev1.PodRunning, PodIP: p.IPv4.String(),
			PodIPs: []corev1.PodIP{{IP: p.IPv4.String()}, {IP: p.IPv6.String()}},
		},
	}
	if mode != "" {
		o.Labels = map[string]string{"istio.io/dataplane-mode": mode}
	}
	return o
}

// create puts pods into the API.
func (w *world) create(pods ...*corev1.Pod) {
	w.t.Helper()
	for _, p := range pods {
		_, err := w.client.CoreV1().Pods(p.Namespace).Create(w.t.Context(), p, metav1.CreateOptions{})
		w.must(err)
	}
}

// label changes the mode of a pod; empty takes the label off.
func (w *world) label(name, mode string) {
	w.t.Helper()
	value := "null"
	if mode != "" {
		value = fmt.Sprintf("%q", mode)
	}
	_, err := w.client.CoreV1().Pods("shop").Patch(w.t.Context(), name, types.MergePatchType,
		[]byte(`{"metadata":{"labels":{"istio.io/dataplane-mode":`+value+`}}}`), metav1.PatchOptions{})
	w.must(err)
}

func (w *world) marked(name string) string {
	p, err := w.client.CoreV1().Pods("shop").Get(w.t.Context(), name, metav1.GetOptions{})
	w.must(err)
	return p.Annotations[annotation]
}

func (w *world) cniSocket() string { return filepath.Join(w.lab.Dir(), "cni.sock") }

func (w *world) zdsSocket() string { return filepath.Join(w.lab.Dir(), "node.sock") }

// agent starts the agent and waits until it follows the API.
func (w *world) agent() {
	w.t.Helper()
	finder := &podns.Finder{Proc: "/proc", Hosts: []netns.ID{w.node.NS().ID()}} // process 1 may be out of sight here
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() {
		err := serveKubernetes(ctx, kubernetesNode{
			socket: w.zdsSocket(), cniSocket: w.cniSocket(), listen: "127.0.0.1:0", log: slog.New(slog.NewTextHandler(&lines{t: w.t}, nil)),
			config: kube.Config{
				Node: "node", Client: w.client, Finder: finder, Events: w.events,
				Logger: slog.New(slog.NewTextHandler(&lines{t: w.t}, nil)),
				Rules:  kube.Rules{Exclude: []string{"kube-system"}, SystemNamespace: "istio-system"},
			},
		})
		if err != nil {
			w.t.Error(err)
		}
	})
	w.stop = sync.OnceFunc(func() { cancel(); running.Wait() })
	w.t.Cleanup(w.stop)
	for range 2 {
		select {
		case <-w.watches:
		case <-time.After(patience):
			w.t.Fatal("the agent does not follow the API")
		}
	}
	w.eventually(func() error { _, err := os.Stat(w.cniSocket()); return err })
}

// lines writes to a test's log.
type lines struct{ t *testing.T }

func (l *lines) Write(b []byte) (int, error) {
	l.t.Log(strings.TrimSpace(string(b)))
	return len(b), nil
}

// run starts the proxy.
func (w *world) run() {
	w.t.Helper()
	var err error
	w.proxy, err = w.mesh.Start(w.node, rig.Options{NoAgent: true})
	w.must(err)
	if w.proxy.Socket() != w.zdsSocket() {
		w.t.Fatalf("the proxy connects to %s", w.proxy.Socket())
	}
}

func (w *world) eventually(fn func() error) {
	w.t.Helper()
	for deadline := time.Now().Add(patience); ; time.Sleep(20 * time.Millisecond) {
		err := fn()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			w.t.Fatalf("it never came true: %v", err)
		}
	}
}

// page wants text on the proxy's page of pods.
func (w *world) page(texts ...string) {
	w.t.Helper()
	w.eventually(func() error {
		_, body, err := w.proxy.Get(w.t.Context(), "15000/debug/pods")
		if err != nil {
			return err
		}
		compact := strings.NewReplacer(" ", "", "\n", "").Replace(body)
		for _, text := range texts {
			if !strings.Contains(compact, text) {
				return fmt.Errorf("no %s in %s", text, compact)
			}
		}
		return nil
	})
}

func up(name string) string {
	return fmt.Sprintf(`"name":%q,"namespace":"shop","serviceAccount":%q,"state":"Up"`, name, name)
}

// captured waits until pods are, in the proxy and in the API.
func (w *world) captured(names ...string) {
	w.t.Helper()
	for _, name := range names {
		w.page(up(name))
		w.eventually(func() error {
			if got := w.marked(name); got != "enabled" {
				return fmt.Errorf("%s is annotated %q", name, got)
			}
			return nil
		})
	}
}

// talk says a word on a connection and wants it back.
func talk(c net.Conn, word []byte) error {
	if err := c.SetDeadline(time.Now().Add(patience)); err != nil {
		return err
	}
	if _, err := c.Write(word); err != nil {
		return err
	}
	got := make([]byte, len(word))
	for n := 0; n < len(got); {
		m, err := c.Read(got[n:])
		if err != nil {
			return err
		}
		n += m
	}
	if !bytes.Equal(got, word) {
		return errors.New("another word came back")
	}
	return nil
}

func (w *world) dial(from, to *netlab.Pod) net.Conn {
	w.t.Helper()
	ctx, cancel := context.WithTimeout(w.t.Context(), patience)
	defer cancel()
	c, err := from.Dial(ctx, "tcp", to.Addr(echoPort).String())
	w.must(err)
	w.t.Cleanup(func() { c.Close() })
	return c
}

// isPlain says whether what a says to b can be read on a's link.
func (w *world) isPlain() bool {
	w.t.Helper()
	var word [16]byte
	rand.Read(word[:]) // never fails since Go 1.24
	marker := []byte(hex.EncodeToString(word[:]))
	r, err := w.node.Record(w.a.VethName, func(p *netlab.Packet) bool { return bytes.Contains(p.Data, marker) })
	w.must(err)
	w.must(talk(w.dial(w.a, w.b), marker))
	packets, err := r.Stop()
	w.must(err)
	return len(packets) > 0
}
