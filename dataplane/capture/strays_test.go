// SPDX-License-Identifier: Apache-2.0

package capture

import (
	"testing"

	"github.com/ztunnel-go/ztunnel/test/netlab"
)

func cookieOf(t *testing.T, pod *netlab.Pod) uint64 {
	t.Helper()
	cookie, err := pod.NS().Cookie()
	must(t, err)
	return cookie
}

func TestAPodThatNobodyTellsOfIsLetGo(t *testing.T) {
	r := newRig(t)
	gone, kept := r.pod("gone"), r.pod("kept")
	r.capture(gone).stopServing()
	r.capture(kept).stopServing()
	must(t, r.node.Close())

	r.open()
	again := r.capture(kept)
	recorded := recordTCP(t, gone)
	staysClosed(t, gone, recorded) // until somebody is sure
	n, err := r.node.ReleaseStrays()
	if err != nil || n != 1 {
		t.Fatalf("%d were released, %v, want one", n, err)
	}
	if left := traces(t, gone); len(left) > 0 {
		t.Errorf("left behind: %q", left)
	}
	if got := r.count("capture", "stray_pods_released"); got != 1 {
		t.Errorf("%d were counted", got)
	}
	if enrolled, err := r.node.bpf.IsEnrolled(cookieOf(t, gone)); err != nil || enrolled {
		t.Errorf("still enrolled: %v, %v", enrolled, err)
	}
	got, err := ask(kept.Host, "203.0.113.9:443", "x")
	wants(t, "the pod that was told of", got, err, "outbound")
	if n, err := r.node.ReleaseStrays(); err != nil || n != 0 {
		t.Errorf("%d more were released, %v", n, err)
	}
	must(t, again.Park())
	if n, err := r.node.ReleaseStrays(); err != nil || n != 0 {
		t.Errorf("%d parked pods were released, %v", n, err)
	}
	staysClosed(t, kept, recordTCP(t, kept))
}

// TestAPodThatOnlyAPredecessorWasToldOfIsMissed has the older of two processes
// told of a pod, and end.
func TestAPodThatOnlyAPredecessorWasToldOfIsMissed(t *testing.T) {
	r := newRig(t)
	deleted := r.pod("deleted")
	r.capture(deleted).stopServing()
	first := r.node
	r.open()
	second := r.node
	pod := r.pod("a")
	r.node = first
	p := r.capture(pod)
	found := func(n *Node) bool {
		t.Helper()
		is, err := n.Orphaned()
		must(t, err)
		return is
	}
	if found(second) {
		t.Error("missed while it is served")
	}
	p.stopServing()
	if found(first) {
		t.Error("the older process misses it")
	}
	if !found(second) {
		t.Error("not missed when its process is gone")
	}
	if found(second) {
		t.Error("missed twice")
	}
	r.node = second
	r.capture(pod)
	r.capture(deleted)
	if found(second) {
		t.Error("missed although it is there")
	}
}
