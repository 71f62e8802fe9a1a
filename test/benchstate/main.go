// SPDX-License-Identifier: Apache-2.0

// Benchstate shows how the picture of the mesh grows: the time and the memory
// to take a local state document, and how long a lookup takes in meshes of
// several sizes, at rest and while a push runs. `make bench-state` builds and
// runs it; docs/performance.md says what it means.
package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"text/tabwriter"
)

// options are the flags.
type options struct {
	load   string
	json   string
	rounds int
	scale
}

// A result is everything that one run found.
type result struct {
	Loads   []load   `json:"loads"`
	Lookups []lookup `json:"lookups"`
	Changes []change `json:"changes"`
}

func main() {
	var o options
	flag.StringVar(&o.load, "load", "", "load this document, tell of it and end (a run starts itself so for each load)")
	flag.StringVar(&o.json, "json", "", "write the numbers to this file too")
	flag.IntVar(&o.Workloads, "workloads", 100_000, "workloads of the document, and of the largest mesh that is asked")
	flag.IntVar(&o.Services, "services", 5_000, "services of the document")
	flag.IntVar(&o.rounds, "rounds", 3, "how often each is measured, in turn; medians are shown")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	run := o.run
	if o.load != "" {
		run = o.loadHere
	}
	if err := run(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "benchstate:", err)
		os.Exit(1)
	}
}

func (o options) run(ctx context.Context) error {
	var all result
	var err error
	if all.Loads, err = o.loads(ctx); err != nil {
		return err
	}
	for _, workloads := range []int{o.Workloads / 100, o.Workloads / 10, o.Workloads} {
		c, err := build(workloads)
		if err != nil {
			return err
		}
		all.Lookups = append(all.Lookups, c.measure(o.rounds)...)
		all.Changes = append(all.Changes, c.changes(o.rounds)...)
	}
	if err := all.show(os.Stdout); err != nil {
		return err
	}
	if o.json == "" {
		return nil
	}
	data, err := json.MarshalIndent(all, "", "  ")
	if err != nil {
		return err
	}
	return os.WriteFile(o.json, append(data, '\n'), 0o644)
}

// loads measures each form of the document in turn.
func (o options) loads(ctx context.Context) ([]load, error) {
	dir, err := os.MkdirTemp("", "benchstate")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	list := forms()
	found := make([][]load, len(list))
	for round := range o.rounds {
		for i, f := range list {
			file := filepath.Join(dir, "mesh."+f.Name)
			if round == 0 {
				if err := f.write(file, o.scale); err != nil {
					return nil, err
				}
			}
			l, err := loadElsewhere(ctx, file)
			if err != nil {
				return nil, err
			}
			found[i] = append(found[i], l)
		}
	}
	out := make([]load, 0, len(list))
	for i, f := range list {
		l := medianLoad(found[i])
		l.Form = f.Name
		out = append(out, l)
	}
	return out, nil
}

func (r result) show(w io.Writer) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(t, "document\tMB\tready s\tCPU s\tresident MB\tpeak MB\tlive heap MB\t")
	for _, l := range r.Loads {
		fmt.Fprintf(t, "%s\t%.0f\t%.2f\t%.2f\t%.0f\t%.0f\t%.0f\t\n", l.Form, l.Document, l.Seconds, l.CPU, l.Resident, l.Peak, l.Live)
	}
	fmt.Fprintln(t, "\t\t\t\t\t\t\t")
	fmt.Fprintln(t, "question, ns\tworkloads\tmean\tp50\tp99\tp50 in a push\tp99 in a push\t")
	for _, l := range r.Lookups {
		fmt.Fprintf(t, "%s\t%d\t%.0f\t%.0f\t%.0f\t%.0f\t%.0f\t\n",
			l.Question, l.Workloads, l.Mean, l.Alone.P50, l.Alone.P99, l.Pushed.P50, l.Pushed.P99)
	}
	fmt.Fprintln(t, "\t\t\t\t\t\t\t")
	fmt.Fprintln(t, "change, ns\tworkloads\tmean\t\t\t\t\t")
	for _, c := range r.Changes {
		fmt.Fprintf(t, "%s\t%d\t%.0f\t\t\t\t\t\n", c.What, c.Workloads, c.Mean)
	}
	return t.Flush()
}
