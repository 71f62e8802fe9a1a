// SPDX-License-Identifier: Apache-2.0

package dnsproxy

import (
	"slices"
	"testing"
)

func TestExpand(t *testing.T) {
	z := zone{domain: "cluster.local"}
	for name, want := range map[string][]string{
		"name":                            {"name.ns1.svc.cluster.local"},
		"name.ns":                         {"name.ns.svc.cluster.local", "name.ns.ns1.svc.cluster.local"},
		"name.ns.svc":                     {"name.ns.svc.cluster.local", "name.ns.svc.svc.cluster.local"},
		"name.ns.other":                   {"name.ns.other.svc.cluster.local"},
		"a.name.ns.svc":                   {"a.name.ns.svc.cluster.local"},
		"a.name.ns.other":                 nil,
		"name.ns.svc.cluster":             nil,
		"name.ns.svc.cluster.local":       nil,
		"name.ns.svc.cluster.local.other": nil,
		"a.b.name.ns.svc":                 nil,
	} {
		if got := z.expand(name, "ns1"); !slices.Equal(got, want) {
			t.Errorf("%s: %v", name, got)
		}
	}
}

func TestKeys(t *testing.T) {
	for name, want := range map[string][]string{
		"":          {""},
		"a":         {"a"},
		"a.b":       {"a.b", "*.b"},
		"a.b.c":     {"a.b.c", "*.b.c", "*.c"},
		"*.b.c":     {"*.b.c", "*.b.c", "*.c"},
		`a\.x.b.c`:  {`a\.x.b.c`, "*.b.c", "*.c"}, // an escaped dot ends no label
		`a\046x.b.`: {`a\046x.b.`, "*.b."},
	} {
		if got := keys(name); !slices.Equal(got, want) {
			t.Errorf("%s: %v", name, got)
		}
	}
}

func TestAliases(t *testing.T) {
	z := zone{domain: "cluster.local"}
	got := z.aliases("a.ns1.svc.cluster.local", "ns1")
	want := []alias{
		{"a.ns1.svc.cluster.local", ""},
		{"a", "a"}, // its expansion is the name itself
		{"a.ns1", "a.ns1"},
		{"a.ns1.ns1.svc.cluster.local", "a.ns1"},
		{"a.ns1.svc", "a.ns1.svc"},
		{"a.ns1.svc.svc.cluster.local", "a.ns1.svc"},
	}
	if !slices.Equal(got, want) {
		t.Errorf("got  %v\nwant %v", got, want)
	}
	for _, name := range []string{"", "ns1.svc.cluster.local", "svc.cluster.local", "cluster.local"} {
		for _, a := range z.aliases(name, "ns1") {
			if a.name == "" || a.stripped == "" && a.name == "cluster.local" && name != "cluster.local" {
				t.Errorf("%q became %v", name, a)
			}
		}
	}
}
