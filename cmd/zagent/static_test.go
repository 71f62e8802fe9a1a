// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/ztunnel-go/ztunnel/cmd/zagent/static"
	"github.com/ztunnel-go/ztunnel/internal/netns"
	"github.com/ztunnel-go/ztunnel/test/netlab"
	"github.com/ztunnel-go/ztunnel/test/netlab/serve"
)

// logged keeps what an agent logs.
type logged struct {
	t  *testing.T
	mu sync.Mutex
	b  strings.Builder
}

func (l *logged) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.t.Log(strings.TrimSpace(string(b)))
	return l.b.Write(b)
}

func (l *logged) has(text string) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !strings.Contains(l.b.String(), text) {
		return fmt.Errorf("nothing of %q was logged", text)
	}
	return nil
}

func TestWorkloadsOfAFileAreCaptured(t *testing.T) {
	w := newWorld(t)
	c, err := w.node.Pod("c")
	w.must(err)
	server, err := c.Serve(serve.Options{Echo: ":7777"})
	w.must(err)
	unit := filepath.Join(w.lab.CgroupRoot(), "system.slice", "c.service")
	w.must(os.MkdirAll(unit, 0o755))
	w.must(os.WriteFile(filepath.Join(unit, "cgroup.procs"), []byte(fmt.Sprint(server.Pid())), 0o600))

	file := filepath.Join(t.TempDir(), "workloads.yaml")
	write := func(lines ...string) {
		t.Helper()
		w.must(os.WriteFile(file+".new", []byte("workloads:\n"+strings.Join(lines, "\n")+"\n"), 0o600))
		w.must(os.Rename(file+".new", file))
	}
	of := func(name, place string) string {
		return fmt.Sprintf("- {name: %s, namespace: shop, serviceAccount: %s, %s}", name, name, place)
	}
	a, b := of("a", "netns: "+filepath.Base(w.a.Path())), of("b", "cgroup: /kubepods/pod"+uidOf("b"))
	if filepath.Dir(w.a.Path()) == "/proc" {
		t.Fatal("the lab names no namespaces")
	}
	write(a, b, of("c", "unit: c.service"), of("host", "netns: "+w.node.Path()), of("twin", "netns: "+w.a.Path()),
		of("none", "unit: none.service"))

	log := &logged{t: t}
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() {
		if err := serveStatic(ctx, w.zdsSocket(), "127.0.0.1:0", static.Config{
			File: file, Proc: "/proc", CgroupRoot: w.lab.CgroupRoot(), NamedNetNS: filepath.Dir(w.a.Path()),
			Hosts: []netns.ID{w.node.NS().ID()}, Interval: 50 * time.Millisecond, Logger: slog.New(slog.NewTextHandler(log, nil)),
		}); err != nil {
			t.Error(err)
		}
	})
	defer running.Wait()
	defer cancel()
	w.run()
	w.page(up("a"), up("b"), up("c"), `"late":{"ended":`)
	w.must(w.proxy.AwaitReady(w.limited()))
	for _, want := range []string{"host's network namespace", "lives in the network namespace of static/shop/a", "unit none.service does not run"} {
		w.eventually(func() error { return log.has(want) })
	}
	if w.isPlain() {
		t.Error("a captured workload speaks in plaintext")
	}

	write(a, b, "- {name: c, netns: c, port: 1}") // makes no sense, and changes nothing
	w.eventually(func() error { return log.has("no field is called") })
	w.page(up("c"))
	write(a, b)
	w.isGone("c")
	w.page(up("a"), up("b"))

	again, err := claim(w.zdsSocket())
	if err == nil {
		again()
		t.Error("two agents may serve one socket")
	}
	pidOf := func(p *netlab.Pod) int {
		server, err := p.Serve(serve.Options{Echo: ":7778"})
		w.must(err)
		return server.Pid()
	}
	write(a, b, of("c", fmt.Sprintf("pid: %d", pidOf(c))))
	w.page(up("c"))
}

func (w *world) isGone(name string) {
	w.t.Helper()
	w.eventually(func() error {
		_, body, err := w.proxy.Get(w.t.Context(), "15000/debug/pods")
		if err != nil || strings.Contains(body, fmt.Sprintf("%q", name)) {
			return fmt.Errorf("the proxy still has it: %s, %v", body, err)
		}
		return nil
	})
}
