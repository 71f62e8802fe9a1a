// SPDX-License-Identifier: Apache-2.0

package inpod

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/ztunnel-go/ztunnel/internal/zds"
	"github.com/ztunnel-go/ztunnel/internal/zds/zdspb"
	"github.com/ztunnel-go/ztunnel/test/fakeagent"
	"github.com/ztunnel-go/ztunnel/test/leak"
)

var somebody = &zdspb.WorkloadInfo{Name: "n", Namespace: "ns", ServiceAccount: "sa"}

// A live is an Enrollment that runs against a socket.
type live struct {
	*stage
	e      *Enrollment
	path   string
	logs   *lines
	ended  chan error // what Run returned
	cancel context.CancelFunc
}

func running(t *testing.T, change ...func(*Config)) *live {
	t.Helper()
	st := newStage()
	l := &live{stage: st, path: filepath.Join(t.TempDir(), "s"), logs: &lines{}, ended: make(chan error, 1)}
	cfg := st.config()
	cfg.Socket, cfg.Logger = l.path, slog.New(slog.NewTextHandler(l.logs, nil))
	for _, c := range change {
		c(&cfg)
	}
	l.e = New(cfg)
	ctx, cancel := context.WithCancel(t.Context())
	l.cancel = cancel
	var run sync.WaitGroup
	run.Go(func() { l.ended <- l.e.Run(ctx) })
	t.Cleanup(func() {
		cancel()
		run.Wait()
		l.e.Close()
	})
	return l
}

// until waits for a condition.
func until(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%s: not after 10 s", what)
		}
	}
}

func (l *live) isReady() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.ready
}

type lines struct {
	mu  sync.Mutex
	buf bytes.Buffer // guarded by mu
}

func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.Write(p)
}

func (l *lines) has(part string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return strings.Contains(l.buf.String(), part)
}

func TestFollowsAnAgent(t *testing.T) {
	leak.Check(t)
	l := running(t)
	until(t, "warning", func() bool { return l.logs.has("is the node agent healthy?") })
	ns := ownNS(t)
	defer ns.Close()
	pod := func(uid string) fakeagent.Pod { return fakeagent.Pod{UID: uid, Name: uid, Namespace: "ns", NS: ns} }
	agent, err := fakeagent.Start(l.path, pod("a"), pod("b"))
	if err != nil {
		t.Fatal(err)
	}
	defer agent.Close()
	if err := agent.AwaitSnapshots(t.Context(), 1); err != nil {
		t.Fatal(err)
	}
	l.want(t, "start a, start b", "active 2 pending 0 started 2 stopped 0 ready true []")
	if err := agent.Del("a"); err != nil {
		t.Error(err)
	}
	l.set(func() { l.fail["c"] = errBroken })
	var refused *fakeagent.Refused
	if err := agent.Add(pod("c")); !errors.As(err, &refused) || refused.Text != "failure to start proxy : broken" {
		t.Errorf("%v", err)
	}
	if l.isReady() {
		t.Error("ready with a pod that is not served")
	}
	l.set(func() { delete(l.fail, "c") })
	agent.Disconnect() // and the snapshot of the new connection has it again
	if err := agent.AwaitSnapshots(t.Context(), 2); err != nil {
		t.Fatal(err)
	}
	until(t, "removal", func() bool { return l.counts() == "active 2 pending 0 started 3 stopped 1 ready true []" })
	if !l.logs.has("process stream ended with eof") || !l.logs.has("pod received, starting proxy") {
		t.Error("the log does not tell")
	}
	agent.Forget("b")
	agent.Disconnect()
	until(t, "park", func() bool { return strings.Contains(l.did(), "park b") })
	agent.Close()
	until(t, "unready", func() bool { return !l.isReady() })
	l.cancel()
	if err := <-l.ended; err != nil {
		t.Errorf("Run = %v", err)
	}
	l.e.Close()
	if did := l.did(); did != "forget b, drain c" && did != "drain c, forget b" {
		t.Errorf("did %q at the end", did)
	}
}

func accept(t *testing.T, l *fakeagent.Listener) *fakeagent.Conn {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	c, err := l.Accept(ctx)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

func listen(t *testing.T, path string) *fakeagent.Listener {
	t.Helper()
	l, err := fakeagent.Listen(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l
}

// TestNonsenseEndsTheConnectionAndNoMore is every corruption of contract 10.3.
func TestNonsenseEndsTheConnectionAndNoMore(t *testing.T) {
	leak.Check(t)
	l := running(t)
	agent := listen(t, l.path)
	ns := ownNS(t)
	defer ns.Close()
	add := []byte{0x0a, 0x08, 0x0a, 0x01, 'u', 0x12, 0x03, 0x0a, 0x01, 'p'}
	for _, tc := range []struct {
		name string
		data []byte
		fds  []int
		want string
	}{
		{"add without descriptor", add, nil, "No control message"},
		{"add with two", add, []int{ns.Fd(), ns.Fd()}, "Expected 1 FD, got 2"},
		{"del with a descriptor", []byte{0x12, 3, 0x12, 1, 'u'}, []int{ns.Fd()}, "Unexpected control message"},
		{"too long", bytes.Repeat([]byte{0x12, 3, 0x12, 1, 'u'}, 1000), nil, "received truncated message"},
		{"cut", add[:7], []int{ns.Fd()}, "cannot parse"},
		{"garbage", []byte("GET / HTTP/1.1\r\n\r\n"), nil, "cannot parse"},
		{"nothing known", []byte{0x7a, 0}, nil, "no payload"},
	} {
		c := accept(t, agent)
		if err := c.SnapshotSent(); err != nil {
			t.Fatalf("%s: %v", tc.name, err)
		}
		if !l.isReady() {
			t.Errorf("%s: not ready before", tc.name)
		}
		err := c.SendRaw(tc.data, tc.fds...)
		if err == nil || !strings.HasPrefix(err.Error(), "failure to read message : ") || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: answered %v, want %q", tc.name, err, tc.want)
		}
		if err := c.AwaitClosed(); err != nil {
			t.Errorf("%s: %v", tc.name, err)
		}
		until(t, tc.name+": unready", func() bool { return !l.isReady() })
		c.Close()
	}
	c := accept(t, agent)
	if err := errors.Join(c.Add("a", somebody, ns), c.SnapshotSent()); err != nil {
		t.Error(err)
	}
	l.want(t, "start a", "active 1 pending 0 started 1 stopped 0 ready true []")
}

func TestARequestOutOfOrderEndsRun(t *testing.T) {
	ns := ownNS(t)
	defer ns.Close()
	for _, tc := range []struct {
		name string
		send func(*fakeagent.Conn) error
		want string
	}{
		{"no info", func(c *fakeagent.Conn) error { return c.Add("a", nil, ns) }, "workload_info is required but not present"},
		{"late keep", func(c *fakeagent.Conn) error { c.SnapshotSent(); return c.Keep("a") }, "pod keep received after snapshot"},
		{"second snapshot", func(c *fakeagent.Conn) error { c.SnapshotSent(); return c.SnapshotSent() }, "pod snapshot received already"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			leak.Check(t)
			l := running(t)
			agent := listen(t, l.path)
			want := `ProtocolError("` + tc.want + `")`
			if err := tc.send(accept(t, agent)); text(err) != "failure to process message : "+want {
				t.Errorf("answered %v", err)
			}
			var fatal *ProtocolError
			if err := <-l.ended; !errors.As(err, &fatal) || err.Error() != want {
				t.Errorf("Run = %v", err)
			}
			if !l.logs.has("WorkloadProxyManager run error: ") {
				t.Error("the log does not tell")
			}
		})
	}
}

func TestAnAgentThatHangsUpAtOnceIsNotHammered(t *testing.T) {
	leak.Check(t)
	l := running(t)
	agent := listen(t, l.path)
	began := time.Now()
	for range 5 {
		accept(t, agent).Close()
	}
	accept(t, agent)
	if took, want := time.Since(began), (20+40+80+160)*time.Millisecond; took < want {
		t.Errorf("six connections in %v", took)
	}
}

func TestWaitsLongerBetweenAttemptsToConnect(t *testing.T) {
	for _, tc := range []struct {
		name   string
		err    error
		first  time.Duration
		jitter float64
	}{
		{"nobody listens", errBroken, connectDelay, 0},
		{"the greeting fails", &zds.HelloError{}, helloDelay, helloJitter},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				st := newStage()
				e := New(st.config())
				var dialled []time.Time
				e.dial = func(context.Context, string) (*zds.Session, error) {
					dialled = append(dialled, time.Now())
					return nil, tc.err
				}
				ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
				defer cancel()
				if err := e.Run(ctx); err != nil {
					t.Errorf("Run = %v", err)
				}
				want := tc.first
				for i := range dialled[1:] {
					low, high := float64(want)*(1-tc.jitter), float64(want)*(1+tc.jitter)
					if got := float64(dialled[i+1].Sub(dialled[i])); got < low || got > high {
						t.Errorf("wait %d was %v, want %v", i, time.Duration(got), want)
					}
					want = min(2*want, maxDelay)
				}
				if len(dialled) < 10 {
					t.Errorf("dialled %d times", len(dialled))
				}
				e.Close()
			})
		})
	}
}
