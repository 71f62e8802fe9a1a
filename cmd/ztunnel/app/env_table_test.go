// SPDX-License-Identifier: Apache-2.0

package app

import (
	"go/ast"
	"go/parser"
	"go/token"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// listed are the variables of the table by name, and that there are no two.
func listed(t *testing.T) map[string]Variable {
	t.Helper()
	all := map[string]Variable{}
	for _, s := range Variables() {
		for _, v := range s.Variables {
			if _, twice := all[v.Name]; twice || v.About == "" || v.Kind == "" {
				t.Errorf("%+v is there twice, or says nothing", v)
			}
			all[v.Name] = v
		}
	}
	return all
}

// kinds are what the methods read by which variables are read.
var kinds = map[string]string{
	"text": "text", "flag": "bool", "optionalFlag": "bool", "duration": "duration", "u16": "number", "u32": "number", "unsigned": "number",
	"size": "number", "oneOf": "choice", "quantity": "quantity", "rootCert": "text", "headers": "text", "get": "", "withPrefix": "",
}

// TestTheTableIsWhatIsRead finds every call that reads a variable.
func TestTheTableIsWhatIsRead(t *testing.T) {
	all, read := listed(t), map[string]bool{}
	files, err := filepath.Glob("*.go")
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range files {
		if strings.HasSuffix(path, "_test.go") {
			continue
		}
		file, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.SkipObjectResolution)
		if err != nil {
			t.Fatal(err)
		}
		ast.Inspect(file, func(n ast.Node) bool {
			if call, ok := n.(*ast.CallExpr); ok {
				if name := inTable(t, all, call); name != "" {
					read[name] = true
				}
			}
			return true
		})
	}
	read["ISTIO_META_*"], read["ISTIO_METAJSON_*"] = true, true                    // by constants
	read["ISTIO_META_DNS_CAPTURE"], read["ISTIO_META_DNS_PROXY_ADDR"] = true, true // as metadata
	for name := range all {
		if !read[name] {
			t.Errorf("nothing reads %s", name)
		}
	}
}

var variableLiteral = regexp.MustCompile(`^"([A-Z][A-Z0-9]*(?:_[A-Z0-9]+)*_?)"$`)

// inTable checks one call, and returns the variable's name as the table has it.
func inTable(t *testing.T, all map[string]Variable, call *ast.CallExpr) string {
	t.Helper()
	method, ok := call.Fun.(*ast.SelectorExpr)
	if !ok || len(call.Args) == 0 {
		return ""
	}
	kind, reads := kinds[method.Sel.Name]
	literal, ok := call.Args[0].(*ast.BasicLit)
	if !reads || !ok || !variableLiteral.MatchString(literal.Value) {
		return ""
	}
	name := strings.Trim(literal.Value, `"`)
	if strings.HasSuffix(name, "_") {
		name += "*"
	}
	v, known := all[name]
	if !known {
		t.Errorf("%s is read, and not in the table", name)
		return ""
	}
	if kind != "" && v.Kind != kind {
		t.Errorf("%s is a %s in the table, and read as %s", name, v.Kind, kind)
	}
	if len(call.Args) > 1 {
		sameDefault(t, v, call.Args[1])
	}
	return name
}

// sameDefault compares where the default is written as it is.
func sameDefault(t *testing.T, v Variable, arg ast.Expr) {
	t.Helper()
	want := ""
	switch arg := arg.(type) {
	case *ast.BasicLit:
		want = strings.Trim(arg.Value, `"`)
		if want == "0" {
			want = ""
		}
	case *ast.Ident:
		if arg.Name != "true" && arg.Name != "false" {
			return
		}
		want = arg.Name
	default:
		return
	}
	if v.Default != want && !(want == "" && v.Name == "AUTH_TOKEN") {
		t.Errorf("the default of %s is %q in the table, and %q where it is read", v.Name, v.Default, want)
	}
}

// TestDefaultsOfTheTableChangeNothing sets each variable to its default: the
// configuration is the same as without.
func TestDefaultsOfTheTableChangeNothing(t *testing.T) {
	usual, err := load(t, nil).YAML()
	if err != nil {
		t.Fatal(err)
	}
	for name, v := range listed(t) {
		if v.Default == "" || name == "EMBEDDED_CA_DIR" && v.Kind == "" {
			continue
		}
		if name == "XDS_ROOT_CA" || name == "CA_ROOT_CA" {
			continue // a path that is not there is taken for PEM
		}
		got, err := load(t, map[string]string{name: v.Default}).YAML()
		switch {
		case err != nil:
			t.Errorf("%s=%s: %v", name, v.Default, err)
		case strings.HasPrefix(name, "ISTIO_META_"): // also metadata
		case got != usual:
			t.Errorf("%s=%s is not the default: %s", name, v.Default, got)
		}
	}
}
