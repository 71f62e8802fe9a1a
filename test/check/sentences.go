// SPDX-License-Identifier: Apache-2.0

package check

import (
	"go/ast"
	"go/parser"
	"go/token"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// Sentences are the problems and warnings that a source file can tell of, as
// the formats stand in its calls of say and finding.
func Sentences(path string) ([]string, error) {
	file, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.SkipObjectResolution)
	if err != nil {
		return nil, err
	}
	var formats []string
	ast.Inspect(file, func(n ast.Node) bool {
		call, ok := n.(*ast.CallExpr)
		if !ok || len(call.Args) < 3 || !slices.Contains([]string{"say", "finding"}, lastName(call.Fun)) {
			return true
		}
		literal, ok := call.Args[2].(*ast.BasicLit)
		if !ok || lastName(call.Args[1]) == "Fine" {
			return true
		}
		if text, err := strconv.Unquote(literal.Value); err == nil {
			formats = append(formats, text)
		}
		return true
	})
	return formats, nil
}

func lastName(e ast.Expr) string {
	switch e := e.(type) {
	case *ast.Ident:
		return e.Name
	case *ast.SelectorExpr:
		return e.Sel.Name
	}
	return ""
}

// Says reports whether a text is what a format yields.
func Says(format, text string) bool {
	var b strings.Builder
	b.WriteString(`(?s)^`)
	for i, part := range regexp.MustCompile(`%[a-z]`).Split(format, -1) {
		if i > 0 {
			b.WriteString(`.*`)
		}
		b.WriteString(regexp.QuoteMeta(part))
	}
	return regexp.MustCompile(b.String() + `$`).MatchString(text)
}
