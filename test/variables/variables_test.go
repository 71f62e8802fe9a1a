// SPDX-License-Identifier: Apache-2.0

package variables

import (
	"os"
	"slices"
	"strings"
	"testing"
)

const root = "../.."

// unitTests are the packages whose tests take no time and need nothing.
var unitTests = []string{"cmd/ztunnel/app"}

// nightly are those that start processes: `make nightly`.
const nightly = "ZTUNNEL_TESTS_NIGHTLY"

func table(t *testing.T) []Row {
	t.Helper()
	page, err := os.ReadFile(root + "/docs/compat.md")
	if err != nil {
		t.Fatal(err)
	}
	rows, err := Parse(string(page))
	if err != nil {
		t.Fatal(err)
	}
	return rows
}

// TestATestFailsForEachVariableThatIsIgnored runs the unit test that the table
// names for each variable as if the proxy ignored it; `make nightly` does it
// with the tests of whole processes instead.
func TestATestFailsForEachVariableThatIsIgnored(t *testing.T) {
	slow := os.Getenv(nightly) != ""
	tried := 0
	binaries := map[string]*Binary{}
	sound := map[Test]bool{}
	for _, row := range table(t) {
		for _, test := range row.SetBy {
			if slices.Contains(unitTests, test.Package) == slow {
				continue
			}
			b := binaries[test.Package]
			if b == nil {
				var err error
				if b, err = Compile(t.Context(), root, test.Package, t.TempDir()); err != nil {
					t.Fatal(err)
				}
				binaries[test.Package] = b
			}
			if !sound[test] {
				if passed, err := b.Run(t.Context(), test.Name, ""); err != nil || !passed {
					t.Fatalf("%v fails as it is: %v", test, err)
				}
				sound[test] = true
			}
		}
		for _, name := range row.Names {
			caught, asked := false, false
			for _, test := range row.SetBy {
				sets, err := test.Sets(root, name)
				if err != nil {
					t.Error(err)
				}
				if b := binaries[test.Package]; b != nil && sets && !caught {
					asked = true
					tried++
					passed, err := b.Run(t.Context(), test.Name, name)
					if err != nil {
						t.Error(err)
					}
					caught = err == nil && !passed
				}
			}
			switch {
			case asked && !caught:
				t.Errorf("%s may be ignored: none of %v notices", name, row.SetBy)
			case !asked && !slow:
				t.Errorf("no unit test sets %s", name)
			}
		}
	}
	t.Logf("%d runs with a variable ignored", tried)
	if tried == 0 {
		t.Error("nothing was tried")
	}
}

func TestEveryVariableDoesSomethingOrIsToldOf(t *testing.T) {
	for _, row := range table(t) {
		known := false
		for _, state := range []string{"works", "ours: ", "refused", "told of", "is refused", "is told of", "checked"} {
			known = known || strings.Contains(row.State, state)
		}
		if !known {
			t.Errorf("%v: %q says neither that they work nor who is told", row.Names, row.State)
		}
		if len(row.SetBy) == 0 {
			t.Errorf("%v: nobody sets them", row.Names)
		}
	}
}

func TestTheTableIsRead(t *testing.T) {
	rows, err := Parse("x\n" + heading + "\n|---|---|---|---|\n| `A`, `./b`, `C_*` | works | `p/q.TestA` | the same, `r.TestB` |\n\nmore")
	if err != nil || len(rows) != 1 || strings.Join(rows[0].Names, " ") != "A C_*" || rows[0].State != "works" ||
		rows[0].SetBy[0] != (Test{"p/q", "TestA"}) || rows[0].Held[0] != (Test{"r", "TestB"}) {
		t.Errorf("%+v, %v", rows, err)
	}
	for _, page := range []string{"", heading, heading + "\n|---|\n| `A` | works |\n", heading + "\n|---|\n| A | works | x | y |\n"} {
		if rows, err := Parse(page); err == nil && len(rows) > 0 {
			t.Errorf("%q is %+v", page, rows)
		}
	}
}

func TestEveryVariableIsSetByATest(t *testing.T) {
	listed := map[string]bool{}
	for _, row := range table(t) {
		for _, name := range row.Names {
			if listed[name] {
				t.Errorf("%s is there twice", name)
			}
			listed[name] = true
			set := false
			for _, test := range row.SetBy {
				sets, err := test.Sets(root, name)
				if err != nil {
					t.Error(err)
				}
				set = set || sets
			}
			if !set {
				t.Errorf("none of %v sets %s", row.SetBy, name)
			}
		}
	}
	for _, name := range Names() {
		if !listed[name] {
			t.Errorf("docs/compat.md says nothing of %s", name)
		}
	}
}

func TestWhoSetsWhat(t *testing.T) {
	own := Test{"test/variables", "TestWhoSetsWhat"}
	const direct, prefix = "DIRECT_ONE", "PREFIX_OF_ONE"
	for variable, want := range map[string]bool{direct[:6] + "_ONE": true, prefix[:6] + "_*": true, "NOBODY_" + direct: false} {
		if got, err := own.Sets(root, variable); got != want || err != nil {
			t.Errorf("%s: %v, %v", variable, got, err)
		}
	}
	if _, err := (Test{"test/variables", "TestNone"}).Sets(root, "X"); err == nil {
		t.Error("a test that does not exist is none's fault")
	}
}
