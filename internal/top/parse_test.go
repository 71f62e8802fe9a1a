// SPDX-License-Identifier: Apache-2.0

package top

import (
	"maps"
	"strings"
	"testing"
)

const page = `# HELP a_total of something
# TYPE a_total counter
a_total 3
b_total{x="1",y="a \"b\" \\ c\nd"} 1.5e3 1700000000
h_bucket{le="+Inf"} 7 # {trace="x"} 1
# EOF
`

func TestMetricsAreRead(t *testing.T) {
	all, err := parse([]byte(page))
	if err != nil || len(all) != 3 {
		t.Fatalf("%+v, %v", all, err)
	}
	if s := all[0]; s.name != "a_total" || s.value != 3 || len(s.labels) != 0 {
		t.Errorf("%+v", s)
	}
	if s := all[1]; s.name != "b_total" || s.value != 1500 || !maps.Equal(s.labels, map[string]string{"x": "1", "y": "a \"b\" \\ c\nd"}) {
		t.Errorf("%+v", s)
	}
	if s := all[2]; s.name != "h_bucket" || s.value != 7 || s.labels["le"] != "+Inf" {
		t.Errorf("%+v", s)
	}
}

func TestMetricsThatAreNoneAreRefusedWithTheirLine(t *testing.T) {
	for text, want := range map[string]string{
		"a 1\nb": "line 2: no value", "a ": "no value", "{} 1": "no value", "a x": `"x" is no number`,
		`a{b="c} 1`: "label b has no end", `a{b=c} 1`: "labels without an end", `a{b="c"`: "labels without an end", `a{b="c\`: "no end",
	} {
		if _, err := parse([]byte(text)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %q", text, err, want)
		}
	}
}

func TestEveryPrefixOfMetricsIsReadOrRefused(t *testing.T) {
	for i := range page {
		if all, err := parse([]byte(page[:i])); err == nil && len(all) > 3 {
			t.Errorf("%d bytes hold %d series", i, len(all))
		}
	}
}

// FuzzParse holds that what is read has names, and that nobody is surprised.
func FuzzParse(f *testing.F) {
	f.Add([]byte(page))
	f.Add([]byte("a{b=\"\\\"}\",} NaN"))
	f.Fuzz(func(t *testing.T, text []byte) {
		all, err := parse(text)
		if err != nil {
			return
		}
		for _, s := range all {
			if s.name == "" || strings.ContainsAny(s.name, "{ ") {
				t.Errorf("%q has a series named %q", text, s.name)
			}
		}
		build("x", sample{}, sample{series: all}).text()
	})
}
