// SPDX-License-Identifier: Apache-2.0

package app

import (
	"encoding/json"
	"net"
	"net/http"
	"os"
	"strconv"
	"strings"
	"testing"

	"github.com/ztunnel-go/ztunnel/internal/admin"
)

func TestExplainAsksFiles(t *testing.T) {
	state := inDir(t, "state.yaml")
	if err := os.WriteFile(state, []byte(localState), 0o600); err != nil {
		t.Fatal(err)
	}
	status, out, err := command(t, nil, "explain", "-f", state, "default/client", "web.default.svc.cluster.local")
	if status != 0 || !strings.Contains(out, "=> HBONE to 10.0.0.2:15008, asking for 10.0.0.2:8080") || !strings.HasSuffix(out, "The connection is carried.\n") {
		t.Errorf("of local resources: %d %s%s", status, out, err)
	}
	for name, tc := range map[string]struct {
		text string
		args []string
		want string
	}{
		"a bad dump":   {`{"config":{},"workloads":[{"uid":"u","protocol":"QUIC"}]}`, []string{"a", "b"}, `workload "u": protocol "QUIC" is not understood`},
		"neither":      {"nonsense: 1\n", []string{"a", "b"}, "neither a config dump nor local resources"},
		"nobody":       {localState, []string{"default/nobody", "default/server"}, `nobody in the mesh is named "default/nobody"`},
		"one end":      {localState, []string{"default/client"}, "explain wants two ends, FROM and TO, and was given 1"},
		"no such flag": {localState, []string{"-x", "a", "b"}, "flag provided but not defined"},
	} {
		if err := os.WriteFile(state, []byte(tc.text), 0o600); err != nil {
			t.Fatal(err)
		}
		status, _, err := command(t, nil, append([]string{"explain", "-f", state}, tc.args...)...)
		if status != 1 || !strings.HasPrefix(err, "Error: ") || !strings.Contains(err, tc.want) {
			t.Errorf("%s: %d %q", name, status, err)
		}
	}
	if status, out, _ := command(t, nil, "explain", "-h"); status != 0 || !strings.Contains(out, "FROM TO[:PORT]") {
		t.Errorf("help: %d %q", status, out)
	}
}

func TestExplainAsksARunningProxyAndItsDump(t *testing.T) {
	r := start(t, variables(t))
	r.serves(t)
	place := "127.0.0.1:" + strconv.Itoa(int(r.cfg.AdminPort))
	status, asked, stderr := command(t, nil, "explain", "-admin", place, "-json", "default/client", "default/server:8080")
	var answer struct {
		Allowed bool
		Route   struct{ Outcome, Authority string }
	}
	if err := json.Unmarshal([]byte(asked), &answer); err != nil || status != 0 || !answer.Allowed || answer.Route.Outcome != "HBONE" || answer.Route.Authority != "10.0.0.2:8080" {
		t.Errorf("%d %s%s, %v", status, asked, stderr, err)
	}
	dump, err := admin.NewClient(place).Get(t.Context(), "/config_dump", 1<<20)
	if err != nil {
		t.Fatal(err)
	}
	file := inDir(t, "dump.json")
	if err := os.WriteFile(file, dump, 0o600); err != nil {
		t.Fatal(err)
	}
	if status, read, stderr := command(t, nil, "explain", "-f", file, "-json", "default/client", "default/server:8080"); status != 0 || read != asked {
		t.Errorf("by its dump: %d %s%s; asked, it said %s", status, read, stderr, asked)
	}
	if status, _, stderr := command(t, nil, "explain", "-admin", place, "default/client", "default/nobody"); status != 1 || !strings.Contains(stderr, `nobody in the mesh is named "default/nobody"`) {
		t.Errorf("nobody: %d %q", status, stderr)
	}
}

// serves waits for the admin pages, which wait for all that they show.
func (r *running) serves(t *testing.T) {
	t.Helper()
	eventually(t, "it serves", func() bool {
		resp, err := http.Get("http://127.0.0.1:" + strconv.Itoa(int(r.cfg.ReadinessPort)) + "/healthz/ready")
		if err != nil {
			return false
		}
		resp.Body.Close()
		return strings.Contains(r.out.String(), `component="admin"`)
	})
}

// TestAnAdminSocketReplacesThePort also has the commands find it.
func TestAnAdminSocketReplacesThePort(t *testing.T) {
	path := inDir(t, "admin.sock")
	vars := with(variables(t), "ADMIN_SOCKET", path)
	r := start(t, vars)
	r.serves(t)
	if st, err := os.Stat(path); err != nil || st.Mode().Perm() != 0o600 {
		t.Fatalf("%v, %v", st, err)
	}
	if c, err := net.Dial("tcp", "127.0.0.1:"+strconv.Itoa(int(r.cfg.AdminPort))); err == nil {
		c.Close()
		t.Error("the port is there as well")
	}
	if status, out, stderr := command(t, vars, "explain", "default/client", "default/server:8080"); status != 0 || !strings.Contains(out, "The connection is carried.") {
		t.Errorf("%d %s%s", status, out, stderr)
	}
	r.stop.cancel()
	if err := r.wait(); err != nil {
		t.Error(err)
	}
	if _, err := os.Lstat(path); !os.IsNotExist(err) {
		t.Errorf("the socket is left: %v", err)
	}
}

func TestWhereCommandsLookForAProxy(t *testing.T) {
	for want, vars := range map[string]map[string]string{
		"127.0.0.1:15000": nil,
		"127.0.0.1:15099": {"PROXY_CONFIG": `{"proxyMetadata":{},"proxyAdminPort":15099}`},
		"/x/admin.sock":   {"ADMIN_SOCKET": "/x/admin.sock", "PROXY_CONFIG": `{"proxyMetadata":{},"proxyAdminPort":15099}`},
	} {
		if got := adminPlace(MapEnv(vars, 1), ""); got != want {
			t.Errorf("%v: %s, want %s", vars, got, want)
		}
	}
	if got := adminPlace(MapEnv(nil, 1), "here"); got != "here" {
		t.Error(got)
	}
}
