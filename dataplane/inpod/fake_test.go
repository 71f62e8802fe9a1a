// SPDX-License-Identifier: Apache-2.0

package inpod

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/ztunnel-go/ztunnel/internal/netns"
	"github.com/ztunnel-go/ztunnel/internal/zds"
	"github.com/ztunnel-go/ztunnel/test/privileged"
)

// A stage is everything around an Enrollment: the proxies it starts and the
// hooks it calls.
type stage struct {
	mu              sync.Mutex
	fail            map[string]error         // guarded by mu; starts of that uid fail
	hang            map[string]chan struct{} // guarded by mu; starts of that uid wait for it, or for ctx
	sick            map[string]error         // guarded by mu; what Health says
	slow            chan struct{}            // guarded by mu; stops wait for it
	events          []string                 // guarded by mu; "start u", "park u", ...
	active, pending int                      // guarded by mu
	started, ended  int                      // guarded by mu
	ready           bool                     // guarded by mu
	waiting         []string                 // guarded by mu
}

func newStage() *stage {
	return &stage{fail: map[string]error{}, hang: map[string]chan struct{}{}, sick: map[string]error{}}
}

func (s *stage) config() Config {
	return Config{Start: s.start, Metrics: s, Ready: func(ready bool, waiting []string) {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.ready, s.waiting = ready, slices.Clone(waiting)
	}}
}

func (s *stage) start(ctx context.Context, pod Pod, ns *netns.NS) (Proxy, error) {
	s.mu.Lock()
	err, hang := s.fail[pod.UID], s.hang[pod.UID]
	s.events = append(s.events, "start "+pod.UID)
	s.mu.Unlock()
	if hang != nil {
		select {
		case <-hang:
		case <-ctx.Done():
			err = ctx.Err()
		}
	}
	if err != nil {
		ns.Close()
		return nil, err
	}
	return &fakeProxy{s, pod, ns}, nil
}

type fakeProxy struct {
	s   *stage
	pod Pod
	ns  *netns.NS
}

func (p *fakeProxy) Stop(mode StopMode) error {
	p.s.mu.Lock()
	slow := p.s.slow
	p.s.events = append(p.s.events, mode.String()+" "+p.pod.UID)
	p.s.mu.Unlock()
	if slow != nil {
		<-slow
	}
	if mode != Park { // which keeps what Remove needs
		return p.ns.Close()
	}
	return nil
}

func (p *fakeProxy) Hurry() { p.s.set(func() { p.s.events = append(p.s.events, "hurry "+p.pod.UID) }) }

func (p *fakeProxy) Health() error {
	p.s.mu.Lock()
	defer p.s.mu.Unlock()
	return p.s.sick[p.pod.UID]
}

func (s *stage) SetActive(n int)  { s.set(func() { s.active = n }) }
func (s *stage) SetPending(n int) { s.set(func() { s.pending = n }) }
func (s *stage) Started()         { s.set(func() { s.started++ }) }
func (s *stage) Stopped()         { s.set(func() { s.ended++ }) }

func (s *stage) set(f func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	f()
}

// did returns what happened since it was last asked, in order.
func (s *stage) did() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	all := strings.Join(s.events, ", ")
	s.events = nil
	return all
}

// counts is the metrics and readiness in one line.
func (s *stage) counts() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return fmt.Sprintf("active %d pending %d started %d stopped %d ready %t %v", s.active, s.pending, s.started, s.ended, s.ready, s.waiting)
}

// want compares what happened and the counts.
func (s *stage) want(t *testing.T, did, counts string) {
	t.Helper()
	if got := s.did(); got != did {
		t.Errorf("did %q, want %q", got, did)
	}
	if got := s.counts(); got != counts {
		t.Errorf("counts are %q, want %q", got, counts)
	}
}

// ownNS is the namespace of the test: any will do for proxies that do nothing.
func ownNS(t testing.TB) *netns.NS {
	t.Helper()
	ns, err := netns.Open("/proc/self/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	return ns
}

// otherNS is another namespace.
func otherNS(t testing.TB) *netns.NS {
	t.Helper()
	privileged.Need(t)
	ns, err := netns.New()
	if err != nil {
		t.Fatal(err)
	}
	return ns
}

func addRequest(uid string, ns *netns.NS) zds.Request {
	return zds.Request{Kind: zds.Add, UID: uid, NetNS: ns, Info: &zds.Info{Name: "n-" + uid, Namespace: "ns", ServiceAccount: "sa"}}
}

var errBroken = errors.New("broken")
