// SPDX-License-Identifier: Apache-2.0

package arch

import (
	"fmt"
	"go/ast"
	"path"
	"slices"
	"strings"
)

// A ban keeps one part of the tree from importing another. It says again what
// the table says, with the reason, so that nobody widens the table unaware.
type ban struct {
	from, to []string
	except   []string
	why      string
}

func bans() []ban {
	const middle = "they meet in internal/mesh, so that each can be tested, replaced and read alone"
	everywhere := []string{"bpf/...", "cmd/...", "dataplane/...", "xds/...", "dnsproxy/...", "internal/..."}
	return []ban{
		{from: []string{"dataplane/..."}, to: []string{"xds/...", "dnsproxy/..."}, why: middle},
		{from: []string{"xds/..."}, to: []string{"dataplane/...", "dnsproxy/..."}, why: middle},
		{from: []string{"dnsproxy/..."}, to: []string{"dataplane/...", "xds/..."}, why: middle},
		{
			from: []string{"internal/...", "bpf/..."}, to: []string{"dataplane/...", "xds/...", "dnsproxy/...", "cmd/..."},
			why: "the floor does not know what stands on it",
		},
		{
			from: []string{"dataplane/inpod"}, to: []string{"dataplane", "dataplane/hbone", "dataplane/capture"},
			why: "it is given a function that starts a proxy, so that its reconciling is tested with no proxy at all",
		},
		{
			from: everywhere, to: []string{"cmd/ztunnel/app"}, except: []string{"cmd/ztunnel"},
			why: "wiring is the top floor",
		},
		{from: everywhere, to: []string{"test/..."}, why: "what only tests need is no part of the program"},
		{
			from: everywhere, to: []string{"github.com/cilium/ebpf/..."}, except: []string{"bpf/..."},
			why: "a dependency has one door, and that of programs in the kernel is bpf",
		},
		{
			from: everywhere, to: []string{"google.golang.org/protobuf/...", "google.golang.org/grpc/..."},
			except: []string{"xds/...", "internal/ca/...", "internal/control", "internal/zds/...", "dataplane/handover/..."},
			why:    "wire types are translated at the edge and walk no further",
		},
		{
			from: everywhere, to: []string{"github.com/vishvananda/netlink/..."}, except: []string{"dataplane/capture", "internal/netns"},
			why: "routes and rules are capture's business",
		},
		{
			from: everywhere, to: []string{"github.com/miekg/dns/..."}, except: []string{"dnsproxy/..."},
			why: "a dependency has one door",
		},
		{
			from: everywhere, to: []string{"github.com/gdamore/tcell/..."}, except: []string{"internal/top"},
			why: "a dependency has one door",
		},
		{
			from: everywhere, to: []string{"k8s.io/...", "sigs.k8s.io/..."}, except: []string{"cmd/zagent/..."},
			why: "nothing in the proxy speaks Kubernetes",
		},
	}
}

// Never finds imports that break a ban, tests excepted.
func Never(tree *Tree) []string {
	var found []string
	matches := func(rules []string, pkg string) bool {
		return slices.ContainsFunc(rules, func(r string) bool { return covers(r, pkg) })
	}
	for _, f := range tree.Files {
		if f.Test {
			continue
		}
		if _, fake := twinOf(f.Package()); fake {
			continue
		}
		for _, p := range f.Imports() {
			target := p
			if local, ok := tree.local(p); ok {
				target = local
			}
			for _, b := range bans() {
				if matches(b.from, f.Package()) && matches(b.to, target) && !matches(b.except, f.Package()) {
					found = append(found, fmt.Sprintf("%s: %s may not import %s: %s", f.Path, f.Package(), target, b.why))
				}
			}
		}
	}
	return found
}

// pure are the packages that decide and do nothing else.
func pure() []string {
	return []string{"internal/identity", "internal/mesh", "dataplane/reason", "dataplane/route", "dataplane/rbac", "dataplane/explain"}
}

// Pure finds what a pure package must not touch: the network, the machine,
// the clock, the log, chance.
func Pure(tree *Tree) []string {
	const why = "a decision must be askable in a table test"
	banned := []string{
		"net", "net/http", "context", "os", "io/fs", "log", "log/slog", "runtime", "syscall",
		"math/rand", "math/rand/v2", "crypto/rand",
	}
	clock := []string{"Now", "Since", "Until", "Sleep", "After", "AfterFunc", "Tick", "NewTimer", "NewTicker"}
	var found []string
	for _, f := range tree.Written() {
		if !slices.Contains(pure(), f.Package()) {
			continue
		}
		for _, p := range f.Imports() {
			if slices.Contains(banned, p) {
				found = append(found, fmt.Sprintf("%s: %s may not import %s: %s", f.Path, f.Package(), p, why))
			}
		}
		for _, use := range uses(f, "time", clock) {
			found = append(found, fmt.Sprintf("%s: %s may not ask time.%s: %s", tree.at(use.Pos()), f.Package(), use.Sel.Name, why))
		}
	}
	return found
}

// OneDoor finds readers of the environment other than the one that may.
func OneDoor(tree *Tree) []string {
	const door = "cmd/ztunnel/app/env.go"
	const agents = "cmd/zagent/env.go" // another program's
	var found []string
	for _, f := range tree.Written() {
		if f.Path == door || f.Path == agents || strings.HasPrefix(f.Path, "test/") {
			continue
		}
		for _, use := range uses(f, "os", []string{"Getenv", "LookupEnv", "Environ", "ExpandEnv"}) {
			found = append(found, fmt.Sprintf("%s: os.%s: the environment has one door, %s, so that a test can give a map",
				tree.at(use.Pos()), use.Sel.Name, door))
		}
	}
	return found
}

// EngineTypes finds types and functions of net/http in the tunnels, beyond
// the names of statuses and methods.
func EngineTypes(tree *Tree) []string {
	var found []string
	for _, f := range tree.Written() {
		if f.Package() != "dataplane/hbone" && f.Package() != "dataplane/relay" {
			continue
		}
		for _, use := range uses(f, "net/http", nil) {
			if name := use.Sel.Name; !strings.HasPrefix(name, "Status") && !strings.HasPrefix(name, "Method") {
				found = append(found, fmt.Sprintf("%s: http.%s: the engine behind the tunnels is replaceable, so no type of net/http may show in it",
					tree.at(use.Pos()), name))
			}
		}
	}
	return found
}

// uses finds Name of a package for the names given, or for all, if f imports
// the package by its own name.
func uses(f *File, importPath string, names []string) []*ast.SelectorExpr {
	if !slices.Contains(f.Imports(), importPath) {
		return nil
	}
	pkg := path.Base(importPath)
	var found []*ast.SelectorExpr
	ast.Inspect(f.Syntax, func(n ast.Node) bool {
		sel, ok := n.(*ast.SelectorExpr)
		if !ok {
			return true
		}
		if x, ok := sel.X.(*ast.Ident); ok && x.Name == pkg && (names == nil || slices.Contains(names, sel.Sel.Name)) {
			found = append(found, sel)
		}
		return true
	})
	return found
}
