// SPDX-License-Identifier: Apache-2.0

package metrics

import (
	"bufio"
	"math"
	"slices"
	"strconv"
	"strings"

	dto "github.com/prometheus/client_model/go"
)

// What is written here is the dialect of contract 12.1: no decimals in whole
// numbers, no _created series, HELP with a period. (The client's own encoder
// writes 1.0 for 1.)

// families writes what was gathered and what is read meanwhile, in scrape
// order.
func (t text) families(gathered []*dto.MetricFamily, streams []Stream) {
	type family struct {
		name  string
		write func()
	}
	all := make([]family, 0, len(gathered)+len(streams))
	for _, f := range gathered {
		if len(f.GetMetric()) > 0 {
			all = append(all, family{f.GetName(), func() { t.family(f) }})
		}
	}
	for _, s := range streams {
		all = append(all, family{s.Name, func() { t.stream(s) }})
	}
	compare := scrapeOrder()
	slices.SortFunc(all, func(a, b family) int { return compare(a.name, b.name) })
	for _, f := range all {
		f.write()
	}
}

// text keeps the first error until Flush, as its writer does.
type text struct{ *bufio.Writer }

func (t text) family(f *dto.MetricFamily) {
	name := f.GetName()
	base := name
	if f.GetType() == dto.MetricType_COUNTER {
		base = strings.TrimSuffix(name, "_total")
	}
	k := t.header(name, base, f.GetHelp(), typeName(f.GetType()))
	places := make(map[string]int, len(k.Labels))
	for i, l := range k.Labels {
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

// header writes the lines before a family's samples, and returns what the
// catalogue has of it.
func (t text) header(name, base, help string, kind Kind) Family {
	if !strings.HasSuffix(help, ".") {
		help += "."
	}
	t.WriteString("# HELP " + base + " " + escape(help) + "\n")
	t.WriteString("# TYPE " + base + " " + string(kind) + "\n")
	f := find(name)
	if f.Unit != "" {
		t.WriteString("# UNIT " + base + " " + f.Unit + "\n")
	}
	return f
}

func typeName(t dto.MetricType) Kind {
	switch t {
	case dto.MetricType_COUNTER:
		return Counter
	case dto.MetricType_GAUGE:
		return Gauge
	case dto.MetricType_HISTOGRAM:
		return Histogram
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
