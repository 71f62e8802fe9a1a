// SPDX-License-Identifier: Apache-2.0

package report

import (
	"sync"
	"sync/atomic"

	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"

	"github.com/ztunnel-go/ztunnel/internal/mesh"
)

// Metrics are the traffic families of contract 12.2. Their label sets differ
// in length (12.3: places only where one is known), which no vector of the
// Prometheus client takes, so this is a collector of its own.
type Metrics struct {
	families []family

	mu   sync.RWMutex
	seen map[labels]*series // guarded by mu; grows only

	sockets [2]sockets // by Side
	lookups *prometheus.CounterVec
}

// NewMetrics registers the traffic families.
func NewMetrics(r prometheus.Registerer) *Metrics {
	m := &Metrics{seen: map[labels]*series{}}
	for side := range m.sockets {
		value := Side(side).String()
		m.sockets[side].label = []*dto.LabelPair{pair("reporter", value)}
	}
	desc := func(name, help string) *prometheus.Desc { return prometheus.NewDesc(name, help, nil, nil) }
	m.families = []family{
		{desc("istio_tcp_connections_opened_total", "TCP connections opened so far"),
			func(s *series) (uint64, bool) { return exported(&s.opened, false) }},
		{desc("istio_tcp_connections_closed_total", "TCP connections closed so far, for whatever reason"),
			func(s *series) (uint64, bool) { return exported(&s.closed, false) }},
		{desc("istio_tcp_received_bytes_total", "Bytes from clients to servers over TCP so far"),
			func(s *series) (uint64, bool) { return exported(&s.received, s.opened.Load() > 0) }},
		{desc("istio_tcp_sent_bytes_total", "Bytes from servers to clients over TCP so far"),
			func(s *series) (uint64, bool) { return exported(&s.sent, s.opened.Load() > 0) }},
		{desc("istio_tcp_connections_failed_total", "TCP connections that ended with a response flag so far (unstable)"),
			func(s *series) (uint64, bool) { return exported(&s.failed, false) }},
	}
	m.lookups = prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "istio_on_demand_dns_total",
		Help: "Connections for which a workload's name had to be looked up (unstable)",
	}, lookupLabels())
	r.MustRegister(m, m.lookups)
	return m
}

func lookupLabels() []string {
	return []string{
		"source_workload", "source_canonical_service", "source_canonical_revision", "source_workload_namespace",
		"source_principal", "source_app", "source_version", "source_cluster", "hostname",
	}
}

// lookup counts one name that source's connection needed.
func (m *Metrics) lookup(source *mesh.Workload, hostname string) {
	values := make([]string, 0, len(lookupLabels()))
	e := endOf(source, nil)
	e.each("source_", source.Identity().String(), func(_, value string) { values = append(values, orUnknown(value)) })
	m.lookups.WithLabelValues(append(values, orUnknown(hostname))...).Inc()
}

// A family is one exported name and how to read it off a series.
type family struct {
	desc *prometheus.Desc
	read func(*series) (value uint64, exists bool)
}

// exported says whether a counter has appeared: once it has counted something,
// or when shown says so.
func exported(n *atomic.Uint64, shown bool) (uint64, bool) {
	v := n.Load()
	return v, v > 0 || shown
}

// A series holds the counters of one label set. A connection keeps a pointer
// to it, so that counting bytes is one atomic addition.
type series struct {
	pairs                                  []*dto.LabelPair // immutable
	opened, closed, received, sent, failed atomic.Uint64
}

func (s *series) open() { s.opened.Add(1) }

// series finds or makes the counters of a label set.
func (m *Metrics) series(l labels) *series {
	m.mu.RLock()
	s := m.seen[l]
	m.mu.RUnlock()
	if s != nil {
		return s
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if s := m.seen[l]; s != nil {
		return s
	}
	s = &series{}
	l.each(func(name, value string) { s.pairs = append(s.pairs, pair(name, value)) })
	m.seen[l] = s
	return s
}

func pair(name, value string) *dto.LabelPair { return &dto.LabelPair{Name: &name, Value: &value} }

// sockets counts the accepted sockets of one side.
type sockets struct {
	open  atomic.Int64
	used  atomic.Bool // a series appears with its first socket, and stays
	label []*dto.LabelPair
}

func (m *Metrics) socket(side Side, delta int64) {
	s := &m.sockets[side]
	s.open.Add(delta)
	if !s.used.Load() {
		s.used.Store(true)
	}
}

// Describe implements [prometheus.Collector]. It describes nothing, which
// makes the collector unchecked: the only kind whose label sets may vary.
func (m *Metrics) Describe(chan<- *prometheus.Desc) {}

// Collect implements [prometheus.Collector].
func (m *Metrics) Collect(ch chan<- prometheus.Metric) {
	m.mu.RLock()
	all := make([]*series, 0, len(m.seen))
	for _, s := range m.seen {
		all = append(all, s)
	}
	m.mu.RUnlock()
	for _, f := range m.families {
		for _, s := range all {
			if v, ok := f.read(s); ok {
				ch <- sample{f.desc, s.pairs, float64(v), false}
			}
		}
	}
	desc := prometheus.NewDesc("istio_tcp_sockets_open", "Accepted TCP sockets that are open now (unstable)", nil, nil)
	for i := range m.sockets {
		if s := &m.sockets[i]; s.used.Load() {
			ch <- sample{desc, s.label, float64(s.open.Load()), true}
		}
	}
}

// A sample is one number at the time of a scrape.
type sample struct {
	desc  *prometheus.Desc
	pairs []*dto.LabelPair
	value float64
	gauge bool
}

// Desc implements [prometheus.Metric].
func (s sample) Desc() *prometheus.Desc { return s.desc }

// Write implements [prometheus.Metric].
func (s sample) Write(out *dto.Metric) error {
	out.Label = s.pairs
	if s.gauge {
		out.Gauge = &dto.Gauge{Value: &s.value}
	} else {
		out.Counter = &dto.Counter{Value: &s.value}
	}
	return nil
}
