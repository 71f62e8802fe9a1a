// SPDX-License-Identifier: Apache-2.0

package inpod

import (
	"errors"
	"os"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/ztunnel-go/ztunnel/internal/zds"
)

// A script runs in a bubble where time is ours.
type script struct {
	*testing.T
	*stage
	e *Enrollment
}

// play runs fn on a fresh Enrollment with a connection begun, and closes it.
func play(t *testing.T, fn func(s script)) {
	t.Helper()
	before := descriptors(t)
	synctest.Test(t, func(t *testing.T) {
		st := newStage()
		s := script{t, st, New(st.config())}
		s.e.begin()
		fn(s)
		s.e.Close()
	})
	if after := descriptors(t); after > before && !t.Failed() {
		t.Errorf("%d descriptors before, %d after", before, after)
	}
}

func descriptors(t *testing.T) int {
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(entries)
}

func (s script) handle(want string, req zds.Request) {
	s.Helper()
	err := s.e.handle(s.Context(), req)
	synctest.Wait()
	if got := text(err); got != want {
		s.Errorf("%v %s: answered %q, want %q", req.Kind, req.UID, got, want)
	}
}

func (s script) add(uid string)  { s.Helper(); s.handle("", addRequest(uid, ownNS(s))) }
func (s script) del(uid string)  { s.Helper(); s.handle("", zds.Request{Kind: zds.Del, UID: uid}) }
func (s script) keep(uid string) { s.Helper(); s.handle("", zds.Request{Kind: zds.Keep, UID: uid}) }
func (s script) snapshot()       { s.Helper(); s.handle("", zds.Request{Kind: zds.SnapshotSent}) }
func (s script) reconnect()      { s.e.end(); s.e.begin(); synctest.Wait() }
func (s script) pass(d time.Duration) {
	time.Sleep(d)
	synctest.Wait()
}

func (s script) states() string {
	var all []string
	for _, p := range s.e.Pods() {
		all = append(all, p.Pod.UID+" "+string(p.State))
	}
	return strings.Join(all, ", ")
}

func text(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}

func TestStartsAProxy(t *testing.T) {
	play(t, func(s script) {
		s.want(t, "", "active 0 pending 0 started 0 stopped 0 ready false []")
		s.add("a")
		s.want(t, "start a", "active 1 pending 0 started 1 stopped 0 ready false []")
		s.snapshot()
		s.add("b")
		s.want(t, "start b", "active 2 pending 0 started 2 stopped 0 ready true []")
		if got := s.states(); got != "a Up, b Up" {
			t.Error(got)
		}
		s.e.Close()
		if did := s.did(); did != "drain a, drain b" && did != "drain b, drain a" {
			t.Error(did)
		}
		if got := s.states(); got != "" {
			t.Error(got)
		}
	})
}

func TestAddAgainIsNothingNew(t *testing.T) {
	play(t, func(s script) {
		s.add("a")
		s.add("a")
		s.snapshot()
		s.add("a")
		s.want(t, "start a", "active 1 pending 0 started 1 stopped 0 ready true []")
	})
}

func TestAFailedStartIsPendingAndTriedEveryFiveSeconds(t *testing.T) {
	play(t, func(s script) {
		s.fail["a"] = errBroken
		s.handle("failure to start proxy : broken", addRequest("a", ownNS(t)))
		s.snapshot()
		s.want(t, "start a", "active 0 pending 1 started 0 stopped 0 ready false [ns/n-a]")
		if got := s.states(); got != "a Pending" || !errors.Is(s.e.Pods()[0].Err, errBroken) {
			t.Error(got)
		}
		s.pass(4900 * time.Millisecond)
		s.want(t, "", "active 0 pending 1 started 0 stopped 0 ready false [ns/n-a]")
		s.add("b") // others do not wait for it
		s.want(t, "start b", "active 1 pending 1 started 1 stopped 0 ready false [ns/n-a]")
		s.pass(5100 * time.Millisecond)
		s.want(t, "start a, start a", "active 1 pending 1 started 1 stopped 0 ready false [ns/n-a]")
		s.set(func() { delete(s.fail, "a") })
		s.pass(5 * time.Second)
		s.want(t, "start a", "active 2 pending 0 started 2 stopped 0 ready true []")
		s.pass(time.Minute)
		s.want(t, "", "active 2 pending 0 started 2 stopped 0 ready true []")
	})
}

func TestAPendingPodIsDeleted(t *testing.T) {
	for _, afterSnapshot := range []bool{false, true} {
		play(t, func(s script) {
			s.fail["a"] = errBroken
			s.handle("failure to start proxy : broken", addRequest("a", ownNS(t)))
			if afterSnapshot {
				s.snapshot()
			}
			s.del("a")
			if !afterSnapshot {
				s.snapshot()
			}
			s.pass(time.Minute)
			s.want(t, "start a", "active 0 pending 0 started 0 stopped 0 ready true []")
			if got := s.states(); got != "" {
				t.Error(got)
			}
		})
	}
}

func TestAddWhilePendingTriesAtOnce(t *testing.T) {
	play(t, func(s script) {
		s.fail["a"] = errBroken
		s.handle("failure to start proxy : broken", addRequest("a", ownNS(t)))
		s.snapshot()
		s.handle("failure to start proxy : broken", addRequest("a", ownNS(t)))
		s.set(func() { delete(s.fail, "a") })
		s.add("a")
		s.want(t, "start a, start a, start a", "active 1 pending 0 started 1 stopped 0 ready true []")
	})
}

func TestAHangingStartHoldsUpNobody(t *testing.T) {
	play(t, func(s script) {
		release := make(chan struct{})
		s.hang["a"] = release
		before := time.Now()
		s.handle("failure to start proxy : it takes longer than 4 s and goes on", addRequest("a", ownNS(t)))
		if took := time.Since(before); took != startWait {
			t.Errorf("the agent waited for %v", took)
		}
		s.add("b")
		s.snapshot()
		s.want(t, "start a, start b", "active 1 pending 1 started 1 stopped 0 ready false [ns/n-a]")
		close(release)
		synctest.Wait()
		s.want(t, "", "active 2 pending 0 started 2 stopped 0 ready true []")
	})
}

func TestDeleteInterruptsAStart(t *testing.T) {
	play(t, func(s script) {
		s.hang["a"] = make(chan struct{})
		s.snapshot()
		s.handle("failure to start proxy : it takes longer than 4 s and goes on", addRequest("a", ownNS(t)))
		s.del("a")
		s.want(t, "start a", "active 0 pending 0 started 0 stopped 0 ready true []")
		if got := s.states(); got != "" {
			t.Error(got)
		}
	})
}

func TestADescriptorThatIsNoNamespaceIsPending(t *testing.T) {
	play(t, func(s script) {
		req := addRequest("a", nil)
		req.NotNetNS = errBroken
		s.handle("failure to start proxy : broken", req)
		s.snapshot()
		s.pass(time.Minute)
		s.want(t, "", "active 0 pending 1 started 0 stopped 0 ready false [ns/n-a]")
		s.add("a")
		s.want(t, "start a", "active 1 pending 0 started 1 stopped 0 ready true []")
	})
}

func TestDeleteAfterTheSnapshotRemovesAtOnce(t *testing.T) {
	play(t, func(s script) {
		s.add("a")
		s.snapshot()
		s.slow = make(chan struct{})
		s.del("a") // answered though the proxy has not stopped
		s.del("unknown")
		s.want(t, "start a, remove a", "active 0 pending 0 started 1 stopped 0 ready true []")
		if got := s.states(); got != "a Stopping" {
			t.Error(got)
		}
		close(s.slow)
		synctest.Wait()
		s.want(t, "", "active 0 pending 0 started 1 stopped 1 ready true []")
		if got := s.states(); got != "" {
			t.Error(got)
		}
	})
}

func TestAddDeleteAddWaitsForTheRemoval(t *testing.T) {
	play(t, func(s script) {
		s.add("a")
		s.snapshot()
		s.slow = make(chan struct{})
		s.del("a")
		// Were it started now, the removal would take its capture away; so that is
		// to be over soon.
		s.handle("failure to start proxy : it takes longer than 4 s and goes on", addRequest("a", ownNS(t)))
		s.want(t, "start a, remove a, hurry a", "active 0 pending 1 started 1 stopped 0 ready false [ns/n-a]")
		close(s.slow)
		synctest.Wait()
		s.want(t, "start a", "active 1 pending 0 started 2 stopped 1 ready true []")
	})
}

func TestDeleteBeforeTheSnapshotWaitsForIt(t *testing.T) {
	play(t, func(s script) {
		s.add("a")
		s.add("b")
		s.del("a")
		s.want(t, "start a, start b", "active 2 pending 0 started 2 stopped 0 ready false []")
		s.snapshot()
		s.want(t, "remove a", "active 1 pending 0 started 2 stopped 1 ready true []")
	})
	play(t, func(s script) {
		s.add("a")
		s.del("a")
		s.add("a")
		s.snapshot()
		s.want(t, "start a", "active 1 pending 0 started 1 stopped 0 ready true []")
	})
}

func TestPodsStayWhileTheAgentRestarts(t *testing.T) {
	play(t, func(s script) {
		s.add("a")
		s.add("b")
		s.snapshot()
		s.reconnect()
		s.want(t, "start a, start b", "active 2 pending 0 started 2 stopped 0 ready false []")
		s.add("a")
		s.keep("b")
		s.keep("unknown")
		s.snapshot()
		s.want(t, "", "active 2 pending 0 started 2 stopped 0 ready true []")
	})
}

func TestAnotherNamespaceIsAnotherPod(t *testing.T) {
	other := otherNS(t)
	play(t, func(s script) {
		s.add("a")
		s.snapshot()
		second, err := other.Dup()
		if err != nil {
			t.Fatal(err)
		}
		s.slow = make(chan struct{}) // the new one does not wait for the old
		s.handle("", addRequest("a", second))
		if did := s.did(); did != "start a, remove a, start a" && did != "start a, start a, remove a" {
			t.Error(did)
		}
		s.want(t, "", "active 1 pending 0 started 2 stopped 0 ready true []")
		if got := s.states(); got != "a Up" {
			t.Error(got)
		}
		close(s.slow)
	})
	if err := other.Close(); err != nil {
		t.Error(err)
	}
}

func TestSicknessOfAProxyIsSeen(t *testing.T) {
	play(t, func(s script) {
		s.add("a")
		s.snapshot()
		s.set(func() { s.sick["a"] = errBroken })
		s.pass(healthInterval)
		s.want(t, "start a", "active 1 pending 0 started 1 stopped 0 ready false [ns/n-a]")
		s.set(func() { delete(s.sick, "a") })
		s.pass(healthInterval)
		s.want(t, "", "active 1 pending 0 started 1 stopped 0 ready true []")
	})
}

func TestCloseAwaitsWhatWasRemoved(t *testing.T) {
	play(t, func(s script) {
		s.add("a")
		s.add("b")
		s.snapshot()
		s.slow = make(chan struct{})
		s.del("a")
		closed := false
		go func() { s.e.Close(); closed = true }()
		synctest.Wait()
		s.want(t, "start a, start b, remove a, drain b", "active 0 pending 0 started 2 stopped 0 ready false []")
		if closed {
			t.Error("did not wait")
		}
		close(s.slow)
		synctest.Wait()
		if !closed {
			t.Error("waits for ever")
		}
		s.handle("failure to start proxy : context canceled", addRequest("c", ownNS(t)))
	})
}

func TestRequestsOutOfOrder(t *testing.T) {
	for _, tc := range []struct {
		want     string
		snapshot bool
		req      zds.Request
	}{
		{`ProtocolError("workload_info is required but not present")`, false, zds.Request{Kind: zds.Add, UID: "a"}},
		{`ProtocolError("pod keep received after snapshot")`, true, zds.Request{Kind: zds.Keep, UID: "a"}},
		{`ProtocolError("pod snapshot received already")`, true, zds.Request{Kind: zds.SnapshotSent}},
	} {
		play(t, func(s script) {
			if tc.snapshot {
				s.snapshot()
			}
			req := tc.req
			if req.Kind == zds.Add {
				req.NetNS = ownNS(t)
			}
			s.handle(tc.want, req)
		})
	}
}
