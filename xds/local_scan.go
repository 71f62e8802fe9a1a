// SPDX-License-Identifier: Apache-2.0

package xds

import (
	"strings"
	"unicode/utf8"

	"go.yaml.in/yaml/v3"
)

/* Two roads through a document
 *
 * A tree of a large document takes thirty times its memory, and most of the
 * time of a start. But such documents are written by programs, in a small part
 * of YAML: block and flow collections, scalars on one line, tags like !Exact,
 * comments; and JSON within that. A scanner knows this part alone, and hands
 * over one element of a section at a time, whose nodes it then uses again.
 *
 *	document -- scanner --+-- understands it: elements, one by one
 *	                      |
 *	                      +-- anything else: given up, the YAML parser reads
 *	                          the document again, whole
 *
 * What the scanner takes it must take as the YAML parser does, to the column
 * (a fuzz test compares them); whenever it is not sure it gives up. So it has
 * no errors of its own.
 */

// maxDepth bounds recursion. Documents that mean something are less than half
// as deep.
const maxDepth = 32

// maxKey keeps well away from the 1024 characters that YAML allows a key.
const maxKey = 1000

// A scanner walks one text. Once gaveUp is set nothing that it returns means
// anything.
type scanner struct {
	text   string
	pos    int
	line   int  // from 1
	start  int  // where the line begins
	wide   bool // not all of the text is ASCII
	extra  int  // bytes of this line, up to pos, that begin no character
	depth  int
	gaveUp bool

	arena arena
}

func (s *scanner) giveUp() *yaml.Node {
	s.gaveUp = true
	s.pos = len(s.text)
	return nil
}

// plainText reports whether a text has nothing but ends of lines and what
// prints and is no end of line to anybody; and whether some of that takes more
// than a byte.
func plainText(text string) (ok, wide bool) {
	for i := 0; i < len(text); i++ {
		if c := text[i]; c-' ' < 0x7f-' ' || c == '\n' {
			continue
		}
		r, size := utf8.DecodeRuneInString(text[i:])
		switch {
		case r < 0xa0, r == utf8.RuneError, r == 0x2028, r == 0x2029, r == 0xfeff, r == 0xfffe, r == 0xffff:
			return false, false
		}
		wide = true
		i += size - 1
	}
	return true, wide
}

// passed moves behind a piece of text on this line.
func (s *scanner) passed(end int) {
	if s.wide {
		for i := s.pos; i < end; i++ {
			if !utf8.RuneStart(s.text[i]) {
				s.extra++
			}
		}
	}
	s.pos = end
}

// column counts bytes, from 0. What is compared with it, the indentation of
// lines, is ASCII.
func (s *scanner) column() int { return s.pos - s.start }

// peek is the byte at an offset, and an end of line behind the end.
func (s *scanner) peek(offset int) byte {
	if i := s.pos + offset; i < len(s.text) {
		return s.text[i]
	}
	return '\n'
}

func (s *scanner) done() bool { return s.pos >= len(s.text) }

func isBlank(c byte) bool { return c == ' ' || c == '\n' }

func (s *scanner) spaces() {
	for s.pos < len(s.text) && s.text[s.pos] == ' ' {
		s.pos++
	}
}

// restOfLine passes over spaces and a comment and reports whether the line
// ends there.
func (s *scanner) restOfLine() bool {
	s.spaces()
	if !s.done() && s.text[s.pos] == '#' {
		if s.pos > s.start && s.text[s.pos-1] != ' ' {
			return false
		}
		if i := strings.IndexByte(s.text[s.pos:], '\n'); i >= 0 {
			s.pos += i
		} else {
			s.pos = len(s.text)
		}
	}
	return s.done() || s.text[s.pos] == '\n'
}

// skip goes to the next token, on this line or a later one.
func (s *scanner) skip() {
	for s.restOfLine() && !s.done() {
		s.pos++
		s.line++
		s.start, s.extra = s.pos, 0
	}
	if s.column() == 0 && !s.done() {
		if rest := s.text[s.pos:]; strings.HasPrefix(rest, "---") || strings.HasPrefix(rest, "...") {
			s.giveUp() // another document, perhaps
		}
	}
}

func (s *scanner) node(kind yaml.Kind, tag string) *yaml.Node {
	n := s.arena.node()
	n.Kind, n.Tag, n.Line, n.Column = kind, tag, s.line, s.column()-s.extra+1
	return n
}

// isEntry reports whether a block sequence's entry begins here.
func (s *scanner) isEntry() bool { return s.peek(0) == '-' && isBlank(s.peek(1)) }

// block reads the node that begins here. nested says that it may be a block
// collection: it is the first thing on its line, or follows "- ".
func (s *scanner) block(nested bool) *yaml.Node {
	if s.depth++; s.depth > maxDepth {
		return s.giveUp()
	}
	defer func() { s.depth-- }()
	if s.isEntry() {
		if !nested {
			return s.giveUp()
		}
		return s.sequence(s.column(), false, nil)
	}
	column, line, start := s.column(), s.line, s.pos
	n := s.single(false)
	if s.gaveUp || !s.atColon() {
		if !s.gaveUp && !s.restOfLine() {
			return s.giveUp()
		}
		return n
	}
	if !nested || n.Kind != yaml.ScalarNode || n.Style&yaml.TaggedStyle != 0 || s.line != line || s.pos-start > maxKey {
		return s.giveUp()
	}
	return s.mapping(column, n)
}

// atColon reports whether what has just been read is a key.
func (s *scanner) atColon() bool {
	i := 0
	for s.peek(i) == ' ' {
		i++
	}
	return s.peek(i) == ':' && isBlank(s.peek(i+1))
}

// mapping reads a block mapping whose first key has been read.
func (s *scanner) mapping(column int, key *yaml.Node) *yaml.Node {
	n := s.arena.node()
	n.Kind, n.Tag, n.Line, n.Column = yaml.MappingNode, "!!map", key.Line, key.Column
	mark := s.arena.mark()
	for {
		s.arena.push(key)
		s.spaces()
		s.pos++ // the colon
		s.arena.push(s.blockValue(column))
		if s.gaveUp || !s.another(column) {
			break
		}
		if key = s.key(); s.gaveUp {
			return nil
		}
	}
	n.Content = s.arena.since(mark)
	return n
}

// another goes on to the next line of a block collection and reports whether
// there is one.
func (s *scanner) another(column int) bool {
	s.skip()
	if s.done() || s.column() < column {
		return false
	}
	if s.column() > column { // a scalar of several lines, or a mistake
		s.giveUp()
		return false
	}
	return true
}

// key reads a key of a block mapping up to its colon.
func (s *scanner) key() *yaml.Node {
	start := s.pos
	key := s.scalar(false)
	if s.gaveUp || !s.atColon() || s.pos-start > maxKey {
		return s.giveUp()
	}
	return key
}

// blockValue reads what follows the colon of a key at column.
func (s *scanner) blockValue(column int) *yaml.Node {
	empty := s.node(yaml.ScalarNode, "!!null")
	if !s.restOfLine() {
		return s.block(false)
	}
	s.skip()
	switch {
	case s.gaveUp || s.done() || s.column() < column:
		return empty
	case s.column() > column:
		return s.block(true)
	case s.isEntry():
		return s.sequence(column, true, nil)
	}
	return empty
}

// sequence reads a block sequence. indentless says that it may stand at the
// column of the key that it belongs to, and be followed by the next one. With
// yield elements are handed over instead of kept.
func (s *scanner) sequence(column int, indentless bool, yield func(*yaml.Node) bool) *yaml.Node {
	n := s.node(yaml.SequenceNode, "!!seq")
	mark := s.arena.mark()
	for {
		if yield != nil {
			s.arena.reset()
		}
		s.pos++ // the dash
		element := s.entry(column)
		if s.gaveUp {
			return nil
		}
		if yield == nil {
			s.arena.push(element)
		} else if !yield(element) {
			return n
		}
		if !s.another(column) {
			break
		}
		if !s.isEntry() {
			if !indentless {
				return s.giveUp()
			}
			break
		}
	}
	if yield == nil {
		n.Content = s.arena.since(mark)
	}
	return n
}

// entry reads what follows the dash of a sequence at column.
func (s *scanner) entry(column int) *yaml.Node {
	empty := s.node(yaml.ScalarNode, "!!null")
	if !s.restOfLine() {
		return s.block(true)
	}
	s.skip()
	if s.gaveUp || s.done() || s.column() <= column {
		return empty
	}
	return s.block(true)
}
