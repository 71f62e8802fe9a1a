// SPDX-License-Identifier: Apache-2.0

package identity

import "testing"

func TestParseAcceptsOnlyTheFivePartForm(t *testing.T) {
	for _, tc := range []struct {
		in string
		ok bool
	}{
		{"spiffe://cluster.local/ns/default/sa/web", true},
		{"spiffe:///ns/default/sa/web", true},
		{"spiffe://td/ns//sa/", true},
		{"", false},
		{"http://td/ns/a/sa/b", false},
		{"spiffe://td/ns/a/sa", false},
		{"spiffe://td/ns/a/sa/b/c", false},
		{"spiffe://td/sa/a/ns/b", false},
	} {
		id, err := Parse(tc.in)
		if (err == nil) != tc.ok {
			t.Errorf("Parse(%q) error = %v, want ok = %v", tc.in, err, tc.ok)
		}
		if tc.ok && id.String() != tc.in {
			t.Errorf("Parse(%q).String() = %q", tc.in, id.String())
		}
		if !tc.ok && !id.IsZero() {
			t.Errorf("Parse(%q) failed but returned %v", tc.in, id)
		}
	}
}

func TestEveryProperPrefixIsRefusedOrShorter(t *testing.T) {
	full := "spiffe://td/ns/a/sa/b"
	for i := range full {
		if id, err := Parse(full[:i]); err == nil && id.String() != full[:i] {
			t.Errorf("prefix %q parsed as %v", full[:i], id)
		}
	}
}

func TestNewRefusesPartsThatMoveTheBorders(t *testing.T) {
	if _, err := New("td", "a/sa/b", "c"); err == nil {
		t.Error("a slash in the namespace was accepted")
	}
	id, err := New("td", "a", "b")
	if err != nil || id.Principal() != "td/ns/a/sa/b" {
		t.Errorf("New = %v, %v", id, err)
	}
}

func TestTheZeroIDIsNobody(t *testing.T) {
	empty, err := New("", "", "")
	if err != nil {
		t.Fatal(err)
	}
	if empty.IsZero() || empty == (ID{}) {
		t.Error("an ID of empty parts equals nobody")
	}
	if (ID{}).String() != "" || (ID{}).Principal() != "" {
		t.Error("nobody has a name")
	}
}

func FuzzParse(f *testing.F) {
	f.Add("spiffe://cluster.local/ns/default/sa/web")
	f.Add("spiffe:///ns//sa/")
	f.Fuzz(func(t *testing.T, s string) {
		id, err := Parse(s)
		if err != nil {
			return
		}
		again, err := Parse(id.String())
		if err != nil || again != id {
			t.Fatalf("%q: %v, %v", s, again, err)
		}
	})
}
