// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/ztunnel-go/ztunnel/test/netlab"
	"github.com/ztunnel-go/ztunnel/test/rig"
)

// TestCleanup runs the cleanup command while connections are open. They end
// without a word in plaintext, and nothing is left of capture anywhere.
func TestCleanup(t *testing.T) {
	t.Run("of a running proxy", func(t *testing.T) {
		w := newWorld(t)
		w.cleanUp(t, func() {})
	})
	t.Run("of a dead one", func(t *testing.T) {
		w := newWorld(t)
		w.cleanUp(t, func() { must(t, w.p1.Kill()) })
	})
}

func (w *world) cleanUp(t *testing.T, before func()) {
	link := record(t, w.a)
	if len(w.traces(t, w.a)) == 0 || len(w.programs(t)) == 0 {
		t.Fatal("the test would not see what is left")
	}
	open := w.dial(t, w.a.Host, w.b.Addr(portEcho))
	echo(t, open, []byte("before"))
	app := listen(t, w.c.Host, port(6000))
	plain := w.dial(t, w.stranger.Host, w.c.Addr(6000))
	server := app.accept(t)
	before()
	marker := newMarker()
	waiting := make(chan error, 1)
	if !w.p1.Running() {
		// It waits for a proxy, and must not go on without one.
		go func() { waiting <- refused(w.a.Host, w.b.Addr(portEcho), marker) }()
		w.eventually(t, func() error { return w.connecting(w.a) })
	} else {
		waiting <- errors.New("nobody waits")
	}

	since := w.p1.Output.Mark()
	must(t, w.p1.Cleanup())
	w.logged(t, w.p1, since, "removed every trace of capture")
	for _, c := range []interface {
		Write([]byte) (int, error)
	}{open, server} {
		_, _ = c.Write(marker)
	}
	for name, c := range map[string]error{"client": ended(open), "server": ended(server), "stranger": ended(plain)} {
		if isTimeout(c) {
			t.Errorf("the %s's connection lives on", name)
		}
	}
	if err := <-waiting; err == nil {
		t.Error("what waited for the proxy got through without it")
	}
	link.lacks(t, marker)
	if w.p1.Running() {
		must(t, w.p1.Kill()) // it still held its programs
	}
	for _, pod := range []*netlab.Pod{w.a, w.c} {
		w.eventually(t, func() error {
			if left := w.traces(t, pod); len(left) > 0 {
				return fmt.Errorf("left in %s: %q", pod.Name(), left)
			}
			return nil
		})
	}
	if _, err := os.Stat(w.p1.PinDir()); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("pins are left: %v", err)
	}
	// The other node's programs stay, and nobody else's.
	// The kernel takes programs out after it has answered.
	w.eventually(t, func() error {
		if n, want := len(w.programs(t)), len(w.pinned(t, w.p2)); n != want {
			return fmt.Errorf("%d programs are attached, want the other node's %d: %q", n, want, w.programs(t))
		}
		return nil
	})
	must(t, w.p2.Kill())
	must(t, w.p2.Cleanup())
	w.eventually(t, func() error {
		if left := w.programs(t); len(left) > 0 {
			return fmt.Errorf("attached after all: %q", left)
		}
		return nil
	})
	// Doing it again does no harm.
	must(t, w.p1.Cleanup())
	// And the pod is free.
	if saw := get(t, w.a.Host, w.b.Addr(portHTTP)); saw.Server != "b" {
		t.Errorf("after cleanup: %+v", saw)
	}
}

// connecting returns nil if some TCP socket of the pod waits for an answer.
func (w *world) connecting(pod *netlab.Pod) error {
	return pod.Do(func() error {
		b, err := os.ReadFile("/proc/thread-self/net/tcp")
		if err != nil {
			return err
		}
		for line := range strings.Lines(string(b)) {
			if f := strings.Fields(line); len(f) > 3 && f[3] == "02" { // TCP_SYN_SENT
				return nil
			}
		}
		return errors.New("nobody connects")
	})
}

// traces are the rules, routes, settings and programs of ours in a pod.
func (w *world) traces(t *testing.T, pod *netlab.Pod) (found []string) {
	t.Helper()
	must(t, pod.Do(func() error {
		for _, family := range []int{unix.AF_INET, unix.AF_INET6} {
			rules, err := netlink.RuleList(family)
			if err != nil {
				return err
			}
			for _, r := range rules {
				if r.Table != unix.RT_TABLE_LOCAL && r.Table != unix.RT_TABLE_MAIN && r.Table != unix.RT_TABLE_DEFAULT {
					found = append(found, "rule "+r.String())
				}
			}
			routes, err := netlink.RouteListFiltered(family, &netlink.Route{Table: unix.RT_TABLE_UNSPEC}, netlink.RT_FILTER_TABLE)
			if err != nil {
				return err
			}
			for _, r := range routes {
				if r.Table != unix.RT_TABLE_LOCAL && r.Table != unix.RT_TABLE_MAIN {
					found = append(found, "route "+r.String())
				}
			}
		}
		for _, name := range []string{"ipv4/tcp_fwmark_accept", "ipv4/fwmark_reflect", "ipv6/fwmark_reflect"} {
			b, err := os.ReadFile(filepath.Join("/proc/sys/net", name))
			if err != nil {
				return err
			}
			if value := strings.TrimSpace(string(b)); value != "0" {
				found = append(found, name+"="+value)
			}
		}
		return nil
	}))
	attached, err := link.QueryPrograms(link.QueryOptions{Target: pod.NS().Fd(), Attach: ebpf.AttachSkLookup})
	must(t, err)
	for _, p := range attached.Programs {
		found = append(found, fmt.Sprint("program ", p.ID))
	}
	return found
}

// programs are those attached to the lab's cgroup.
func (w *world) programs(t *testing.T) (found []string) {
	t.Helper()
	dir, err := os.Open(w.lab.CgroupRoot())
	must(t, err)
	defer dir.Close()
	for _, kind := range []ebpf.AttachType{
		ebpf.AttachCGroupInet4Connect, ebpf.AttachCGroupInet6Connect, ebpf.AttachCGroupInetSockCreate,
		ebpf.AttachCGroupInetEgress, ebpf.AttachCGroupSockOps,
	} {
		attached, err := link.QueryPrograms(link.QueryOptions{Target: int(dir.Fd()), Attach: kind})
		must(t, err)
		for _, p := range attached.Programs {
			found = append(found, fmt.Sprintf("%v %d", kind, p.ID))
		}
	}
	return found
}

// pinned are the pinned links to the cgroup of a proxy.
func (w *world) pinned(t *testing.T, p *rig.Proxy) (found []string) {
	t.Helper()
	pins, err := filepath.Glob(filepath.Join(p.PinDir(), "v*", "*"))
	must(t, err)
	for _, pin := range pins {
		l, err := link.LoadPinnedLink(pin, nil)
		if err != nil {
			continue // a map, a directory
		}
		l.Close()
		found = append(found, filepath.Base(pin))
	}
	return found
}
