// SPDX-License-Identifier: Apache-2.0

package report

import (
	"sync"
	"sync/atomic"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/ztunnel-go/ztunnel/dataplane/reason"
	"github.com/ztunnel-go/ztunnel/internal/mesh"
	"github.com/ztunnel-go/ztunnel/internal/metrics"
)

// Metrics are the traffic families of contract 12.2. Those with the traffic
// labels are streamed: there may be very many series, and their label sets
// differ in length (12.3: places only where one is known).
type Metrics struct {
	traffic *table
	sockets *prometheus.GaugeVec
	lookups hostLookups
	ends    *[2][256]atomic.Uint64 // by side and reason
}

// NewMetrics registers the traffic families. It panics if they are registered
// already.
func NewMetrics(r *metrics.Registry) *Metrics {
	m := &Metrics{
		traffic: newTable(),
		sockets: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "istio_tcp_sockets_open", Help: "Accepted TCP sockets that are open now (unstable)",
		}, []string{"reporter"}),
		lookups: newHostLookups(),
		ends:    new([2][256]atomic.Uint64),
	}
	r.Stream(m.families()...)
	r.Registerer().MustRegister(m.sockets, m.lookups.count, m.lookups.misses, prometheus.NewCounterFunc(prometheus.CounterOpts{
		Name: "ztunnel_metrics_folded_total",
		Help: "Connections counted under the labels overflow, for want of room for their own (unstable)",
	}, func() float64 { return float64(m.traffic.folded.Load()) }))
	return m
}

// families are what is streamed. A counter appears once it has counted
// something, those of bytes as soon as a connection was opened.
func (m *Metrics) families() []metrics.Stream {
	read := func(name, help string, read func(*series) (*atomic.Uint64, bool)) metrics.Stream {
		return metrics.Stream{Name: name, Help: help, Each: func(yield func(metrics.Labels, uint64)) {
			for _, s := range m.traffic.list() {
				n, shown := read(s)
				if v := n.Load(); v > 0 || shown {
					yield(s.text, v)
				}
			}
		}}
	}
	return []metrics.Stream{
		read("istio_tcp_connections_opened_total", "TCP connections opened so far",
			func(s *series) (*atomic.Uint64, bool) { return &s.opened, false }),
		read("istio_tcp_connections_closed_total", "TCP connections closed so far, for whatever reason",
			func(s *series) (*atomic.Uint64, bool) { return &s.closed, false }),
		read("istio_tcp_received_bytes_total", "Bytes from clients to servers over TCP so far",
			func(s *series) (*atomic.Uint64, bool) { return &s.received, s.opened.Load() > 0 }),
		read("istio_tcp_sent_bytes_total", "Bytes from servers to clients over TCP so far",
			func(s *series) (*atomic.Uint64, bool) { return &s.sent, s.opened.Load() > 0 }),
		read("istio_tcp_connections_failed_total", "TCP connections that ended with a response flag so far (unstable)",
			func(s *series) (*atomic.Uint64, bool) { return &s.failed, false }),
		{
			Name: "ztunnel_ends_total",
			Help: "Connections that were refused, or did not end well, by reason: see operations.md (unstable)",
			Each: m.eachEnd,
		},
	}
}

// end counts a connection that was refused or did not end well.
func (m *Metrics) end(side Side, why reason.Reason) {
	if why != reason.Ended {
		m.ends[side][why].Add(1)
	}
}

// eachEnd streams what [Metrics.end] has counted.
func (m *Metrics) eachEnd(yield func(metrics.Labels, uint64)) {
	for side := range m.ends {
		for _, why := range reason.All() {
			if n := m.ends[side][why].Load(); n > 0 {
				text := metrics.AppendLabel(nil, "reporter", Side(side).String())
				yield(metrics.Labels(metrics.AppendLabel(text, "reason", why.String())), n)
			}
		}
	}
}

// socket counts an accepted socket, whose series appears with the first and
// stays.
func (m *Metrics) socket(side Side, delta float64) {
	m.sockets.WithLabelValues(side.String()).Add(delta)
}

// maxLookups bounds the series of names that were looked up; what is beyond
// shares one for each source.
const maxLookups = 2_000

// hostLookups counts names that had to be looked up.
type hostLookups struct {
	count  *prometheus.CounterVec
	misses *prometheus.CounterVec // those that no cache could answer

	mu   *sync.Mutex
	seen map[string]bool // guarded by mu; hostnames
}

func newHostLookups() hostLookups {
	return hostLookups{
		count: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "istio_on_demand_dns_total",
			Help: "Connections for which a workload's name had to be looked up (unstable)",
		}, lookupLabels()),
		misses: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "istio_on_demand_dns_cache_misses_total",
			Help: "Connections for which a nameserver had to be asked for a workload's name, no cache knowing it (unstable)",
		}, lookupLabels()),
		mu: new(sync.Mutex), seen: map[string]bool{},
	}
}

func lookupLabels() []string {
	return []string{
		"source_workload", "source_canonical_service", "source_canonical_revision", "source_workload_namespace",
		"source_principal", "source_app", "source_version", "source_cluster", "hostname",
	}
}

// add counts one name that source's connection needed, and whether a server was
// asked for it.
func (h hostLookups) add(source *mesh.Workload, hostname string, asked bool) {
	values := make([]string, 0, len(lookupLabels()))
	e := endOf(source, nil)
	e.each("source_", source.Identity().String(), func(_, value string) { values = append(values, orUnknown(value)) })
	values = append(values, h.bounded(orUnknown(hostname)))
	h.count.WithLabelValues(values...).Inc()
	if asked {
		h.misses.WithLabelValues(values...).Inc()
	}
}

func (h hostLookups) bounded(hostname string) string {
	h.mu.Lock()
	defer h.mu.Unlock()
	if len(h.seen) >= maxLookups && !h.seen[hostname] {
		return overflow
	}
	h.seen[hostname] = true
	return hostname
}
