// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/ztunnel-go/ztunnel/cmd/ztunnel/app"
	"github.com/ztunnel-go/ztunnel/internal/metrics"
)

func TestTheDashboardIsFresh(t *testing.T) {
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	want, err := encode(build(app.MetricFamilies()))
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(text, want) {
		t.Errorf("%s is not what the proxy has: go generate ./test/dashboard", file)
	}
}

func TestEveryFamilyIsShown(t *testing.T) {
	var all strings.Builder
	for _, p := range build(app.MetricFamilies()).Panels {
		for _, q := range p.Targets {
			all.WriteString(q.Expr + "\n")
		}
	}
	for _, f := range app.MetricFamilies() {
		shown := regexp.MustCompile(`\b` + f.Name + `(_bucket)?\{`).MatchString(all.String())
		if shown == slices.Contains(twice(), f.Name) {
			t.Errorf("%s: shown is %v", f.Name, shown)
		}
	}
}

// TestQueriesNameWhatThereIs looks at each selector and each grouping: the family
// has to exist, and has to have the label.
func TestQueriesNameWhatThereIs(t *testing.T) {
	families := map[string]metrics.Family{}
	for _, f := range app.MetricFamilies() {
		families[f.Name] = f
	}
	selector := regexp.MustCompile(`([a-z_]+)\{([^}]*)\}`)
	label := regexp.MustCompile(`([a-z_]+)=~?"`)
	grouping := regexp.MustCompile(`by \(([^)]*)\)`)
	for _, p := range build(app.MetricFamilies()).Panels {
		for _, q := range p.Targets {
			var names []string
			for _, g := range grouping.FindAllStringSubmatch(q.Expr, -1) {
				names = append(names, strings.Split(g[1], ", ")...)
			}
			selectors := selector.FindAllStringSubmatch(q.Expr, -1)
			if len(selectors) == 0 || strings.Count(q.Expr, "(") != strings.Count(q.Expr, ")") {
				t.Errorf("%s: %s", p.Title, q.Expr)
			}
			for _, s := range selectors {
				f, ok := families[strings.TrimSuffix(s[1], "_bucket")]
				if !ok {
					t.Errorf("%s: there is no %s", p.Title, s[1])
				}
				used := slices.Clone(names)
				for _, l := range label.FindAllStringSubmatch(s[2], -1) {
					used = append(used, l[1])
				}
				for _, name := range used {
					if name != "instance" && name != "le" && !slices.Contains(f.Labels, name) {
						t.Errorf("%s: %s has no label %s", p.Title, f.Name, name)
					}
				}
			}
		}
	}
}

func TestRowsAreThoseAskedFor(t *testing.T) {
	var titles []string
	for _, p := range build(app.MetricFamilies()).Panels {
		if p.Type == "row" {
			titles = append(titles, p.Title)
		}
	}
	if want := []string{"Traffic", "DNS", "Capture", "Certificates", "Control plane", "Process"}; !slices.Equal(titles, want) {
		t.Errorf("rows are %v", titles)
	}
}
