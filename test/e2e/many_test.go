// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"fmt"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ztunnel-go/ztunnel/test/netlab"
	"github.com/ztunnel-go/ztunnel/test/privileged"
	"github.com/ztunnel-go/ztunnel/test/rig"
)

// manyPods is what a large node may have; kubelet's default is 110.
const manyPods = 250

// TestManyPods starts a node of 250 pods, which the agent tells one by one, as
// Istio's does, each after the answer to the one before; first to a node that
// has captured none, then to a process that follows one that was killed.
func TestManyPods(t *testing.T) {
	privileged.Need(t)
	lab := netlab.NewTest(t)
	node, err := lab.Node("node1")
	must(t, err)
	mesh, err := rig.New(lab, ztunnel)
	must(t, err)
	t.Cleanup(func() { must(t, mesh.Close()) })
	var state rig.State
	pods := make([]*netlab.Pod, manyPods)
	for i := range pods {
		pods[i], err = node.Pod(fmt.Sprintf("p%d", i))
		must(t, err)
		state.Workloads = append(state.Workloads, rig.WorkloadOf(pods[i], "default"))
	}
	must(t, mesh.SetState(state))
	p, err := mesh.Start(node, rig.Options{})
	must(t, err)
	w := &world{t: t}
	must(t, p.Agent.AwaitSnapshots(w.patience(), 1))

	began := time.Now()
	for _, pod := range pods {
		must(t, p.Enrol(pod, "default"))
	}
	w.ready(p)
	first := time.Since(began)

	must(t, p.Signal(unix.SIGKILL))
	if _, err := p.Wait(w.patience()); err != nil {
		t.Fatal(err)
	}
	began = time.Now()
	must(t, p.Restart())
	must(t, p.Agent.AwaitSnapshots(w.patience(), 2))
	w.ready(p)
	again := time.Since(began)
	t.Logf("%d pods are served after %v, and %v after the start of the next process", manyPods, first.Round(time.Millisecond), again.Round(time.Millisecond))
	// On an idle machine it is less than 5 s; others may be using this one.
	const generous = 15 * time.Second
	if first > generous || again > generous {
		t.Errorf("it takes too long")
	}
}
