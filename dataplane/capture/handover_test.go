// SPDX-License-Identifier: Apache-2.0

package capture

import (
	"context"
	"sync"
	"testing"

	"github.com/ztunnel-go/ztunnel/test/netlab"
)

// captures wants a pod whose connections reach a proxy, and which stays closed
// without one.
func captures(t *testing.T, p *proxy, pod *netlab.Pod) {
	t.Helper()
	got, err := ask(pod.Host, "203.0.113.9:443", "x")
	wants(t, "a connection", got, err, "outbound dst=203.0.113.9:443")
	must(t, p.check(context.Background()))
	p.stopServing()
	p.node.Close()
	staysClosed(t, pod, recordTCP(t, pod))
}

// Of two processes that prepare to serve a pod one gives it up: the agent has
// come back, and told it to both.
func TestWhoGivesAPodUpTakesItFromNobody(t *testing.T) {
	r := newRig(t)
	pod := r.pod("a")
	first := r.add(pod)
	r.open()
	second := r.add(pod)
	must(t, second.Enable(context.Background()))
	must(t, first.Abandon(context.Background()))
	captures(t, second, pod)
}

func TestAPodIsCapturedAlthoughAnotherProcessHasRemovedIt(t *testing.T) {
	r := newRig(t)
	pod := r.pod("a")
	first := r.add(pod)
	r.open()
	second := r.add(pod)
	must(t, first.Abandon(context.Background()))
	if left := traces(t, pod); len(left) > 0 {
		t.Fatalf("it has not removed all: %q", left)
	}
	must(t, second.Enable(context.Background()))
	captures(t, second, pod)
}

func TestATakeoverThatFailsLeavesThePodCaptured(t *testing.T) {
	r := newRig(t)
	pod := r.pod("a")
	first := r.add(pod)
	r.open()
	second := r.add(pod) // which sees that nobody has captured it
	must(t, first.Enable(context.Background()))
	off, cancel := context.WithCancel(context.Background())
	cancel()
	if err := second.Enable(off); err == nil {
		t.Fatal("it did not fail")
	}
	must(t, second.Abandon(context.Background()))
	first.takeBack()
	captures(t, first, pod)
}

// TestConnectionsOfACapturedPodNeverGoPast has one process give a pod up at the
// moment at which another begins to serve it, and the pod connect all the time
// from then on.
func TestConnectionsOfACapturedPodNeverGoPast(t *testing.T) {
	r := newRig(t)
	old := r.node
	r.open()
	for range 12 {
		pod := r.pod("a")
		younger := r.node
		r.node = old
		gives := r.add(pod)
		r.node = younger
		takes := r.add(pod)
		var giving sync.WaitGroup
		giving.Go(func() {
			if err := gives.Abandon(context.Background()); err != nil {
				t.Error(err)
			}
		})
		must(t, takes.Enable(context.Background()))
		given := make(chan struct{})
		go func() {
			giving.Wait()
			close(given)
		}()
		for more, over := 5, false; more > 0; {
			select {
			case <-given:
				over = true
			default:
			}
			if over {
				more--
			}
			c, err := pod.Dial(context.Background(), "tcp", "10.96.0.10:53")
			if err != nil {
				t.Errorf("a connection of a captured pod: %v", err)
				break
			}
			_ = c.Close()
		}
		<-given
		must(t, takes.Remove(context.Background()))
		takes.stopServing()
		if left := traces(t, pod); len(left) > 0 {
			t.Errorf("left behind: %q", left)
		}
		must(t, pod.Delete())
	}
	if err := old.Close(); err != nil {
		t.Error(err)
	}
}
