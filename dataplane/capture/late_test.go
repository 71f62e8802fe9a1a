// SPDX-License-Identifier: Apache-2.0

package capture

import (
	"context"
	"errors"
	"net"
	"os"
	"syscall"
	"testing"
	"time"

	"github.com/ztunnel-go/ztunnel/test/netlab"
	"github.com/ztunnel-go/ztunnel/test/netlab/serve"
)

// openSince is a pod with a connection each way to another, and one to itself.
func openSince(t *testing.T, r *rig, name string) (pod *netlab.Pod, out, in, local net.Conn) {
	t.Helper()
	pod, other := r.pod(name), r.pod(name+"-peer")
	for _, h := range []*netlab.Pod{pod, other} {
		_, err := h.Serve(serve.Options{Echo: ":7007"})
		must(t, err)
	}
	dial := func(from, to *netlab.Pod) net.Conn {
		c, err := from.Dial(t.Context(), "tcp", to.Addr(7007).String())
		must(t, err)
		t.Cleanup(func() { c.Close() })
		must(t, echoes(c))
		return c
	}
	return pod, dial(pod, other), dial(other, pod), dial(pod, pod)
}

// echoes sends a word and wants it back.
func echoes(c net.Conn) error {
	if err := c.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
		return err
	}
	if _, err := c.Write([]byte("word")); err != nil {
		return err
	}
	_, err := c.Read(make([]byte, 4))
	return err
}

func TestWhatALatePodHasOpenEndsWithItsCapture(t *testing.T) {
	r := newRig(t)
	pod, out, in, local := openSince(t, r, "late")
	p := r.addAs(pod, PodInfo{UID: "late", Name: "late", Namespace: "test", Late: true})
	must(t, p.Enable(context.Background()))
	for name, c := range map[string]net.Conn{"outbound": out, "inbound": in} {
		if err := echoes(c); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("%s goes on past capture: %v", name, err)
		}
	}
	if err := echoes(out); errors.Is(err, syscall.ETIMEDOUT) {
		t.Errorf("it was not ended but lost: %v", err)
	}
	if err := echoes(local); err != nil {
		t.Errorf("what never leaves the pod has ended too: %v", err)
	}
	if n, err := p.Ended(); n < 2 || err != nil {
		t.Errorf("%d were ended, %v", n, err)
	}
	got, err := ask(pod.Host, "203.0.113.9:443", "x")
	wants(t, "what is opened now", got, err, "outbound")
}

func TestAPodThatIsNotLateKeepsWhatItHasOpen(t *testing.T) {
	r := newRig(t)
	pod, out, in, _ := openSince(t, r, "early")
	p := r.capture(pod)
	must(t, echoes(out))
	must(t, echoes(in))
	if n, err := p.Ended(); n != 0 || err != nil {
		t.Errorf("%d were ended, %v", n, err)
	}
}

func TestTheNextProcessEndsNothingOfALatePod(t *testing.T) {
	r := newRig(t)
	pod := r.pod("late")
	info := PodInfo{UID: "late", Name: "late", Namespace: "test", Late: true}
	first := r.addAs(pod, info)
	must(t, first.Enable(context.Background()))
	// A probe of the host's is let pass, and looks like a connection that is older.
	_, err := pod.Serve(serve.Options{Echo: ":7007"})
	must(t, err)
	probe, err := r.host.Dial(t.Context(), "tcp", pod.Addr(7007).String())
	must(t, err)
	defer probe.Close()
	must(t, echoes(probe))
	first.stopServing()
	must(t, r.node.Close())

	r.open()
	again := r.addAs(pod, info)
	must(t, again.Enable(context.Background()))
	must(t, echoes(probe))
	if n, err := again.Ended(); n != 0 || err != nil {
		t.Errorf("%d were ended, %v", n, err)
	}
}
