// SPDX-License-Identifier: Apache-2.0

package arch

import (
	"fmt"
	"path"
	"slices"
	"strings"
)

// Anything in a column of the import table leaves it open.
const Anything = "anything"

// A Row of the import table says what one package, or with /... a folder of
// them, may import.
type Row struct {
	Package string
	Ours    []string // packages of this module
	Outside []string // import paths or their beginnings
}

// A Table is the import table.
type Table []Row

// ParseTable reads the table whose heading begins with "| package |".
func ParseTable(markdown string) (Table, error) {
	rows, err := markdownTable(markdown, "package")
	if err != nil {
		return nil, err
	}
	var table Table
	for _, cells := range rows {
		if len(cells) != 4 {
			return nil, fmt.Errorf("row %q has %d columns and not 4", cells[0], len(cells))
		}
		table = append(table, Row{Package: unquote(cells[0]), Ours: list(cells[2]), Outside: list(cells[3])})
	}
	return table, nil
}

// markdownTable returns the cells of the rows below the heading whose first
// column is first.
func markdownTable(markdown, first string) ([][]string, error) {
	var rows [][]string
	inside := false
	for line := range strings.Lines(markdown) {
		line = strings.TrimSpace(line)
		if !strings.HasPrefix(line, "|") {
			if inside {
				return rows, nil
			}
			continue
		}
		cells := strings.Split(strings.Trim(line, "|"), "|")
		for i := range cells {
			cells[i] = strings.TrimSpace(cells[i])
		}
		switch {
		case cells[0] == first:
			inside = true
		case inside && strings.Trim(cells[0], "-:") != "":
			rows = append(rows, cells)
		}
	}
	if !inside {
		return nil, fmt.Errorf("no table begins with | %s |", first)
	}
	return rows, nil
}

// list reads a cell: names in code quotes, apart by commas; a dash is none.
func list(cell string) []string {
	var names []string
	for part := range strings.SplitSeq(cell, ",") {
		if name := unquote(strings.TrimSpace(part)); name != "" && name != "-" {
			names = append(names, name)
		}
	}
	return names
}

func unquote(s string) string { return strings.Trim(s, "`") }

// row finds the rule for a package: the row that names it, else the nearest
// folder's. A package of fakes follows the package it stands in for.
func (t Table) row(pkg string) (Row, bool) {
	for _, r := range t {
		if r.Package == pkg {
			return r, true
		}
	}
	if twin, ok := twinOf(pkg); ok {
		r, ok := t.row(twin)
		r.Ours = append(slices.Clone(r.Ours), twin)
		return r, ok
	}
	for dir := pkg; dir != "."; dir = path.Dir(dir) {
		for _, r := range t {
			if r.Package == dir+"/..." {
				return r, true
			}
		}
	}
	return Row{}, false
}

// twinOf returns the package that a package of fakes belongs to:
// internal/certs for internal/certs/certstest.
func twinOf(pkg string) (string, bool) {
	parent := path.Dir(pkg)
	return parent, path.Base(pkg) == path.Base(parent)+"test"
}

// Imports compares each package's imports with the table. Tests may import
// what they like, since nothing imports a test.
func (t Table) Imports(tree *Tree) []string {
	var found []string
	for _, f := range tree.Files {
		if f.Test {
			continue
		}
		row, ok := t.row(f.Package())
		if !ok {
			found = append(found, fmt.Sprintf("%s: package %s has no row in the import table of ARCHITECTURE.md", f.Path, f.Package()))
			continue
		}
		for _, p := range f.Imports() {
			if !row.allows(tree, f, p) {
				found = append(found, fmt.Sprintf("%s: package %s may not import %s by the import table of ARCHITECTURE.md",
					f.Path, f.Package(), p))
			}
		}
	}
	return found
}

func (r Row) allows(tree *Tree, f *File, importPath string) bool {
	if local, ok := tree.local(importPath); ok {
		return slices.ContainsFunc(r.Ours, func(rule string) bool { return covers(rule, local) })
	}
	if isStandard(importPath) && importPath != "unsafe" {
		return true
	}
	if importPath == "unsafe" && f.Generated {
		return true // bpf2go and protoc write what the compiler checks
	}
	if isPrometheus(importPath) && f.Base() == "metrics.go" {
		return true
	}
	return slices.ContainsFunc(r.Outside, func(rule string) bool { return covers(rule, importPath) || strings.HasPrefix(importPath, rule+"/") })
}

// covers reports whether a rule of the table speaks of a package.
func covers(rule, pkg string) bool {
	if rule == Anything || rule == pkg {
		return true
	}
	dir, ok := strings.CutSuffix(rule, "/...")
	return ok && (pkg == dir || strings.HasPrefix(pkg, dir+"/"))
}

// Stale finds rows, and names inside them, that speak of packages that are
// gone: a rule that nothing can break protects nothing.
func (t Table) Stale(tree *Tree) []string {
	packages := tree.Packages()
	exists := func(rule string) bool {
		return rule == Anything || slices.ContainsFunc(packages, func(p string) bool { return covers(rule, p) })
	}
	var found []string
	for _, r := range t {
		if !exists(r.Package) {
			found = append(found, fmt.Sprintf("the import table has a row for %s, which is gone", r.Package))
		}
		for _, o := range r.Ours {
			if !exists(o) {
				found = append(found, fmt.Sprintf("the import table lets %s import %s, which is gone", r.Package, o))
			}
		}
	}
	return found
}

func isStandard(importPath string) bool {
	first, _, _ := strings.Cut(importPath, "/")
	return !strings.Contains(first, ".")
}

func isPrometheus(importPath string) bool {
	return strings.HasPrefix(importPath, "github.com/prometheus/")
}

// Dependencies compares the direct requirements of go.mod with the table
// whose heading begins with "| module |": each has a line that says why.
func Dependencies(gomod, markdown string) ([]string, error) {
	rows, err := markdownTable(markdown, "module")
	if err != nil {
		return nil, err
	}
	var listed []string
	for _, cells := range rows {
		listed = append(listed, unquote(cells[0]))
	}
	var found, required []string
	for line := range strings.Lines(gomod) {
		words := strings.Fields(strings.TrimPrefix(strings.TrimSpace(line), "require "))
		if len(words) == 2 && strings.HasPrefix(words[1], "v") { // an indirect one has a comment
			required = append(required, words[0])
		}
	}
	for _, m := range required {
		if !slices.Contains(listed, m) {
			found = append(found, fmt.Sprintf("go.mod requires %s, but ARCHITECTURE.md does not say why", m))
		}
	}
	for _, m := range listed {
		if !slices.Contains(required, m) {
			found = append(found, fmt.Sprintf("ARCHITECTURE.md explains %s, which go.mod does not require", m))
		}
	}
	return found, nil
}
