// SPDX-License-Identifier: Apache-2.0

package main

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"text/tabwriter"
	"time"
)

func joined(errs []error) error { return errors.Join(errs...) }

// A row is what became of the connections of one kind.
type row struct {
	all, well, excused, bad int
	sent, arrived           int64
}

// tell judges every entry, prints the table and what was violated, and says
// whether nothing was.
func (s *soak) tell(out io.Writer) bool {
	rows := map[string]*row{}
	excuses := map[string]int{}
	type failure struct {
		e *entry
		v verdict
	}
	var failures []failure
	for _, e := range s.ledger.all() {
		v := s.judge(e)
		for _, name := range []string{e.plan.kind, "  " + e.route} {
			if rows[name] == nil {
				rows[name] = &row{}
			}
			rows[name].add(e, v)
		}
		switch {
		case v.bad():
			failures = append(failures, failure{e, v})
		case v.excuse != nil:
			excuses[shape(v.excuse.what)]++
		}
	}
	w := tabwriter.NewWriter(out, 0, 4, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(w, "\tall\twell\texcused\tviolated\tMB sent\tMB arrived\tkind, way\t")
	for _, name := range slices.SortedFunc(maps.Keys(rows), func(a, b string) int {
		return cmp.Or(strings.Count(a[:1], " ")-strings.Count(b[:1], " "), strings.Compare(a, b))
	}) {
		r := rows[name]
		const mb = 1e6
		fmt.Fprintf(w, "\t%d\t%d\t%d\t%d\t%.1f\t%.1f\t%s\t\n", r.all, r.well, r.excused, r.bad, float64(r.sent)/mb, float64(r.arrived)/mb, name)
	}
	w.Flush()
	for _, what := range slices.Sorted(maps.Keys(excuses)) {
		fmt.Fprintf(out, "excused by %s: %d\n", what, excuses[what])
	}
	const enough = 12
	for i, f := range failures {
		if i == enough {
			fmt.Fprintf(out, "\nand %d more\n", len(failures)-enough)
			for _, f := range failures[enough:] {
				fmt.Fprintf(out, "%d %s, %s: %s %s\n", f.e.id, f.e.plan.kind, f.e.route, f.v.wrong, f.v.breach)
			}
			break
		}
		s.page(out, f.e, f.v)
	}
	return s.saidWell(out) && len(failures) == 0
}

func (r *row) add(e *entry, v verdict) {
	r.all++
	switch {
	case v.bad():
		r.bad++
	case v.wrong != "":
		r.excused++
	default:
		r.well++
	}
	for _, side := range e.sides {
		r.sent += side.sent
		r.arrived += side.received
	}
}

// shape is an event without whom it befell.
func shape(what string) string {
	if i := strings.Index(what, ": "); i > 0 && strings.HasPrefix(what, "pod ") {
		return "a pod's end" + what[i:]
	}
	if strings.HasPrefix(what, "policy: deny c") || strings.HasPrefix(what, "policy: deny pod-") {
		return "policy: deny one"
	}
	if strings.HasPrefix(what, "policy: allow") {
		return "policy: allow all but one"
	}
	return what
}

// page prints an entry with all that is known of it.
func (s *soak) page(out io.Writer, e *entry, v verdict) {
	since := func(t time.Time) string {
		if t.IsZero() {
			return "never"
		}
		return fmt.Sprintf("%.3f", t.Sub(s.chronicle.began).Seconds())
	}
	to := "nobody"
	if e.to != nil {
		to = e.to.name
	}
	fmt.Fprintf(out, "\nVIOLATED connection %d: %s, %s: %s %s\n", e.id, e.plan.kind, e.route, v.wrong, v.breach)
	fmt.Fprintf(out, "  from %s %v, dialled %v, accepted by %s; began %s, accepted %s\n", e.from.name, e.local, e.addr, to, since(e.began), since(e.established))
	fmt.Fprintf(out, "  plan: %+v\n", e.plan)
	for r, side := range e.sides {
		fmt.Fprintf(out, "  the %v: sent %d (%.8x), received %d (%.8x), %s at %s: %v\n", role(r), side.sent, side.sentSum.Sum(nil),
			side.received, side.gotSum.Sum(nil), side.how, since(side.at), side.err)
	}
	for _, note := range s.chronicle.notes {
		var at float64
		if _, err := fmt.Sscan(note, &at); err == nil && at > e.began.Sub(s.chronicle.began).Seconds()-2 && at < e.last().Sub(s.chronicle.began).Seconds()+2 {
			fmt.Fprintf(out, "    %s\n", note)
		}
	}
	if !e.local.IsValid() {
		return
	}
	for i, p := range s.printed {
		for _, line := range p.Output.Lines(0) {
			if strings.Contains(line, "src.addr="+e.local.String()+" ") || strings.Contains(line, fmt.Sprintf(`"src.addr":"%v"`, e.local)) {
				fmt.Fprintf(out, "    %d %s: %s\n", i, p.Node().Name(), line)
			}
		}
	}
}

// saidWell looks for lines of the proxies that must never come, and shows those
// in which capture complains.
func (s *soak) saidWell(out io.Writer) bool {
	well := true
	for i, p := range s.printed {
		for _, line := range p.Output.Lines(0) {
			switch {
			case strings.Contains(line, "panic:"), strings.Contains(line, "DATA RACE"), strings.Contains(line, "fatal error:"):
				well = false
				fmt.Fprintf(out, "VIOLATED proxy %d of %s said: %s\n", i, p.Node().Name(), line)
			case strings.Contains(line, "\terror\tcapture\t"): // what it says may be right, or not: see docs/soak.md
				fmt.Fprintf(out, "noted: proxy %d of %s said: %s\n", i, p.Node().Name(), line)
			}
		}
	}
	for _, note := range s.chronicle.notes {
		if strings.Contains(note, "WRONG") {
			well = false
			fmt.Fprintf(out, "VIOLATED %s\n", note)
		}
	}
	return well
}

// writeLogs leaves what the proxies printed, and the chronicle, in files.
func (s *soak) writeLogs() error {
	if s.logs == "" {
		return nil
	}
	if err := os.MkdirAll(s.logs, 0o755); err != nil {
		return err
	}
	errs := []error{os.WriteFile(filepath.Join(s.logs, "chronicle.txt"), []byte(strings.Join(s.chronicle.notes, "\n")+"\n"), 0o644)}
	for i, p := range s.printed {
		name := filepath.Join(s.logs, fmt.Sprintf("proxy-%d-%s.log", i, p.Node().Name()))
		errs = append(errs, os.WriteFile(name, []byte(strings.Join(p.Output.Lines(0), "\n")+"\n"), 0o644))
	}
	return joined(errs)
}
