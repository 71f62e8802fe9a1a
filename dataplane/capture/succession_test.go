// SPDX-License-Identifier: Apache-2.0

package capture

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/ztunnel-go/ztunnel/bpf/redirect"
)

func TestUntilItIsClaimedAPodIsTheOldProcesss(t *testing.T) {
	r := newRig(t)
	pod := r.pod("a")
	first := r.capture(pod)
	r.open()
	second := r.add(pod)
	if !second.Succeeds() {
		t.Error("nobody serves it")
	}
	if first.isLeft() {
		t.Error("it is taken before it can be served")
	}
	must(t, first.verify(context.Background()))
	must(t, first.follow())
	must(t, second.Enable(context.Background()))
	if !first.isLeft() || second.isLeft() {
		t.Error("it is not the new process's")
	}
	if err := first.follow(); !errors.Is(err, redirect.ErrReplaced) {
		t.Errorf("the old process writes its addresses: %v", err)
	}
	must(t, first.verify(context.Background())) // it has nothing to say any more
	first.takeBack()
	must(t, second.verify(context.Background()))
}

func TestAPodIsTakenBackFromAProcessThatIsGone(t *testing.T) {
	r := newRig(t)
	pod := r.pod("a")
	first := r.capture(pod)
	kill := r.child(pod)
	if !first.isLeft() {
		t.Fatal("the child has not taken over")
	}
	kill()
	got, err := ask(pod.Host, "203.0.113.9:443", "x") // waits for the old process to notice
	wants(t, "after the new process's end", got, err, "outbound dst=203.0.113.9:443")
	must(t, first.verify(context.Background()))
	must(t, first.Vacate(context.Background()))
	first.takeBack()
	if served, err := first.steer.Served(redirect.SlotOutbound); served || err != nil {
		t.Errorf("whoever is about to end took the pod back: %v", err)
	}
}

// TestAPodThatTheNextProcessLetGoStaysFree has a pod leave the mesh while two
// processes run: the older one, which is not told, must not repair that.
func TestAPodThatTheNextProcessLetGoStaysFree(t *testing.T) {
	r := newRig(t)
	pod := r.pod("a")
	first := r.capture(pod)
	r.open()
	second := r.add(pod)
	must(t, second.Enable(context.Background()))
	free := func(when string) {
		t.Helper()
		first.takeBack()
		first.lookAfter()
		if on, err := r.node.bpf.IsEnrolled(first.cookie); on || err != nil {
			t.Errorf("%s the old process has enrolled it again: %v", when, err)
		}
	}
	must(t, second.Leave())
	free("with connections left")
	second.stopServing()
	free("after the last connection")
	must(t, second.Remove(context.Background()))
	free("after the end")
}

// TestWhoHasBeenAnsweredIsServed has connections and a query wait in the queues
// of sockets that are to close.
func TestWhoHasBeenAnsweredIsServed(t *testing.T) {
	r := newRig(t)
	pod, other := r.pod("a"), r.pod("b")
	p := &proxy{t: t}
	var err error
	p.Pod, err = r.node.Add(context.Background(), PodInfo{UID: "a", Name: "a", Namespace: "test"}, pod.NS())
	must(t, err)
	t.Cleanup(p.stopServing)
	_, err = p.take()
	must(t, err)
	must(t, p.steer.Enroll())
	answers := make(chan error, 3)
	for _, from := range []func() (string, error){
		func() (string, error) { return ask(pod.Host, "203.0.113.9:443", "x") },
		func() (string, error) { return ask(other.Host, pod.Addr(15008).String(), "x") },
		func() (string, error) {
			u, err := pod.Dial(context.Background(), "udp", "10.96.0.10:53")
			if err != nil {
				return "", err
			}
			defer u.Close()
			return exchange(u, "q")
		},
	} {
		go func() {
			_, err := from()
			answers <- err
		}()
	}
	for end := time.Now().Add(5 * time.Second); ; time.Sleep(time.Millisecond) {
		out, err1 := backlog(p.listeners[Outbound].tcp)
		in, err2 := backlog(p.listeners[HBONE].tcp)
		must(t, errors.Join(err1, err2))
		names := counted(t, r.node, "dns_udp") // of a socket in a slot the kernel does not tell
		if out == 1 && in == 1 && names > 0 {
			break
		}
		if time.Now().After(end) {
			t.Fatalf("%d and %d connections and %d queries wait", out, in, names)
		}
	}
	vacated := make(chan error, 1)
	go func() { vacated <- p.Vacate(context.Background()) }()
	for served := true; served; {
		served, err = p.steer.Served(redirect.SlotHBONE)
		must(t, err)
	}
	p.serve()
	must(t, <-vacated)
	must(t, p.Release())
	for range cap(answers) {
		must(t, <-answers)
	}
}

// counted is what a reason of sk_lookup was counted so far.
func counted(t *testing.T, n *Node, reason string) uint64 {
	t.Helper()
	counts, err := n.bpf.Counts()
	must(t, err)
	for _, c := range counts {
		if c.Hook == "sk_lookup" && c.Name == reason {
			return c.Value
		}
	}
	return 0
}
