// SPDX-License-Identifier: Apache-2.0

package metrics

import (
	"bufio"
	"cmp"
	"io"
	"math"
	"slices"
	"strconv"
	"strings"

	dto "github.com/prometheus/client_model/go"
)

// A known family is one of contract 12.2: what the Prometheus client cannot
// be told about it.
type known struct {
	name   string
	unit   string   // empty: no UNIT line
	labels []string // their order, where the client would sort them
}

// families are the known ones in scrape order, ours behind the reference's.
func families() []known {
	dns := []string{"request_query_type", "request_protocol", "source_canonical_service", "source_canonical_revision"}
	traffic := trafficLabels()
	return []known{
		{name: "process_open_fds"},
		{name: "process_max_fds"},
		{name: "istio_build"},
		{name: "istio_xds_connection_terminations_total"},
		{name: "istio_xds_message_total"},
		{name: "istio_xds_message_bytes_total", unit: "bytes"},
		{name: "istio_tcp_connections_opened_total", labels: traffic},
		{name: "istio_tcp_connections_closed_total", labels: traffic},
		{name: "istio_tcp_received_bytes_total", labels: traffic},
		{name: "istio_tcp_sent_bytes_total", labels: traffic},
		{name: "istio_on_demand_dns_total", labels: []string{
			"source_workload", "source_canonical_service", "source_canonical_revision", "source_workload_namespace",
			"source_principal", "source_app", "source_version", "source_cluster", "hostname",
		}},
		{name: "istio_tcp_connections_failed_total", labels: traffic},
		{name: "istio_tcp_sockets_open"},
		{name: "istio_crl_policy_rejections_total"},
		{name: "istio_crl_untracked_connections_total"},
		{name: "istio_dns_requests_total", labels: dns},
		{name: "istio_dns_upstream_requests_total", labels: dns},
		{name: "istio_dns_upstream_failures_total", labels: dns},
		{name: "istio_dns_upstream_request_duration_seconds", unit: "seconds", labels: dns},
		{name: "workload_manager_active_proxy_count"},
		{name: "workload_manager_pending_proxy_count"},
		{name: "workload_manager_proxies_started_total"},
		{name: "workload_manager_proxies_stopped_total"},
		{name: "istio_active_proxy_count_total"},
		{name: "istio_pending_proxy_count_total"},
		{name: "istio_proxies_started_total"},
		{name: "istio_proxies_stopped_total"},
	}
}

// trafficLabels are those of contract 12.3, which is what their order is for:
// they read from the client to the server.
func trafficLabels() []string {
	return []string{
		"reporter",
		"source_workload", "source_canonical_service", "source_canonical_revision", "source_workload_namespace",
		"source_principal", "source_app", "source_version", "source_cluster",
		"destination_service", "destination_service_namespace", "destination_service_name",
		"destination_workload", "destination_canonical_service", "destination_canonical_revision",
		"destination_workload_namespace", "destination_principal", "destination_app", "destination_version",
		"destination_cluster",
		"request_protocol", "response_flags", "connection_security_policy",
		"source_region", "source_zone", "destination_region", "destination_zone",
	}
}

// find gives what is known of a family and its place in the scrape. Families
// that the contract does not know come last.
func find(name string) (known, int) {
	all := families()
	for i, f := range all {
		if f.name == name {
			return f, i
		}
	}
	return known{}, len(all)
}

// inScrapeOrder sorts families by their place in the scrape, then by name.
func inScrapeOrder(list []*dto.MetricFamily) {
	places := make(map[string]int, len(list))
	for _, f := range list {
		_, places[f.GetName()] = find(f.GetName())
	}
	slices.SortFunc(list, func(a, b *dto.MetricFamily) int {
		return cmp.Or(places[a.GetName()]-places[b.GetName()], strings.Compare(a.GetName(), b.GetName()))
	})
}

// writeText writes families as OpenMetrics text in the dialect of contract
// 12.1: no decimals in whole numbers, no _created series, HELP with a period.
// (The client's own encoder writes 1.0 for 1.)
func writeText(w io.Writer, list []*dto.MetricFamily) error {
	t := text{bufio.NewWriter(w)}
	for _, f := range list {
		if len(f.GetMetric()) > 0 {
			t.family(f)
		}
	}
	t.WriteString("# EOF\n")
	return t.Flush()
}

// text keeps the first error until Flush, as its writer does.
type text struct{ *bufio.Writer }

func (t text) family(f *dto.MetricFamily) {
	name := f.GetName()
	base := name
	if f.GetType() == dto.MetricType_COUNTER {
		base = strings.TrimSuffix(name, "_total")
	}
	help := f.GetHelp()
	if !strings.HasSuffix(help, ".") {
		help += "."
	}
	k, _ := find(name)
	t.WriteString("# HELP " + base + " " + escape(help) + "\n")
	t.WriteString("# TYPE " + base + " " + typeName(f.GetType()) + "\n")
	if k.unit != "" {
		t.WriteString("# UNIT " + base + " " + k.unit + "\n")
	}
	places := make(map[string]int, len(k.labels))
	for i, l := range k.labels {
		places[l] = i + 1
	}
	for _, m := range f.GetMetric() {
		labels := ordered(m.GetLabel(), places)
		switch f.GetType() {
		case dto.MetricType_COUNTER:
			t.sample(base+"_total", labels, "", number(m.GetCounter().GetValue()))
		case dto.MetricType_GAUGE:
			t.sample(base, labels, "", number(m.GetGauge().GetValue()))
		case dto.MetricType_HISTOGRAM:
			t.histogram(base, labels, m.GetHistogram())
		default:
			t.sample(base, labels, "", number(m.GetUntyped().GetValue()))
		}
	}
}

func typeName(t dto.MetricType) string {
	switch t {
	case dto.MetricType_COUNTER:
		return "counter"
	case dto.MetricType_GAUGE:
		return "gauge"
	case dto.MetricType_HISTOGRAM:
		return "histogram"
	default:
		return "unknown"
	}
}

func (t text) histogram(base string, labels []*dto.LabelPair, h *dto.Histogram) {
	t.sample(base+"_sum", labels, "", float(h.GetSampleSum()))
	t.sample(base+"_count", labels, "", strconv.FormatUint(h.GetSampleCount(), 10))
	infinite := false
	for _, b := range h.GetBucket() {
		infinite = infinite || math.IsInf(b.GetUpperBound(), 1)
		t.sample(base+"_bucket", labels, float(b.GetUpperBound()), strconv.FormatUint(b.GetCumulativeCount(), 10))
	}
	if !infinite {
		t.sample(base+"_bucket", labels, "+Inf", strconv.FormatUint(h.GetSampleCount(), 10))
	}
}

// sample writes one line; le is the bound of a histogram's bucket or empty.
func (t text) sample(name string, labels []*dto.LabelPair, le, value string) {
	t.WriteString(name)
	separator := "{"
	for _, l := range labels {
		t.WriteString(separator + l.GetName() + `="` + escape(l.GetValue()) + `"`)
		separator = ","
	}
	if le != "" {
		t.WriteString(separator + `le="` + le + `"`)
		separator = ","
	}
	if separator == "," {
		t.WriteByte('}')
	}
	t.WriteString(" " + value + "\n")
}

// ordered puts labels in their places, those without one first and as they
// stand. The client sorts all by name.
func ordered(labels []*dto.LabelPair, places map[string]int) []*dto.LabelPair {
	if len(places) == 0 {
		return labels
	}
	sorted := slices.Clone(labels) // the family's own belong to the registry
	slices.SortStableFunc(sorted, func(a, b *dto.LabelPair) int { return places[a.GetName()] - places[b.GetName()] })
	return sorted
}

// escape makes s fit between double quotes, and HELP on its line.
func escape(s string) string {
	if !strings.ContainsAny(s, "\\\n\"") {
		return s
	}
	return strings.NewReplacer(`\`, `\\`, "\n", `\n`, `"`, `\"`).Replace(s)
}

// maxExact is the largest float below which every whole number is exact.
const maxExact = 1 << 53

// number writes whole numbers without decimals, others as floats.
func number(v float64) string {
	if v == math.Trunc(v) && math.Abs(v) < maxExact {
		return strconv.FormatInt(int64(v), 10)
	}
	return float(v)
}

// float always shows that it is one: 1 becomes 1.0 (OpenMetrics, canonical
// numbers).
func float(v float64) string {
	switch {
	case math.IsInf(v, 1):
		return "+Inf"
	case math.IsInf(v, -1):
		return "-Inf"
	case math.IsNaN(v):
		return "NaN"
	}
	s := strconv.FormatFloat(v, 'g', -1, 64)
	if !strings.ContainsAny(s, ".e") {
		s += ".0"
	}
	return s
}
