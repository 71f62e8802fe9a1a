// SPDX-License-Identifier: Apache-2.0

// Package arch makes the house rules executable: who may import whom, what
// must be documented, how long a thing may be.
//
// The import table in ARCHITECTURE.md is the rule; this package only reads
// it. Each check returns its findings as sentences that say what is wrong and
// why the rule exists, so that its own tests can ask it about code that
// breaks the rules. It looks at syntax alone and needs neither a build nor
// the go command. For tests only.
package arch

import (
	"bufio"
	"bytes"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// A Tree is the source of one module.
type Tree struct {
	Root   string // the directory of go.mod, or empty for a tree made by a test
	Module string // the module's path
	Fset   *token.FileSet
	Files  []*File // Go files, ordered by path
	Texts  []Text  // everything else that people write
}

// A File is one Go file.
type File struct {
	Path      string // from the root, with slashes
	Source    []byte
	Syntax    *ast.File
	Test      bool // a _test.go file
	Generated bool
}

// A Text is a file that is not Go.
type Text struct {
	Path   string
	Source []byte
}

// Package is the directory of f, which is how packages are named here: from
// the root, "." for the root itself.
func (f *File) Package() string { return path.Dir(f.Path) }

// Base is the file's own name.
func (f *File) Base() string { return path.Base(f.Path) }

// Imports are the paths that f imports.
func (f *File) Imports() []string {
	paths := make([]string, 0, len(f.Syntax.Imports))
	for _, spec := range f.Syntax.Imports {
		if p, err := strconv.Unquote(spec.Path.Value); err == nil {
			paths = append(paths, p)
		}
	}
	return paths
}

// Load reads the module whose go.mod is in root. Nested modules, testdata and
// whatever git would not see by its name are left out.
func Load(root string) (*Tree, error) {
	gomod, err := os.ReadFile(filepath.Join(root, "go.mod"))
	if err != nil {
		return nil, fmt.Errorf("load module: %w", err)
	}
	t := &Tree{Root: root, Fset: token.NewFileSet()}
	if m, _, ok := strings.Cut(strings.TrimPrefix(string(gomod), "module "), "\n"); ok {
		t.Module = strings.TrimSpace(m)
	}
	err = filepath.WalkDir(root, func(name string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(root, name)
		if err != nil {
			return err
		}
		if d.IsDir() {
			return t.enter(filepath.ToSlash(rel))
		}
		if !d.Type().IsRegular() || !isText(rel) {
			return nil
		}
		source, err := os.ReadFile(name)
		if err != nil {
			return err
		}
		return t.Add(filepath.ToSlash(rel), source)
	})
	if err != nil {
		return nil, fmt.Errorf("load module: %w", err)
	}
	return t, nil
}

// enter decides whether a directory is part of the module.
func (t *Tree) enter(rel string) error {
	switch path.Base(rel) {
	case ".git", ".vagrant", "testdata", "bin", "var":
		return fs.SkipDir
	}
	if rel != "." {
		if _, err := os.Stat(filepath.Join(t.Root, rel, "go.mod")); err == nil {
			return fs.SkipDir
		}
	}
	return nil
}

func isText(name string) bool {
	written := []string{".go", ".c", ".h", ".proto", ".md", ".yaml", ".yml", ".sh", ".mod", ".json"}
	return slices.Contains(written, path.Ext(name)) || path.Ext(name) == "" || name == ".clang-format"
}

// Add puts one file into the tree.
func (t *Tree) Add(rel string, source []byte) error {
	if path.Ext(rel) != ".go" {
		if !bytes.Contains(source, []byte{0}) { // a binary has no extension either
			t.Texts = append(t.Texts, Text{rel, source})
		}
		return nil
	}
	if isIgnored(source) {
		return nil
	}
	syntax, err := parser.ParseFile(t.Fset, rel, source, parser.ParseComments)
	if err != nil {
		return fmt.Errorf("parse: %w", err)
	}
	t.Files = append(t.Files, &File{
		Path: rel, Source: source, Syntax: syntax,
		Test: strings.HasSuffix(rel, "_test.go"), Generated: ast.IsGenerated(syntax),
	})
	return nil
}

// isIgnored reports whether a file takes itself out of every build.
func isIgnored(source []byte) bool {
	lines := bufio.NewScanner(bytes.NewReader(source))
	for lines.Scan() {
		switch line := lines.Text(); {
		case line == "//go:build ignore":
			return true
		case strings.HasPrefix(line, "package "):
			return false
		}
	}
	return false
}

// Packages are the directories that hold Go files other than tests, ordered.
func (t *Tree) Packages() []string {
	var packages []string
	for _, f := range t.Files {
		if !f.Test && !slices.Contains(packages, f.Package()) {
			packages = append(packages, f.Package())
		}
	}
	slices.Sort(packages)
	return packages
}

// In returns the files of one package that are no tests.
func (t *Tree) In(pkg string) []*File {
	var files []*File
	for _, f := range t.Files {
		if f.Package() == pkg && !f.Test {
			files = append(files, f)
		}
	}
	return files
}

// Written are the files that people write and ship: no tests, nothing
// generated.
func (t *Tree) Written() []*File {
	var files []*File
	for _, f := range t.Files {
		if !f.Test && !f.Generated {
			files = append(files, f)
		}
	}
	return files
}

// local turns an import path into a package of this module.
func (t *Tree) local(importPath string) (string, bool) {
	if importPath == t.Module {
		return ".", true
	}
	return strings.CutPrefix(importPath, t.Module+"/")
}

// at is where a node is, as editors understand it.
func (t *Tree) at(p token.Pos) string {
	pos := t.Fset.Position(p)
	return pos.Filename + ":" + strconv.Itoa(pos.Line)
}
