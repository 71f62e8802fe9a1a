// SPDX-License-Identifier: Apache-2.0

package xds

import (
	"strconv"
	"strings"
	"unicode/utf16"

	"go.yaml.in/yaml/v3"
)

// single reads a scalar or a flow collection, with or without a tag.
func (s *scanner) single(inFlow bool) *yaml.Node {
	switch s.peek(0) {
	case '!':
		return s.tagged(inFlow)
	case '[':
		return s.flowSequence(nil)
	case '{':
		return s.flowMapping()
	default:
		return s.scalar(inFlow)
	}
}

// tagged reads a tag like !Exact and, on the same line, what it belongs to.
func (s *scanner) tagged(inFlow bool) *yaml.Node {
	line, column, end := s.line, s.column()-s.extra+1, 1
	for c := s.peek(end) | 0x20; c >= 'a' && c <= 'z'; c = s.peek(end) | 0x20 {
		end++
	}
	if end == 1 || s.peek(end) != ' ' {
		return s.giveUp()
	}
	tag := s.text[s.pos : s.pos+end]
	s.pos += end
	if s.restOfLine() || s.peek(0) == '!' {
		return s.giveUp()
	}
	n := s.single(inFlow)
	if s.gaveUp {
		return nil
	}
	n.Tag, n.Line, n.Column = tag, line, column
	n.Style |= yaml.TaggedStyle
	return n
}

// flowSequence reads [a, b]. With yield elements are handed over instead of
// kept.
func (s *scanner) flowSequence(yield func(*yaml.Node) bool) *yaml.Node {
	n := s.node(yaml.SequenceNode, "!!seq")
	mark := s.arena.mark()
	for first := true; s.inside(']', first); first = false {
		if yield != nil {
			s.arena.reset()
		}
		element := s.single(true)
		if s.gaveUp {
			return nil
		}
		if yield == nil {
			s.arena.push(element)
		} else if !yield(element) {
			return n
		}
	}
	if yield == nil {
		n.Content = s.arena.since(mark)
	}
	return n
}

// flowMapping reads {a: b}.
func (s *scanner) flowMapping() *yaml.Node {
	n := s.node(yaml.MappingNode, "!!map")
	mark := s.arena.mark()
	for first := true; s.inside('}', first); first = false {
		s.arena.push(s.flowKey())
		s.skip()
		s.arena.push(s.single(true))
	}
	n.Content = s.arena.since(mark)
	return n
}

// inside goes to the next element of a flow collection and reports whether
// there is one; if not, it has passed the end.
func (s *scanner) inside(end byte, first bool) bool {
	if first {
		if s.depth++; s.depth > maxDepth {
			s.giveUp()
			return false
		}
		s.pos++ // the bracket
	}
	s.skip()
	if !first && s.peek(0) == ',' && !s.done() {
		s.pos++
		s.skip()
	} else if !first && s.peek(0) != end {
		s.giveUp()
	}
	switch {
	case s.done():
		s.giveUp()
		return false
	case s.peek(0) == end:
		s.pos++
		s.depth--
		return false
	}
	return true
}

// flowKey reads a key of a flow mapping and its colon.
func (s *scanner) flowKey() *yaml.Node {
	start := s.pos
	quoted := s.peek(0) == '"'
	key := s.scalar(true)
	if s.gaveUp || s.pos-start > maxKey {
		return s.giveUp()
	}
	s.spaces()
	if s.peek(0) != ':' || !quoted && !isBlank(s.peek(1)) {
		return s.giveUp()
	}
	s.pos++
	return key
}

// scalar reads a scalar, which must end on its line.
func (s *scanner) scalar(inFlow bool) *yaml.Node {
	switch s.peek(0) {
	case '"':
		return s.doubleQuoted()
	case '\'':
		return s.singleQuoted()
	default:
		return s.plain(inFlow)
	}
}

func (s *scanner) doubleQuoted() *yaml.Node {
	n := s.node(yaml.ScalarNode, "!!str")
	n.Style = yaml.DoubleQuotedStyle
	s.pos++
	begin := s.pos
	for i := begin; i < len(s.text); i++ {
		switch s.text[i] {
		case '"':
			n.Value = s.text[begin:i]
			s.passed(i + 1)
			return n
		case '\n':
			return s.giveUp()
		case '\\':
			return s.escaped(n)
		}
	}
	return s.giveUp()
}

// escaped reads a quoted scalar with escapes, from its beginning: those that
// JSON and YAML have in common.
func (s *scanner) escaped(n *yaml.Node) *yaml.Node {
	var out strings.Builder
	for i := s.pos; i < len(s.text); i++ {
		c := s.text[i]
		switch {
		case c == '"':
			n.Value = out.String()
			s.passed(i + 1)
			return n
		case c == '\n' || c == '\\' && i+1 == len(s.text):
			return s.giveUp()
		case c != '\\':
			out.WriteByte(c)
			continue
		}
		i++
		if at := strings.IndexByte(`"\bfnrt`, s.text[i]); at >= 0 {
			out.WriteByte("\"\\\b\f\n\r\t"[at])
			continue
		}
		if s.text[i] != 'u' || i+5 > len(s.text) {
			return s.giveUp()
		}
		code, err := strconv.ParseUint(s.text[i+1:i+5], 16, 16)
		if err != nil || utf16.IsSurrogate(rune(code)) {
			return s.giveUp()
		}
		out.WriteRune(rune(code))
		i += 4
	}
	return s.giveUp()
}

func (s *scanner) singleQuoted() *yaml.Node {
	n := s.node(yaml.ScalarNode, "!!str")
	n.Style = yaml.SingleQuotedStyle
	s.pos++
	i := strings.IndexByte(s.text[s.pos:], '\'')
	if i < 0 || strings.IndexByte(s.text[s.pos:s.pos+i], '\n') >= 0 {
		return s.giveUp()
	}
	n.Value = s.text[s.pos : s.pos+i]
	if s.passed(s.pos + i + 1); s.peek(0) == '\'' {
		return s.giveUp() // an escaped quote
	}
	return n
}

// plain reads a scalar without quotes.
func (s *scanner) plain(inFlow bool) *yaml.Node {
	if c := s.peek(0); s.done() || isBlank(c) || strings.IndexByte("-?:,[]{}#&*!|>'\"%@`", c) >= 0 {
		return s.giveUp()
	}
	n := s.node(yaml.ScalarNode, "")
	begin, end := s.pos, s.pos // end: behind the last that is no space
	i := begin
scan:
	for ; i < len(s.text); i++ {
		switch c := s.text[i]; c {
		case ' ':
			continue
		case '\n':
			break scan
		case '#':
			if end < i { // a space before it
				break scan
			}
		case ':':
			if i+1 == len(s.text) || isBlank(s.text[i+1]) {
				break scan
			}
			if inFlow && strings.IndexByte(",?[]{}", s.text[i+1]) >= 0 {
				return s.giveUp()
			}
		case ',', ']', '}':
			if inFlow {
				break scan
			}
		case '[', '{', '?':
			if inFlow {
				return s.giveUp()
			}
		}
		end = i + 1
	}
	s.passed(end)
	n.Value = s.text[begin:end]
	if isWord(n.Value) {
		n.Tag = "!!str"
	}
	return n
}

// isWord reports whether a plain scalar is a string for certain: what YAML
// takes for null, a boolean or a number is shorter or does not begin with a
// letter. All else the YAML parser's rules tell.
func isWord(text string) bool {
	c := text[0] | 0x20
	return len(text) > len("false") && c >= 'a' && c <= 'z'
}

// An arena lends nodes, and lists of them, until it is reset.
type arena struct {
	nodes []yaml.Node
	used  int
	lists []*yaml.Node
	stack []*yaml.Node // of the collections that are being read
}

const arenaChunk = 256

func (a *arena) reset() { a.used, a.lists, a.stack = 0, a.lists[:0], a.stack[:0] }

// node lends one. When a chunk is used up a larger one takes its place, and
// the garbage collector has the old one when its nodes are no longer used.
func (a *arena) node() *yaml.Node {
	if a.used == len(a.nodes) {
		a.nodes, a.used = make([]yaml.Node, max(arenaChunk, 2*len(a.nodes))), 0
	}
	n := &a.nodes[a.used]
	a.used++
	*n = yaml.Node{}
	return n
}

func (a *arena) mark() int { return len(a.stack) }

func (a *arena) push(n *yaml.Node) { a.stack = append(a.stack, n) }

// since takes what was pushed since a mark.
func (a *arena) since(mark int) []*yaml.Node {
	begin := len(a.lists)
	a.lists = append(a.lists, a.stack[mark:]...)
	a.stack = a.stack[:mark]
	return a.lists[begin:len(a.lists):len(a.lists)]
}
