// SPDX-License-Identifier: Apache-2.0

package conform

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// A reader takes a step's words one after another. It keeps the first error,
// after which it returns zero values.
type reader struct {
	words []word
	block string
	err   error
}

func (r *reader) fail(format string, args ...any) {
	if r.err == nil {
		r.err = fmt.Errorf(format, args...)
	}
}

func (r *reader) more() bool { return r.err == nil && len(r.words) > 0 }

func (r *reader) take(what string) word {
	if r.err != nil {
		return word{}
	}
	if len(r.words) == 0 {
		r.fail("the line ends where %s is wanted", what)
		return word{}
	}
	w := r.words[0]
	r.words = r.words[1:]
	return w
}

// bare is a word without quotes.
func (r *reader) bare(what string) string {
	w := r.take(what)
	if w.quoted {
		r.fail("%q where %s is wanted, without quotes", w.text, what)
	}
	return w.text
}

// text is a string literal.
func (r *reader) text(what string) string {
	w := r.take(what)
	if r.err == nil && !w.quoted {
		r.fail("%s where %s is wanted, in quotes", w.text, what)
	}
	return w.text
}

// want takes a certain word.
func (r *reader) want(literal string) {
	if w := r.take(literal); r.err == nil && (w.quoted || w.text != literal) {
		r.fail("%q where %s is wanted", w.text, literal)
	}
}

// maybe takes a certain word if it is the next.
func (r *reader) maybe(literal string) bool {
	if r.more() && !r.words[0].quoted && r.words[0].text == literal {
		r.words = r.words[1:]
		return true
	}
	return false
}

// oneOf is a word out of few.
func (r *reader) oneOf(what string, allowed ...string) string {
	w := r.bare(what)
	if r.err == nil && !slices.Contains(allowed, w) {
		r.fail("%s is no %s: want %s", w, what, strings.Join(allowed, ", "))
	}
	return w
}

func (r *reader) number(what string) int {
	w := r.bare(what)
	n, err := strconv.Atoi(w)
	if r.err == nil && err != nil {
		r.fail("%q is no %s", w, what)
	}
	return n
}

// place is the name of a pod or a machine.
func (r *reader) place() string { return r.oneOf("place", places()...) }

// node is the name of a node with a proxy.
func (r *reader) node() string { return r.oneOf("node", nodes()...) }

// name is one that the scenario gives to something.
func (r *reader) name(what string) string {
	w := r.bare(what)
	if r.err == nil && (w == "" || strings.ContainsAny(w, "{}=>:./")) {
		r.fail("%q is no name for %s", w, what)
	}
	return w
}

// end wants no more words.
func (r *reader) end() {
	if r.more() {
		r.fail("%q is one word too many", r.words[0].text)
	}
}

// noBlock wants no indented lines below.
func (r *reader) noBlock() {
	if r.block != "" {
		r.fail("indented lines below a step that takes none")
	}
}
