// SPDX-License-Identifier: Apache-2.0

package metrics

import (
	"bytes"
	"os"
	"runtime/metrics"
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sys/unix"
)

// process reports this process and Go's runtime, read anew at each scrape.
// Nothing here stops the world. The runtime's families stand where the
// reference has those of tokio, its own runtime (contract 12.2).
type process struct{ all []gauge }

// A gauge is one number of the process.
type gauge struct {
	desc *prometheus.Desc
	kind prometheus.ValueType
	read func() (value float64, ok bool)
}

// A runtimeFamily is one number of Go's runtime, by its name there.
type runtimeFamily struct {
	name, help, source string
	kind               Kind
}

func runtimeFamilies() []runtimeFamily {
	return []runtimeFamily{
		{"go_sched_gomaxprocs_threads", "Threads that may run Go code at the same time (unstable)", "/sched/gomaxprocs:threads", Gauge},
		{"go_threads", "Threads of the runtime (unstable)", "/sched/threads/total:threads", Gauge},
		{"go_goroutines", "Goroutines that exist (unstable)", "/sched/goroutines:goroutines", Gauge},
		{"go_goroutines_runnable", "Goroutines that wait for a thread (unstable)", "/sched/goroutines/runnable:goroutines", Gauge},
		{"go_gc_cycles_total", "Garbage collections finished so far (unstable)", "/gc/cycles/total:gc-cycles", Counter},
		{"go_gc_heap_live_bytes", "Heap that the last garbage collection found in use (unstable)", "/gc/heap/live:bytes", Gauge},
		{"go_memory_heap_bytes", "Heap in use by objects, dead ones among them (unstable)", "/memory/classes/heap/objects:bytes", Gauge},
		{"go_memory_bytes", "All memory that the runtime has mapped (unstable)", "/memory/classes/total:bytes", Gauge},
		{"go_mutex_wait_seconds_total", "Time that goroutines have waited for locks so far, estimated (unstable)", "/sync/mutex/wait/total:seconds", Counter},
	}
}

// runtimeCatalogue are the catalogue's rows of what is above and of the
// process's own numbers that the reference does not have.
func runtimeCatalogue() []Family {
	rows := []Family{
		{Name: "process_start_time_seconds", Kind: Gauge, Ours: true},
		{Name: "process_cpu_seconds_total", Kind: Counter, Ours: true},
		{Name: "process_resident_memory_bytes", Kind: Gauge, Ours: true},
	}
	for _, f := range runtimeFamilies() {
		rows = append(rows, Family{Name: f.name, Kind: f.kind, Ours: true})
	}
	return rows
}

// newProcess begins to know how long the process has run now, which is close
// enough to its start.
func newProcess() process {
	began := float64(time.Now().UnixMilli()) / 1000
	one := func(name, help string, kind prometheus.ValueType, read func() (float64, bool)) gauge {
		return gauge{prometheus.NewDesc(name, help, nil, nil), kind, read}
	}
	p := process{[]gauge{
		one("process_open_fds", "Number of open file descriptors (unstable)", prometheus.GaugeValue, openDescriptors),
		one("process_max_fds", "Maximum number of open file descriptors (unstable)", prometheus.GaugeValue, maxDescriptors),
		one("process_start_time_seconds", "When the process started, in seconds since 1970 (unstable)", prometheus.GaugeValue,
			func() (float64, bool) { return began, true }),
		one("process_cpu_seconds_total", "Time on CPUs so far, in the kernel too (unstable)", prometheus.CounterValue, cpuSeconds),
		one("process_resident_memory_bytes", "Memory in RAM (unstable)", prometheus.GaugeValue, residentBytes),
	}}
	for _, f := range runtimeFamilies() {
		kind := prometheus.GaugeValue
		if f.kind == Counter {
			kind = prometheus.CounterValue
		}
		p.all = append(p.all, one(f.name, f.help, kind, func() (float64, bool) { return readRuntime(f.source) }))
	}
	return p
}

// Describe implements [prometheus.Collector].
func (p process) Describe(ch chan<- *prometheus.Desc) {
	for _, g := range p.all {
		ch <- g.desc
	}
}

// Collect implements [prometheus.Collector]. What cannot be read is left out.
func (p process) Collect(ch chan<- prometheus.Metric) {
	for _, g := range p.all {
		if v, ok := g.read(); ok {
			ch <- prometheus.MustNewConstMetric(g.desc, g.kind, v)
		}
	}
}

func openDescriptors() (float64, bool) {
	entries, err := os.ReadDir("/proc/self/fd")
	return float64(max(len(entries)-1, 0)), err == nil // reading the directory needs a descriptor too
}

func maxDescriptors() (float64, bool) {
	var limit unix.Rlimit
	err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit)
	return float64(limit.Cur), err == nil
}

func cpuSeconds() (float64, bool) {
	var usage unix.Rusage
	err := unix.Getrusage(unix.RUSAGE_SELF, &usage)
	return time.Duration(usage.Utime.Nano() + usage.Stime.Nano()).Seconds(), err == nil
}

// residentBytes is the second field of /proc/self/statm, which counts pages
// (proc(5)).
func residentBytes() (float64, bool) {
	text, err := os.ReadFile("/proc/self/statm")
	if err != nil {
		return 0, false
	}
	fields := bytes.Fields(text)
	if len(fields) < 2 {
		return 0, false
	}
	pages, err := strconv.ParseUint(string(fields[1]), 10, 64)
	return float64(pages) * float64(os.Getpagesize()), err == nil
}

func readRuntime(name string) (float64, bool) {
	sample := []metrics.Sample{{Name: name}}
	metrics.Read(sample)
	switch v := sample[0].Value; v.Kind() {
	case metrics.KindUint64:
		return float64(v.Uint64()), true
	case metrics.KindFloat64:
		return v.Float64(), true
	default: // a runtime that does not know it
		return 0, false
	}
}
