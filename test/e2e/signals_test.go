// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"errors"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ztunnel-go/ztunnel/test/fakeagent"
	"github.com/ztunnel-go/ztunnel/test/rig"
)

// TestSignals asks a process to stop under a connection that does not end. A
// second SIGTERM changes nothing; a second SIGINT ends it at once.
func TestSignals(t *testing.T) {
	w := newWorld(t, rig.Options{Env: map[string]string{"CONNECTION_TERMINATION_DEADLINE": "10m"}})
	open := w.dial(t, w.a.Host, w.b.Addr(portEcho))
	echo(t, open, []byte("before"))
	since := w.p1.Output.Mark()
	must(t, w.p1.Signal(unix.SIGTERM))
	w.logged(t, w.p1, since, "received signal SIGTERM, starting shutdown")
	must(t, w.p1.Signal(unix.SIGTERM))
	echo(t, open, []byte("after two of them"))
	if status, _, err := w.p1.Get(t.Context(), "15000/config_dump"); status != http.StatusOK || err != nil {
		t.Errorf("the admin page during a drain: %d, %v", status, err)
	}
	must(t, w.p1.Signal(unix.SIGINT))
	echo(t, open, []byte("after one SIGINT"))
	began := time.Now()
	for w.p1.Running() { // of two at the same time the kernel makes one
		if err := w.p1.Signal(unix.SIGINT); err != nil {
			break // it has ended
		}
		if time.Since(began) > patience {
			t.Fatal("it runs on")
		}
		time.Sleep(20 * time.Millisecond)
	}
	if code, err := w.p1.Wait(w.patience()); code != 0 || err != nil {
		t.Errorf("it ended with %d, %v", code, err)
	}
	if n := strings.Count(strings.Join(w.p1.Output.Lines(since), "\n"), "starting shutdown"); n != 1 {
		t.Errorf("it said %d times that it begins to stop", n)
	}
	if err := ended(open); isTimeout(err) {
		t.Error("the connection outlived the process")
	}
}

// TestATakenPort starts the process where somebody has one of its ports. It
// says which, ends with status 1, and has captured nothing.
func TestATakenPort(t *testing.T) {
	w := plan(t)
	for _, number := range []int{15000, 15020, 15021} {
		t.Run(fmt.Sprint(number), func(t *testing.T) {
			own, err := w.lab.Bare(fmt.Sprint("taken-", number))
			must(t, err)
			l, err := own.Listen("tcp", port(number))
			must(t, err)
			defer l.Close()
			p := w.start(w.n1, rig.Options{NoAgent: true, In: own})
			if code, err := p.Wait(w.patience()); code != 1 || err != nil {
				t.Errorf("it ended with %d, %v", code, err)
			}
			if line, err := p.Output.Await(w.patience(), 0, "Error: ", fmt.Sprint(":", number), "address already in use"); err != nil {
				t.Errorf("it said %q, %v", line, err)
			}
			if n := len(podPins(t, p)); n > 0 {
				t.Errorf("it has captured %d pods", n)
			}
		})
	}
}

// TestANamespaceThatVanishes takes pods away while the agent tells of them. The
// others are served all the while, and nothing of those is left.
func TestANamespaceThatVanishes(t *testing.T) {
	w := newWorld(t)
	for round := range 8 {
		pod := w.pod(w.n1, fmt.Sprint("brief-", round))
		ns, err := pod.NS().Dup() // the agent's own: Delete closes the other
		must(t, err)
		told := make(chan error, 1)
		go func() {
			told <- w.p1.Agent.Add(fakeagent.Pod{
				UID: pod.Name(), Name: pod.Name(), Namespace: "default", ServiceAccount: pod.Name(), NS: ns,
			})
		}()
		time.Sleep(time.Duration(round*round) * time.Millisecond) // at another step each time
		must(t, pod.Delete())
		if err := <-told; err != nil && !strings.Contains(err.Error(), "failure to start proxy") {
			t.Errorf("round %d: %v", round, err)
		}
		must(t, refused(w.a.Host, w.b.Addr(portEcho), []byte("others are served")))
		must(t, w.p1.Agent.Del(pod.Name()))
		must(t, ns.Close())
	}
	w.ready(w.p1)
	w.eventually(t, func() error {
		if n := len(podPins(t, w.p1)); n != 2 {
			return fmt.Errorf("%d pods are pinned", n)
		}
		if n := len(w.pods(t, w.p1)); n != 2 {
			return errors.New("pods that are gone are listed")
		}
		return nil
	})
}
