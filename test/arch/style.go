// SPDX-License-Identifier: Apache-2.0

package arch

import (
	"bytes"
	"fmt"
	"go/ast"
	"path"
	"regexp"
	"slices"
	"strings"
)

// Limits in lines. Above the first a thing is listed, above the second the
// check fails; house.md measured what makes people fear a file.
const (
	longFile, tooLongFile         = 400, 600
	longFunction, tooLongFunction = 40, 80
)

// Lengths returns what is too long, and what is on its way there.
func Lengths(tree *Tree) (found, warnings []string) {
	note := func(where string, lines, long, tooLong int) {
		text := fmt.Sprintf("%s has %d lines; the rule is %d, the limit %d", where, lines, long, tooLong)
		switch {
		case lines > tooLong:
			found = append(found, text)
		case lines > long:
			warnings = append(warnings, text)
		}
	}
	for _, f := range tree.Files {
		if !f.Generated {
			note(f.Path, bytes.Count(f.Source, []byte("\n")), longFile, tooLongFile)
		}
	}
	for _, text := range tree.Texts {
		if ext := path.Ext(text.Path); ext == ".c" || ext == ".h" {
			note(text.Path, bytes.Count(text.Source, []byte("\n")), longFile, tooLongFile)
		}
	}
	for _, f := range tree.Written() { // a test's table may be long
		for _, d := range f.Syntax.Decls {
			if fn, ok := d.(*ast.FuncDecl); ok {
				lines := tree.Fset.Position(fn.End()).Line - tree.Fset.Position(fn.Pos()).Line + 1
				note(tree.at(fn.Pos())+": "+fn.Name.Name, lines, longFunction, tooLongFunction)
			}
		}
	}
	return found, warnings
}

// Arguments finds functions that take more than five: at the call nobody knows
// which is which. A struct names them.
func Arguments(tree *Tree) []string {
	const most = 5
	var found []string
	for _, f := range tree.Written() {
		for _, d := range f.Syntax.Decls {
			if fn, ok := d.(*ast.FuncDecl); ok && fn.Type.Params.NumFields() > most {
				found = append(found, fmt.Sprintf("%s: %s takes %d arguments; more than %d become a struct",
					tree.at(fn.Pos()), fn.Name.Name, fn.Type.Params.NumFields(), most))
			}
		}
	}
	return found
}

// Licences finds files whose first line is not their licence. Programs for
// the kernel carry both, since the kernel wants the GPL and the module not.
func Licences(tree *Tree) []string {
	const apache, both = "SPDX-License-Identifier: Apache-2.0", "SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0"
	var found []string
	check := func(name string, source []byte, want string) {
		source = bytes.TrimLeft(bytes.TrimPrefix(source, []byte("//go:build ignore\n")), "\n") // C beside Go needs it
		first, _, _ := bytes.Cut(source, []byte("\n"))
		if got := strings.Trim(string(first), "/*# "); got != want {
			found = append(found, fmt.Sprintf("%s: it begins with %q and not %q", name, first, want))
		}
	}
	for _, f := range tree.Files {
		if !f.Generated {
			check(f.Path, f.Source, apache)
		}
	}
	for _, t := range tree.Texts {
		switch path.Ext(t.Path) {
		case ".c", ".h":
			check(t.Path, t.Source, both)
		case ".proto":
			check(t.Path, t.Source, apache)
		}
	}
	return found
}

// MachinePaths finds paths of somebody's machine: they are of no use to
// anybody else.
func MachinePaths(tree *Tree) []string {
	private := regexp.MustCompile(`(?m)(?:^|[\s"'=(\x60])(/(?:work|root|home|Users)/[\w.-]+)`)
	temporary := regexp.MustCompile(`(?:^|[\s"'=(\x60])(/tmp/[\w.-]+)`)
	var found []string
	check := func(name string, source []byte, pattern *regexp.Regexp) {
		for _, m := range pattern.FindAllSubmatch(source, -1) {
			found = append(found, fmt.Sprintf("%s: %s is a path of one machine", name, m[1]))
		}
	}
	for _, f := range tree.Files {
		check(f.Path, f.Source, private)
	}
	for _, t := range tree.Texts {
		check(t.Path, t.Source, private)
		if path.Ext(t.Path) == ".md" {
			check(t.Path, t.Source, temporary)
		}
	}
	return found
}

// Names finds packages that are drawers: their names do not say what is in.
func Names(tree *Tree) []string {
	drawers := []string{
		"base", "common", "constants", "core", "handler", "helper", "helpers", "internal", "lib", "manager",
		"misc", "pkg", "shared", "types", "util", "utils",
	}
	var found []string
	for _, f := range tree.Files {
		if name := f.Syntax.Name.Name; slices.Contains(drawers, name) {
			found = append(found, fmt.Sprintf("%s: package %s says nothing: name the subject", f.Path, name))
		}
	}
	return found
}

// NoInit finds init functions: what happens before main cannot be ordered,
// tested or given a context.
func NoInit(tree *Tree) []string {
	var found []string
	for _, f := range tree.Files {
		for _, d := range f.Syntax.Decls {
			if fn, ok := d.(*ast.FuncDecl); ok && !f.Generated && fn.Recv == nil && fn.Name.Name == "init" {
				found = append(found, tree.at(fn.Pos())+": init() has no caller who could order, test or refuse it; wire in cmd")
			}
		}
	}
	return found
}
