// SPDX-License-Identifier: Apache-2.0

package dnsproxy

import (
	"strings"
	"time"

	"github.com/miekg/dns"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/ztunnel-go/ztunnel/internal/mesh"
)

// Metrics are the four DNS families of contract 12.2, and three of ours. One
// value serves the servers of all pods; without one nothing is counted.
type Metrics struct {
	requests *prometheus.CounterVec
	upstream *prometheus.CounterVec
	failures *prometheus.CounterVec
	duration *prometheus.HistogramVec
	cache    *prometheus.CounterVec // ours
	dropped  *prometheus.CounterVec // ours
	changes  *prometheus.CounterVec // ours
}

// NewMetrics makes the families and registers them in the order they are
// scraped in. It panics if one is registered already.
func NewMetrics(r prometheus.Registerer) *Metrics {
	labels := []string{
		"request_query_type", "request_protocol",
		"source_canonical_service", "source_canonical_revision",
	}
	counter := func(name, help string) *prometheus.CounterVec {
		return prometheus.NewCounterVec(prometheus.CounterOpts{Name: name, Help: help}, labels)
	}
	m := &Metrics{
		requests: counter("istio_dns_requests_total", "Total number of DNS requests (unstable)"),
		upstream: counter("istio_dns_upstream_requests_total", "Total number of DNS requests forwarded to upstream (unstable)"),
		failures: counter("istio_dns_upstream_failures_total", "Total number of DNS requests that failed upstream (unstable)"),
		duration: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name:    "istio_dns_upstream_request_duration_seconds",
			Help:    "Time until upstream answered a DNS request (unstable)",
			Unit:    "seconds",
			Buckets: []float64{0.0005, 0.001, 0.01, 0.1, 1, 5},
		}, labels),
	}
	ours := func(name, help, label string) *prometheus.CounterVec {
		return prometheus.NewCounterVec(prometheus.CounterOpts{Name: name, Help: help}, []string{label})
	}
	m.cache = ours("ztunnel_dns_cache_total", "Forwarded DNS questions by whether a cache had the answer (unstable)", "result")
	m.dropped = ours("ztunnel_dns_dropped_total", "DNS queries and connections that were not served, by reason (unstable)", "reason")
	m.changes = ours("ztunnel_resolv_conf_changes_total", "New versions of resolv.conf by whether they are in force (unstable)", "result")
	r.MustRegister(m.requests, m.upstream, m.failures, m.duration, m.cache, m.dropped, m.changes)
	return m
}

// Why a query or a connection is not served, as a label.
const (
	dropBusy        = "busy"        // the pod has too many queries in hand: SERVFAIL
	dropUpstream    = "upstream"    // too many of them wait for upstream: SERVFAIL
	dropConnections = "connections" // the pod holds too many connections: closed
	dropSource      = "source"      // from an address that cannot be answered
)

func (m *Metrics) drop(reason string) {
	if m != nil {
		m.dropped.WithLabelValues(reason).Inc()
	}
}

// ResolvConfChanged counts a new version of resolv.conf, which is in force or
// was refused.
func (m *Metrics) ResolvConfChanged(taken bool) {
	if m == nil {
		return
	}
	result := "refused"
	if taken {
		result = "taken"
	}
	m.changes.WithLabelValues(result).Inc()
}

func (m *Metrics) cached(hit bool) {
	if m == nil {
		return
	}
	result := "miss"
	if hit {
		result = "hit"
	}
	m.cache.WithLabelValues(result).Inc()
}

// A labelSet holds label values in the order of the families' labels.
type labelSet [4]string

// labelsOf describes a query of client, which may be nil.
func labelsOf(client *mesh.Workload, qtype uint16, protocol string) labelSet {
	l := labelSet{typeLabel(qtype), protocol, "unknown", "unknown"}
	if client != nil && client.CanonicalName != "" {
		l[2] = client.CanonicalName
	}
	if client != nil && client.CanonicalRevision != "" {
		l[3] = client.CanonicalRevision
	}
	return l
}

// typeLabel is the type in lower case. Types without a name share one label,
// so that a pod cannot make 65,536 series by asking for all of them.
func typeLabel(qtype uint16) string {
	if name, ok := dns.TypeToString[qtype]; ok {
		return strings.ToLower(name)
	}
	return "unknown"
}

func (m *Metrics) request(l labelSet) {
	if m != nil {
		m.requests.WithLabelValues(l[:]...).Inc()
	}
}

// answered returns what counts another query with the same labels.
func (m *Metrics) answered(l labelSet) func(time.Duration) {
	if m == nil {
		return func(time.Duration) {}
	}
	requests := m.requests.WithLabelValues(l[:]...)
	return func(time.Duration) { requests.Inc() }
}

// forwardedAgain returns what counts another query with the same labels, which
// a cache answers.
func (m *Metrics) forwardedAgain(l labelSet, failed bool) func(time.Duration) {
	if m == nil {
		return func(time.Duration) {}
	}
	counters := []prometheus.Counter{
		m.requests.WithLabelValues(l[:]...), m.upstream.WithLabelValues(l[:]...), m.cache.WithLabelValues("hit"),
	}
	if failed {
		counters = append(counters, m.failures.WithLabelValues(l[:]...))
	}
	duration := m.duration.WithLabelValues(l[:]...)
	return func(took time.Duration) {
		for _, c := range counters {
			c.Inc()
		}
		duration.Observe(took.Seconds())
	}
}

func (m *Metrics) forwarded(l labelSet, took time.Duration, err error) {
	if m == nil {
		return
	}
	m.upstream.WithLabelValues(l[:]...).Inc()
	m.duration.WithLabelValues(l[:]...).Observe(took.Seconds())
	if err != nil {
		m.failures.WithLabelValues(l[:]...).Inc()
	}
}
