// SPDX-License-Identifier: Apache-2.0

package xds

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"

	"github.com/ztunnel-go/ztunnel/internal/mesh"
)

// A reader walks one document. It keeps the first error and lets the rest of
// the walk run out: what is read after an error is never used.
type reader struct {
	name     string // of the file, for people
	budget   int    // nodes that may still be visited
	err      error
	warnings []string

	shared mesh.Interner
	pairs  []mesh.PortPair   // of the mapping that is being read
	groups []mesh.Membership // of the workload that is being read

	reuse  bool    // values are lent for one element of a section
	values []value // those lent
}

// reset takes back the values of one element, for the next.
func (r *reader) reset() { r.values = r.values[:0] }

// lend makes room for a value. A chunk that is used up is left to those who
// hold its values, and a larger one takes its place.
func (r *reader) lend() *value {
	if !r.reuse {
		return new(value)
	}
	if len(r.values) == cap(r.values) {
		r.values = make([]value, 0, max(arenaChunk, 2*cap(r.values)))
	}
	r.values = r.values[:len(r.values)+1]
	return &r.values[len(r.values)-1]
}

// budgetFor bounds the walk. A document without aliases has fewer nodes than
// bytes; aliases may add as many again and no more, since lists of aliases of
// lists of aliases multiply.
func budgetFor(length int) int { return 2*length + 64 }

// A value is a node and the way to it, which errors are told with.
type value struct {
	r      *reader
	node   *yaml.Node
	parent *value
	field  string // its name in parent, if parent is a mapping
	index  int    // its place in parent, if parent is a sequence
}

func (v *value) child(node *yaml.Node, field string, index int) *value {
	if v.r.budget--; v.r.budget < 0 {
		v.fail(node, "too many aliases")
	}
	if node.Kind == yaml.AliasNode && node.Alias != nil {
		node = node.Alias
	}
	c := v.r.lend()
	*c = value{r: v.r, node: node, parent: v, field: field, index: index}
	return c
}

func (v *value) path() string {
	switch {
	case v.parent == nil:
		return ""
	case v.field == "":
		return v.parent.path() + "[" + strconv.Itoa(v.index) + "]"
	case v.parent.parent == nil:
		return v.field
	default:
		return v.parent.path() + "." + v.field
	}
}

// fail notes an error about v at the place of node.
func (v *value) fail(node *yaml.Node, format string, args ...any) {
	if v.r.err == nil {
		v.r.err = errors.New(v.tell(node, format, args...))
	}
}

func (v *value) warn(node *yaml.Node, format string, args ...any) {
	v.r.warnings = append(v.r.warnings, v.tell(node, format, args...))
}

func (v *value) tell(node *yaml.Node, format string, args ...any) string {
	text := fmt.Sprintf(format, args...)
	if path := v.path(); path != "" {
		text = path + ": " + text
	}
	return fmt.Sprintf("%s at line %d column %d of %s", text, node.Line, node.Column, v.r.name)
}

func (v *value) wrongType(expected string) {
	v.fail(v.node, "invalid type: %s, expected %s", describe(v.node), expected)
}

func describe(n *yaml.Node) string {
	switch {
	case n.Kind == yaml.MappingNode:
		return "map"
	case n.Kind == yaml.SequenceNode:
		return "sequence"
	case isNull(n):
		return "unit value"
	default:
		return strings.TrimPrefix(n.ShortTag(), "!!") + " `" + n.Value + "`"
	}
}

func isNull(n *yaml.Node) bool { return n.Kind == yaml.ScalarNode && n.ShortTag() == "!!null" }

// null reports whether an optional value was given as null, which is the same
// as not giving it.
func (v *value) null() bool { return isNull(v.node) }

// custom is the name of a tag like !Exact, or the empty string.
func (v *value) custom() string {
	tag := v.node.Tag
	if v.node.Style&yaml.TaggedStyle == 0 || strings.HasPrefix(tag, "!!") || !strings.HasPrefix(tag, "!") {
		return ""
	}
	return tag[1:]
}

// object reads a mapping with known fields. read returns false for a field it
// does not know, which is refused, or passed over with a warning if lenient is
// set (contract 8.9 names the places).
func (v *value) object(lenient bool, required []string, read func(field string, f *value) bool) {
	if v.node.Kind != yaml.MappingNode || v.custom() != "" {
		v.wrongType("a map")
		return
	}
	var room [32]string // most objects have fewer fields
	seen := room[:0]
	for i := 0; i+1 < len(v.node.Content) && v.r.err == nil; i += 2 {
		key := v.node.Content[i]
		if key.Kind == yaml.AliasNode && key.Alias != nil {
			key = key.Alias
		}
		if key.Kind != yaml.ScalarNode {
			v.fail(key, "invalid type: %s, expected a field name", describe(key))
			return
		}
		switch {
		case slices.Contains(seen, key.Value):
			v.fail(key, "duplicate field `%s`", key.Value)
		case read(key.Value, v.child(v.node.Content[i+1], key.Value, 0)):
			seen = append(seen, key.Value)
		case lenient:
			v.warn(key, "ignoring unknown field `%s`", key.Value)
		default:
			v.fail(key, "unknown field `%s`", key.Value)
		}
	}
	for _, field := range required {
		if !slices.Contains(seen, field) {
			v.fail(v.node, "missing field `%s`", field)
		}
	}
}

// table reads a mapping whose keys are data. Of equal keys the last one wins,
// as in the reference.
func (v *value) table(read func(key, val *value)) {
	if v.node.Kind != yaml.MappingNode || v.custom() != "" {
		v.wrongType("a map")
		return
	}
	for i := 0; i+1 < len(v.node.Content) && v.r.err == nil; i += 2 {
		key := v.node.Content[i]
		read(v.child(key, key.Value, 0), v.child(v.node.Content[i+1], key.Value, 0))
	}
}

// list reads a sequence.
func (v *value) list(read func(e *value)) {
	if v.node.Kind != yaml.SequenceNode || v.custom() != "" {
		v.wrongType("a sequence")
		return
	}
	for i := 0; i < len(v.node.Content) && v.r.err == nil; i++ {
		read(v.child(v.node.Content[i], "", i))
	}
}

// collect reads a sequence of equal things. It is never nil, so that the dump
// shows an empty list.
func collect[T any](v *value, read func(e *value) T) []T {
	out := []T{}
	v.list(func(e *value) { out = append(out, read(e)) })
	return out
}

// text reads a string. Numbers and the like are taken as they are written.
// Equal strings share their memory, and none keeps the document's.
func (v *value) text() string { return v.r.shared.String(v.raw()) }

// raw reads a string that is part of the document: for what is not kept.
func (v *value) raw() string {
	if v.node.Kind != yaml.ScalarNode || v.null() || v.custom() != "" {
		v.wrongType("a string")
		return ""
	}
	return v.node.Value
}

func (v *value) texts() []string { return collect(v, (*value).text) }

func (v *value) flag() bool {
	if v.node.Kind == yaml.ScalarNode && v.node.ShortTag() == "!!bool" {
		switch v.node.Value {
		case "true", "True", "TRUE":
			return true
		case "false", "False", "FALSE":
			return false
		}
	}
	v.wrongType("a boolean")
	return false
}

// number reads an integer of so many bits. Quoted ones are taken too: JSON has
// no other keys.
func (v *value) number(bits int) uint64 {
	digits, base := v.node.Value, 10
	if len(digits) > 2 {
		switch digits[:2] {
		case "0x":
			digits, base = digits[2:], 16
		case "0o":
			digits, base = digits[2:], 8
		case "0b":
			digits, base = digits[2:], 2
		}
	}
	n, err := strconv.ParseUint(digits, base, bits)
	switch {
	case v.node.Kind != yaml.ScalarNode || v.custom() != "" || errors.Is(err, strconv.ErrSyntax):
		v.wrongType(fmt.Sprintf("u%d", bits))
	case err != nil:
		v.fail(v.node, "invalid value: integer `%s`, expected u%d", v.node.Value, bits)
	}
	return n
}

func (v *value) port() uint16 { return uint16(v.number(16)) }

func (v *value) ports() map[uint16]uint16 { return v.r.shared.Ports(v.portPairs()) }

// portPairs is good until it is called again.
func (v *value) portPairs() []mesh.PortPair {
	v.r.pairs = v.r.pairs[:0]
	v.table(func(key, val *value) {
		v.r.pairs = append(v.r.pairs, mesh.PortPair{Port: key.port(), Target: val.port()})
	})
	return v.r.pairs
}

func (v *value) ip() netip.Addr { return v.parseIP(v.raw()) }

func (v *value) parseIP(s string) netip.Addr {
	ip, err := netip.ParseAddr(s)
	if err != nil || ip.Zone() != "" {
		v.fail(v.node, "invalid IP address syntax: `%s`", s)
		return netip.Addr{}
	}
	return ip.Unmap()
}

// prefix reads a range of addresses. A single address is a range of one.
func (v *value) prefix() netip.Prefix {
	s := v.raw()
	if !strings.Contains(s, "/") {
		if ip := v.parseIP(s); ip.IsValid() {
			return netip.PrefixFrom(ip, ip.BitLen())
		}
		return netip.Prefix{}
	}
	p, err := netip.ParsePrefix(s)
	if err != nil {
		v.fail(v.node, "invalid IP address syntax: `%s`", s)
	}
	return p
}

// oneOf reads the name of one of several options.
func oneOf[T fmt.Stringer](v *value, options ...T) T {
	s := v.raw()
	for _, o := range options {
		if o.String() == s {
			return o
		}
	}
	names := make([]string, len(options))
	for i, o := range options {
		names[i] = "`" + o.String() + "`"
	}
	v.fail(v.node, "unknown variant `%s`, expected one of %s", s, strings.Join(names, ", "))
	var zero T
	return zero
}
