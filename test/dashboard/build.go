// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"slices"
	"strings"

	"github.com/ztunnel-go/ztunnel/internal/metrics"
)

// A row is a subject: panels written by hand first, then one for each family
// whose name begins so. What no row takes is in the last.
type row struct {
	title    string
	by       []summary
	families []string // prefixes
}

// A summary is a panel of one or several families.
type summary struct {
	title, unit, expr, legend string
}

// chosen restricts every query to the proxies that the viewer has chosen.
const chosen = `instance=~"$instance"`

func rows() []row {
	return []row{
		{"Traffic", []summary{
			{"Bytes per second, by reporter", "Bps", rate("istio_tcp_received_bytes_total", "reporter"), "from clients, {{reporter}}"},
			{"Connections that did not end well, by reason", "cps", rate("ztunnel_ends_total", "reason"), "{{reason}}"},
		}, []string{"istio_tcp_", "ztunnel_ends_", "ztunnel_connect_retries_", "ztunnel_tunnel_breaches_", "ztunnel_wait_timeouts_"}},
		{"DNS", []summary{
			{"Share of upstream queries that failed", "percentunit", sum("istio_dns_upstream_failures_total") + " / " + sum("istio_dns_upstream_requests_total"), "failed"},
			{"Share of answers out of caches", "percentunit", sumOf("ztunnel_dns_cache_total", `result="hit"`) + " / " + sum("ztunnel_dns_cache_total"), "cached"},
		}, []string{"istio_dns_", "istio_on_demand_dns_", "ztunnel_dns_", "ztunnel_resolv_conf_"}},
		{"Capture", []summary{
			{"Pods whose capture does not hold", "short", fmt.Sprintf(`sum by (tier) (ztunnel_captured_pods{%s,healthy="false"})`, chosen), "{{tier}}"},
			{"Test connections that failed", "cps", fmt.Sprintf(`sum by (check) (rate(ztunnel_capture_checks_total{%s,result="failed"}[$__rate_interval]))`, chosen), "{{check}}"},
		}, []string{"ztunnel_capture", "workload_manager_"}},
		{"Certificates", []summary{
			{"Connections that failed for certificates or TLS, by reason", "cps", fmt.Sprintf(
				`sum by (reason) (rate(ztunnel_ends_total{%s,reason=~"certificate_.*|identity_.*|peer_revoked|tls_.*"}[$__rate_interval]))`, chosen), "{{reason}}"},
		}, []string{"istio_crl_", "ztunnel_embedded_ca", "ztunnel_handshakes_"}},
		{"Control plane", nil, []string{"istio_xds_", "ztunnel_on_demand_", "ztunnel_unknown_policies_", "istio_build"}},
		{"Process", nil, []string{""}},
	}
}

// twice are families that say the same as another one.
func twice() []string {
	return []string{
		"istio_active_proxy_count_total", "istio_pending_proxy_count_total", "istio_proxies_started_total", "istio_proxies_stopped_total",
	}
}

func rate(family string, by ...string) string {
	return fmt.Sprintf("sum by (%s) (rate(%s{%s}[$__rate_interval]))", strings.Join(by, ", "), family, chosen)
}

func sum(family string) string {
	return fmt.Sprintf("sum(rate(%s{%s}[$__rate_interval]))", family, chosen)
}

func sumOf(family, match string) string {
	return fmt.Sprintf("sum(rate(%s{%s,%s}[$__rate_interval]))", family, chosen, match)
}

// build lays everything out, two panels beside each other.
func build(families []metrics.Family) dashboard {
	source := &datasource{"prometheus", "${datasource}"}
	d := dashboard{
		Title: "ztunnel", UID: "ztunnel", Tags: []string{"istio", "ztunnel"}, SchemaVersion: 39, Editable: true, Refresh: "30s",
		Time: timeRange{"now-1h", "now"},
		Templating: templating{[]variable{
			{Name: "datasource", Label: "Prometheus", Type: "datasource", Query: "prometheus"},
			{
				Name: "instance", Label: "Proxy", Type: "query", Query: `label_values(istio_build{component="ztunnel"}, instance)`,
				Datasource: source, Refresh: 2, Multi: true, IncludeAll: true, AllValue: ".*",
			},
		}},
	}
	const height, width = 8, 12
	y, taken := 0, twice()
	add := func(p panel) {
		p.ID = len(d.Panels) + 1
		d.Panels = append(d.Panels, p)
	}
	for _, r := range rows() {
		add(panel{Type: "row", Title: r.title, GridPos: gridPos{1, 2 * width, 0, y}})
		y++
		panels := make([]panel, 0, len(r.by))
		for _, s := range r.by {
			panels = append(panels, s.panel())
		}
		for _, f := range families {
			if !slices.Contains(taken, f.Name) && slices.ContainsFunc(r.families, func(p string) bool { return strings.HasPrefix(f.Name, p) }) {
				taken = append(taken, f.Name)
				panels = append(panels, familyPanel(f))
			}
		}
		for i, p := range panels {
			p.Datasource = source
			p.GridPos = gridPos{height, width, i % 2 * width, y + i/2*height}
			add(p)
		}
		y += (len(panels) + 1) / 2 * height
	}
	return d
}

func (s summary) panel() panel {
	return panel{Type: "timeseries", Title: s.title, FieldConfig: inUnit(s.unit), Targets: []target{{"A", s.expr, s.legend}}}
}

func inUnit(unit string) *fieldConfig {
	f := &fieldConfig{Overrides: []struct{}{}}
	f.Defaults.Unit = unit
	return f
}

// familyPanel shows a family as its kind has it: counters as rates, histograms
// as quantiles.
func familyPanel(f metrics.Family) panel {
	p := panel{
		Type: "timeseries", Title: f.Name, Description: strings.TrimSuffix(f.Help, " (unstable)"),
		FieldConfig: inUnit(unitOf(f)),
	}
	by := labelsOf(f)
	legend := "{{" + strings.Join(by, "}} {{") + "}}"
	switch f.Kind {
	case metrics.Histogram:
		for i, q := range []string{"0.5", "0.99"} {
			expr := fmt.Sprintf("histogram_quantile(%s, sum by (le) (rate(%s_bucket{%s}[$__rate_interval])))", q, f.Name, chosen)
			p.Targets = append(p.Targets, target{string(rune('A' + i)), expr, "quantile " + q})
		}
	case metrics.Counter:
		p.Targets = []target{{"A", rate(f.Name, by...), legend}}
	default:
		p.Targets = []target{{"A", fmt.Sprintf("sum by (%s) (%s{%s})", strings.Join(by, ", "), f.Name, chosen), legend}}
	}
	return p
}

// labelsOf are the labels that a panel tells series apart by: all if they are
// few, of the long lists those that say how it went; of none, the proxy.
func labelsOf(f metrics.Family) []string {
	const few = 2
	switch {
	case len(f.Labels) == 0:
		return []string{"instance"}
	case len(f.Labels) <= few:
		return f.Labels
	}
	var short []string
	for _, name := range []string{"reporter", "connection_security_policy", "response_flags", "request_query_type", "request_protocol", "hostname"} {
		if slices.Contains(f.Labels, name) && len(short) < few {
			short = append(short, name)
		}
	}
	return short
}

func unitOf(f metrics.Family) string {
	isCounter := f.Kind == metrics.Counter
	switch {
	case strings.Contains(f.Name, "bytes") && isCounter:
		return "Bps"
	case strings.Contains(f.Name, "bytes"):
		return "bytes"
	case strings.Contains(f.Name, "seconds") && !isCounter:
		return "s"
	case isCounter:
		return "cps"
	}
	return "short"
}
