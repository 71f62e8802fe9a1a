// SPDX-License-Identifier: Apache-2.0

// Metricsdoc writes the tables of docs/metrics.md from what the proxy
// registers, that of docs/operations.md from the reasons there are, and those
// of docs/config.md from the variables that are read. `go
// generate ./test/metricsdoc` runs it; a test says when that is due.
package main

import (
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/ztunnel-go/ztunnel/cmd/ztunnel/app"
	"github.com/ztunnel-go/ztunnel/dataplane/reason"
	"github.com/ztunnel-go/ztunnel/internal/metrics"
)

//go:generate go run .

// pages are where tables stand, from here, and what they are.
func pages() map[string]string {
	return map[string]string{
		"../../docs/metrics.md":    tables(app.MetricFamilies()),
		"../../docs/operations.md": reasons(),
		"../../docs/config.md":     variables(app.Variables()),
	}
}

func main() {
	for page, table := range pages() {
		text, err := os.ReadFile(page)
		if err == nil {
			var fresh string
			if fresh, err = refresh(string(text), table); err == nil {
				err = os.WriteFile(page, []byte(fresh), 0o644)
			}
		}
		if err != nil {
			fmt.Fprintf(os.Stderr, "%s: %v\n", page, err)
			os.Exit(1)
		}
	}
}

// Between these two lines everything is ours.
const (
	begin = "<!-- begin: written by go generate ./test/metricsdoc -->\n"
	end   = "<!-- end -->\n"
)

// refresh puts a new table into a page.
func refresh(text, table string) (string, error) {
	before, rest, found := strings.Cut(text, begin)
	_, after, closed := strings.Cut(rest, end)
	if !found || !closed {
		return "", fmt.Errorf("it has not both %q and %q", begin, end)
	}
	return before + begin + table + end + after, nil
}

func tables(families []metrics.Family) string {
	var b strings.Builder
	sets := labelSets(families)
	for _, section := range []struct {
		title, about string
		in           func(metrics.Family) bool
	}{
		{"Core", "Name, labels and meaning stay as they are.", func(f metrics.Family) bool { return f.Core }},
		{"Unstable", "These may change or go; their help says so.", func(f metrics.Family) bool { return !f.Core && !f.Ours }},
		{"Unstable, and not of ztunnel", "What ztunnel does not export, or only documents.", func(f metrics.Family) bool { return !f.Core && f.Ours }},
	} {
		fmt.Fprintf(&b, "\n### %s\n\n%s\n\n| name | type | labels | meaning |\n|---|---|---|---|\n", section.title, section.about)
		for _, f := range families {
			if section.in(f) {
				help := strings.ReplaceAll(strings.TrimSuffix(f.Help, " (unstable)"), "|", `\|`)
				fmt.Fprintf(&b, "| `%s` | %s | %s | %s |\n", f.Name, kindOf(f), labelsOf(f, sets), help)
			}
		}
	}
	b.WriteString("\n")
	for _, s := range sets {
		fmt.Fprintf(&b, "**%s labels**, in this order: %s.\n\n", s.name, code(s.labels))
	}
	return b.String()
}

// reasons are why connections end or are refused.
func reasons() string {
	var b strings.Builder
	b.WriteString("\n| reason | flag | what it means | what to look at |\n|---|---|---|---|\n")
	for _, r := range reason.All() {
		fmt.Fprintf(&b, "| `%v` | `%s` | %s | %s |\n", r, r.Flag(), r.Means(), r.Look())
	}
	b.WriteString("\n")
	return b.String()
}

// variables are those of the environment.
func variables(subjects []app.Subject) string {
	var b strings.Builder
	for _, s := range subjects {
		fmt.Fprintf(&b, "\n## %s\n\n| variable | kind | default | meaning |\n|---|---|---|---|\n", s.Title)
		for _, v := range s.Variables {
			name, def := code([]string{v.Name}), ""
			if v.Ours {
				name += " (ours)"
			}
			if v.Default != "" {
				def = code([]string{v.Default})
			}
			fmt.Fprintf(&b, "| %s | %s | %s | %s |\n", name, v.Kind, def, strings.ReplaceAll(v.About, "|", `\|`))
		}
	}
	b.WriteString("\n")
	return b.String()
}

// A labelSet is a list of labels that is too long to be told twice.
type labelSet struct {
	name   string
	labels []string
}

// labelSets names the long lists after the families that have them.
func labelSets(families []metrics.Family) []labelSet {
	var sets []labelSet
	for _, f := range families {
		switch f.Name {
		case "istio_tcp_connections_opened_total":
			sets = append(sets, labelSet{"Traffic", f.Labels})
		case "istio_dns_requests_total":
			sets = append(sets, labelSet{"DNS", f.Labels})
		}
	}
	return sets
}

func kindOf(f metrics.Family) string {
	if f.Unit != "" {
		return string(f.Kind) + ", " + f.Unit
	}
	return string(f.Kind)
}

func labelsOf(f metrics.Family, sets []labelSet) string {
	for _, s := range sets {
		if slices.Equal(s.labels, f.Labels) {
			return strings.ToLower(s.name) + " labels"
		}
	}
	return code(f.Labels)
}

func code(names []string) string {
	if len(names) == 0 {
		return ""
	}
	return "`" + strings.Join(names, "`, `") + "`"
}
