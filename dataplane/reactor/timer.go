// SPDX-License-Identifier: Apache-2.0

package reactor

import (
	"time"

	"golang.org/x/sys/unix"
)

// A Time is a moment by CLOCK_MONOTONIC, in nanoseconds: the same for every
// process of the machine until it boots again, so that a deadline can be handed
// to another process. 0 is no time.
type Time int64

// Add is t and d later.
func (t Time) Add(d time.Duration) Time { return t + Time(d) }

// A clock reads CLOCK_MONOTONIC without a system call, by the offset that the
// runtime's own clock has to it.
type clock struct {
	base time.Time
	at   Time
}

func newClock() clock {
	var ts unix.Timespec
	base := time.Now()
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts); err != nil {
		panic("clock_gettime: " + err.Error()) // every Linux has it
	}
	return clock{base: base, at: Time(ts.Nano())}
}

func (c *clock) now() Time { return c.at + Time(time.Since(c.base)) }

// Now is the time of this turn.
func (l *Loop) Now() Time {
	if l.now == 0 {
		l.now = l.clock.now()
	}
	return l.now
}

// An Alarm hears of its timer, on the loop, at its time or later and once.
type Alarm interface{ Expired(*Timer) }

// A Timer is a deadline of something that lives on a loop. The zero value is
// not set. It is a part of what it is for, and must not be copied while set.
type Timer struct {
	At    Time // when; 0: not set
	alarm Alarm
	index int // in the heap, from 1; 0: not set
}

// Set has a hear at the time at, instead of what was set before.
func (l *Loop) Set(t *Timer, at Time, a Alarm) {
	t.At, t.alarm = at, a
	if t.index == 0 {
		l.timers.heap = append(l.timers.heap, t)
		t.index = len(l.timers.heap)
		l.timers.up(t.index)
		return
	}
	l.timers.up(t.index)
	l.timers.down(t.index)
}

// Cancel unsets t.
func (l *Loop) Cancel(t *Timer) {
	if t.index != 0 {
		l.timers.remove(t)
	}
	t.At = 0
}

// timers is a heap by time: heap[i-1] is not later than heap[2i-1] and
// heap[2i].
type timers struct{ heap []*Timer }

func (h *timers) next() (Time, bool) {
	if len(h.heap) == 0 {
		return 0, false
	}
	return h.heap[0].At, true
}

// fire tells what is due. What an alarm sets anew for a time that has passed
// waits for the next turn.
func (h *timers) fire(l *Loop) {
	if len(h.heap) == 0 {
		return
	}
	now := l.clock.now()
	for left := len(h.heap); left > 0 && len(h.heap) > 0 && h.heap[0].At <= now; left-- {
		t := h.heap[0]
		h.remove(t)
		t.At = 0
		t.alarm.Expired(t)
	}
}

func (h *timers) remove(t *Timer) {
	i, last := t.index, len(h.heap)
	h.swap(i, last)
	h.heap[last-1] = nil
	h.heap = h.heap[:last-1]
	t.index = 0
	if i < last {
		h.up(i)
		h.down(i)
	}
}

func (h *timers) swap(i, j int) {
	h.heap[i-1], h.heap[j-1] = h.heap[j-1], h.heap[i-1]
	h.heap[i-1].index, h.heap[j-1].index = i, j
}

func (h *timers) up(i int) {
	for ; i > 1 && h.heap[i-1].At < h.heap[i/2-1].At; i /= 2 {
		h.swap(i, i/2)
	}
}

func (h *timers) down(i int) {
	for {
		least := i
		for child := 2 * i; child <= 2*i+1 && child <= len(h.heap); child++ {
			if h.heap[child-1].At < h.heap[least-1].At {
				least = child
			}
		}
		if least == i {
			return
		}
		h.swap(i, least)
		i = least
	}
}
