// SPDX-License-Identifier: Apache-2.0

package capture

import (
	"context"
	"errors"
	"net"
	"testing"
	"time"

	"github.com/ztunnel-go/ztunnel/test/netlab"
)

// staysClosed asserts that a connection of the pod waits, and sends nothing.
func staysClosed(t *testing.T, pod *netlab.Pod, recorded func() []*netlab.Packet) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 300*time.Millisecond)
	defer cancel()
	c, err := pod.Dial(ctx, "tcp", "203.0.113.9:443")
	if err == nil {
		c.Close()
	}
	var timeout net.Error // the dialler may see its deadline a moment before ctx does
	if !errors.As(err, &timeout) || !timeout.Timeout() {
		t.Errorf("the connection did not wait: %v", err)
	}
	for _, pkt := range recorded() {
		t.Errorf("left the pod: %v", pkt)
	}
}

func TestAParkedPodStaysClosedUntilItIsRemoved(t *testing.T) {
	r := newRig(t)
	pod := r.pod("a")
	p := r.capture(pod)
	recorded := recordTCP(t, pod)
	must(t, p.Park())
	p.closeConns()
	staysClosed(t, pod, recorded)
	must(t, p.Remove(context.Background()))
	if left := traces(t, pod); len(left) > 0 {
		t.Errorf("left behind: %q", left)
	}
}

func TestAPodThatIsGivenUpStaysClosedIfItWasCapturedBefore(t *testing.T) {
	r := newRig(t)
	pod := r.pod("a")
	fresh := r.add(pod)
	must(t, fresh.Abandon(context.Background()))
	if left := traces(t, pod); len(left) > 0 {
		t.Errorf("a pod that was never captured has %q", left)
	}

	r.capture(pod).stopServing()
	recorded := recordTCP(t, pod)
	must(t, r.add(pod).Abandon(context.Background()))
	staysClosed(t, pod, recorded)
}
