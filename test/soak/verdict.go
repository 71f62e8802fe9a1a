// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"io"
	"time"
)

// A verdict is what became of an entry.
type verdict struct {
	wrong  string // why it is not what was planned; empty: it is
	excuse *event // of that
	breach string // what nothing excuses
	failed time.Time
}

// bad says whether the soak has failed by it.
func (v verdict) bad() bool { return v.breach != "" || v.wrong != "" && v.excuse == nil }

// judge looks at an entry when all is over.
func (s *soak) judge(e *entry) verdict {
	var v verdict
	v.wrong, v.failed = e.compare()
	v.breach = e.corrupt()
	ev := s.chronicle.denied(e)
	switch {
	case v.wrong != "":
		v.excuse = s.chronicle.excuse(e, v.failed)
	case ev != nil && v.breach == "":
		v.breach = "it got past: " + ev.what
	}
	return v
}

// compare says what is not as planned, and when that was first seen.
func (e *entry) compare() (wrong string, at time.Time) {
	e.mu.Lock()
	defer e.mu.Unlock()
	want := [2]ending{finished, finished}
	switch {
	case e.plan.dns:
		want[server] = never
	case e.plan.reset != nobody:
		want[e.plan.reset], want[e.plan.reset.other()] = didReset, wasReset
	case e.plan.closer != nobody:
		want[e.plan.closer] = closed
	}
	for r, s := range e.sides {
		if s.how != want[r] && (at.IsZero() || !s.at.IsZero() && s.at.Before(at)) {
			at = s.at
			wrong = fmt.Sprintf("the %v: %s", role(r), s.how)
		}
	}
	if wrong != "" || e.plan.dns {
		return wrong, at
	}
	for r, s := range e.sides {
		o := e.sides[role(r).other()]
		complete := s.sent == e.plan.flows[r].bytes && s.sent == o.received && bytes.Equal(s.sentSum.Sum(nil), o.gotSum.Sum(nil))
		if !complete && !(e.plan.reset != nobody && e.plan.midway) {
			return fmt.Sprintf("the %v sent %d of %d bytes, %d arrived", role(r), s.sent, e.plan.flows[r].bytes, o.received), o.at
		}
	}
	return "", time.Time{}
}

// corrupt says whether something else arrived than was sent, which nothing
// excuses.
func (e *entry) corrupt() string {
	e.mu.Lock()
	defer e.mu.Unlock()
	for r, s := range e.sides {
		if s.received == 0 {
			continue
		}
		o := role(r).other()
		if s.received == e.sides[o].sent && bytes.Equal(s.gotSum.Sum(nil), e.sides[o].sentSum.Sum(nil)) {
			continue
		}
		sum := sha256.New() // of the part that has arrived
		_, _ = io.Copy(sum, content(e.id, o, s.received))
		if e.sides[o].sent < s.received || !bytes.Equal(sum.Sum(nil), s.gotSum.Sum(nil)) {
			return fmt.Sprintf("the %v received %d bytes that the %v did not send so (%d)", role(r), s.received, o, e.sides[o].sent)
		}
	}
	return ""
}
