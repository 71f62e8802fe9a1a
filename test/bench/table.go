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
	// Failed says what went wrong; such measurements are not among the samples.
	Failed []string `json:"failed,omitempty"`

	job job
}

// of is the row of a cell, which is made if need be.
func (r *rows) of(c cell) *row {
	for _, known := range *r {
		if known.Name == c.name {
			return known
		}
	}
	fresh := &row{Name: c.name, Unit: c.unit, job: c.job}
	*r = append(*r, fresh)
	return fresh
}

// add keeps samples of a cell.
func (r *rows) add(c cell, s ...sample) {
	row := r.of(c)
	row.Samples = append(row.Samples, s...)
}

// fail keeps that a measurement went wrong.
func (r *rows) fail(c cell, why string) {
	row := r.of(c)
	row.Failed = append(row.Failed, why)
}

// failures is an error if there are any.
func (r rows) failures() error {
	n := 0
	for _, row := range r {
		n += len(row.Failed)
	}
	if n > 0 {
		return fmt.Errorf("%d measurements failed", n)
	}
	return nil
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

// show prints the table, as Markdown if asked.
func (r report) show(w io.Writer, markdown bool) error {
	heads := []string{"", "plain"}
	for _, s := range r.Subjects {
		heads = append(heads, s.Name, "of plain", "CPU µs")
	}
	if len(r.Subjects) > 1 {
		heads = append(heads, "ours:peer", "CPU ours:peer")
	}
	lines := [][]string{heads}
	for _, row := range r.Rows {
		lines = append(lines, row.rates(r.Subjects))
		for _, part := range row.parts() {
			lines = append(lines, row.line(r.Subjects, part))
		}
	}
	var err error
	if markdown {
		err = writeMarkdown(w, lines)
	} else {
		err = writeText(w, lines)
	}
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(w, "\nMedians of %d rounds of %s; %d CPUs, Linux %s, load average %s.\n"+
		"CPU is both proxies', for one operation or MiB. More is better of what is by the second; less of time, memory and CPU.\n",
		r.Rounds, r.Duration, r.CPUs, r.Kernel, r.Load)
	return err
}

func writeText(w io.Writer, lines [][]string) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', tabwriter.AlignRight)
	for _, cells := range lines {
		fmt.Fprintln(t, strings.Join(cells, "\t")+"\t")
	}
	return t.Flush()
}

func writeMarkdown(w io.Writer, lines [][]string) error {
	for i, cells := range lines {
		text := "| " + strings.Join(cells, " | ") + " |\n"
		if i == 0 {
			text += strings.Repeat("|---", len(cells)) + "|\n"
		}
		if _, err := io.WriteString(w, text); err != nil {
			return err
		}
	}
	return nil
}

// rates is the row's first line.
func (r *row) rates(subjects []subject) []string {
	name := r.Name + ", " + r.Unit
	if n := len(r.Failed); n > 0 {
		name += fmt.Sprintf(" (%d FAILED)", n)
	}
	cells := []string{name, number(r.Median[plainName].Rate)}
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
