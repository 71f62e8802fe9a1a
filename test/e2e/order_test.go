// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ztunnel-go/ztunnel/test/netlab"
	"github.com/ztunnel-go/ztunnel/test/rig"
)

// TestTheStartIsInOrder reads the start off the log (contract 15.1).
func TestTheStartIsInOrder(t *testing.T) {
	w := newWorld(t)
	lines := w.p1.Output.Lines(0)
	for _, text := range []string{
		"version: version.BuildInfo", "set file descriptor limits", "running with config: ",
		"listener established\taddress=[::]:15021", "in-pod mode enabled",
		"listener established\taddress=127.0.0.1:15000", "listener established\taddress=[::]:15020",
		"Task 'proxy' complete", "Task 'dns proxy' complete", "Task 'state manager' complete",
		"handling new stream", "received snapshot sent", "Task 'workload proxy manager' complete",
	} {
		found := false
		for i, line := range lines {
			if found = strings.Contains(line, text); found {
				lines = lines[i+1:]
				break
			}
		}
		if !found {
			t.Fatalf("%q is missing, or comes too early", text)
		}
	}
}

// TestNoPodIsServedBeforeTheState has an agent and no control plane.
func TestNoPodIsServedBeforeTheState(t *testing.T) {
	w := plan(t)
	w.p1 = w.start(w.n1, rig.Options{Env: map[string]string{"XDS_ADDRESS": "https://127.0.0.1:1"}})
	if err := w.p1.Enrol(w.a, "default"); err != nil {
		t.Fatal(err)
	}
	w.logged(t, w.p1, 0, "Task 'dns proxy' complete")
	since := w.p1.Output.Mark()
	w.logged(t, w.p1, since, "\twarn\txds") // it has tried, and will again
	if told := w.p1.Agent.Answers(); len(told) > 0 {
		t.Errorf("the agent was asked: %v", told)
	}
	must(t, w.p1.Signal(unix.SIGTERM))
	if code, err := w.p1.Wait(w.patience()); code != 0 || err != nil {
		t.Errorf("it ended with %d, %v", code, err)
	}
}

// TestQuitAnswersBeforeTheEnd asks for the end by the page, under a connection
// that lasts.
func TestQuitAnswersBeforeTheEnd(t *testing.T) {
	w := newWorld(t, rig.Options{Env: map[string]string{"CONNECTION_TERMINATION_DEADLINE": "10m"}})
	open := w.dial(t, w.a.Host, w.b.Addr(portEcho))
	echo(t, open, []byte("before"))
	if status, body, err := w.p1.Post(t.Context(), "15000/quitquitquit"); status != 200 || body != "shutdown now\n" || err != nil {
		t.Errorf("%d %q, %v", status, body, err)
	}
	w.logged(t, w.p1, 0, "received explicit shutdown signal")
	echo(t, open, []byte("after the answer"))
	must(t, open.CloseWrite())
	if err := ended(open); !errors.Is(err, io.EOF) {
		t.Errorf("the connection ended with %v", err)
	}
	if code, err := w.p1.Wait(w.patience()); code != 0 || err != nil {
		t.Errorf("it ended with %d, %v", code, err)
	}
}

// TestANegotiationGoesOnDuringADrain has a SOCKS client say where to only after
// its proxy was told to end.
func TestANegotiationGoesOnDuringADrain(t *testing.T) {
	w := newWorld(t, rig.Options{Env: map[string]string{"CONNECTION_TERMINATION_DEADLINE": "1m", "UNSTABLE_ENABLE_SOCKS5": "true"}})
	c := w.dial(t, w.a.Host, netip.MustParseAddrPort("127.0.0.1:15080"))
	_, err := c.Write([]byte{5, 1, 0})
	must(t, err)
	var got [10]byte
	_, err = io.ReadFull(c, got[:2])
	must(t, err)
	must(t, w.p1.Signal(unix.SIGTERM))
	w.logged(t, w.p1, 0, "shutting down the DNS server")
	_, err = c.Write(append(append([]byte{5, 1, 0, 3, byte(len(serviceName))}, serviceName...), 0, 7))
	must(t, err)
	if _, err := io.ReadFull(c, got[:]); err != nil || got[1] != 0 {
		t.Fatalf("answered % x, %v", got, err)
	}
	echo(t, c, []byte("during the drain"))
	must(t, c.CloseWrite())
	if err := ended(c); !errors.Is(err, io.EOF) {
		t.Errorf("the connection ended with %v", err)
	}
	if code, err := w.p1.Wait(w.patience()); code != 0 || err != nil {
		t.Errorf("it ended with %d, %v", code, err)
	}
}

// TestAllPodsDrainAtTheSameTime has a connection that does not end in each of
// several pods: the end takes one deadline, not one for each.
func TestAllPodsDrainAtTheSameTime(t *testing.T) {
	const deadline, pods = 6 * time.Second, 5
	w := plan(t)
	var many []*netlab.Pod
	for i := range pods {
		many = append(many, w.pod(w.n1, fmt.Sprint("many-", i)))
		w.state.Workloads = append(w.state.Workloads, rig.WorkloadOf(many[i], "default"))
	}
	must(t, w.mesh.SetState(w.state))
	w.up(rig.Options{Env: map[string]string{"CONNECTION_TERMINATION_DEADLINE": deadline.String()}})
	w.enrol(w.p1, many...)
	var open []net.Conn
	for _, pod := range many {
		c := w.dial(t, pod.Host, w.b.Addr(portEcho))
		echo(t, c, []byte("before"))
		open = append(open, c)
	}
	began := time.Now()
	must(t, w.p1.Signal(unix.SIGTERM))
	if code, err := w.p1.Wait(w.patience()); code != 0 || err != nil {
		t.Errorf("it ended with %d, %v", code, err)
	}
	if took := time.Since(began); took < deadline || took > (pods-1)*deadline {
		t.Errorf("the end took %v", took)
	}
	for _, c := range open {
		c.Close()
	}
}
