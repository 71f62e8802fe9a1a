// SPDX-License-Identifier: Apache-2.0

package xds

import (
	"strings"

	"go.yaml.in/yaml/v3"
)

// parsePlain reads a document by the short road. Not ok means that it has to
// be read by the long one.
func parsePlain(name, text string) (static *Static, err error, ok bool) {
	plain, wide := plainText(text)
	if !plain {
		return nil, nil, false
	}
	s := &scanner{text: text, line: 1, wide: wide}
	if strings.HasPrefix(text, "---\n") {
		s.pos, s.start, s.line = 4, 4, 2
	}
	s.skip()
	if s.done() {
		return nil, nil, false
	}
	r := &reader{name: name, budget: budgetFor(len(text)), reuse: true}
	p := newSections(&value{r: r, node: &yaml.Node{Kind: yaml.MappingNode, Line: s.line, Column: s.column() + 1}})
	if s.peek(0) == '{' {
		p.flow(s)
	} else {
		p.block(s)
	}
	if s.skip(); r.err == nil && (s.gaveUp || !s.done()) {
		return nil, nil, false
	}
	static, err = p.finish()
	return static, err, true
}

// block reads sections as the block mapping of a document.
func (p *sections) block(s *scanner) {
	for column := s.column(); !s.gaveUp; {
		key := s.key()
		if s.gaveUp {
			return
		}
		s.spaces()
		s.pos++ // the colon
		list := p.open(key)
		if s.restOfLine() {
			s.skip()
			if s.done() || s.column() < column || !s.isEntry() {
				s.giveUp()
				return
			}
			s.sequence(s.column(), s.column() == column, p.each(s, list))
		} else if s.peek(0) == '[' {
			s.flowSequence(p.each(s, list))
			if !s.restOfLine() {
				s.giveUp()
			}
		} else {
			s.giveUp()
		}
		if p.root.r.err != nil || !s.another(column) {
			return
		}
	}
}

// flow reads sections as the flow mapping of a document, as in JSON.
func (p *sections) flow(s *scanner) {
	for first := true; s.inside('}', first); first = false {
		key := s.flowKey()
		if s.gaveUp {
			return
		}
		list := p.open(key)
		if s.skip(); s.peek(0) != '[' {
			s.giveUp()
			return
		}
		if s.flowSequence(p.each(s, list)); p.root.r.err != nil {
			return
		}
	}
}

// each reads the elements of an open section one by one.
func (p *sections) each(s *scanner, list *value) func(*yaml.Node) bool {
	index := 0
	return func(n *yaml.Node) bool {
		if p.root.r.err != nil { // nobody knows the section: there is no one to give elements to
			return false
		}
		p.root.r.reset()
		p.element(list.child(n, "", index))
		index++
		return p.root.r.err == nil
	}
}
