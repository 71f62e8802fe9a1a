// SPDX-License-Identifier: Apache-2.0

package metrics

import (
	"slices"
	"strconv"
	"strings"
)

// Labels are the labels of one series as they stand between the braces of a
// sample, written once and used at every scrape.
type Labels string

// AppendLabel adds one label to the text of others.
func AppendLabel(to []byte, name, value string) []byte {
	if len(to) > 0 {
		to = append(to, ',')
	}
	to = append(to, name...)
	to = append(to, '=', '"')
	to = append(to, escape(value)...)
	return append(to, '"')
}

// A Stream is a family of counters whose series are written as they are read,
// so that a scrape of very many neither builds them in memory first nor holds
// a lock that those who count need. Its label sets may differ in length, which
// no vector of the Prometheus client allows.
type Stream struct {
	Name string // ends in _total
	Help string
	// Labels are those that a series may have, in their order.
	Labels []string
	// Each calls yield for every series that is to be seen. yield may block for
	// as long as whoever scrapes is slow, so no lock may be held meanwhile. It
	// is called by several at a time.
	Each func(yield func(labels Labels, value uint64))
}

// Stream adds families. Their names must not be registered otherwise.
func (r *Registry) Stream(families ...Stream) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.streamed = append(r.streamed, families...)
}

func (r *Registry) streams() []Stream {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.streamed)
}

// stream writes a family, or nothing if it has no series.
func (t text) stream(s Stream) {
	base := strings.TrimSuffix(s.Name, "_total")
	var number [20]byte // as long as a uint64 gets
	begun := false
	s.Each(func(labels Labels, value uint64) {
		if !begun {
			begun = true
			t.header(s.Name, base, s.Help, Counter)
		}
		t.WriteString(base)
		t.WriteString("_total{")
		t.WriteString(string(labels))
		t.WriteString("} ")
		t.Write(strconv.AppendUint(number[:0], value, 10))
		t.WriteByte('\n')
	})
}
