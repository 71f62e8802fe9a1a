// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"errors"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/ztunnel-go/ztunnel/dataplane/hbone"
)

// Metrics are what is counted of the connections of all pods that had to wait.
// A nil one counts nothing.
type Metrics struct {
	waits   *prometheus.CounterVec
	unknown prometheus.Counter
	crowds  *prometheus.CounterVec
	breaks  *prometheus.CounterVec
}

// NewMetrics makes the families ztunnel_wait_timeouts_total,
// ztunnel_unknown_policies_total, ztunnel_handshakes_refused_total and
// ztunnel_tunnel_breaches_total, and registers them. It panics if they are
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
	m.breaks = prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "ztunnel_tunnel_breaches_total",
		Help: "Tunnels of peers that were ended because of what the peer sent, by HTTP/2 error code (unstable)",
	}, []string{"code"})
	r.MustRegister(m.waits, m.unknown, m.crowds, m.breaks)
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

// broke counts a peer's tunnel that we ended by GOAWAY with an error; err is
// what it ended with.
func (m *Metrics) broke(err error) {
	var own *hbone.GoAwayError
	if m != nil && errors.As(err, &own) && !own.Remote {
		m.breaks.WithLabelValues(own.Code.String()).Inc()
	}
}

func (m *Metrics) unknownPolicies(n int) {
	if m != nil && n > 0 {
		m.unknown.Add(float64(n))
	}
}
