// SPDX-License-Identifier: Apache-2.0

package inpod

import (
	"testing"
	"testing/synctest"
	"time"
)

func TestAPodMissingFromASnapshotIsParkedForAMinute(t *testing.T) {
	play(t, func(s script) {
		s.add("a")
		s.snapshot()
		s.reconnect()
		s.snapshot()
		s.want(t, "start a, park a", "active 0 pending 0 started 1 stopped 1 ready true []")
		if got := s.states(); got != "a Parked" {
			t.Error(got)
		}
		s.pass(59 * time.Second)
		s.e.end() // a minute of connected agent it must be
		s.pass(time.Hour)
		s.e.begin()
		s.snapshot()
		s.pass(59 * time.Second)
		s.want(t, "", "active 0 pending 0 started 1 stopped 1 ready true []")
		s.pass(time.Second)
		s.want(t, "remove a", "active 0 pending 0 started 1 stopped 1 ready true []")
		if got := s.states(); got != "" {
			t.Error(got)
		}
	})
}

func TestAParkedPodComesBack(t *testing.T) {
	for _, how := range []string{"add", "keep"} {
		play(t, func(s script) {
			s.add("a")
			s.snapshot()
			s.reconnect()
			s.snapshot()
			s.reconnect()
			s.did()
			if how == "add" {
				s.add("a")
			} else {
				s.keep("a")
				synctest.Wait()
			}
			s.snapshot()
			s.pass(time.Hour)
			s.want(t, "start a, forget a", "active 1 pending 0 started 2 stopped 1 ready true []")
		})
	}
}

func TestAParkedPodWhoseStartFailsStaysClosed(t *testing.T) {
	play(t, func(s script) {
		s.add("a")
		s.snapshot()
		s.reconnect()
		s.snapshot()
		s.fail["a"] = errBroken
		s.handle("failure to start proxy : broken", addRequest("a", ownNS(t)))
		s.want(t, "start a, park a, start a", "active 0 pending 1 started 1 stopped 1 ready false [ns/n-a]")
		s.del("a")
		s.want(t, "remove a", "active 0 pending 0 started 1 stopped 1 ready true []")
	})
}

func TestAParkedPodIsDeleted(t *testing.T) {
	play(t, func(s script) {
		s.add("a")
		s.snapshot()
		s.reconnect()
		s.snapshot()
		s.del("a")
		s.pass(time.Hour)
		s.want(t, "start a, park a, remove a", "active 0 pending 0 started 1 stopped 1 ready true []")
	})
}

func TestAPendingPodMissingFromASnapshotIsForgotten(t *testing.T) {
	play(t, func(s script) {
		s.fail["a"] = errBroken
		s.handle("failure to start proxy : broken", addRequest("a", ownNS(t)))
		s.snapshot()
		s.reconnect()
		s.snapshot()
		s.pass(time.Hour)
		s.want(t, "start a", "active 0 pending 0 started 0 stopped 0 ready true []")
	})
}
