// SPDX-License-Identifier: Apache-2.0

package balance

import "github.com/prometheus/client_golang/prometheus"

// Metrics are what is counted of the choices of a node.
type Metrics struct{ retries prometheus.Counter }

// NewMetrics makes the family ztunnel_connect_retries_total and registers it.
// It panics if that is registered already.
func NewMetrics(r prometheus.Registerer) *Metrics {
	m := &Metrics{prometheus.NewCounter(prometheus.CounterOpts{
		Name: "ztunnel_connect_retries_total",
		Help: "Connections tried once more at another endpoint, each time that one could not be reached (unstable)",
	})}
	r.MustRegister(m.retries)
	return m
}
