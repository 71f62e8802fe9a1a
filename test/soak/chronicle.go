// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"sync"
	"time"
)

// An event is something that was done to the mesh, and that connections need
// not survive.
type event struct {
	what string
	from time.Time
	to   time.Time // guarded by chronicle.mu; zero: it lasts
	// hits says whether it excuses what befell an entry, of which it knows
	// that they were there at the same time. When the first error was seen is
	// failed.
	hits func(ev *event, e *entry, failed time.Time) bool
	// denies says whether a connection that began while it was surely in force
	// must fail; nil: none.
	denies      func(e *entry) bool
	sure, ended time.Time // guarded by chronicle.mu; when it was surely in force
	deadline    time.Time // guarded by chronicle.mu; of what a proxy had open at its end
}

// A chronicle is all that was done, in order.
type chronicle struct {
	began  time.Time
	mu     sync.Mutex
	events []*event // guarded by mu
	notes  []string // guarded by mu; events and what excuses nothing, as they came
}

// slack is how far two clocks' readings may be apart that ought to be the same:
// between what was done and the line in which we wrote the time.
const slack = 700 * time.Millisecond

func (c *chronicle) note(format string, args ...any) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.noteLocked(fmt.Sprintf(format, args...))
}

func (c *chronicle) noteLocked(text string) {
	c.notes = append(c.notes, fmt.Sprintf("%8.3f %s", time.Since(c.began).Seconds(), text))
}

// begin enters an event that lasts until end.
func (c *chronicle) begin(ev *event) *event {
	c.mu.Lock()
	defer c.mu.Unlock()
	ev.from = time.Now()
	c.events = append(c.events, ev)
	c.noteLocked(ev.what)
	return ev
}

func (c *chronicle) end(ev *event) {
	c.mu.Lock()
	defer c.mu.Unlock()
	ev.to = time.Now()
	c.noteLocked("over: " + ev.what)
}

// mark writes the time into a field of an event.
func (c *chronicle) mark(field *time.Time, at time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	*field = at
}

// excuse is an event that explains why an entry failed, or nil. It is asked
// when all is over.
func (c *chronicle) excuse(e *entry, failed time.Time) *event {
	c.mu.Lock()
	defer c.mu.Unlock()
	last := e.last()
	for _, ev := range c.events {
		if e.began.After(ev.to.Add(slack)) && !ev.to.IsZero() || last.Before(ev.from.Add(-slack)) {
			continue
		}
		if ev.hits(ev, e, failed) {
			return ev
		}
	}
	return nil
}

// denied is a policy that was surely in force all the time that an entry lived
// and forbids it, or nil. What happened while a proxy came or went does not
// count: it may have heard of the policy later.
func (c *chronicle) denied(e *entry) *event {
	c.mu.Lock()
	defer c.mu.Unlock()
	var found *event
	last := e.last()
	for _, ev := range c.events {
		together := (ev.to.IsZero() || !e.began.After(ev.to.Add(slack))) && !last.Before(ev.from.Add(-slack))
		switch {
		case ev.denies == nil && together && ev.deadline != (time.Time{}):
			return nil
		case ev.denies == nil || ev.sure.IsZero() || e.began.Before(ev.sure):
		case !ev.ended.IsZero() && last.After(ev.ended):
		case ev.denies(e):
			found = ev
		}
	}
	return found
}

// last is when the last side ended.
func (e *entry) last() time.Time {
	e.mu.Lock()
	defer e.mu.Unlock()
	last := e.began
	for _, s := range e.sides {
		if s.at.After(last) {
			last = s.at
		}
	}
	return last
}

// uses says whether an entry goes through the proxy of a node.
func (e *entry) uses(node string) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.from.node == node || e.to != nil && e.to.node == node || e.target != nil && e.target.node == node || e.anyOf && e.to == nil
}

// touches says whether a pod is at an end of an entry, or may have been.
func (e *entry) touches(p *pod) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.from == p || e.to == p || e.target == p || e.anyOf && e.to == nil
}
