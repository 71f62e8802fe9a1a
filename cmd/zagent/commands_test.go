// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"io"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/ztunnel-go/ztunnel/cmd/zagent/roster"
	"github.com/ztunnel-go/ztunnel/test/leak"
)

func execute(t *testing.T, ctx context.Context, args ...string) (int, string) {
	t.Helper()
	var errs bytes.Buffer
	status := process{args: args, stdin: strings.NewReader(""), out: io.Discard, errors: &errs}.run(ctx)
	return status, errs.String()
}

func TestCommandLinesThatSayTooLittle(t *testing.T) {
	leak.Check(t)
	for args, want := range map[string]struct {
		status int
		text   string
	}{
		"":                                 {2, "usage: zagent"},
		"jump":                             {2, "usage: zagent"},
		"help":                             {0, "usage: zagent"},
		"run -h":                           {0, "-node"},
		"run extra":                        {2, "usage: zagent run"},
		"run -jump":                        {2, "-jump"},
		"run":                              {1, "whose node is this?"},
		"run -node n -kubeconfig /no":      {1, "reach the Kubernetes API"},
		"static":                           {2, "FILE"},
		"static -proc /nonexistent f":      {1, "the host's namespace"},
		"install-cni -conf-dir /no -x":     {2, "-x"},
		"install-cni -bin-dir /no/such":    {1, "/no/such"},
		"install-cni -remove -conf-dir /x": {1, "CNI configurations"},
	} {
		status, text := execute(t, t.Context(), strings.Fields(args)...)
		if status != want.status || !strings.Contains(text, want.text) {
			t.Errorf("zagent %s: %d, %q", args, status, text)
		}
	}
}

const conflistText = `{"cniVersion":"1.0.0","name":"net","plugins":[{"type":"bridge"}]}`

func TestThePluginIsInstalledWatchedAndRemoved(t *testing.T) {
	leak.Check(t)
	conf, bin := t.TempDir(), t.TempDir()
	file := filepath.Join(conf, "10-net.conflist")
	flags := []string{"install-cni", "-conf-dir", conf, "-bin-dir", bin}
	if status, text := execute(t, t.Context(), flags...); status != 1 || !strings.Contains(text, "no network configuration") {
		t.Errorf("without a network: %d, %q", status, text)
	}
	write := func() {
		if err := os.WriteFile(file, []byte(conflistText), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	has := func() bool {
		text, err := os.ReadFile(file)
		return err == nil && strings.Contains(string(text), "zagent-cni")
	}
	write()
	if status, text := execute(t, t.Context(), flags...); status != 0 || !has() {
		t.Fatalf("%d, %q", status, text)
	}
	program := filepath.Join(bin, "zagent-cni")
	own, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	if same, err := sameContent(own, program); err != nil || !same {
		t.Errorf("the program is another: %v", err)
	}
	if st, err := os.Stat(program); err != nil || st.Mode().Perm() != 0o755 {
		t.Errorf("%v, %v", st.Mode(), err)
	}

	ctx, cancel := context.WithCancel(t.Context())
	var watching sync.WaitGroup
	watching.Go(func() { execute(t, ctx, append(flags, "-watch")...) })
	write() // as another plugin does
	if err := os.WriteFile(program, []byte("older"), 0o755); err != nil {
		t.Fatal(err)
	}
	for limit := time.Now().Add(patience); ; time.Sleep(20 * time.Millisecond) {
		if same, _ := sameContent(own, program); same && has() {
			break
		}
		if time.Now().After(limit) {
			t.Fatal("it did not come back")
		}
	}
	cancel()
	watching.Wait()
	if !has() {
		t.Error("it went with the agent, which may be an upgrade")
	}

	if status, text := execute(t, t.Context(), append(flags, "-remove")...); status != 0 || has() {
		t.Errorf("%d, %q", status, text)
	}
	if _, err := os.Stat(program); !os.IsNotExist(err) {
		t.Errorf("the program is left: %v", err)
	}
	if entries, _ := os.ReadDir(bin); len(entries) != 0 {
		t.Errorf("left are %v", entries)
	}
}

func TestThePagesSayHowItIs(t *testing.T) {
	leak.Check(t)
	ready := false
	list := roster.New(roster.Config{})
	list.Set(roster.Pod{UID: "u", Name: "web", Namespace: "shop"})
	h := pages(list, &cniCounts{counts: map[roster.Count]uint64{{Request: "add", Result: "ok"}: 7}}, func() bool { return ready })
	get := func(path string) (int, string) {
		w := httptest.NewRecorder()
		h.ServeHTTP(w, httptest.NewRequest("GET", path, nil))
		return w.Code, w.Body.String()
	}
	if code, _ := get("/readyz"); code != 503 {
		t.Errorf("ready before it is: %d", code)
	}
	ready = true
	if code, _ := get("/readyz"); code != 200 {
		t.Errorf("not ready when it is: %d", code)
	}
	if code, _ := get("/healthz"); code != 200 {
		t.Errorf("not alive: %d", code)
	}
	if _, body := get("/debug/pods"); !strings.Contains(body, `"state": "unknown"`) {
		t.Errorf("pods: %s", body)
	}
	_, body := get("/metrics")
	for _, want := range []string{`zagent_pods{state="unknown"} 1`, `zagent_pods{state="served"} 0`, "zagent_proxies_connected 0", `zagent_cni_requests_total{command="add",result="ok"} 7`} {
		if !strings.Contains(body, want) {
			t.Errorf("no %s in %s", want, body)
		}
	}
}
