// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"
)

// rows are what was measured, in order.
type rows []*row

// A row is one cell with all its samples, and what they come to.
type row struct {
	Name    string            `json:"name"`
	Unit    string            `json:"unit"`
	Samples []sample          `json:"samples"`
	Median  map[string]sample `json:"median"` // by who
	// OfPlain is a subject's median beside that of the plain samples from the
	// same lab.
	OfPlain map[string]float64 `json:"ofPlain,omitempty"`
	// OfPeer is our median beside the peer's.
	OfPeer float64 `json:"ofPeer,omitempty"`

	job job
}

// add keeps samples of a cell.
func (r *rows) add(c cell, s ...sample) {
	for _, known := range *r {
		if known.Name == c.name {
			known.Samples = append(known.Samples, s...)
			return
		}
	}
	*r = append(*r, &row{Name: c.name, Unit: c.unit, Samples: s, job: c.job})
}

// sum makes medians and ratios.
func (r rows) sum(subjects []subject) {
	for _, row := range r {
		row.Median, row.OfPlain = map[string]sample{}, map[string]float64{}
		row.Median[plainName] = row.median(func(s sample) bool { return s.Who == plainName })
		for _, who := range subjects {
			m := row.median(func(s sample) bool { return s.Who == who.Name })
			row.Median[who.Name] = m
			if p := row.median(func(s sample) bool { return s.Who == plainName && s.In == who.Name }); p.Rate > 0 {
				row.OfPlain[who.Name] = m.Rate / p.Rate
			}
		}
		if peer := row.Median["peer"]; peer.Rate > 0 {
			row.OfPeer = row.Median["ours"].Rate / peer.Rate
		}
	}
}

// median is the median of each number of the samples that are wanted.
func (r *row) median(want func(sample) bool) sample {
	var some []sample
	for _, s := range r.Samples {
		if want(s) {
			some = append(some, s)
		}
	}
	of := func(number func(sample) float64) float64 {
		var all []float64
		for _, s := range some {
			all = append(all, number(s))
		}
		return median(all)
	}
	return sample{
		Rate: of(func(s sample) float64 { return s.Rate }),
		P50:  of(func(s sample) float64 { return s.P50 }), P99: of(func(s sample) float64 { return s.P99 }),
		CPU: of(func(s sample) float64 { return s.CPU }), Heap: of(func(s sample) float64 { return s.Heap }),
	}
}

// median of nothing is 0.
func median(all []float64) float64 {
	if len(all) == 0 {
		return 0
	}
	all = slices.Sorted(slices.Values(all))
	if n := len(all) / 2; len(all)%2 == 0 {
		return (all[n-1] + all[n]) / 2
	}
	return all[len(all)/2]
}

// show prints the table.
func (r report) show(w io.Writer) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', tabwriter.AlignRight)
	heads := []string{"", "plain"}
	for _, s := range r.Subjects {
		heads = append(heads, s.Name, "of plain", "CPU µs")
	}
	if len(r.Subjects) > 1 {
		heads = append(heads, "ours:peer", "CPU ours:peer")
	}
	line(t, heads)
	for _, row := range r.Rows {
		line(t, row.rates(r.Subjects))
		for _, part := range row.parts() {
			line(t, row.line(r.Subjects, part))
		}
	}
	if err := t.Flush(); err != nil {
		return err
	}
	_, err := fmt.Fprintf(w, "\nMedians of %d rounds of %s; %d CPUs, Linux %s, load average %s.\n"+
		"CPU is both proxies', for one operation or MiB. More is better of what is by the second; less of time, memory and CPU.\n",
		r.Rounds, r.Duration, r.CPUs, r.Kernel, r.Load)
	return err
}

func line(w io.Writer, cells []string) { fmt.Fprintln(w, strings.Join(cells, "\t")+"\t") }

// rates is the row's first line.
func (r *row) rates(subjects []subject) []string {
	cells := []string{r.Name + ", " + r.Unit, number(r.Median[plainName].Rate)}
	for _, s := range subjects {
		m := r.Median[s.Name]
		cells = append(cells, number(m.Rate), number(r.OfPlain[s.Name]), number(m.CPU))
	}
	if len(subjects) > 1 {
		cells = append(cells, number(r.OfPeer), ratio(r.Median["ours"].CPU, r.Median["peer"].CPU))
	}
	return cells
}

// A part is a number of a sample beside its rate.
type part struct {
	name string
	of   func(sample) float64
}

// parts are the numbers that the row has.
func (r *row) parts() []part {
	switch r.job.Kind {
	case bulk:
		return nil
	case idle:
		return []part{{"heap, KiB", func(s sample) float64 { return s.Heap }}}
	}
	return []part{
		{"p50, µs", func(s sample) float64 { return s.P50 }},
		{"p99, µs", func(s sample) float64 { return s.P99 }},
	}
}

func (r *row) line(subjects []subject, p part) []string {
	plain := p.of(r.Median[plainName])
	cells := []string{p.name, number(plain)}
	for _, s := range subjects {
		n := p.of(r.Median[s.Name])
		cells = append(cells, number(n), ratio(n, plain), "")
	}
	if len(subjects) > 1 {
		cells = append(cells, ratio(p.of(r.Median["ours"]), p.of(r.Median["peer"])), "")
	}
	return cells
}

func ratio(a, b float64) string {
	if b == 0 {
		return ""
	}
	return number(a / b)
}

// number has three digits; there is none for 0.
func number(f float64) string {
	switch {
	case f == 0:
		return ""
	case f >= 100 || f <= -100:
		return fmt.Sprintf("%.0f", f)
	case f >= 10 || f <= -10:
		return fmt.Sprintf("%.1f", f)
	}
	return fmt.Sprintf("%.2f", f)
}
