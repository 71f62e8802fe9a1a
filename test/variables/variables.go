// SPDX-License-Identifier: Apache-2.0

// Package variables holds that the variables of docs/compat.md do something.
//
// It reads the page's table, which names for each variable a test that sets
// it, and tries out that the test notices if the proxy ignores the variable:
// each test is run by itself, once as it is and once with the variable taken
// out of what it gives the proxy (package ignore). For tests only.
package variables

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"

	"github.com/ztunnel-go/ztunnel/test/ignore"
)

// A Row is one of the table: variables that have their state and tests in
// common.
type Row struct {
	Names []string // variables; XDS_HEADER_* stands for all with that prefix
	State string   // what becomes of them
	SetBy []Test   // set them, and notice if they are ignored
	Held  []Test   // hold what they do
}

// A Test is a test by its package, from the root of the module, and its name.
type Test struct{ Package, Name string }

func (t Test) String() string { return t.Package + "." + t.Name }

// heading begins the table.
const heading = "| name | state | set by | effect held by |"

// Parse reads the table of variables out of docs/compat.md.
func Parse(page string) ([]Row, error) {
	_, rest, ok := strings.Cut(page, heading+"\n")
	if !ok {
		return nil, fmt.Errorf("no table begins with %s", heading)
	}
	table, _, _ := strings.Cut(rest, "\n\n")
	var rows []Row
	for _, line := range strings.Split(strings.TrimRight(table, "\n"), "\n")[1:] { // [0] is dashes
		cells := strings.Split(strings.Trim(line, "| "), " | ")
		if len(cells) != 4 {
			return nil, fmt.Errorf("%q has %d cells, not 4", line, len(cells))
		}
		row := Row{State: cells[1], SetBy: testsIn(cells[2]), Held: testsIn(cells[3])}
		for _, name := range quoted(cells[0]) {
			if !strings.HasPrefix(name, ".") { // a file
				row.Names = append(row.Names, name)
			}
		}
		if len(row.Names) == 0 {
			return nil, fmt.Errorf("%q names no variable", line)
		}
		rows = append(rows, row)
	}
	return rows, nil
}

func quoted(cell string) []string {
	var found []string
	for _, m := range regexp.MustCompile("`([^`]+)`").FindAllStringSubmatch(cell, -1) {
		found = append(found, m[1])
	}
	return found
}

func testsIn(cell string) []Test {
	var found []Test
	for _, name := range quoted(cell) {
		if i := strings.LastIndex(name, ".Test"); i > 0 {
			found = append(found, Test{name[:i], name[i+1:]})
		}
	}
	return found
}

// A Binary is the compiled tests of one package.
type Binary struct {
	path string
	dir  string // of the package, where its tests are run
}

// Compile compiles the tests of a package of the module at root into dir.
func Compile(ctx context.Context, root, pkg, dir string) (*Binary, error) {
	b := &Binary{path: filepath.Join(dir, strings.ReplaceAll(pkg, "/", "_")), dir: filepath.Join(root, pkg)}
	cmd := exec.CommandContext(ctx, "go", "test", "-c", "-o", b.path, ".")
	cmd.Dir = b.dir
	if out, err := cmd.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("compile tests of %s: %w\n%s", pkg, err, out)
	}
	return b, nil
}

// Run runs one test with a variable ignored; empty: with all as they are. It
// reports whether the test passed; the error is that it said neither.
func (b *Binary) Run(ctx context.Context, test, variable string) (passed bool, err error) {
	cmd := exec.CommandContext(ctx, b.path, "-test.v", "-test.timeout=5m", "-test.run=^"+test+"$")
	cmd.Dir = b.dir
	cmd.Env = append(os.Environ(), ignore.Setting+"="+variable)
	out, err := cmd.CombinedOutput()
	switch {
	case err == nil && strings.Contains(string(out), "\n--- PASS: "+test+" "):
		return true, nil
	case err != nil && strings.Contains(string(out), "\n--- FAIL: "+test+" "):
		return false, nil
	}
	return false, fmt.Errorf("%s without %q: %v\n%s", test, variable, err, out)
}
