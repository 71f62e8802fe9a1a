// SPDX-License-Identifier: Apache-2.0

package xds

import (
	"slices"

	"go.yaml.in/yaml/v3"

	"github.com/ztunnel-go/ztunnel/internal/mesh"
)

// sections collects what a document holds, in whatever way its elements come.
type sections struct {
	root    *value
	seen    []string
	element func(e *value) // of the section that is open

	workloads keyed[string, *mesh.Workload]
	services  keyed[mesh.NamespacedHostname, *StaticService]
	policies  keyed[string, *mesh.Policy]
}

func newSections(root *value) *sections { return &sections{root: root} }

// section makes a section the one that elements belong to, and reports whether
// there is such a one.
func (p *sections) section(field string) bool {
	switch field {
	case "workloads":
		p.element = func(e *value) {
			w := parseWorkload(e)
			p.workloads.take(e, w.UID, w, func() string { return "uid `" + w.UID + "`" })
		}
	case "services":
		p.element = func(e *value) {
			s := parseService(e)
			p.services.take(e, s.Service.Key(), s, func() string { return "service `" + s.Service.Key().String() + "`" })
		}
	case "policies":
		p.element = func(e *value) {
			one := parsePolicy(e)
			p.policies.take(e, one.Key(), one, func() string { return "policy `" + one.Key() + "`" })
		}
	default:
		return false
	}
	return true
}

// open is section for those who read fields on their own. It returns the
// parent of the elements.
func (p *sections) open(key *yaml.Node) *value {
	field, v := key.Value, p.root
	switch {
	case slices.Contains(p.seen, field):
		v.fail(key, "duplicate field `%s`", field)
	case !p.section(field):
		v.fail(key, "unknown field `%s`", field)
	}
	p.seen = append(p.seen, field)
	return &value{r: v.r, parent: v, field: field}
}

func (p *sections) finish() (*Static, error) {
	if r := p.root.r; r.err != nil {
		return nil, r.err
	}
	return &Static{
		Workloads: p.workloads.list, Services: p.services.list, Policies: p.policies.list,
		Warnings: p.root.r.warnings,
	}, nil
}

// A keyed list is one in which the last of several with one key counts, as in
// the reference; it is hardly ever meant, so it warns.
type keyed[K comparable, T any] struct {
	list   []T
	places map[K]int
}

// take adds what was read at e. It is called what says, if that must be told.
func (l *keyed[K, T]) take(e *value, key K, one T, what func() string) {
	if e.r.err != nil {
		return
	}
	if i, found := l.places[key]; found {
		e.warn(e.node, "the %s replaces an earlier one", what())
		l.list[i] = one
		return
	}
	if l.places == nil {
		l.places = map[K]int{}
	}
	l.places[key] = len(l.list)
	l.list = append(l.list, one)
}
