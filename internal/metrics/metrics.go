// SPDX-License-Identifier: Apache-2.0

// Package metrics holds the Prometheus registry and writes it in the text
// form that is part of the compatibility contract (12.1, 12.2).
//
// It owns the families that describe the process itself; those of a
// subsystem are made in that subsystem's own metrics.go and registered here.
// It serves nothing: internal/admin asks it for the text. It uses no global
// registry, so that two nodes can live in one test. It imports the Prometheus
// client and nothing of ours.
package metrics

import (
	"bufio"
	"errors"
	"io"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/prometheus/client_golang/prometheus"
)

// A Registry collects the metrics of one node proxy.
type Registry struct {
	prom *prometheus.Registry

	mu       sync.Mutex
	streamed []Stream // guarded by mu
}

// New returns a registry that knows the process and istio_build, whose tag
// is the Istio version that the control plane says we are (contract 12.2).
func New(tag string) *Registry {
	r := &Registry{prom: prometheus.NewRegistry()}
	build := prometheus.NewGauge(prometheus.GaugeOpts{
		Name:        "istio_build",
		Help:        "Istio component build info",
		ConstLabels: prometheus.Labels{"component": "ztunnel", "tag": tag},
	})
	build.Set(1)
	r.prom.MustRegister(newProcess(), build)
	return r
}

// Registerer takes the collectors of a subsystem.
func (r *Registry) Registerer() prometheus.Registerer { return r.prom }

// Expose writes everything as OpenMetrics text, families in the order of the
// contract and others by name, ending with # EOF (contract 12.1). A series
// that could not be collected is left out and named in the error, which
// otherwise is w's.
//
// It may take as long as w does: nobody who counts waits for it.
func (r *Registry) Expose(w io.Writer) error {
	gathered, err := r.prom.Gather()
	t := text{bufio.NewWriterSize(w, exposeBuffer)}
	t.families(gathered, r.streams())
	t.WriteString("# EOF\n")
	return errors.Join(err, t.Flush())
}

// exposeBuffer is how much of a scrape is in memory at a time.
const exposeBuffer = 16 << 10

// ContentType is the media type to serve the text under, given the values of
// all Accept headers. The text itself never differs (contract 12.1).
func ContentType(accept []string) string {
	for _, header := range accept {
		for element := range strings.SplitSeq(header, ",") {
			// Not trimmed: an element after a space does not match, as the
			// reference was seen to do.
			media, _, _ := strings.Cut(element, ";")
			if strings.EqualFold(media, "application/openmetrics-text") {
				return "application/openmetrics-text;charset=utf-8;version=1.0.0"
			}
		}
	}
	return "text/plain; charset=utf-8"
}

// Pods counts the pods of the node that have a proxy, under the names that the
// reference exports and under those its README documents.
type Pods struct {
	active, pending  atomic.Int64
	started, stopped atomic.Uint64
}

// Pods registers the pod counts, all zero, and returns what sets them. Only
// shared mode has them (contract 12.2).
func (r *Registry) Pods() *Pods {
	p := &Pods{}
	gauge := func(v *atomic.Int64) func() float64 { return func() float64 { return float64(v.Load()) } }
	count := func(v *atomic.Uint64) func() float64 { return func() float64 { return float64(v.Load()) } }
	for _, f := range []struct {
		name, documented, help string
		gauge, counter         func() float64
	}{
		{"active_proxy_count", "active_proxy_count_total", "Pods whose proxy is running (unstable)", gauge(&p.active), nil},
		{"pending_proxy_count", "pending_proxy_count_total", "Pods whose proxy could not be started yet (unstable)", gauge(&p.pending), nil},
		{"proxies_started_total", "proxies_started_total", "Proxies started for pods so far (unstable)", nil, count(&p.started)},
		{"proxies_stopped_total", "proxies_stopped_total", "Proxies of pods stopped so far (unstable)", nil, count(&p.stopped)},
	} {
		for _, name := range []string{"workload_manager_" + f.name, "istio_" + f.documented} {
			if f.gauge != nil {
				r.prom.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: name, Help: f.help}, f.gauge))
			} else {
				r.prom.MustRegister(prometheus.NewCounterFunc(prometheus.CounterOpts{Name: name, Help: f.help}, f.counter))
			}
		}
	}
	return p
}

// SetActive says how many pods have a running proxy.
func (p *Pods) SetActive(n int) { p.active.Store(int64(n)) }

// SetPending says how many pods wait for a proxy that failed to start.
func (p *Pods) SetPending(n int) { p.pending.Store(int64(n)) }

// Started counts a proxy that came up.
func (p *Pods) Started() { p.started.Add(1) }

// Stopped counts a proxy that has drained.
func (p *Pods) Stopped() { p.stopped.Add(1) }

// Capture registers the counters of the capture programs, by hook and way out.
// read is called at each scrape, possibly by several at a time.
func (r *Registry) Capture(read func() []CaptureCount) {
	r.prom.MustRegister(counted{
		prometheus.NewDesc("ztunnel_capture_events_total",
			"What the capture hooks decided, by hook and way out; names and labels may change (unstable)",
			[]string{"hook", "reason"}, nil),
		prometheus.CounterValue,
		func(yield func(n float64, values ...string)) {
			for _, c := range read() {
				yield(float64(c.Value), c.Hook, c.Reason)
			}
		},
	})
}

// A CaptureCount says how often a capture hook left by one of its ways out.
type CaptureCount struct {
	Hook, Reason string
	Value        uint64
}

// CaptureChecks registers the counters of the test connections that prove
// capture. read is called at each scrape, possibly by several at a time.
func (r *Registry) CaptureChecks(read func() []CheckCount) {
	r.prom.MustRegister(counted{
		prometheus.NewDesc("ztunnel_capture_checks_total",
			"Test connections through the capture of pods so far, by what they prove and how they ended (unstable)",
			[]string{"check", "result"}, nil),
		prometheus.CounterValue,
		func(yield func(n float64, values ...string)) {
			for _, c := range read() {
				yield(float64(c.Held), c.Name, "ok")
				yield(float64(c.Failed), c.Name, "failed")
			}
		},
	})
}

// A CheckCount says how often one kind of check held and failed.
type CheckCount struct {
	Name         string
	Held, Failed uint64
}

// CapturedPods registers how many pods are captured, and how. read is called at
// each scrape, possibly by several at a time, once for each pod that is served.
func (r *Registry) CapturedPods(read func(yield func(tier string, healthy bool))) {
	r.prom.MustRegister(counted{
		prometheus.NewDesc("ztunnel_captured_pods",
			"Pods that are served, by how they are captured and whether their capture holds (unstable)",
			[]string{"tier", "healthy"}, nil),
		prometheus.GaugeValue,
		func(yield func(n float64, values ...string)) {
			read(func(tier string, healthy bool) { yield(1, tier, strconv.FormatBool(healthy)) })
		},
	})
}

// counted is a family whose values somebody else keeps. Those of the same
// labels are added up: a name that occurs twice would fail the whole scrape.
type counted struct {
	desc *prometheus.Desc
	kind prometheus.ValueType
	read func(yield func(n float64, values ...string))
}

// Describe implements [prometheus.Collector].
func (c counted) Describe(ch chan<- *prometheus.Desc) { ch <- c.desc }

// Collect implements [prometheus.Collector].
func (c counted) Collect(ch chan<- prometheus.Metric) {
	type sum struct {
		values []string
		n      float64
	}
	sums := map[string]*sum{}
	c.read(func(n float64, values ...string) {
		key := strings.Join(values, "\x00")
		if sums[key] == nil {
			sums[key] = &sum{values: values}
		}
		sums[key].n += n
	})
	for _, s := range sums {
		ch <- prometheus.MustNewConstMetric(c.desc, c.kind, s.n, s.values...)
	}
}

// EmbeddedCA registers a gauge that is always 1 and says that identities are
// issued by the CA inside this process. Nothing is exported without it.
func (r *Registry) EmbeddedCA() {
	r.prom.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "ztunnel_embedded_ca",
		Help: "1 while certificates come from the embedded CA, which is not meant for production (unstable)",
	}, func() float64 { return 1 }))
}

// Refused registers how many connections the HTTP servers had no room for. read
// is called at each scrape, possibly by several at a time.
func (r *Registry) Refused(read func(yield func(component string, n uint64))) {
	r.prom.MustRegister(counted{
		prometheus.NewDesc("ztunnel_http_connections_refused_total",
			"Connections to the ports of admin, stats and readiness closed for want of room so far (unstable)",
			[]string{"component"}, nil),
		prometheus.CounterValue,
		func(yield func(n float64, values ...string)) {
			read(func(component string, n uint64) { yield(float64(n), component) })
		},
	})
}

// LogLines registers the count of log lines that were lost, which read tells at
// each scrape.
func (r *Registry) LogLines(read func() uint64) {
	r.prom.MustRegister(prometheus.NewCounterFunc(prometheus.CounterOpts{
		Name: "ztunnel_log_lines_lost_total",
		Help: "Log lines that were not written because nobody read them, or writing failed (unstable)",
	}, func() float64 { return float64(read()) }))
}
