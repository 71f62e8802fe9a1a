// SPDX-License-Identifier: Apache-2.0

package podns

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/ztunnel-go/ztunnel/internal/netns"
	"github.com/ztunnel-go/ztunnel/test/leak"
	"github.com/ztunnel-go/ztunnel/test/netlab"
	"github.com/ztunnel-go/ztunnel/test/privileged"
)

func TestMain(m *testing.M) {
	netlab.Main()
	os.Exit(m.Run())
}

// A machine is a procfs of our own making, with real namespaces.
type machine struct {
	t    *testing.T
	proc string
	pids int
}

// process adds one; older ones have smaller starts.
func (m *machine) process(cgroup string, start int, ns string) (pid int) {
	m.t.Helper()
	m.pids++
	dir := filepath.Join(m.proc, fmt.Sprint(m.pids))
	stat := fmt.Sprintf("%d (x) S 1 1 1 0 -1 0 0 0 0 0 0 0 0 0 20 0 1 0 %d 0\n", m.pids, start)
	if err := os.MkdirAll(filepath.Join(dir, "ns"), 0o700); err != nil {
		m.t.Fatal(err)
	}
	for name, text := range map[string]string{"cgroup": cgroup, "stat": stat} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			m.t.Fatal(err)
		}
	}
	if err := os.Symlink(ns, filepath.Join(dir, "ns/net")); err != nil {
		m.t.Fatal(err)
	}
	return m.pids
}

func cgroupOf(uid string) string { return "0::/kubepods/pod" + uid + "/x\n" }

func TestAPodsNamespaceIsFoundAndProven(t *testing.T) {
	privileged.Need(t)
	leak.Check(t)
	lab := netlab.NewTest(t)
	node, err := lab.Node("node")
	if err != nil {
		t.Fatal(err)
	}
	a, err := node.Pod("a")
	if err != nil {
		t.Fatal(err)
	}
	b, err := node.Pod("b")
	if err != nil {
		t.Fatal(err)
	}
	copied, err := lab.Bare("copied")
	if err != nil {
		t.Fatal(err)
	}
	m := &machine{t: t, proc: t.TempDir()}
	m.process("0::/init.scope\n", 1, node.Path())
	if err := os.Symlink("1", filepath.Join(m.proc, "self")); err != nil {
		t.Fatal(err)
	}
	ids := func(n int) string { return fmt.Sprintf("00000000-0000-0000-0000-%012d", n) }
	const good, foreign, host, none, noAddr, garbled = 1, 2, 3, 4, 5, 6
	m.process(cgroupOf(ids(good)), 50, a.Path())
	m.process(cgroupOf(ids(good)), 60, a.Path())
	m.process(cgroupOf(ids(good)), 70, copied.Path())
	m.process(cgroupOf(ids(foreign)), 50, a.Path()) // it visits a, and is b's
	m.process(cgroupOf(ids(host)), 50, node.Path())
	m.process(cgroupOf(ids(noAddr)), 50, b.Path())
	m.process("no cgroup", 50, b.Path())
	m.process(cgroupOf(ids(garbled)), 50, os.DevNull)

	f, err := NewFinder(m.proc)
	if err != nil {
		t.Fatal(err)
	}
	own := []netip.Addr{a.IPv4, a.IPv6}
	found, why := f.Find(
		Wanted{ids(good), own}, Wanted{ids(foreign), []netip.Addr{b.IPv4}}, Wanted{ids(host), own}, Wanted{ids(none), own},
		Wanted{ids(noAddr), nil}, Wanted{ids(garbled), own},
	)
	if ns := found[ids(good)]; ns == nil || ns.ID() != a.NS().ID() {
		t.Errorf("the pod's namespace is %v, because %v", ns, why[ids(good)])
	}
	for _, ns := range found {
		ns.Close()
	}
	if len(found) != 1 {
		t.Errorf("found %v", found)
	}
	for n, want := range map[int]string{
		foreign: "lacks the pod's address", host: "host's network namespace", none: ErrNoProcess.Error(),
		noAddr: "no address yet", garbled: "not a network namespace",
	} {
		if err := why[ids(n)]; err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%d: %v, want %q", n, err, want)
		}
	}
}

func TestOfTwoNamespacesWithTheAddressTheSandboxsCounts(t *testing.T) {
	privileged.Need(t)
	leak.Check(t)
	lab := netlab.NewTest(t)
	node, err := lab.Node("node")
	if err != nil {
		t.Fatal(err)
	}
	a, err := node.Pod("a")
	if err != nil {
		t.Fatal(err)
	}
	other, err := lab.Node("elsewhere") // where the same address is again
	if err != nil {
		t.Fatal(err)
	}
	twin, err := other.Pod("twin", netlab.PodConfig{IPv4: a.IPv4, NoIPv6: true})
	if err != nil {
		t.Fatal(err)
	}
	for name, order := range map[string][2]int{"it comes first": {10, 20}, "it comes last": {20, 10}} {
		t.Run(name, func(t *testing.T) {
			m := &machine{t: t, proc: t.TempDir()}
			m.process("0::/\n", 1, node.Path())
			paths := map[int]string{10: a.Path(), 20: twin.Path()}
			for _, start := range order {
				m.process(cgroupOf(uid), start, paths[start])
			}
			f := &Finder{Proc: m.proc, Hosts: []netns.ID{node.NS().ID()}}
			found, why := f.Find(Wanted{uid, []netip.Addr{a.IPv4}})
			ns := found[uid]
			if ns == nil {
				t.Fatal(why)
			}
			defer ns.Close()
			if ns.ID() != a.NS().ID() {
				t.Error("it is the one that was made later")
			}
		})
	}
}
