// SPDX-License-Identifier: Apache-2.0

package arch

import (
	"go/token"
	"os"
	"strings"
	"testing"
)

const root = "../.."

func read(t *testing.T, name string) string {
	t.Helper()
	data, err := os.ReadFile(root + "/" + name)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

// TestHouse holds our own tree to the rules.
func TestHouse(t *testing.T) {
	tree, err := Load(root)
	if err != nil {
		t.Fatal(err)
	}
	if len(tree.Packages()) == 0 {
		t.Fatal("no packages found")
	}
	table, err := ParseTable(read(t, "ARCHITECTURE.md"))
	if err != nil {
		t.Fatal(err)
	}
	dependencies, err := Dependencies(read(t, "go.mod"), read(t, "ARCHITECTURE.md"))
	if err != nil {
		t.Fatal(err)
	}
	long, warnings := Lengths(tree)
	for _, w := range warnings {
		t.Log(w)
	}
	for name, found := range map[string][]string{
		"imports follow the table":         table.Imports(tree),
		"the table speaks of what exists":  table.Stale(tree),
		"promises name tests that exist":   NamedTests(tree, read(t, "docs/compat.md")+read(t, "docs/lifecycle.md")),
		"every variable is spoken of":      Variables(tree, read(t, "docs/compat.md")),
		"links lead somewhere":             Links(tree),
		"every dependency has a reason":    dependencies,
		"some imports are never right":     Never(tree),
		"the engine shows no net/http":     EngineTypes(tree),
		"decisions are pure":               Pure(tree),
		"the environment has one door":     OneDoor(tree),
		"packages say what they are for":   PackageDocs(tree),
		"exported names are documented":    ExportedDocs(tree),
		"packages are named for a subject": Names(tree),
		"nothing runs before main":         NoInit(tree),
		"nothing is global":                Globals(tree),
		"nothing is too long":              long,
		"arguments can be told apart":      Arguments(tree),
		"every file has its licence":       Licences(tree),
		"no path is somebody's own":        MachinePaths(tree),
	} {
		t.Run(name, func(t *testing.T) {
			for _, f := range found {
				t.Error(f)
			}
		})
	}
}

// of makes a module m with one file.
func of(t *testing.T, path, text string) *Tree {
	t.Helper()
	tree := &Tree{Module: "m", Fset: token.NewFileSet()}
	if err := tree.Add(path, []byte(text)); err != nil {
		t.Fatal(err)
	}
	return tree
}

func TestEveryRuleObjects(t *testing.T) {
	const doc = "// Package p is a test.\npackage p\n"
	table := Table{
		{Package: "dataplane/p", Ours: []string{"internal/mesh"}, Outside: []string{"golang.org/x/sys"}},
		{Package: "internal/gone"}, {Package: "test/...", Ours: []string{Anything}, Outside: []string{Anything}},
	}
	imports := func(tr *Tree) []string { return table.Imports(tr) }
	long := func(tr *Tree) []string { found, _ := Lengths(tr); return found }
	variables := func(tr *Tree) []string { return Variables(tr, "`KNOWN` and `KNOWN_*`") }
	for _, tc := range []struct {
		name  string
		check func(*Tree) []string
		path  string
		text  string
		want  string // empty: the rule must be content
	}{
		{"our import", imports, "dataplane/p/a.go", doc + `import _ "m/internal/mesh"`, ""},
		{"our import", imports, "dataplane/p/a.go", doc + `import _ "m/internal/certs"`, "may not import m/internal/certs"},
		{"outside", imports, "dataplane/p/a.go", doc + `import _ "golang.org/x/sys/unix"`, ""},
		{"outside", imports, "dataplane/p/a.go", doc + `import _ "golang.org/x/net/http2"`, "may not import golang.org/x/net/http2"},
		{"a neighbour by prefix", imports, "dataplane/p/a.go", doc + `import _ "golang.org/x/system"`, "may not import"},
		{"standard library", imports, "dataplane/p/a.go", doc + `import _ "net/http"`, ""},
		{"unsafe", imports, "dataplane/p/a.go", doc + `import _ "unsafe"`, "may not import unsafe"},
		{"prometheus", imports, "dataplane/p/a.go", doc + `import _ "github.com/prometheus/client_golang/prometheus"`, "may not import"},
		{"prometheus", imports, "dataplane/p/metrics.go", doc + `import _ "github.com/prometheus/client_golang/prometheus"`, ""},
		{"no row", imports, "dataplane/q/a.go", doc, "has no row"},
		{"fakes follow", imports, "dataplane/p/ptest/a.go", doc + "import _ \"m/dataplane/p\"\nimport _ \"m/internal/mesh\"", ""},
		{"a folder's row", imports, "test/x/a.go", doc + `import _ "m/dataplane/p"`, ""},
		{"a test", imports, "dataplane/p/a_test.go", doc + `import _ "m/cmd"`, ""},
		{"stale", table.Stale, "dataplane/p/a.go", doc, "row for internal/gone"},

		{"middle rooms", Never, "xds/a.go", doc + `import _ "m/dataplane/p"`, "they meet in internal/mesh"},
		{"floor", Never, "internal/sock/a.go", doc + `import _ "m/dnsproxy"`, "does not know what stands on it"},
		{"inpod", Never, "dataplane/inpod/a.go", doc + `import _ "m/dataplane"`, "given a function"},
		{"ebpf", Never, "dataplane/capture/a.go", doc + `import _ "github.com/cilium/ebpf/link"`, "one door"},
		{"ebpf", Never, "bpf/redirect/a.go", doc + `import _ "github.com/cilium/ebpf/link"`, ""},
		{"engine", EngineTypes, "dataplane/hbone/a.go", doc + "import \"net/http\"\nvar _ http.Header", "replaceable"},
		{"engine", EngineTypes, "dataplane/hbone/a.go", doc + "import \"net/http\"\nvar _ = http.StatusText(200)", ""},
		{"elsewhere", EngineTypes, "internal/admin/a.go", doc + "import \"net/http\"\nvar _ http.Header", ""},
		{"app", Never, "cmd/other/a.go", doc + `import _ "m/cmd/ztunnel/app"`, "top floor"},
		{"app", Never, "cmd/ztunnel/a.go", doc + `import _ "m/cmd/ztunnel/app"`, ""},

		{"pure", Pure, "dataplane/route/a.go", doc + `import _ "net"`, "may not import net"},
		{"pure", Pure, "dataplane/route/a.go", doc + `import _ "net/netip"`, ""},
		{"the clock", Pure, "internal/mesh/a.go", doc + "import \"time\"\nvar _ = time.Now()", "may not ask time.Now"},
		{"elsewhere", Pure, "dataplane/live/a.go", doc + "import \"time\"\nvar _ = time.Now()", ""},
		{"one door", OneDoor, "xds/a.go", doc + "import \"os\"\nvar _ = os.Getenv(\"X\")", "one door"},
		{"one door", OneDoor, "cmd/ztunnel/app/env.go", doc + "import \"os\"\nvar _ = os.Getenv(\"X\")", ""},

		{"package comment", PackageDocs, "p/a.go", doc, ""},
		{"package comment", PackageDocs, "p/a.go", "package p\n", "no package comment"},
		{"package comment", PackageDocs, "p/a.go", "// This does things.\npackage p\n", "no package comment"},
		{"exported", ExportedDocs, "p/a.go", doc + "func F() {}", "function F"},
		{"exported", ExportedDocs, "p/a.go", doc + "// F does.\nfunc F() {}\nfunc g() {}\ntype t int\nfunc (t) M() {}", ""},
		{"method", ExportedDocs, "p/a.go", doc + "// T is.\ntype T[K any] int\nfunc (t *T[K]) M() {}", "function M"},
		{"type", ExportedDocs, "p/a.go", doc + "type T int", "type T"},
		{"constants", ExportedDocs, "p/a.go", doc + "const (\n\tA = 1\n\tB = 2 // two\n)", "const A"},
		{"constants", ExportedDocs, "p/a.go", doc + "// Numbers.\nconst (\n\tA = 1\n\tB = 2\n)", ""},
		{"an enumeration", ExportedDocs, "p/a.go", doc + "// T is A or B.\ntype T int\n\nconst (\n\tA T = iota\n\tB\n)", ""},
		{"config", ExportedDocs, "p/a.go", doc + "// Config is.\ntype Config struct {\n\t// A is.\n\tA int\n\tB int\n\n\tC int\n}", "field Config.C"},
		{"config", ExportedDocs, "p/a.go", doc + "// Config is.\ntype Config struct {\n\t// A is.\n\tA int\n\tB int\n\n\tC int // is.\n}", ""},

		{"a variable", variables, "cmd/ztunnel/app/a.go", doc + `var _ = r.flag("NEW_ONE", true)`, "nothing of NEW_ONE"},
		{"a variable", variables, "cmd/ztunnel/app/a.go", doc + "var _, _ = r.text(\"KNOWN\", \"X\"), e.withPrefix(\"KNOWN_\")", ""},
		{"a variable", variables, "cmd/ztunnel/app/a.go", doc + `var _ = other.text("some text", "KNOWN")`, ""},
		{"a link", Links, "docs/a.md", "see [b](../b.md#c) and [d](https://d.org/x)", "docs/a.md: the link to ../b.md leads nowhere"},
		{"a link", Links, "a.md", "see [this](.) and [d](https://d.org/x)", ""},
		{"drawer", Names, "p/a.go", "package utils\n", "says nothing"},
		{"init", NoInit, "p/a.go", doc + "func init() {}", "init()"},
		{"init as a method", NoInit, "p/a.go", doc + "type t int\nfunc (t) init() {}", ""},
		{"global", Globals, "p/a.go", doc + "var n int", "filled later"},
		{"global", Globals, "p/a.go", doc + "var N = 1", "anyone may set it"},
		{"global", Globals, "p/a.go", doc + "var m = map[string]int{}\nfunc f() { m[\"a\"] = 1 }", "written to"},
		{"global", Globals, "p/a.go", doc + "var m = map[string]int{}\nfunc f() { delete(m, \"a\") }", "written to"},
		{"global", Globals, "p/a.go", doc + "import \"log\"\nvar l = log.Default()", "may keep state"},
		{"tables", Globals, "p/a.go", doc + "import (\"errors\"; \"regexp\")\nvar ErrX = errors.New(\"x\")\nvar re = regexp.MustCompile(\"x\")\nvar m = []int{1}\nvar _ = f()\nvar fn = func() { f() }", ""},
		{"generated", Globals, "p/a.go", "// Code generated by x. DO NOT EDIT.\n\n" + doc + "var N = 1", ""},

		{"long function", long, "p/a.go", doc + "func f() {" + strings.Repeat("\n", 81) + "}", "f has 82 lines"},
		{"long function in a test", long, "p/a_test.go", doc + "func f() {" + strings.Repeat("\n", 81) + "}", ""},
		{"long file", long, "p/a.go", doc + strings.Repeat("\n", 600), "has 602 lines"},
		{"long C", long, "bpf/a.c", strings.Repeat("\n", 601), "has 601 lines"},
		{"arguments", Arguments, "p/a.go", doc + "func f(a, b, c, d, e, g int) {}", "f takes 6 arguments"},
		{"arguments", Arguments, "p/a.go", doc + "func f(a, b, c, d, e int) {}", ""},
		{"licence", Licences, "bpf/a.c", "// SPDX-License-Identifier: Apache-2.0\n", "not \"SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0\""},
		{"licence", Licences, "bpf/a.c", "/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */\n", ""},
		{"licence", Licences, "bpf/a.c", "//go:build ignore\n\n// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0\n", ""},
		{"machine", MachinePaths, "README.md", "see " + "/ro" + "ot/x and /proc/self/root/x", "path of one machine"},
		{"machine", MachinePaths, "README.md", "see /proc/self/root/x, at/work/x and /var/run", ""},
	} {
		found := strings.Join(tc.check(of(t, tc.path, tc.text)), "\n")
		if tc.want == "" && found != "" || !strings.Contains(found, tc.want) {
			t.Errorf("%s: %q in\n%s\nwant %q", tc.name, found, tc.text, tc.want)
		}
	}
}

func TestNamedTestsMustExist(t *testing.T) {
	tree := of(t, "p/a_test.go", "package p\nfunc TestA() {}\n")
	found := NamedTests(tree, "`p.TestA` and `p.TestB`, but not `p.Other` nor p.TestC")
	if len(found) != 1 || !strings.Contains(found[0], "p.TestB") {
		t.Errorf("%q", found)
	}
}

func TestTheTableIsRead(t *testing.T) {
	const page = `
| other | x |
|---|---|
| a | b |

| package | duty | ours | outside |
|---|---|---|---|
| ` + "`a/b`" + ` | does | ` + "`c`, `d/...`" + ` | - |
| ` + "`x/...`" + ` | does | anything | ` + "`golang.org/x/sys`" + ` |
`
	table, err := ParseTable(page)
	if err != nil {
		t.Fatal(err)
	}
	if len(table) != 2 || table[0].Package != "a/b" || len(table[0].Ours) != 2 || len(table[0].Outside) != 0 || table[1].Ours[0] != Anything {
		t.Errorf("%+v", table)
	}
	if _, err := ParseTable("| other |\n|---|\n"); err == nil {
		t.Error("a page without the table is accepted")
	}
	if _, err := ParseTable("| package |\n|---|\n| a | b |\n"); err == nil {
		t.Error("a row with too few columns is accepted")
	}
}

func TestDependenciesAreExplained(t *testing.T) {
	const gomod = "module m\n\nrequire a.org/x v1.0.0\n\nrequire (\n\tb.org/y v1.2.3\n\tc.org/z v1.0.0 // indirect\n)\n"
	const page = "| module | why |\n|---|---|\n| `a.org/x` | x |\n| `d.org/w` | w |\n"
	found, err := Dependencies(gomod, page)
	if err != nil {
		t.Fatal(err)
	}
	if text := strings.Join(found, "\n"); len(found) != 2 || !strings.Contains(text, "requires b.org/y") || !strings.Contains(text, "explains d.org/w") {
		t.Errorf("%q", found)
	}
}
