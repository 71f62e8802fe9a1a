// SPDX-License-Identifier: Apache-2.0

package arch

import (
	"fmt"
	"go/ast"
	"go/token"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
)

// PackageDocs finds packages without a comment that says what they are for.
func PackageDocs(tree *Tree) []string {
	var found []string
	for _, pkg := range tree.Packages() {
		want, documented, generated := "", 0, true
		for _, f := range tree.In(pkg) {
			generated = generated && f.Generated
			name := f.Syntax.Name.Name
			want = "Package " + name + " "
			if name == "main" { // by the command's name, as go doc shows it
				dir := path.Base(pkg)
				want = strings.ToUpper(dir[:1]) + dir[1:] + " "
			}
			if f.Syntax.Doc != nil && strings.HasPrefix(f.Syntax.Doc.Text(), want) {
				documented++
			}
		}
		switch {
		case generated:
		case documented == 0:
			found = append(found, fmt.Sprintf("%s: no package comment begins with %q", pkg, want))
		case documented > 1:
			found = append(found, fmt.Sprintf("%s: %d files have a package comment: readers see only one", pkg, documented))
		}
	}
	return found
}

// wellKnown are methods whose meaning the standard library fixes.
func wellKnown(name string) bool {
	return slices.Contains([]string{
		"Error", "Unwrap", "String", "Is", "Len", "Less", "Swap", "Push", "Pop", "MarshalText", "UnmarshalText",
		"MarshalJSON", "UnmarshalJSON",
	}, name)
}

// ExportedDocs finds exported names without a comment, and fields of Config
// structs without one: a setting whose unit and zero nobody can look up.
func ExportedDocs(tree *Tree) []string {
	var found []string
	report := func(pos token.Pos, what, name string) {
		found = append(found, fmt.Sprintf("%s: %s %s has no comment", tree.at(pos), what, name))
	}
	for _, f := range tree.Written() {
		if f.Syntax.Name.Name == "main" {
			continue
		}
		for _, d := range f.Syntax.Decls {
			switch d := d.(type) {
			case *ast.FuncDecl:
				if d.Name.IsExported() && d.Doc == nil && exportedReceiver(d) && (d.Recv == nil || !wellKnown(d.Name.Name)) {
					report(d.Pos(), "function", d.Name.Name)
				}
			case *ast.GenDecl:
				undocumented(tree, d, report)
			}
		}
	}
	return found
}

// exportedReceiver reports whether a function can be seen from outside.
func exportedReceiver(fn *ast.FuncDecl) bool {
	if fn.Recv == nil {
		return true
	}
	t := fn.Recv.List[0].Type
	for {
		switch x := t.(type) {
		case *ast.StarExpr:
			t = x.X
		case *ast.IndexExpr:
			t = x.X
		case *ast.IndexListExpr:
			t = x.X
		case *ast.Ident:
			return x.IsExported()
		default:
			return false
		}
	}
}

// undocumented looks at types, constants and variables. A group of constants
// is documented by its comment, by one on each, or by that of the exported
// type that they are the values of.
func undocumented(tree *Tree, d *ast.GenDecl, report func(token.Pos, string, string)) {
	values := false
	for _, spec := range d.Specs {
		switch spec := spec.(type) {
		case *ast.TypeSpec:
			if !spec.Name.IsExported() {
				continue
			}
			if spec.Doc == nil && spec.Comment == nil && d.Doc == nil {
				report(spec.Pos(), "type", spec.Name.Name)
			}
			if s, ok := spec.Type.(*ast.StructType); ok && strings.HasSuffix(spec.Name.Name, "Config") {
				fields(tree, spec.Name.Name, s, report)
			}
		case *ast.ValueSpec:
			if t, ok := spec.Type.(*ast.Ident); ok {
				values = d.Tok == token.CONST && t.IsExported()
			}
			for _, name := range spec.Names {
				if name.IsExported() && spec.Doc == nil && spec.Comment == nil && d.Doc == nil && !values {
					report(name.Pos(), d.Tok.String(), name.Name)
				}
			}
		}
	}
}

// fields looks at a Config. A comment also speaks for the fields that follow
// it without a blank line.
func fields(tree *Tree, owner string, s *ast.StructType, report func(token.Pos, string, string)) {
	documented, last := false, 0
	for _, f := range s.Fields.List {
		line := tree.Fset.Position(f.Pos()).Line
		documented = f.Doc != nil || f.Comment != nil || documented && line == last+1
		last = tree.Fset.Position(f.End()).Line
		for _, name := range f.Names {
			if name.IsExported() && !documented {
				report(name.Pos(), "field", owner+"."+name.Name)
			}
		}
	}
}

// NamedTests finds tests that a page names in code quotes, as
// internal/certs.TestX, and that do not exist: the promise that they hold
// would be held by nobody.
func NamedTests(tree *Tree, page string) []string {
	exists := map[string]bool{}
	for _, f := range tree.Files {
		for _, d := range f.Syntax.Decls {
			if fn, ok := d.(*ast.FuncDecl); ok && f.Test && fn.Recv == nil {
				exists[f.Package()+"."+fn.Name.Name] = true
			}
		}
	}
	var found []string
	for _, m := range regexp.MustCompile("`([a-z0-9/]+\\.(?:Test|Fuzz)\\w+)`").FindAllStringSubmatch(page, -1) {
		if !exists[m[1]] {
			found = append(found, fmt.Sprintf("%s is named, but there is no such test", m[1]))
		}
	}
	return found
}

// Links finds links of our pages to files that are not there.
func Links(tree *Tree) []string {
	target := regexp.MustCompile(`\]\(([^)#\s]+)[^)]*\)`)
	var found []string
	for _, t := range tree.Texts {
		if path.Ext(t.Path) != ".md" {
			continue
		}
		for _, m := range target.FindAllSubmatch(t.Source, -1) {
			link := string(m[1])
			if strings.Contains(link, "://") {
				continue
			}
			if _, err := os.Stat(filepath.Join(tree.Root, path.Dir(t.Path), link)); err != nil {
				found = append(found, fmt.Sprintf("%s: the link to %s leads nowhere", t.Path, link))
			}
		}
	}
	return found
}
