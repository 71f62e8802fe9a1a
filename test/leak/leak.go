// SPDX-License-Identifier: Apache-2.0

// Package leak fails a test that leaves goroutines or descriptors behind.
//
// It compares what the process has when the test ends with what it had when
// [Check] was called. It sees the whole process, so a test that uses it must
// not run in parallel with others. For tests only; knows nothing of ours.
package leak

import (
	"fmt"
	"os"
	"strings"
	"testing"
	"time"
)

// patience is how long something may still be on its way out after a test has
// closed it: a loaded machine with the race detector needs about a second.
const patience = 3 * time.Second

// Check registers a cleanup that fails t if goroutines or descriptors remain
// which were not there when Check was called. Call it first in a test, since
// cleanups run last to first. A test that failed already is not checked: it
// was cut short, and its leaks would only hide the reason.
//
// No garbage collection is forced: a descriptor that only a finalizer would
// close is a leak.
func Check(t testing.TB) {
	t.Helper()
	startPoller(t)
	before := snapshot(t)
	t.Cleanup(func() {
		if t.Failed() {
			return
		}
		deadline := time.Now().Add(patience)
		for wait := time.Millisecond; ; wait = min(2*wait, 100*time.Millisecond) {
			leaked := snapshot(t).since(before)
			if len(leaked) == 0 {
				return
			}
			if time.Now().After(deadline) {
				t.Errorf("left behind after %v:\n%s", patience, strings.Join(leaked, "\n"))
				return
			}
			time.Sleep(wait)
		}
	})
}

// startPoller makes the runtime open its epoll and event descriptors, which it
// does once, at the first use of a pollable file.
func startPoller(t testing.TB) {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatalf("make a pipe: %v", err)
	}
	r.Close()
	w.Close()
}

// A state is what a process holds at one moment.
type state struct {
	goroutines  map[string]string       // by id; the value is the stack
	descriptors map[string][]descriptor // by what they point to
}

func snapshot(t testing.TB) state {
	t.Helper()
	ds, err := descriptors()
	if err != nil {
		t.Fatalf("list descriptors: %v", err)
	}
	return state{goroutines: goroutines(), descriptors: ds}
}

// since describes what s has and before had not.
func (s state) since(before state) []string {
	var leaked []string
	for id, stack := range s.goroutines {
		if _, old := before.goroutines[id]; !old {
			leaked = append(leaked, "goroutine "+stack)
		}
	}
	// By count and not by number: a test may close a descriptor that it found
	// and open the same thing under another number.
	for target, now := range s.descriptors {
		was := before.descriptors[target]
		for _, d := range now[min(len(was), len(now)):] {
			leaked = append(leaked, fmt.Sprintf("descriptor %d: %s", d.number, d.describe()))
		}
	}
	return leaked
}
