// SPDX-License-Identifier: Apache-2.0

package top

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"
	"unicode"
)

// A frame is all that there is to see at one moment.
type frame struct {
	summary string
	tables  []table
}

// A table is one page.
type table struct {
	title  string
	header []string
	rows   [][]string
}

// build makes a frame of two samples. before may be empty: then no rate is
// known.
func build(place string, before, now sample) frame {
	r := rates{before: before.index(), since: now.at.Sub(before.at)}
	if before.at.IsZero() {
		r.since = 0
	}
	return frame{
		summary: r.summary(place, now),
		tables:  []table{connectionTable(now), r.traffic(now), r.ends(now), r.dns(now)},
	}
}

// rates compare a sample with the one before.
type rates struct {
	before map[string]float64
	since  time.Duration // 0: there is none
}

// key names a series, the same in each sample.
func (s series) key() string {
	var b strings.Builder
	b.WriteString(s.name)
	for _, name := range slices.Sorted(maps.Keys(s.labels)) {
		fmt.Fprintf(&b, "\x00%s=%s", name, s.labels[name])
	}
	return b.String()
}

func (s sample) index() map[string]float64 {
	all := make(map[string]float64, len(s.series))
	for _, one := range s.series {
		all[one.key()] = one.value
	}
	return all
}

// more is by how much a counter grew. One that has fallen began anew.
func (r rates) more(s series) float64 {
	old := r.before[s.key()]
	if old > s.value {
		old = 0
	}
	return s.value - old
}

// perSecond is a rate, or a dash where there is none.
func (r rates) perSecond(more float64, unit func(float64) string) string {
	if r.since <= 0 {
		return "-"
	}
	return unit(more/r.since.Seconds()) + "/s"
}

// count writes a number of things.
func count(v float64) string {
	if v == float64(int64(v)) {
		return fmt.Sprintf("%d", int64(v))
	}
	return fmt.Sprintf("%.1f", v)
}

// size writes a number of bytes.
func size(v float64) string {
	for _, unit := range []string{"B", "kB", "MB", "GB"} {
		if v < 1000 {
			return strings.TrimSuffix(fmt.Sprintf("%.1f", v), ".0") + " " + unit
		}
		v /= 1000
	}
	return fmt.Sprintf("%.1f TB", v)
}

func (r rates) summary(place string, now sample) string {
	sums := map[string]float64{}
	for _, s := range now.series {
		sums[s.name] += r.more(s)
	}
	return fmt.Sprintf("%s  %s  pods %d  open %d  new %s  to clients %s  to servers %s  failed %s  DNS %s", place, now.at.Format(time.TimeOnly),
		now.pods, len(now.conns), r.perSecond(sums["istio_tcp_connections_opened_total"], count), r.perSecond(sums["istio_tcp_sent_bytes_total"], size),
		r.perSecond(sums["istio_tcp_received_bytes_total"], size), r.perSecond(sums["istio_tcp_connections_failed_total"], count),
		r.perSecond(sums["istio_dns_requests_total"], count))
}

func connectionTable(now sample) table {
	t := table{title: "connections", header: []string{"POD", "DIR", "FROM", "TO", "BY", "PEER", "AGE"}}
	conns := slices.Clone(now.conns)
	slices.SortFunc(conns, func(a, b connection) int {
		return cmp.Or(cmp.Compare(a.pod, b.pod), a.opened.Compare(b.opened), cmp.Compare(a.src, b.src))
	})
	for _, c := range conns {
		to := c.dst
		if c.service != "" {
			to += " for " + c.service
		}
		t.rows = append(t.rows, []string{c.pod, c.direction, c.src, to, c.protocol, cmp.Or(c.identity, "-"),
			max(now.at.Sub(c.opened), 0).Truncate(time.Second).String()})
	}
	return t
}

// A flow is what goes from one workload to another, as one side reports it.
type flow struct{ reporter, from, to, security string }

// traffic adds up per pair of workloads.
func (r rates) traffic(now sample) table {
	type sums struct{ open, opened, sent, received, failed, bytes float64 }
	flows := map[flow]*sums{}
	for _, s := range now.series {
		f := flow{s.labels["reporter"], name(s.labels, "source"), name(s.labels, "destination"), s.labels["connection_security_policy"]}
		if f.reporter == "" {
			continue
		}
		sum := flows[f]
		if sum == nil {
			sum = &sums{}
		}
		switch s.name {
		case "istio_tcp_connections_opened_total":
			sum.open += s.value
			sum.opened += r.more(s)
		case "istio_tcp_connections_closed_total":
			sum.open -= s.value
		case "istio_tcp_sent_bytes_total":
			sum.sent += r.more(s)
			sum.bytes += s.value
		case "istio_tcp_received_bytes_total":
			sum.received += r.more(s)
			sum.bytes += s.value
		case "istio_tcp_connections_failed_total":
			sum.failed += s.value
		default:
			continue
		}
		flows[f] = sum
	}
	t := table{title: "traffic", header: []string{"SEEN AT", "FROM", "TO", "SECURITY", "OPEN", "NEW", "TO CLIENT", "TO SERVER", "BYTES", "FAILED"}}
	keys := slices.SortedFunc(maps.Keys(flows), func(a, b flow) int {
		return cmp.Or(cmp.Compare(flows[b].sent+flows[b].received, flows[a].sent+flows[a].received), cmp.Compare(flows[b].bytes, flows[a].bytes),
			cmp.Compare(a.from, b.from), cmp.Compare(a.to, b.to), cmp.Compare(a.reporter, b.reporter), cmp.Compare(a.security, b.security))
	})
	for _, f := range keys {
		s := flows[f]
		t.rows = append(t.rows, []string{f.reporter, f.from, f.to, f.security, count(max(s.open, 0)), r.perSecond(s.opened, count),
			r.perSecond(s.sent, size), r.perSecond(s.received, size), size(s.bytes), count(s.failed)})
	}
	return t
}

// name is that of one side of a connection.
func name(labels map[string]string, side string) string {
	workload := labels[side+"_workload"]
	if service := labels["destination_service_name"]; side == "destination" && workload == "unknown" && service != "" && service != "unknown" {
		return service
	}
	if workload == "" || workload == "unknown" {
		return "outside"
	}
	return labels[side+"_workload_namespace"] + "/" + workload
}

// ends are the verdicts: why connections were refused or did not end well,
// policy's own first.
func (r rates) ends(now sample) table {
	t := table{title: "verdicts", header: []string{"REASON", "SEEN AT", "TOTAL", "NOW"}}
	for _, s := range now.series {
		if s.name == "ztunnel_ends_total" && s.value > 0 {
			t.rows = append(t.rows, []string{s.labels["reason"], s.labels["reporter"], count(s.value), r.perSecond(r.more(s), count)})
		}
	}
	slices.SortFunc(t.rows, func(a, b []string) int {
		return cmp.Or(policyFirst(a[0])-policyFirst(b[0]), cmp.Compare(a[0], b[0]), cmp.Compare(a[1], b[1]))
	})
	return t
}

func policyFirst(reason string) int {
	if strings.HasPrefix(reason, "policy_") {
		return 0
	}
	return 1
}

func (r rates) dns(now sample) table {
	t := table{title: "DNS", header: []string{"WHAT", "OF", "TOTAL", "NOW"}}
	whats := map[string]string{
		"istio_dns_requests_total": "asked", "istio_dns_upstream_requests_total": "forwarded", "istio_dns_upstream_failures_total": "failed upstream",
		"ztunnel_dns_cache_total": "cache", "ztunnel_dns_dropped_total": "dropped",
	}
	for _, s := range now.series {
		what := whats[s.name]
		if what == "" || s.value == 0 {
			continue
		}
		of := strings.Join([]string{s.labels["source_canonical_service"], s.labels["request_query_type"], s.labels["request_protocol"]}, " ")
		switch s.name {
		case "ztunnel_dns_cache_total":
			of = s.labels["result"]
		case "ztunnel_dns_dropped_total":
			of = s.labels["reason"]
		}
		t.rows = append(t.rows, []string{what, strings.TrimSpace(of), count(s.value), r.perSecond(r.more(s), count)})
	}
	slices.SortFunc(t.rows, func(a, b []string) int { return slices.Compare(a, b) })
	return t
}

// widths are those of the columns, in characters.
func (t table) widths() []int {
	widths := make([]int, len(t.header))
	for _, row := range append([][]string{t.header}, t.rows...) {
		for i, cell := range row {
			widths[i] = max(widths[i], len([]rune(cell)))
		}
	}
	return widths
}

// line is a row, padded. What a terminal would take for a command is none of
// ours to send: names come from the control plane and from peers.
func line(row []string, widths []int) string {
	var b strings.Builder
	for i, cell := range row {
		fmt.Fprintf(&b, "%-*s  ", widths[i], harmless(cell))
	}
	return strings.TrimRight(b.String(), " ")
}

func harmless(s string) string {
	return strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return '?'
		}
		return r
	}, s)
}

// text is the whole frame for whoever has no terminal.
func (f frame) text() string {
	var b strings.Builder
	b.WriteString(f.summary + "\n")
	for _, t := range f.tables {
		fmt.Fprintf(&b, "\n%s\n", strings.ToUpper(t.title))
		widths := t.widths()
		b.WriteString(line(t.header, widths) + "\n")
		for _, row := range t.rows {
			b.WriteString(line(row, widths) + "\n")
		}
		if len(t.rows) == 0 {
			b.WriteString("none\n")
		}
	}
	return b.String()
}
