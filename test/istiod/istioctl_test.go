// SPDX-License-Identifier: Apache-2.0

package istiod

import (
	"bytes"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

// istioctl has Istio's own reader of config_dump read ours, and wants it to
// have found as many things as are there.
func (w *world) istioctl(t *testing.T) {
	live := dial(t, w.a.Host, at(vipB, viaEcho))
	must(t, echo(live, "hello"))
	w.istiod.during(t, policyYAML("some", "default", "b", "DENY", "cluster.local/ns/no/sa/one"))
	must(t, w.p1.AwaitPage(w.patience(), dumpPage, `"some"`))
	d, text, err := w.dump(w.p1.Proxy)
	must(t, err)
	if len(d.Workloads) == 0 || len(d.Services) == 0 || len(d.Policies) == 0 || len(d.Certificates) == 0 || len(d.WorkloadState) == 0 {
		t.Fatalf("config_dump lacks something: %.2000s", text)
	}
	file := filepath.Join(t.TempDir(), "config_dump.json")
	must(t, os.WriteFile(file, []byte(text), 0o600))

	connections := 0
	for _, s := range d.WorkloadState {
		connections += len(s.Connections.Inbound) + len(s.Connections.Outbound)
	}
	if connections == 0 {
		t.Error("config_dump does not have the connection that there is")
	}
	for what, want := range map[string]int{
		"workloads": len(d.Workloads), "services": len(d.Services),
		"policies": len(d.Policies), "certificates": len(d.Certificates), "connections": len(d.WorkloadState),
	} {
		t.Run(what, func(t *testing.T) {
			var found []any
			must(t, json.Unmarshal(ztunnelConfig(t, what, "--file", file, "-o", "json"), &found))
			if len(found) != want {
				t.Errorf("istioctl finds %d %s, and there are %d", len(found), what, want)
			}
			if what == "connections" {
				want = connections // listed by pod in one form, one by one in the other
			}
			lines := bytes.Count(ztunnelConfig(t, what, "--file", file), []byte("\n"))
			if lines < want+1 { // and a heading
				t.Errorf("istioctl prints %d lines for %d %s", lines, want, what)
			}
		})
	}
	t.Run("all", func(t *testing.T) {
		var found map[string]any
		must(t, json.Unmarshal(ztunnelConfig(t, "all", "--file", file, "-o", "json"), &found))
		for _, key := range []string{"workloads", "services", "policies", "certificates", "workloadState", "config", "version"} {
			if found[key] == nil {
				t.Errorf("istioctl leaves out %s", key)
			}
		}
	})
}

// ztunnelConfig is what "istioctl ztunnel-config" prints.
func ztunnelConfig(t *testing.T, args ...string) []byte {
	t.Helper()
	out := filepath.Join(t.TempDir(), "out")
	cmd := exec.Command(istio, append([]string{"ztunnel-config", out}, args...)...)
	if said, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("istioctl %v: %v\n%s", args, err, said)
	}
	text, err := os.ReadFile(out)
	must(t, err)
	return text
}
