// SPDX-License-Identifier: Apache-2.0

package xds

import (
	"github.com/prometheus/client_golang/prometheus"

	"github.com/ztunnel-go/ztunnel/xds/delta"
)

// Metrics counts what happens between us and the control plane (contract
// 12.2).
type Metrics struct {
	terminations, messages, bytes, demands *prometheus.CounterVec
	letGo                                  prometheus.Counter
}

var _ delta.Observer = (*Metrics)(nil)

// NewMetrics registers the istio_xds families, and ztunnel_on_demand_requests_total,
// which counts what became of each look-up in on-demand mode, with
// ztunnel_on_demand_forgotten_total.
func NewMetrics(to prometheus.Registerer) *Metrics {
	counter := func(name, unit, help, label string) *prometheus.CounterVec {
		return prometheus.NewCounterVec(prometheus.CounterOpts{Name: name, Unit: unit, Help: help}, []string{label})
	}
	m := &Metrics{
		terminations: counter("istio_xds_connection_terminations_total", "", "The total number of terminated connections to the control plane (unstable)", "reason"),
		messages:     counter("istio_xds_message_total", "", "Total number of messages received from the control plane (unstable)", "url"),
		bytes:        counter("istio_xds_message_bytes_total", "bytes", "Total number of bytes received from the control plane (unstable)", "url"),
		demands:      counter("ztunnel_on_demand_requests_total", "", "Names looked for at the control plane in on-demand mode, by what became of it (unstable)", "result"),
	}
	m.letGo = prometheus.NewCounter(prometheus.CounterOpts{
		Name: "ztunnel_on_demand_forgotten_total",
		Help: "Workloads and services let go in on-demand mode because nobody used them (unstable)",
	})
	to.MustRegister(m.terminations, m.messages, m.bytes, m.demands, m.letGo)
	return m
}

// Message implements [delta.Observer].
func (m *Metrics) Message(typeURL string, bytes int) {
	m.messages.WithLabelValues(typeURL).Inc()
	m.bytes.WithLabelValues(typeURL).Add(float64(bytes))
}

// Terminated implements [delta.Observer].
func (m *Metrics) Terminated(reason delta.Reason) {
	m.terminations.WithLabelValues(string(reason)).Inc()
}

// Demanded implements [delta.Observer].
func (m *Metrics) Demanded(result delta.DemandResult) {
	m.demands.WithLabelValues(string(result)).Inc()
}

func (m *Metrics) forgotten(n int) {
	if m != nil {
		m.letGo.Add(float64(n))
	}
}
