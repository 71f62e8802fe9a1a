// SPDX-License-Identifier: Apache-2.0

package metrics

import (
	"cmp"
	"slices"
	"strconv"
	"strings"

	"github.com/prometheus/client_golang/prometheus"
)

// A Kind is what a family's TYPE line says.
type Kind string

// The kinds that we export.
const (
	Counter   Kind = "counter"
	Gauge     Kind = "gauge"
	Histogram Kind = "histogram"
)

// A Family describes what one exported name means, whether it has a series
// now or not.
type Family struct {
	Name   string // as its samples have it: a counter's ends in _total
	Kind   Kind
	Help   string // as on its HELP line, without the final period
	Unit   string // of its UNIT line; empty: there is none
	Labels []string
	// Core families keep their name, labels and meaning; the others say
	// "unstable" in their help and may change.
	Core bool
	// Ours is set for those that the reference does not export.
	Ours bool
}

// catalogue has every family in scrape order (contract 12.2, ours behind the
// reference's), with what the Prometheus client cannot be told: kind, unit,
// and the order of labels, which it would sort. Help is not here but where a
// family is made.
func catalogue() []Family {
	dns := []string{"request_query_type", "request_protocol", "source_canonical_service", "source_canonical_revision"}
	traffic := trafficLabels()
	lookup := []string{
		"source_workload", "source_canonical_service", "source_canonical_revision", "source_workload_namespace",
		"source_principal", "source_app", "source_version", "source_cluster", "hostname",
	}
	return slices.Concat([]Family{
		{Name: "process_open_fds", Kind: Gauge},
		{Name: "process_max_fds", Kind: Gauge},
	}, runtimeCatalogue(), []Family{
		{Name: "istio_build", Kind: Gauge, Labels: []string{"component", "tag"}, Core: true},
		{Name: "istio_xds_connection_terminations_total", Kind: Counter, Labels: []string{"reason"}},
		{Name: "istio_xds_message_total", Kind: Counter, Labels: []string{"url"}},
		{Name: "istio_xds_message_bytes_total", Kind: Counter, Unit: "bytes", Labels: []string{"url"}},
		{Name: "istio_tcp_connections_opened_total", Kind: Counter, Labels: traffic, Core: true},
		{Name: "istio_tcp_connections_closed_total", Kind: Counter, Labels: traffic, Core: true},
		{Name: "istio_tcp_received_bytes_total", Kind: Counter, Labels: traffic, Core: true},
		{Name: "istio_tcp_sent_bytes_total", Kind: Counter, Labels: traffic, Core: true},
		{Name: "istio_on_demand_dns_total", Kind: Counter, Labels: lookup},
		{Name: "istio_tcp_connections_failed_total", Kind: Counter, Labels: traffic},
		{Name: "istio_tcp_sockets_open", Kind: Gauge, Labels: []string{"reporter"}},
		{Name: "istio_crl_policy_rejections_total", Kind: Counter, Labels: []string{"reporter"}},
		{Name: "istio_crl_untracked_connections_total", Kind: Counter, Labels: []string{"reporter"}},
		{Name: "istio_dns_requests_total", Kind: Counter, Labels: dns},
		{Name: "istio_dns_upstream_requests_total", Kind: Counter, Labels: dns},
		{Name: "istio_dns_upstream_failures_total", Kind: Counter, Labels: dns},
		{Name: "istio_dns_upstream_request_duration_seconds", Kind: Histogram, Unit: "seconds", Labels: dns},
		{Name: "workload_manager_active_proxy_count", Kind: Gauge},
		{Name: "workload_manager_pending_proxy_count", Kind: Gauge},
		{Name: "workload_manager_proxies_started_total", Kind: Counter},
		{Name: "workload_manager_proxies_stopped_total", Kind: Counter},
		{Name: "istio_active_proxy_count_total", Kind: Gauge, Ours: true},
		{Name: "istio_pending_proxy_count_total", Kind: Gauge, Ours: true},
		{Name: "istio_proxies_started_total", Kind: Counter, Ours: true},
		{Name: "istio_proxies_stopped_total", Kind: Counter, Ours: true},
		{Name: "istio_on_demand_dns_cache_misses_total", Kind: Counter, Labels: lookup, Ours: true},
		{Name: "ztunnel_handover_lots_total", Kind: Counter, Labels: []string{"role", "result"}, Ours: true},
		{Name: "ztunnel_handover_tunnels_total", Kind: Counter, Labels: []string{"role", "result"}, Ours: true},
		{Name: "ztunnel_handover_connections_total", Kind: Counter, Labels: []string{"role", "result"}, Ours: true},
		{Name: "ztunnel_handover_bytes_total", Kind: Counter, Unit: "bytes", Ours: true},
		{Name: "ztunnel_handover_stop_seconds", Kind: Histogram, Unit: "seconds", Ours: true},
		{Name: "ztunnel_handover_generation", Kind: Gauge, Ours: true},
		{Name: "ztunnel_capture_checks_total", Kind: Counter, Labels: []string{"check", "result"}, Ours: true},
		{Name: "ztunnel_capture_events_total", Kind: Counter, Labels: []string{"hook", "reason"}, Ours: true},
		{Name: "ztunnel_captured_pods", Kind: Gauge, Labels: []string{"tier", "healthy"}, Ours: true},
		{Name: "ztunnel_connect_retries_total", Kind: Counter, Ours: true},
		{Name: "ztunnel_dns_cache_total", Kind: Counter, Labels: []string{"result"}, Ours: true},
		{Name: "ztunnel_dns_dropped_total", Kind: Counter, Labels: []string{"reason"}, Ours: true},
		{Name: "ztunnel_embedded_ca", Kind: Gauge, Ours: true},
		{Name: "ztunnel_ends_total", Kind: Counter, Labels: []string{"reporter", "reason"}, Ours: true},
		{Name: "ztunnel_http_connections_refused_total", Kind: Counter, Labels: []string{"component"}, Ours: true},
		{Name: "ztunnel_log_lines_lost_total", Kind: Counter, Ours: true},
		{Name: "ztunnel_metrics_folded_total", Kind: Counter, Ours: true},
		{Name: "ztunnel_on_demand_forgotten_total", Kind: Counter, Ours: true},
		{Name: "ztunnel_on_demand_requests_total", Kind: Counter, Labels: []string{"result"}, Ours: true},
		{Name: "ztunnel_resolv_conf_changes_total", Kind: Counter, Labels: []string{"result"}, Ours: true},
		{Name: "ztunnel_unknown_policies_total", Kind: Counter, Ours: true},
		{Name: "ztunnel_wait_timeouts_total", Kind: Counter, Labels: []string{"what"}, Ours: true},
	})
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

// find gives what is known of a family.
func find(name string) Family {
	for _, f := range catalogue() {
		if f.Name == name {
			return f
		}
	}
	return Family{Name: name, Ours: true}
}

// Families lists what is registered, in scrape order, whether it has series or
// not. A family that the catalogue does not know is told by its name: a
// counter if that ends in _total, else a gauge.
func (r *Registry) Families() []Family {
	var all []Family
	add := func(name, help string, labels []string) {
		f := find(name)
		f.Help = help
		if f.Kind == "" {
			f.Kind = Gauge
			if strings.HasSuffix(name, "_total") {
				f.Kind = Counter
			}
		}
		if f.Labels == nil {
			f.Labels = labels
		}
		all = append(all, f)
	}
	descs := make(chan *prometheus.Desc)
	go func() { // ends when Describe has sent all, which the loop below takes
		r.prom.Describe(descs)
		close(descs)
	}()
	for d := range descs {
		add(parseDesc(d.String()))
	}
	for _, s := range r.streams() {
		add(s.Name, s.Help, s.Labels)
	}
	compare := scrapeOrder()
	slices.SortFunc(all, func(a, b Family) int { return compare(a.Name, b.Name) })
	return all
}

// scrapeOrder returns a comparison of families by their place in the scrape,
// then by name.
func scrapeOrder() func(a, b string) int {
	known := catalogue()
	places := make(map[string]int, len(known))
	for i, f := range known {
		places[f.Name] = i - len(known) // below the 0 of those that are not in it
	}
	return func(a, b string) int { return cmp.Or(places[a]-places[b], strings.Compare(a, b)) }
}

// parseDesc reads the only thing that a prometheus.Desc tells of itself:
//
//	Desc{fqName: "n", help: "h", constLabels: {a="b"}, variableLabels: {c,d}}
func parseDesc(s string) (name, help string, labels []string) {
	quoted := func(after string) string {
		_, rest, _ := strings.Cut(s, after)
		prefix, err := strconv.QuotedPrefix(rest)
		if err != nil {
			return ""
		}
		value, err := strconv.Unquote(prefix)
		if err != nil {
			return ""
		}
		return value
	}
	name, help = quoted("fqName: "), quoted("help: ")
	_, variable, _ := strings.Cut(s, "variableLabels: {")
	variable, _, _ = strings.Cut(variable, "}")
	for l := range strings.SplitSeq(variable, ",") {
		if l != "" {
			labels = append(labels, l)
		}
	}
	return name, help, labels
}
