// SPDX-License-Identifier: Apache-2.0

package revocation

import "github.com/prometheus/client_golang/prometheus"

var _ Recorder = (*Metrics)(nil)

// Metrics are the families of contract 12.2 that speak of lists. A series
// appears with the first thing it counts.
type Metrics struct {
	rejections, untracked *prometheus.CounterVec
}

// NewMetrics registers both families.
func NewMetrics(r prometheus.Registerer) *Metrics {
	vec := func(name, help string) *prometheus.CounterVec {
		return prometheus.NewCounterVec(prometheus.CounterOpts{Name: name, Help: help}, []string{"reporter"})
	}
	m := &Metrics{
		rejections: vec("istio_crl_policy_rejections_total", "Peers that were refused, or whose tunnels were ended, by a revocation list (unstable)"),
		untracked:  vec("istio_crl_untracked_connections_total", "Tunnels that no revocation list can end (unstable)"),
	}
	r.MustRegister(m.rejections, m.untracked)
	return m
}

// Rejected implements [Recorder].
func (m *Metrics) Rejected(r Reporter) { m.rejections.WithLabelValues(r.String()).Inc() }

// Untracked implements [Recorder].
func (m *Metrics) Untracked(r Reporter) { m.untracked.WithLabelValues(r.String()).Inc() }
