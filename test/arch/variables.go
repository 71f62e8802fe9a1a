// SPDX-License-Identifier: Apache-2.0

package arch

import (
	"fmt"
	"go/ast"
	"regexp"
	"slices"
	"strings"
)

// variableName is what a name of an environment variable, or the prefix of
// several, looks like.
var variableName = regexp.MustCompile(`^[A-Z][A-Z0-9]*(_[A-Z0-9]+)*_?$`)

// readers are the methods by which package app reads variables, by name.
var readers = []string{"get", "text", "flag", "optionalFlag", "duration", "u16", "u32", "unsigned", "size", "oneOf", "rootCert", "headers", "withPrefix"}

// Variables finds environment variables that are read and that doc does not
// speak of: an operator who sets one wants to know what became of it.
func Variables(tree *Tree, doc string) []string {
	var found []string
	for _, f := range tree.In("cmd/ztunnel/app") {
		if f.Test {
			continue
		}
		ast.Inspect(f.Syntax, func(n ast.Node) bool {
			call, ok := n.(*ast.CallExpr)
			if !ok || len(call.Args) == 0 {
				return true
			}
			method, ok := call.Fun.(*ast.SelectorExpr)
			literal, isLiteral := call.Args[0].(*ast.BasicLit)
			if !ok || !isLiteral || !slices.Contains(readers, method.Sel.Name) {
				return true
			}
			name := strings.Trim(literal.Value, `"`)
			if !variableName.MatchString(name) {
				return true
			}
			if strings.HasSuffix(name, "_") {
				name += "*"
			}
			if !strings.Contains(doc, "`"+name+"`") {
				found = append(found, fmt.Sprintf("%s: docs/compat.md says nothing of %s", tree.at(call.Pos()), name))
			}
			return true
		})
	}
	return found
}
