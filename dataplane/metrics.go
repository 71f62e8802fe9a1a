// SPDX-License-Identifier: Apache-2.0

package dataplane

import "github.com/prometheus/client_golang/prometheus"

// Metrics are what is counted of the connections of all pods that had to wait.
// A nil one counts nothing.
type Metrics struct {
	waits   *prometheus.CounterVec
	unknown prometheus.Counter
	crowds  *prometheus.CounterVec
}

// NewMetrics makes the families ztunnel_wait_timeouts_total,
// ztunnel_unknown_policies_total and ztunnel_handshakes_refused_total, and
// registers them. It panics if they are
// registered already.
func NewMetrics(r prometheus.Registerer) *Metrics {
	m := &Metrics{
		waits: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "ztunnel_wait_timeouts_total",
			Help: "Connections that waited in vain, by what they waited for (unstable)",
		}, []string{"what"}),
		unknown: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "ztunnel_unknown_policies_total",
			Help: "Policies that a workload names and that were not known when a connection was judged without them (unstable)",
		}),
	}
	m.crowds = prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "ztunnel_handshakes_refused_total",
		Help: "Connections to the tunnel port closed because too many had no finished handshake, by whose: all, or one source (unstable)",
	}, []string{"limit"})
	r.MustRegister(m.waits, m.unknown, m.crowds)
	return m
}

func (m *Metrics) expired(what string) {
	if m != nil {
		m.waits.WithLabelValues(what).Inc()
	}
}

func (m *Metrics) crowded(limit string) {
	if m != nil {
		m.crowds.WithLabelValues(limit).Inc()
	}
}

func (m *Metrics) unknownPolicies(n int) {
	if m != nil && n > 0 {
		m.unknown.Add(float64(n))
	}
}
