// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/cilium/ebpf"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/ztunnel-go/ztunnel/test/rig"
)

// A footprint is what the proxy of a node holds, by name: in its process, in
// the kernel, and in its pods.
type footprint map[string]int64

// growth is how much more than before there may be of something: a number, and
// what it may be multiplied by. What is not here must not grow at all.
var growth = map[string]struct { //nolint:gochecknoglobals // a table
	factor float64
	more   int64
}{
	"descriptors: sockets":    {1, 6}, // pages being asked, tunnels between cores on their way out
	"descriptors: anon_inode": {1, 2},
	"descriptors: other":      {1, 4},
	"descriptors: pipes":      {1, 24}, // of splice: package poll keeps them until a collection
	"goroutines":              {1, 12},
	"threads":                 {1, 12}, // the runtime keeps those that system calls needed once
	"memory: Go heap":         {1.3, 24 << 20},
	"memory: resident":        {1.5, 48 << 20},
	"map entries: pass":       {1, 64}, // an LRU: what was announced and never came is good for 10 s only
}

// settle waits until nothing is going on at a node's proxy and returns the least
// that it held of each thing in some looks.
func (s *soak) settle(ctx context.Context, node string) (footprint, error) {
	looks, between := 6, 1500*time.Millisecond
	if s.brief() {
		looks, between = 3, 500*time.Millisecond
	}
	var least footprint
	for range looks {
		now, err := s.look(ctx, node)
		if err != nil {
			return nil, err
		}
		if least == nil {
			least = now
		}
		for name := range maps.Keys(least) {
			least[name] = min(least[name], now[name]) // 0 where it is gone
		}
		sleep(ctx, between)
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
	}
	return least, nil
}

// look counts what a node's proxy holds now.
func (s *soak) look(ctx context.Context, node string) (footprint, error) {
	f, p := footprint{}, s.proxy(node)
	if err := errors.Join(f.process(p.Pid()), f.pages(ctx, p), f.pins(p.PinDir())); err != nil {
		return nil, err
	}
	s.mu.Lock()
	pods := slices.Clone(s.pods)
	s.mu.Unlock()
	for _, pod := range pods {
		if pod.node == node {
			if err := pod.Do(func() error { return f.namespace("of " + pod.name) }); err != nil {
				return nil, err
			}
		}
	}
	host := s.n1
	if node == "node2" {
		host = s.n2
	}
	return f, host.Do(func() error { return f.namespace("of the node") })
}

// process is what /proc tells.
func (f footprint) process(pid int) error {
	dir := fmt.Sprintf("/proc/%d/", pid)
	entries, err := os.ReadDir(dir + "fd")
	if err != nil {
		return err
	}
	for _, name := range []string{"sockets", "anon_inode", "namespaces", "pipes", "other"} {
		f["descriptors: "+name] = 0
	}
	for _, e := range entries {
		target, err := os.Readlink(dir + "fd/" + e.Name())
		switch {
		case err != nil: // closed meanwhile
		case strings.HasPrefix(target, "socket:"):
			f["descriptors: sockets"]++
		case strings.HasPrefix(target, "anon_inode:"):
			f["descriptors: anon_inode"]++
		case strings.HasPrefix(target, "net:"):
			f["descriptors: namespaces"]++
		case strings.HasPrefix(target, "pipe:"):
			f["descriptors: pipes"]++
		default:
			f["descriptors: other"]++
		}
	}
	status, err := os.ReadFile(dir + "status")
	if err != nil {
		return err
	}
	for line := range strings.Lines(string(status)) {
		words := strings.Fields(line)
		if len(words) < 2 {
			continue
		}
		n, _ := strconv.ParseInt(words[1], 10, 64)
		switch words[0] {
		case "Threads:":
			f["threads"] = n
		case "VmRSS:":
			f["memory: resident"] = n << 10
		}
	}
	return nil
}

// pages is what the proxy tells of itself.
func (f footprint) pages(ctx context.Context, p *rig.Proxy) error {
	_, page, err := p.Get(ctx, "15020/metrics")
	if err != nil {
		return err
	}
	for line := range strings.Lines(page) {
		words := strings.Fields(line)
		if len(words) != 2 {
			continue
		}
		n, _ := strconv.ParseFloat(words[1], 64)
		switch words[0] {
		case "go_goroutines":
			f["goroutines"] = int64(n)
		case "go_memory_heap_bytes":
			f["memory: Go heap"] = int64(n)
		}
	}
	_, live, err := p.Get(ctx, "15000/debug/live")
	if err != nil {
		return err
	}
	f["open connections"] = int64(strings.Count(live, `"src"`) + strings.Count(live, `"source"`))
	_, pods, err := p.Get(ctx, "15000/debug/pods")
	f["pods"] = int64(strings.Count(pods, `"uid"`))
	return err
}

// pins is what is pinned, and how much is in the maps.
func (f footprint) pins(dir string) error {
	f["map entries: pass"] = 0
	return filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		f["pins"]++
		m, err := ebpf.LoadPinnedMap(path, &ebpf.LoadPinOptions{ReadOnly: true})
		if err != nil {
			return nil // a link or a program
		}
		defer m.Close()
		if m.Type() != ebpf.Hash && m.Type() != ebpf.LRUHash {
			return nil
		}
		key, value := make([]byte, m.KeySize()), make([]byte, m.ValueSize())
		for it := m.Iterate(); it.Next(&key, &value); {
			f["map entries: "+filepath.Base(path)]++
		}
		return nil
	})
}

// namespace is what is in the network namespace of the calling thread.
func (f footprint) namespace(of string) error {
	for _, family := range []int{unix.AF_INET, unix.AF_INET6} {
		rules, err := netlink.RuleList(family)
		if err != nil {
			return err
		}
		f["rules "+of] += int64(len(rules))
		routes, err := netlink.RouteListFiltered(family, &netlink.Route{Table: unix.RT_TABLE_UNSPEC}, netlink.RT_FILTER_TABLE)
		if err != nil {
			return err
		}
		for _, r := range routes {
			if r.Table != unix.RT_TABLE_LOCAL && r.Table != unix.RT_TABLE_MAIN {
				f["routes "+of]++
			}
		}
	}
	return nil
}

// compared shows what a reader may wonder about.
func compared(before, after footprint) string {
	var parts []string
	for _, name := range []string{"descriptors: sockets", "goroutines", "threads", "memory: Go heap", "memory: resident", "map entries: pass", "pins"} {
		parts = append(parts, fmt.Sprintf("%s %d, %d", name, before[name], after[name]))
	}
	return strings.Join(parts, "; ")
}

// grown says what there is more of than there may be.
func grown(before, after footprint) (leaks []string) {
	for _, name := range slices.Sorted(maps.Keys(after)) {
		limit := before[name]
		if g, ok := growth[name]; ok {
			limit = int64(float64(limit)*g.factor) + g.more
		}
		if after[name] > limit {
			leaks = append(leaks, fmt.Sprintf("%s: %d before, %d after, at most %d", name, before[name], after[name], limit))
		}
	}
	return leaks
}
