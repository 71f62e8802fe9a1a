// SPDX-License-Identifier: Apache-2.0

package xds

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"reflect"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"
)

// tree is what the YAML parser makes of a document, or nil.
func tree(t *testing.T, text string) *yaml.Node {
	var doc yaml.Node
	dec := yaml.NewDecoder(strings.NewReader(text))
	if dec.Decode(&doc) != nil || len(doc.Content) != 1 || !errors.Is(dec.Decode(new(yaml.Node)), io.EOF) {
		return nil
	}
	return doc.Content[0]
}

// scanned is what the scanner makes of it, or nil if it gives up.
func scanned(text string) *yaml.Node {
	plain, wide := plainText(text)
	if !plain {
		return nil
	}
	s := &scanner{text: text, line: 1, wide: wide}
	s.skip()
	if s.done() {
		return nil
	}
	n := s.block(true)
	if s.gaveUp {
		return nil
	}
	if s.skip(); s.gaveUp || !s.done() {
		return nil
	}
	return n
}

// differ says where two trees differ in what a reader can see.
func differ(got, want *yaml.Node) string {
	place := func(n *yaml.Node) string { return fmt.Sprintf("line %d column %d", n.Line, n.Column) }
	switch {
	case got.Kind != want.Kind, got.Value != want.Value, len(got.Content) != len(want.Content):
		return fmt.Sprintf("at %s: kind %d %q (%d), want %d %q (%d)", place(want), got.Kind, got.Value, len(got.Content), want.Kind, want.Value, len(want.Content))
	case got.ShortTag() != want.ShortTag() || (got.Style^want.Style)&yaml.TaggedStyle != 0:
		return fmt.Sprintf("at %s: tag %s of %q, want %s", place(want), got.ShortTag(), got.Value, want.ShortTag())
	case place(got) != place(want):
		return fmt.Sprintf("%q is at %s, want %s", got.Value, place(got), place(want))
	}
	for i := range got.Content {
		if d := differ(got.Content[i], want.Content[i]); d != "" {
			return d
		}
	}
	return ""
}

func plainDocuments() []string {
	return []string{
		"a: b\n", "a: b", "a:\n  b: c\n  d:\n    - e\n    - f: g\n      h: i\n", "a:\n- b\n- c\nd: e\n", "- - - a\n    - b\n  - c\n",
		"a: [b, \"c\", 'd', [e], {f: g, \"h\":1, i : 2,}, ]\n", "{\"a\": [\n1, 2\n],\n \"b\": {}\n}\n", "# c\na: b # d\n  # e\n\nf: \"g # h\" # i\n",
		"a: !Exact b\nc: [!Prefix \"d\", !Presence [], !X {y: z}]\n- ", "a:\nb:\n  - \n  -\n  - c\n", "a: ~\nb: null\nc: 1\nd: 1.5\ne: true\nf: 0x1f\ng: 2001-01-01\nh: yes\n",
		"\"a b\": c\n'd': e\nf g: h\n10.0.0.1/8: fd00::1\n", "a: {b: c}#d\n", "  a: b\n  c: d\n", "a: b\n c: d\n", "a: b\n  c\n", "a: 'b''c'\n", "a: \"b\\n\"\n",
		"a: b: c\n", "a: - b\n", "a: |\n  b\n", "a: &x b\nc: *x\n", "---\na: b\n", "a: b\n---\nc: d\n", "a: b\n...\n", "? a\n: b\n", "a: [b\n, c]\n", "a: [b\nc]\n",
		"a: {b: c\n}\n", "a:\n  {b: c}\nd: e\n", "a:\n  !x b\n", "a: {b, c: }\n", "a: [b: c]\n", "[a, b]: c\n", "a: \"b\nc\"\n", "a: b\tc\n", "-a: b\n", "a:b: c\n", "a: b:c\n",
		"a: [b:c, d#e, f #g\n, h]\n", "a:\n  b: c\n d: e\n", "- a: b\n c: d\n", "- a\n  b\n", "a:\n  - b\n - c\n", "a: {x: 1}\nb: []\n", "<<: a\n", "a: <<\nnull: b\n~: c\n",
		"{a: {b: [c, {d: e}]}}", "a: !!str b\n", "a: !x\n", "a: ! b\n", "!x a: b\n", "a: {!x b: c}\n", "a: !x b # c\n", "a: ''\nb: \"\"\n", "- \"a\": b\n  'c': d\n", "a:    b   \nc :  d\n",
	}
}

func TestTheScannerReadsAsTheYAMLParserDoes(t *testing.T) {
	taken := 0
	for _, text := range append(plainDocuments(), string(sample(t))) {
		step := 1 + len(text)/500               // prefixes of long ones have long trees
		for i := len(text); i >= 0; i -= step { // and every proper prefix
			got := scanned(text[:i])
			if got == nil {
				continue
			}
			taken++
			if want := tree(t, text[:i]); want == nil {
				t.Errorf("%q is taken, but is not YAML", text[:i])
			} else if d := differ(got, want); d != "" {
				t.Errorf("%q: %s", text[:i], d)
			}
		}
	}
	if taken < 500 {
		t.Errorf("only %d documents were taken", taken)
	}
}

func FuzzScanner(f *testing.F) {
	for _, text := range plainDocuments() {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		got := scanned(text)
		if got == nil {
			return
		}
		if want := tree(t, text); want == nil {
			t.Fatal("it is taken, but is not YAML")
		} else if d := differ(got, want); d != "" {
			t.Fatal(d)
		}
	})
}

// Whatever the short road takes is what the long one makes of it; what one of
// them refuses the other does not take.
func agreeOnRoads(t *testing.T, data []byte) {
	t.Helper()
	short, err, ok := parsePlain("x", string(data))
	if !ok {
		return
	}
	long, longErr := parseTree("x", data)
	if (err == nil) != (longErr == nil) {
		t.Fatalf("%q: the short road says %v, the long one %v", data, err, longErr)
	}
	if err == nil && !reflect.DeepEqual(short, long) {
		t.Fatalf("%q: the short road reads %+v, the long one %+v", data, short, long)
	}
}

func TestBothRoadsLeadToTheSame(t *testing.T) {
	whole := sample(t)
	if _, _, ok := parsePlain("x", string(whole)); !ok {
		t.Error("the sample takes the long road")
	}
	for i := 0; i < len(whole); i += 7 {
		agreeOnRoads(t, whole[:i])
	}
	for _, text := range []string{
		"{}", "workloads: []\n", "{\"workloads\": [], \"services\": []}", "workloads:\n- {uid: a, namespace: n, workloadIps: [1.2.3.4], services: {}}\n- {uid: a, namespace: m, workloadIps: [], services: {}}\n",
		"workloads:\n- uid: a\n  namespace: n\n  workloadIps:\n  - 1.2.3.4\n  services:\n    n/h:\n      80: 81\n  locality: {x: y}\nservices:\n- {namespace: n, hostname: h}\n",
		"workloads: []\nworkloads: []\n", "x: []\n", "workloads: {}\n", "workloads: null\n", "workloads:\n", "services: [] # none\npolicies: []\n", "--- \nworkloads: []\n", "---\nworkloads: []\n",
		"policies:\n- {name: p, namespace: n, scope: Global, action: Deny, rules: [[[{principals: [!Exact a, !Presence [], {Suffix: b}]}]]]}\n", "workloads: [a]\n", "[]", "a", "",
	} {
		agreeOnRoads(t, []byte(text))
	}
}

// What is kept of a document must not keep the document.
func TestNothingKeepsTheDocument(t *testing.T) {
	data := bytes.Clone(sample(t))
	text := string(data)
	first, err, ok := parsePlain("x", text)
	if err != nil || !ok {
		t.Fatal(err, ok)
	}
	var at []string
	eachString(reflect.ValueOf(first), map[uintptr]bool{}, func(s string) {
		if within(text, s) {
			at = append(at, s)
		}
	})
	if len(at) != 0 {
		t.Errorf("parts of the document: %q", at)
	}
}

// eachString visits the strings that a value reaches.
func eachString(v reflect.Value, seen map[uintptr]bool, visit func(string)) {
	switch v.Kind() {
	case reflect.String:
		visit(v.String())
	case reflect.Pointer:
		if !v.IsNil() && !seen[v.Pointer()] {
			seen[v.Pointer()] = true
			eachString(v.Elem(), seen, visit)
		}
	case reflect.Struct:
		for i := range v.NumField() {
			eachString(v.Field(i), seen, visit)
		}
	case reflect.Slice, reflect.Array:
		for i := range v.Len() {
			eachString(v.Index(i), seen, visit)
		}
	case reflect.Map:
		for it := v.MapRange(); it.Next(); {
			eachString(it.Key(), seen, visit)
			eachString(it.Value(), seen, visit)
		}
	}
}

// within reports whether s is a piece of text's own memory.
func within(text, s string) bool {
	if s == "" {
		return false
	}
	a, b := reflect.ValueOf(text).Pointer(), reflect.ValueOf(s).Pointer()
	return b >= a && b < a+uintptr(len(text))
}
