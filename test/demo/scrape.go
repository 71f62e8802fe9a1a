// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"slices"
	"strings"

	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"
)

// parseScrape reads what a node exports and keeps the families asked for, with
// the labels that a ledger looks at. Series that differ in other labels only
// are added up.
func parseScrape(node, text string, families, labels []string) (map[series]int64, error) {
	parser := expfmt.NewTextParser(model.UTF8Validation)
	parsed, err := parser.TextToMetricFamilies(strings.NewReader(text))
	if err != nil {
		return nil, fmt.Errorf("scrape of %s: %w", node, err)
	}
	out := map[series]int64{}
	for name, family := range parsed {
		if !slices.Contains(families, name) {
			continue
		}
		for _, m := range family.GetMetric() {
			value, err := whole(m)
			if err != nil {
				return nil, fmt.Errorf("scrape of %s: %s: %w", node, name, err)
			}
			out[series{node, name, chosen(m, labels)}] += value
		}
	}
	return out, nil
}

func chosen(m *dto.Metric, labels []string) string {
	kept := map[string]string{}
	for _, l := range m.GetLabel() {
		if slices.Contains(labels, l.GetName()) {
			kept[l.GetName()] = l.GetValue()
		}
	}
	return labelled(kept)
}

// whole is the value of a count. In OpenMetrics the TYPE line of a counter has
// another name than its samples, so the parser takes them for untyped.
func whole(m *dto.Metric) (int64, error) {
	v := m.GetUntyped().GetValue()
	if m.GetCounter() != nil {
		v = m.GetCounter().GetValue()
	}
	if v != float64(int64(v)) || v < 0 {
		return 0, fmt.Errorf("%v is no count", v)
	}
	return int64(v), nil
}
