// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/ztunnel-go/ztunnel/test/rig"
)

// tick is the unit of times in /proc, which Linux has fixed for programs.
const tick = 10 * time.Millisecond

// cpuTime is what a process has used, in user mode and in the kernel.
func cpuTime(pid int) (time.Duration, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, err
	}
	// The second field, the command, may hold anything; it ends at the last ).
	fields := strings.Fields(string(text[strings.LastIndexByte(string(text), ')')+1:]))
	if len(fields) < 13 {
		return 0, fmt.Errorf("unexpected /proc/%d/stat", pid)
	}
	user, err1 := strconv.ParseInt(fields[11], 10, 64)
	system, err2 := strconv.ParseInt(fields[12], 10, 64)
	if err1 != nil || err2 != nil {
		return 0, fmt.Errorf("unexpected /proc/%d/stat", pid)
	}
	return time.Duration(user+system) * tick, nil
}

// A memory is what processes have of it, in bytes.
type memory struct {
	Resident int64
	// Heap is the Go heap by the proxy's own metric; of a proxy that has none,
	// all memory that is not of a file.
	Heap int64
}

// memoryOf is the sum over proxies.
func memoryOf(ctx context.Context, proxies []*rig.Proxy) (m memory, err error) {
	for _, p := range proxies {
		text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.Pid()))
		if err != nil {
			return m, err
		}
		resident, err := statusBytes(string(text), "VmRSS:")
		if err != nil {
			return m, err
		}
		heap, err := statusBytes(string(text), "RssAnon:")
		if err != nil {
			return m, err
		}
		if _, page, err := p.Get(ctx, "15020/metrics"); err == nil {
			if n, ok := metric(page, "go_memory_heap_bytes"); ok {
				heap = n
			}
		}
		m.Resident += resident
		m.Heap += heap
	}
	return m, nil
}

func statusBytes(status, field string) (int64, error) {
	for line := range strings.Lines(status) {
		words := strings.Fields(line)
		if len(words) == 3 && words[0] == field && words[2] == "kB" {
			n, err := strconv.ParseInt(words[1], 10, 64)
			return n << 10, err
		}
	}
	return 0, fmt.Errorf("no %s in a process's status", field)
}

// metric finds a metric without labels.
func metric(page, name string) (int64, bool) {
	for line := range strings.Lines(page) {
		if value, ok := strings.CutPrefix(line, name+" "); ok {
			f, err := strconv.ParseFloat(strings.TrimSpace(value), 64)
			return int64(f), err == nil
		}
	}
	return 0, false
}

func kernel() string {
	text, _ := os.ReadFile("/proc/sys/kernel/osrelease")
	return strings.TrimSpace(string(text))
}

// loadAverage is that of the last minute: a machine that does other things
// makes other numbers.
func loadAverage() string {
	text, _ := os.ReadFile("/proc/loadavg")
	first, _, _ := strings.Cut(string(text), " ")
	return first
}

// profile writes what each proxy holds to files in dir.
func (b *bench) profile(ctx context.Context, dir, name string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	name = strings.ReplaceAll(name, " ", "-")
	for i, p := range b.proxies {
		smaps, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps", p.Pid()))
		if err != nil {
			return err
		}
		pages := map[string][]byte{"smaps": smaps}
		for _, what := range []string{"heap", "goroutine?debug=1"} {
			_, page, err := p.Get(ctx, "15000/debug/pprof/"+what)
			if err != nil {
				return err
			}
			kind, _, _ := strings.Cut(what, "?")
			pages[kind] = []byte(page)
		}
		_, page, err := p.Get(ctx, "15020/metrics")
		if err != nil {
			return err
		}
		pages["metrics"] = []byte(page)
		for kind, data := range pages {
			if err := os.WriteFile(filepath.Join(dir, fmt.Sprintf("%s-%d.%s", name, i+1, kind)), data, 0o644); err != nil {
				return err
			}
		}
	}
	return nil
}
