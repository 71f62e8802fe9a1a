// SPDX-License-Identifier: Apache-2.0

package inpod

import (
	"sync/atomic"
	"testing"
	"time"
)

// settling counts calls of Settled.
func settling(t *testing.T, fn func(s script, calls *atomic.Int32)) {
	t.Helper()
	play(t, func(s script) {
		var calls atomic.Int32
		s.e.cfg.Settled = func() { calls.Add(1) }
		fn(s, &calls)
	})
}

func TestItIsSettledAMinuteAfterTheSnapshot(t *testing.T) {
	settling(t, func(s script, calls *atomic.Int32) {
		s.pass(2 * parkTime)
		if n := calls.Load(); n != 0 {
			t.Errorf("%d calls before there was a snapshot", n)
		}
		s.snapshot()
		s.pass(parkTime - time.Second)
		if n := calls.Load(); n != 0 {
			t.Errorf("%d calls before the minute was over", n)
		}
		s.pass(time.Second)
		s.pass(5 * parkTime)
		if n := calls.Load(); n != 1 {
			t.Errorf("%d calls, want one", n)
		}
	})
}

func TestTheMinuteIsThatOfOneConnection(t *testing.T) {
	settling(t, func(s script, calls *atomic.Int32) {
		s.snapshot()
		s.pass(parkTime - time.Second)
		s.reconnect()
		s.pass(5 * parkTime)
		if n := calls.Load(); n != 0 {
			t.Errorf("%d calls without a snapshot on this connection", n)
		}
		s.snapshot()
		s.pass(parkTime)
		if n := calls.Load(); n != 1 {
			t.Errorf("%d calls, want one", n)
		}
	})
}

func TestNothingIsSettledAfterTheEnd(t *testing.T) {
	settling(t, func(s script, calls *atomic.Int32) {
		s.snapshot()
		s.e.Close()
		s.pass(2 * parkTime)
		if n := calls.Load(); n != 0 {
			t.Errorf("%d calls after Close", n)
		}
	})
}
