// SPDX-License-Identifier: Apache-2.0

package arch

import (
	"fmt"
	"go/ast"
	"go/token"
	"slices"
	"strings"
)

// Globals finds package-level variables that hold state. Allowed are: errors
// to compare with, statements of conformance (_), embedded files, and
// unexported tables that nobody writes to, made by literals and by functions
// that only parse.
func Globals(tree *Tree) []string {
	var found []string
	for _, pkg := range tree.Packages() {
		if strings.HasPrefix(pkg, "test/") {
			continue
		}
		written := writtenNames(tree.In(pkg))
		for _, f := range tree.In(pkg) {
			if f.Generated {
				continue
			}
			for _, d := range f.Syntax.Decls {
				gen, ok := d.(*ast.GenDecl)
				if !ok || gen.Tok != token.VAR || isEmbedded(gen.Doc) {
					continue
				}
				for _, spec := range gen.Specs {
					found = append(found, globals(tree, spec.(*ast.ValueSpec), written)...)
				}
			}
		}
	}
	return found
}

func globals(tree *Tree, spec *ast.ValueSpec, written map[string]bool) []string {
	if isEmbedded(spec.Doc) {
		return nil
	}
	var found []string
	for i, name := range spec.Names {
		reason := ""
		switch {
		case name.Name == "_":
		case strings.HasPrefix(name.Name, "err") || strings.HasPrefix(name.Name, "Err"):
		case name.IsExported():
			reason = "anyone may set it"
		case len(spec.Values) <= i:
			reason = "it is filled later"
		case written[name.Name]:
			reason = "it is written to"
		case !isTable(spec.Values[i]):
			reason = "what it is made by may keep state"
		}
		if reason != "" {
			found = append(found, fmt.Sprintf("%s: variable %s: %s; nothing global may need a reset between tests",
				tree.at(name.Pos()), name.Name, reason))
		}
	}
	return found
}

func isEmbedded(doc *ast.CommentGroup) bool {
	return doc != nil && slices.ContainsFunc(doc.List, func(c *ast.Comment) bool { return strings.HasPrefix(c.Text, "//go:embed ") })
}

// isTable reports whether an expression is made of literals, conversions and
// functions that parse: Must..., errors.New and strings.NewReplacer.
func isTable(e ast.Expr) bool {
	constant := true
	ast.Inspect(e, func(n ast.Node) bool {
		switch n := n.(type) {
		case *ast.FuncLit:
			return false // code is no state
		case *ast.CallExpr:
			constant = constant && isHarmless(n.Fun)
		}
		return true
	})
	return constant
}

func isHarmless(fun ast.Expr) bool {
	switch fun := fun.(type) {
	case *ast.ArrayType, *ast.MapType, *ast.ParenExpr:
		return true // a conversion
	case *ast.Ident:
		return strings.HasPrefix(fun.Name, "must") || slices.Contains([]string{"len", "uint8", "uint16", "uint32", "uint64", "int", "string"}, fun.Name)
	case *ast.SelectorExpr:
		name := fun.Sel.Name
		if strings.HasPrefix(name, "Must") || strings.HasPrefix(name, "AddrFrom") || strings.HasPrefix(name, "PrefixFrom") ||
			strings.HasPrefix(name, "IPv4") || strings.HasPrefix(name, "IPv6") {
			return true
		}
		x, ok := fun.X.(*ast.Ident)
		return ok && slices.Contains([]string{"errors.New", "strings.NewReplacer", "big.NewInt"}, x.Name+"."+name)
	default:
		return false
	}
}

// writtenNames collects the names that are assigned to, incremented, whose
// elements are assigned to or deleted, or whose address is taken. It knows no
// scopes: a local variable of the same name counts too, and should have
// another name anyway.
func writtenNames(files []*File) map[string]bool {
	written := map[string]bool{}
	mark := func(e ast.Expr) {
		if name := rootName(e); name != "" {
			written[name] = true
		}
	}
	for _, f := range files {
		ast.Inspect(f.Syntax, func(n ast.Node) bool {
			switch n := n.(type) {
			case *ast.AssignStmt:
				if n.Tok != token.DEFINE {
					for _, e := range n.Lhs {
						mark(e)
					}
				}
			case *ast.IncDecStmt:
				mark(n.X)
			case *ast.UnaryExpr:
				if n.Op == token.AND {
					mark(n.X)
				}
			case *ast.CallExpr:
				if fun, ok := n.Fun.(*ast.Ident); ok && (fun.Name == "delete" || fun.Name == "clear") {
					mark(n.Args[0])
				}
			}
			return true
		})
	}
	return written
}

// rootName is the variable that an expression such as a.b[c] belongs to.
func rootName(e ast.Expr) string {
	for {
		switch x := e.(type) {
		case *ast.Ident:
			return x.Name
		case *ast.SelectorExpr:
			e = x.X
		case *ast.IndexExpr:
			e = x.X
		case *ast.ParenExpr:
			e = x.X
		case *ast.StarExpr:
			e = x.X
		default:
			return ""
		}
	}
}
