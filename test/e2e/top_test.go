// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"io"
	"net/netip"
	"os/exec"
	"strings"
	"testing"

	"github.com/ztunnel-go/ztunnel/test/netlab"
	"github.com/ztunnel-go/ztunnel/test/rig"
)

// TestOperatorsCommands runs top, explain and check of the binary beside
// proxies with traffic.
func TestOperatorsCommands(t *testing.T) {
	w := newWorld(t)
	w.policies(&rig.Policy{Name: "no-c", Namespace: "default", Scope: "Namespace", Action: "Deny",
		Rules: [][][]rig.Match{{{{Principals: []rig.StringMatch{rig.Exact(rig.Principal("other", "c"))}}}}}})
	vip := serviceVIPs()[0]
	c := w.dial(t, w.a.Host, netip.AddrPortFrom(vip, 7))
	_, err := io.WriteString(c, "hello")
	must(t, err)
	_, err = io.ReadFull(c, make([]byte, 5))
	must(t, err)
	refused := w.dial(t, w.c.Host, netip.AddrPortFrom(vip, 7))
	if _, err := refused.Read(make([]byte, 1)); err == nil {
		t.Fatal("c is not refused")
	}
	pc, err := w.b.ListenPacket("udp", ":0")
	must(t, err)
	defer pc.Close()
	ask(t, pc, at(w.resolvers[0], 53), serviceName, vip)

	t.Run("top without one", func(t *testing.T) {
		out := w.run(t, w.n2, 0, "top", "-interval", "100ms")
		for _, want := range []string{"default/b  in   " + w.a.IPv4.String(), "spiffe://cluster.local/ns/default/sa/a", "policy_denied", "asked", "b a udp"} {
			if !strings.Contains(out, want) {
				t.Errorf("no %q in\n%s", want, out)
			}
		}
	})
	t.Run("explain", func(t *testing.T) {
		for from, want := range map[string]string{
			"default/a": "=> allowed: no allow policies, allow", "other/c": "=> DENIED: explicitly denied by: default/no-c",
		} {
			for _, node := range []*netlab.Node{w.n1, w.n2} {
				if out := w.run(t, node, 0, "explain", from, serviceName+":7"); !strings.Contains(out, want) || !strings.Contains(out, "=> HBONE to "+w.b.IPv4.String()+":15008") {
					t.Errorf("from %s at %s: no %q in\n%s", from, node.Name(), want, out)
				}
			}
		}
		if out := w.run(t, w.n1, 1, "explain", "default/nobody", "default/b"); !strings.Contains(out, "400 Bad Request: nobody in the mesh") {
			t.Errorf("of nobody:\n%s", out)
		}
	})
	t.Run("check beside proxies", func(t *testing.T) {
		cmd := exec.Command(ztunnel, "check")
		cmd.Env = []string{"CGROUP_ROOT=" + w.lab.CgroupRoot(), "BPF_PIN_DIR=" + w.p1.PinDir(), "HOST_NETNS=" + w.n1.Path(), "INPOD_UDS=" + w.p1.Socket()}
		var out strings.Builder
		cmd.Stdout, cmd.Stderr = &out, &out
		must(t, w.n1.Start(cmd))
		_ = cmd.Wait() // the status says that there is a problem: here two nodes share a cgroup
		for _, want := range []string{"port 15000 (admin) is a running ztunnel's", `program "connect4"`, "is another ztunnel's, with another BPF_PIN_DIR", "\n1 problem found."} {
			if !strings.Contains(out.String(), want) {
				t.Errorf("no %q in\n%s", want, out.String())
			}
		}
	})
	t.Run("top in a terminal", func(t *testing.T) { w.topInATerminal(t) })
}

// run runs a command of the binary on a node, which has to end with a status.
func (w *world) run(t *testing.T, node *netlab.Node, status int, args ...string) string {
	t.Helper()
	cmd := exec.Command(ztunnel, args...)
	var out strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &out
	must(t, node.Start(cmd))
	err := cmd.Wait()
	if got := cmd.ProcessState.ExitCode(); got != status {
		t.Fatalf("%q: status %d, %v\n%s", args, got, err, out.String())
	}
	return out.String()
}

func (w *world) topInATerminal(t *testing.T) {
	cmd := exec.Command(ztunnel, "top", "--interval", "200ms")
	m := newTerminal(t, cmd)
	must(t, w.n2.Start(cmd))
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	defer cmd.Process.Kill()
	m.shows("ztunnel top", "127.0.0.1:15000", "pods 1", "open 1")
	m.shows("1 connections (1)", "2 traffic", "3 verdicts", "4 DNS")
	m.shows("default/b", "in", w.a.IPv4.String()+":", w.b.IPv4.String()+":7007", "HBONE", "spiffe://cluster.local/ns/default/sa/a")
	m.press("2")
	m.shows("destination", "default/a", "default/b", "mutual_tls", "1")
	m.press("3")
	m.shows("policy_denied", "destination", "1", "0/s")
	m.press("\t")
	m.shows("asked", "b a udp", "1")
	must(t, w.p2.Kill())
	m.shows("CANNOT LOOK:", "connection refused")
	m.press("q")
	if err := <-ended; err != nil {
		t.Errorf("it ends with %v:\n%s", err, m.text())
	}
	must(t, w.p2.Restart())
	w.ready(w.p2)
}
