// SPDX-License-Identifier: Apache-2.0

package handover

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// Metrics are what is counted of handovers. A nil one counts nothing.
type Metrics struct {
	lots        *prometheus.CounterVec
	stop        prometheus.Histogram
	tunnels     *prometheus.CounterVec
	connections *prometheus.CounterVec
	bytes       prometheus.Counter
	generation  prometheus.Gauge
}

// NewMetrics makes the families ztunnel_handover_* and registers them. It
// panics if they are registered already.
func NewMetrics(r prometheus.Registerer) *Metrics {
	m := &Metrics{
		lots: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "ztunnel_handover_lots_total",
			Help: "Lots of tunnels handed from process to process, by whether we gave or took, and how it ended (unstable)",
		}, []string{"role", "result"}),
		stop: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name:    "ztunnel_handover_stop_seconds",
			Help:    "How long the connections of a lot stood still, by the process that gave them (unstable)",
			Buckets: []float64{.0005, .001, .002, .005, .01, .02, .05, .1, .5, 2},
		}),
		tunnels: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "ztunnel_handover_tunnels_total",
			Help: "Tunnels handed over, by role and result (unstable)",
		}, []string{"role", "result"}),
		connections: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "ztunnel_handover_connections_total",
			Help: "Connections handed over, by role and result (unstable)",
		}, []string{"role", "result"}),
		bytes: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "ztunnel_handover_bytes_total",
			Help: "Bytes of the images of the lots that we gave (unstable)",
		}),
		generation: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "ztunnel_handover_generation",
			Help: "How many processes in a row have handed over to this one (unstable)",
		}),
	}
	r.MustRegister(m.lots, m.stop, m.tunnels, m.connections, m.bytes, m.generation)
	return m
}

// The values of labels.
const (
	gave, took = "gave", "took"

	resultDone    = "done"
	resultAborted = "aborted"
	resultRefused = "refused"
	resultLost    = "lost"
)

func (m *Metrics) lot(role, result string, lot []*Tunnel) {
	if m == nil {
		return
	}
	m.lots.WithLabelValues(role, result).Inc()
	m.some(role, result, lot)
}

func (m *Metrics) some(role, result string, lot []*Tunnel) {
	if m == nil || len(lot) == 0 {
		return
	}
	m.tunnels.WithLabelValues(role, result).Add(float64(len(lot)))
	m.connections.WithLabelValues(role, result).Add(float64(connections(lot)))
}

func (m *Metrics) stopped(d time.Duration, bytes int) {
	if m != nil {
		m.stop.Observe(d.Seconds())
		m.bytes.Add(float64(bytes))
	}
}

func (m *Metrics) isGeneration(n uint64) {
	if m != nil {
		m.generation.Set(float64(n))
	}
}
