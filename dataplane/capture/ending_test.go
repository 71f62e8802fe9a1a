// SPDX-License-Identifier: Apache-2.0

package capture

import (
	"context"
	"errors"
	"net/netip"
	"os"
	"testing"
	"time"
)

// TestTheEndOfAPodIsNoticed closes the listeners of a pod's applications, in
// each tier, and then its link.
func TestTheEndOfAPodIsNoticed(t *testing.T) {
	for _, mode := range []Mode{EBPF, IstioCNI} {
		t.Run(mode.String(), func(t *testing.T) {
			r := newRig(t, func(c *Config) { c.Mode = mode })
			pod, err := r.host.Pod("a")
			must(t, err)
			before, err := pod.Listen("tcp", ":6000")
			must(t, err)
			defer before.Close()
			loopback, err := pod.Listen("tcp", "127.0.0.1:6001")
			must(t, err)
			defer loopback.Close()
			captured, err := r.node.Add(t.Context(), PodInfo{Name: "a"}, pod.NS())
			must(t, err)
			defer captured.Release()
			idle, severed := make(chan struct{}, 8), make(chan struct{}, 8)
			must(t, captured.OnEnd(Endings{Idle: func() { idle <- struct{}{} }, Severed: func() { severed <- struct{}{} }}))
			if mode == EBPF {
				must(t, captured.steer.Enroll())
				defer captured.steer.Unenroll(nil)
			}
			happens := func(what string, c chan struct{}) {
				t.Helper()
				select {
				case <-c:
				case <-time.After(10 * time.Second):
					t.Fatalf("nobody tells: %s", what)
				}
			}
			heard := func() { // that somebody listens, and how its end will be told
				t.Helper()
				eventually(t, func() error { return unless(captured.ending.listen.Load(), "nobody sees the listener") })
			}
			heard()
			second, err := pod.Listen("tcp", ":6002")
			must(t, err)
			defer second.Close()
			must(t, before.Close())
			captured.stir()
			select {
			case <-idle:
				t.Error("one of two listeners is the last")
			case <-time.After(10 * lookDelay):
			}
			must(t, second.Close())
			happens("the last listener is gone", idle)

			third, err := pod.Listen("tcp", ":6000")
			must(t, err)
			defer third.Close()
			c, err := captured.Deliver(t.Context(), pod.IPv4, pod.Addr(6000))
			must(t, err)
			must(t, c.Close())
			heard()
			eventually(t, func() error { return unless(hears(captured), "nobody looks again") })
			must(t, third.Close())
			happens("it listened again, and stopped", idle)

			must(t, pod.Delete())
			happens("the link is gone", severed)
			if len(idle) > 0 || len(severed) > 0 {
				t.Error("something is told twice")
			}
		})
	}
}

// hears says whether the pod has looked since somebody listens.
func hears(p *Pod) bool {
	p.ending.mu.Lock()
	defer p.ending.mu.Unlock()
	return len(p.ending.ports) > 0
}

func unless(holds bool, what string) error {
	if holds {
		return nil
	}
	return errors.New(what)
}

// TestWhatIsOpenOutlivesLeave has a captured connection go on after the pod's
// capture has ended for new ones, and end with Remove.
func TestWhatIsOpenOutlivesLeave(t *testing.T) {
	r := newRig(t)
	pod, err := r.host.Pod("a")
	must(t, err)
	p := r.capture(pod)
	dst := netip.MustParseAddrPort("192.0.2.7:80")
	open, err := pod.Dial(t.Context(), "tcp", dst.String())
	must(t, err)
	defer open.Close()
	must(t, p.Leave())
	if enrolled, err := r.node.bpf.IsEnrolled(p.cookie); err != nil || enrolled {
		t.Errorf("it is enrolled: %v, %v", enrolled, err)
	}
	_, err = open.Write([]byte("hello"))
	must(t, err)
	b := make([]byte, 1)
	must(t, open.SetReadDeadline(time.Now().Add(10*time.Second)))
	_, err = open.Read(b) // the stand-in greets
	must(t, err)
	must(t, p.Remove(context.Background()))
	for err == nil {
		_, err = open.Read(b)
	}
	if errors.Is(err, os.ErrDeadlineExceeded) {
		t.Error("it lives on after Remove")
	}
}
