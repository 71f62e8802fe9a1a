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
