// SPDX-License-Identifier: Apache-2.0

package app

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/ztunnel-go/ztunnel/internal/zds/zdspb"
	"github.com/ztunnel-go/ztunnel/test/fakeagent"
	"github.com/ztunnel-go/ztunnel/test/leak"
	"github.com/ztunnel-go/ztunnel/test/netlab"
	"github.com/ztunnel-go/ztunnel/test/privileged"
	"github.com/ztunnel-go/ztunnel/test/rig"
)

// A place is a node with a pod, and a process that listens where the rules of
// istio-cni lead. There are the least of them: what counts is the process.
type place struct {
	t    *testing.T
	node *netlab.Node
	pod  *netlab.Pod
	*rig.Proxy
}

func newPlace(t *testing.T, o rig.Options) *place {
	t.Helper()
	privileged.Need(t)
	leak.Check(t)
	lab := netlab.NewTest(t)
	node, err := lab.Node("node1")
	must(t, err)
	pod, err := node.Pod("a")
	must(t, err)
	redirect(t, pod)
	exe, err := os.Executable()
	must(t, err)
	mesh, err := rig.New(lab, exe)
	must(t, err)
	t.Cleanup(func() {
		if err := mesh.Close(); err != nil {
			t.Error(err)
		}
	})
	must(t, mesh.SetState(rig.State{Workloads: []*rig.Workload{rig.WorkloadOf(pod, "default")}}))
	o.Env = map[string]string{"CAPTURE": "istio-cni"}
	p, err := mesh.Start(node, o)
	must(t, err)
	place := &place{t, node, pod, p}
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("it printed:\n%s", strings.Join(p.Output.Lines(0), "\n"))
		}
	})
	return place
}

// redirect leads what the pod opens to port 15001.
func redirect(t *testing.T, pod *netlab.Pod) {
	t.Helper()
	for _, program := range []string{"iptables", "ip6tables"} {
		if _, err := exec.LookPath(program); err != nil {
			privileged.Lacking(t, err)
		}
		cmd := exec.Command(program, strings.Fields("-t nat -A OUTPUT -p tcp ! -o lo -m mark ! --mark 0x539/0xfff -j REDIRECT --to-ports 15001")...)
		var out strings.Builder
		cmd.Stdout, cmd.Stderr = &out, &out
		must(t, pod.Start(cmd))
		if err := cmd.Wait(); err != nil {
			t.Fatalf("%s: %v: %s", program, err, out.String())
		}
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func (p *place) patience() context.Context {
	p.t.Helper()
	ctx, cancel := context.WithTimeout(p.t.Context(), patience)
	p.t.Cleanup(cancel)
	return ctx
}

// ends waits for the process to end with a status, having said some things in
// this order.
func (p *place) ends(status int, since int, said ...string) {
	p.t.Helper()
	got, err := p.Wait(p.patience())
	must(p.t, err)
	if got != status {
		p.t.Errorf("exit status %d, want %d", got, status)
	}
	lines := p.Output.Lines(since)
	for _, text := range said {
		for len(lines) > 0 && !strings.Contains(lines[0], text) {
			lines = lines[1:]
		}
		if len(lines) == 0 {
			p.t.Errorf("it did not say %q, after what came before", text)
		}
	}
}

func TestTheProcessServesAPodAndStops(t *testing.T) {
	p := newPlace(t, rig.Options{})
	must(t, p.Enrol(p.pod, "default"))
	must(t, p.AwaitReady(p.patience()))
	must(t, p.AwaitPage(p.patience(), "15000/config_dump", `"expirationTime"`)) // prefetched
	for page, text := range map[string]string{
		"15000/":           "/config_dump",
		"15000/debug/pods": `"istio-cni"`,
		"15000/debug/live": `"inbound"`,
		"15000/debug/bpf":  "[",
		"15020/metrics":    "istio_active_proxy_count_total 1",
		rig.ReadyPage:      "ready\n",
		"15000/debug/route?src=" + p.pod.IPv4.String() + "&dst=192.0.2.1:80": "outcome: TCP",
	} {
		status, body, err := p.Get(t.Context(), page)
		if err != nil || status != 200 || !strings.Contains(body, text) {
			t.Errorf("%s: %d %s, %v; want %q", page, status, body, err, text)
		}
	}
	p.checkDump()
	if _, err := p.Output.Await(p.patience(), 0, `proxy::outbound:proxy{wl=default/a}`, "listener established", `component="outbound" transparent=true`); err != nil {
		t.Error(err)
	}

	mark := p.Output.Mark()
	must(t, p.Signal(unix.SIGTERM))
	p.ends(0, mark, "received signal SIGTERM, starting shutdown", `component="readiness"`, `component="admin"`, "shutdown complete")

	mark = p.Output.Mark()
	must(t, p.Restart())
	must(t, p.AwaitReady(p.patience()))
	resp, err := p.node.HTTPClient().Post("http://127.0.0.1:15000/quitquitquit", "", nil)
	must(t, err)
	body, err := io.ReadAll(resp.Body)
	resp.Body.Close()
	if resp.StatusCode != 200 || string(body) != "shutdown now\n" || err != nil {
		t.Errorf("%d %q, %v", resp.StatusCode, body, err)
	}
	p.ends(0, mark, "received explicit shutdown signal", "shutdown complete")
}

func (p *place) checkDump() {
	p.t.Helper()
	_, body, err := p.Get(p.t.Context(), "15000/config_dump")
	must(p.t, err)
	var dump struct {
		WorkloadState map[string]struct {
			State   string
			Capture struct{ Tier, Health string }
		}
		Certificates []struct{ Identity, State string }
	}
	must(p.t, json.Unmarshal([]byte(body), &dump))
	if pod := dump.WorkloadState["a"]; pod.State != "Up" || pod.Capture.Tier != "istio-cni" || pod.Capture.Health != "" {
		p.t.Errorf("workload state %+v", dump.WorkloadState)
	}
	if c := dump.Certificates; len(c) != 1 || c[0].Identity != "spiffe://cluster.local/ns/default/sa/a" || c[0].State != "Available" {
		p.t.Errorf("certificates %+v", c)
	}
}

// namespaces are how many descriptors of network namespaces the process has.
func (p *place) namespaces() int {
	p.t.Helper()
	dir := fmt.Sprintf("/proc/%d/fd", p.Pid())
	entries, err := os.ReadDir(dir)
	must(p.t, err)
	n := 0
	for _, e := range entries {
		to, err := os.Readlink(filepath.Join(dir, e.Name()))
		if errors.Is(err, fs.ErrNotExist) {
			continue // closed meanwhile
		}
		must(p.t, err)
		if strings.HasPrefix(to, "net:[") {
			n++
		}
	}
	return n
}

// TestNothingIsLeftOfAPod holds that a pod's namespace can end, and that its
// certificate is not renewed for ever.
func TestNothingIsLeftOfAPod(t *testing.T) {
	p := newPlace(t, rig.Options{})
	must(t, p.AwaitReady(p.patience()))
	before := p.namespaces()
	for range 3 {
		must(t, p.Enrol(p.pod, "default"))
		must(t, p.AwaitPage(p.patience(), "15000/config_dump", `"expirationTime"`))
		if p.namespaces() <= before {
			t.Error("it holds no namespace")
		}
		must(t, p.Agent.Del(p.pod.Name()))
		must(t, p.AwaitPage(p.patience(), "15000/debug/pods", "[]"))
		eventually(t, "its namespace is closed", func() bool { return p.namespaces() == before })
		must(t, p.AwaitPage(p.patience(), "15000/config_dump", `"certificates": []`))
	}
}

func TestTheProcessFailsWithItsAgent(t *testing.T) {
	p := newPlace(t, rig.Options{NoAgent: true})
	agent, err := fakeagent.Listen(p.Socket())
	must(t, err)
	defer agent.Close()
	c, err := agent.Accept(p.patience())
	must(t, err)
	defer c.Close()
	must(t, c.Add("a", &zdspb.WorkloadInfo{Name: "a", Namespace: "default", ServiceAccount: "a"}, p.pod.NS()))
	must(t, c.SnapshotSent())
	must(t, p.AwaitReady(p.patience()))
	var refused *fakeagent.Refused
	if err := c.Keep("a"); !errors.As(err, &refused) {
		t.Errorf("answered %v", err)
	}
	p.ends(1, 0, `WorkloadProxyManager run error: ProtocolError("pod keep received after snapshot")`,
		`Error: workload proxy manager: ProtocolError("pod keep received after snapshot")`)
}
