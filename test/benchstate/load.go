// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ztunnel-go/ztunnel/internal/mesh"
	"github.com/ztunnel-go/ztunnel/xds"
)

// A load is what it took a fresh process to have a document in its store.
type load struct {
	Form     string  `json:"form"`
	Document float64 `json:"document_mb"`
	Seconds  float64 `json:"seconds"`     // by the clock
	CPU      float64 `json:"cpu_seconds"` // of all threads
	Resident float64 `json:"resident_mb"` // VmRSS when it is there
	Peak     float64 `json:"peak_mb"`     // VmHWM
	Live     float64 `json:"live_mb"`     // reachable bytes of the heap
	Idle     float64 `json:"idle_mb"`     // VmRSS before
}

const mega = 1e6

// loadHere is the child's part: it loads the document as the proxy does, and
// tells of itself.
func (o options) loadHere(ctx context.Context) error {
	info, err := os.Stat(o.load)
	if err != nil {
		return err
	}
	idle, _, err := memory()
	if err != nil {
		return err
	}
	store := mesh.NewStore()
	begin := time.Now()
	local, err := xds.OpenLocal(ctx, xds.LocalConfig{Path: o.load}, store, slog.New(slog.DiscardHandler))
	if err != nil {
		return err
	}
	took := time.Since(begin)
	var used unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &used); err != nil {
		return err
	}
	defer local.Close()
	resident, peak, err := memory()
	if err != nil {
		return err
	}
	runtime.GC()
	var stats runtime.MemStats
	runtime.ReadMemStats(&stats)
	runtime.KeepAlive(store)
	return json.NewEncoder(os.Stdout).Encode(load{
		Document: float64(info.Size()) / mega,
		Seconds:  took.Seconds(), CPU: time.Duration(used.Utime.Nano() + used.Stime.Nano()).Seconds(), Resident: resident, Peak: peak, Live: float64(stats.HeapAlloc) / mega, Idle: idle,
	})
}

// loadElsewhere runs loadHere in a process of its own.
func loadElsewhere(ctx context.Context, path string) (load, error) {
	self, err := os.Executable()
	if err != nil {
		return load{}, err
	}
	cmd := exec.CommandContext(ctx, self, "-load", path)
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err != nil {
		return load{}, fmt.Errorf("load %s: %w", path, err)
	}
	var l load
	return l, json.Unmarshal(out, &l)
}

// medianLoad takes the median of each number.
func medianLoad(list []load) load {
	of := func(number func(load) float64) float64 {
		var all []float64
		for _, l := range list {
			all = append(all, number(l))
		}
		return median(all)
	}
	return load{
		Document: of(func(l load) float64 { return l.Document }),
		Seconds:  of(func(l load) float64 { return l.Seconds }),
		CPU:      of(func(l load) float64 { return l.CPU }),
		Resident: of(func(l load) float64 { return l.Resident }),
		Peak:     of(func(l load) float64 { return l.Peak }),
		Live:     of(func(l load) float64 { return l.Live }),
		Idle:     of(func(l load) float64 { return l.Idle }),
	}
}

// memory is what the kernel says that this process has and has had, in MB.
func memory() (resident, peak float64, err error) {
	data, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return 0, 0, err
	}
	for line := range strings.Lines(string(data)) {
		name, rest, _ := strings.Cut(line, ":")
		fields := strings.Fields(rest)
		if len(fields) == 0 {
			continue
		}
		kib, _ := strconv.ParseFloat(fields[0], 64)
		switch name {
		case "VmRSS":
			resident = kib * 1024 / mega
		case "VmHWM":
			peak = kib * 1024 / mega
		}
	}
	return resident, peak, nil
}
