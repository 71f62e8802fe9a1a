// SPDX-License-Identifier: Apache-2.0

package app

import (
	"github.com/ztunnel-go/ztunnel/dataplane"
	"github.com/ztunnel-go/ztunnel/dataplane/balance"
	"github.com/ztunnel-go/ztunnel/dataplane/handover"
	"github.com/ztunnel-go/ztunnel/dataplane/report"
	"github.com/ztunnel-go/ztunnel/dnsproxy"
	"github.com/ztunnel-go/ztunnel/internal/metrics"
	"github.com/ztunnel-go/ztunnel/internal/revocation"
	"github.com/ztunnel-go/ztunnel/xds"
)

// MetricFamilies are all that any node exports, whatever its configuration, in
// scrape order. docs/metrics.md is made from them.
func MetricFamilies() []metrics.Family { return everyMetric().registry.Families() }

// everyCollector is a registry with all that can be in one, and those who count
// in it.
type everyCollector struct {
	registry *metrics.Registry
	report   *report.Metrics
	dns      *dnsproxy.Metrics
	xds      *xds.Metrics
	revoked  *revocation.Metrics
	pods     *metrics.Pods
}

func everyMetric() everyCollector {
	r := metrics.New("unknown")
	e := everyCollector{
		registry: r,
		report:   report.NewMetrics(r),
		dns:      dnsproxy.NewMetrics(r.Registerer()),
		xds:      xds.NewMetrics(r.Registerer()),
		revoked:  revocation.NewMetrics(r.Registerer()),
		pods:     r.Pods(),
	}
	balance.NewMetrics(r.Registerer())
	dataplane.NewMetrics(r.Registerer())
	handover.NewMetrics(r.Registerer())
	r.EmbeddedCA()
	r.LogLines(func() uint64 { return 0 })
	r.Refused(func(yield func(string, uint64)) { yield("stats", 0) })
	r.Capture(func() []metrics.CaptureCount {
		return []metrics.CaptureCount{{Hook: "sk_lookup", Reason: "outbound", Value: 2}}
	})
	r.CaptureChecks(func() []metrics.CheckCount { return []metrics.CheckCount{{Name: "dns", Held: 3, Failed: 1}} })
	r.CapturedPods(func(yield func(string, bool)) { yield("ebpf", true); yield("ebpf", true); yield("istio-cni", false) })
	return e
}
