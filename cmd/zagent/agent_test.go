// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"
	clienttesting "k8s.io/client-go/testing"

	"github.com/ztunnel-go/ztunnel/cmd/zagent/cni"
	"github.com/ztunnel-go/ztunnel/test/netlab/serve"
)

func TestAPodIsCapturedAsItsLabelSays(t *testing.T) {
	w := newWorld(t)
	w.create(object(w.a, ""), object(w.b, "ambient"))
	w.agent()
	w.run()
	w.captured("b")
	older := w.dial(w.a, w.b)
	w.must(talk(older, []byte("before")))
	if !w.isPlain() {
		t.Fatal("what a pod outside the mesh says is not plain")
	}

	w.label("a", "ambient")
	w.captured("a")
	w.page(`"late":{"ended":`)
	if err := talk(older, []byte("after")); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("a connection from before goes on: %v", err)
	}
	if w.isPlain() {
		t.Error("a captured pod speaks in plaintext")
	}
	w.toldOf(t, "CaptureEnabled")

	t.Run("the agent restarts", func(t *testing.T) {
		open := w.dial(w.a, w.b)
		w.must(talk(open, []byte("one")))
		w.stop()
		if w.isPlain() {
			t.Error("without an agent a captured pod speaks in plaintext")
		}
		w.agent()
		w.must(w.proxy.AwaitReady(w.limited()))
		w.captured("a", "b")
		w.must(talk(open, []byte("two")))
	})
	t.Run("the proxy restarts", func(t *testing.T) {
		w.must(w.proxy.Kill())
		w.must(w.proxy.Restart())
		w.captured("a", "b")
		w.must(w.proxy.AwaitReady(w.limited()))
		if w.isPlain() {
			t.Error("after a restart of the proxy a pod speaks in plaintext")
		}
	})
	t.Run("the label goes", func(t *testing.T) {
		w.label("a", "none")
		w.eventually(func() error {
			if got := w.marked("a"); got != "" {
				return fmt.Errorf("annotated %q", got)
			}
			_, body, err := w.proxy.Get(t.Context(), "15000/debug/pods")
			if err != nil || strings.Contains(body, `"a"`) {
				return fmt.Errorf("the proxy still has it: %s, %v", body, err)
			}
			return nil
		})
		if !w.isPlain() {
			t.Error("a pod is captured that is not in the mesh any more")
		}
		w.toldOf(t, "CaptureDisabled")
	})
	t.Run("the namespace's label comes, and the pod goes", func(t *testing.T) {
		w.label("a", "")
		_, err := w.client.CoreV1().Namespaces().Patch(t.Context(), "shop", types.MergePatchType,
			[]byte(`{"metadata":{"labels":{"istio.io/dataplane-mode":"ambient"}}}`), metav1.PatchOptions{})
		w.must(err)
		w.captured("a")
		w.must(w.client.CoreV1().Pods("shop").Delete(t.Context(), "a", metav1.DeleteOptions{}))
		w.eventually(func() error {
			_, body, err := w.proxy.Get(t.Context(), "15000/debug/pods")
			if err != nil || strings.Contains(body, `"a"`) {
				return fmt.Errorf("the proxy still has it: %s, %v", body, err)
			}
			return nil
		})
	})
}

// toldOf waits for an event.
func (w *world) toldOf(t *testing.T, texts ...string) {
	t.Helper()
	for limit := time.After(patience); ; {
		select {
		case e := <-w.events.Events:
			if contains(e, texts) {
				return
			}
		case <-limit:
			t.Fatalf("no event with %q", texts)
		}
	}
}

func contains(text string, parts []string) bool {
	for _, p := range parts {
		if !strings.Contains(text, p) {
			return false
		}
	}
	return true
}

func (w *world) limited() context.Context {
	ctx, cancel := context.WithTimeout(w.t.Context(), patience)
	w.t.Cleanup(cancel)
	return ctx
}

func TestANamespaceThatIsNotThePodsIsRefused(t *testing.T) {
	w := newWorld(t)
	// A process of pod c visits a's namespace, as one with privileges may.
	server, err := w.a.Serve(serve.Options{Echo: ":7777"})
	w.must(err)
	w.move(server.Pid(), uidOf("c"))
	c := object(w.b, "ambient")
	c.Name, c.UID = "c", types.UID(uidOf("c"))
	w.create(object(w.a, "ambient"), c)
	w.agent()
	w.run()
	w.captured("a")
	w.toldOf(t, "CaptureFailed", "lacks the pod's address")
	if w.marked("c") != "" {
		t.Error("the pod is called captured")
	}

	for name, tc := range map[string]struct{ netns, address, want string }{
		"another pod's":        {w.a.Path(), w.b.IPv4.String(), "lacks the pod's address"},
		"the host's":           {w.node.Path(), w.node.IPv4.String(), "host's network namespace"},
		"taken":                {w.a.Path(), w.a.IPv4.String(), "is that of pod " + uidOf("a")},
		"without an address":   {w.b.Path(), "", "no address yet"},
		"no namespace at all":  {os.DevNull, w.b.IPv4.String(), "not a network namespace"},
		"of a pod with no API": {w.b.Path(), w.b.IPv4.String(), "not found"},
	} {
		pod := "c"
		if strings.HasPrefix(name, "of a pod") {
			pod = "nobody"
		}
		_, failed := w.cni("ADD", tc.netns, pod, tc.address, 20)
		if failed == nil || !strings.Contains(failed.Details, tc.want) {
			t.Errorf("%s: %v, want %q", name, failed, tc.want)
		}
	}
}

// cni is the plugin, called as a runtime does.
func (w *world) cni(command, netns, pod, address string, seconds int) (string, *cni.Error) {
	w.t.Helper()
	prev := `{"cniVersion":"1.0.0","ips":[]}`
	if address != "" {
		prev = fmt.Sprintf(`{"cniVersion":"1.0.0","ips":[{"address":"%s/24"}]}`, address)
	}
	stdin := fmt.Sprintf(`{"cniVersion":"1.0.0","name":"net","type":"zagent-cni","socket":%q,"timeoutSeconds":%d,"prevResult":%s}`, w.cniSocket(), seconds, prev)
	var out, errs bytes.Buffer
	p := process{args: []string{"cni"}, stdin: strings.NewReader(stdin), out: &out, errors: &errs, env: environment{cni: cni.Env{
		Command: command, ContainerID: "sandbox-" + pod, NetNS: netns, Args: "K8S_POD_NAMESPACE=shop;K8S_POD_NAME=" + pod,
	}}}
	if status := p.run(w.t.Context()); status == 0 {
		return out.String(), nil
	}
	failed := &cni.Error{}
	if err := json.Unmarshal(out.Bytes(), failed); err != nil {
		w.t.Fatalf("%q is no error of CNI: %v", out.String(), err)
	}
	return "", failed
}

// starting is a pod that has no address and no process as far as the API knows.
func starting(o *corev1.Pod) *corev1.Pod {
	o.Status = corev1.PodStatus{Phase: corev1.PodPending}
	return o
}

func TestAPodStartsWhenTheProxyHasIt(t *testing.T) {
	w := newWorld(t)
	w.create(starting(object(w.a, "ambient")), starting(object(w.b, "")))
	w.agent()

	_, failed := w.cni("ADD", w.a.Path(), "a", w.a.IPv4.String(), 2)
	if failed == nil || !strings.Contains(failed.Details, "no proxy is connected") {
		t.Fatalf("without a proxy: %v", failed)
	}
	if _, failed := w.cni("ADD", w.b.Path(), "b", w.b.IPv4.String(), 20); failed != nil {
		t.Errorf("a pod outside the mesh: %v", failed)
	}

	type result struct {
		out    string
		failed *cni.Error
	}
	added := make(chan result, 1)
	var adding sync.WaitGroup
	adding.Go(func() {
		out, failed := w.cni("ADD", w.a.Path(), "a", w.a.IPv4.String(), 90)
		added <- result{out, failed}
	})
	defer adding.Wait()
	select {
	case r := <-added:
		t.Fatalf("ADD did not wait for the proxy: %+v", r)
	case <-time.After(time.Second):
	}
	w.run()
	r := <-added
	if r.failed != nil || !strings.Contains(r.out, w.a.IPv4.String()) {
		t.Fatalf("ADD: %+v", r)
	}
	_, body, err := w.proxy.Get(t.Context(), "15000/debug/pods") // at once: it is captured when ADD returns
	w.must(err)
	if compact := strings.NewReplacer(" ", "", "\n", "").Replace(body); !strings.Contains(compact, up("a")) || strings.Contains(compact, `"late"`) {
		t.Errorf("when ADD has returned the proxy has %s", compact)
	}
	w.captured("a")
	if _, failed := w.cni("CHECK", w.a.Path(), "a", w.a.IPv4.String(), 20); failed != nil {
		t.Errorf("CHECK: %v", failed)
	}

	if out, failed := w.cni("DEL", "", "a", "", 20); failed != nil || out != "" {
		t.Errorf("DEL: %q, %v", out, failed)
	}
	if _, failed := w.cni("CHECK", w.a.Path(), "a", w.a.IPv4.String(), 20); failed == nil || !strings.Contains(failed.Details, "is not captured") {
		t.Errorf("CHECK after DEL: %v", failed)
	}
}

func TestThePluginMayBeAheadOfTheInformer(t *testing.T) {
	w := newWorld(t)
	// The agent's watch of pods says nothing, as one that is slow.
	w.client.PrependWatchReactor("pods", func(clienttesting.Action) (bool, watch.Interface, error) {
		w.watches <- struct{}{}
		return true, watch.NewFake(), nil
	})
	w.agent()
	w.run()
	w.create(starting(object(w.a, "ambient")))
	if _, failed := w.cni("ADD", w.a.Path(), "a", w.a.IPv4.String(), 60); failed != nil {
		t.Fatalf("ADD: %v", failed)
	}
	w.page(up("a"))
	// The agent looks at the pod to annotate it, and the cache says that there is none.
	time.Sleep(200 * time.Millisecond)
	w.page(up("a"))
	if _, failed := w.cni("CHECK", w.a.Path(), "a", w.a.IPv4.String(), 20); failed != nil {
		t.Errorf("the pod was let go: %v", failed)
	}
}
