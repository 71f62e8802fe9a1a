// SPDX-License-Identifier: Apache-2.0

package fakeagent

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"

	"github.com/ztunnel-go/ztunnel/internal/netns"
	"github.com/ztunnel-go/ztunnel/internal/zds/zdspb"
)

// A Pod is what an agent tells of a pod.
type Pod struct {
	UID, Name, Namespace, ServiceAccount string

	// NS stays the caller's; it must be open as long as the agent may tell it.
	// Without one the pod is told by a keep, in snapshots only.
	NS *netns.NS
}

// An Answer is one request of an [Agent] and what became of it.
type Answer struct {
	Request string // "add", "keep", "del" or "snapshot"
	UID     string
	Err     error // nil: accepted; *Refused: the proxy said no; else: no answer came
}

// An Agent tells its pods to the proxy that connected last. Several proxies
// may be connected, as during an upgrade; earlier ones are told no more.
type Agent struct {
	listener *Listener
	cancel   context.CancelFunc
	serving  sync.WaitGroup // the accept loop; ends when cancelled

	mu      sync.Mutex      // held while a request waits for its answer
	pods    []Pod           // guarded by mu; in the order they were added
	conns   []*Conn         // guarded by mu; the last is told
	answers []Answer        // guarded by mu
	has     map[string]bool // guarded by mu; uids that a proxy has accepted since Add
	taken   int             // guarded by mu; snapshots that were answered
	more    chan struct{}   // guarded by mu; closed when taken grows
}

// Start listens on path, with pods to begin with.
func Start(path string, pods ...Pod) (*Agent, error) {
	l, err := Listen(path)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(context.Background())
	a := &Agent{listener: l, cancel: cancel, pods: slices.Clone(pods), has: map[string]bool{}, more: make(chan struct{})}
	a.serving.Go(func() { a.serve(ctx) })
	return a, nil
}

func (a *Agent) serve(ctx context.Context) {
	for ctx.Err() == nil {
		c, err := a.listener.Accept(ctx)
		if err != nil {
			continue // a proxy that died in the greeting, or the end
		}
		a.mu.Lock()
		a.conns = append(a.conns, c)
		a.replayLocked()
		a.mu.Unlock()
	}
}

// replayLocked tells everything to the last connection. a.mu is held.
func (a *Agent) replayLocked() {
	for _, p := range a.pods {
		var refused *Refused
		if err := a.tellLocked(p); err != nil && !errors.As(err, &refused) {
			return
		}
	}
	if a.sendLocked("snapshot", "", (*Conn).SnapshotSent) == nil {
		a.taken++
		close(a.more)
		a.more = make(chan struct{})
	}
}

func (a *Agent) tellLocked(p Pod) error {
	if p.NS == nil {
		return a.sendLocked("keep", p.UID, func(c *Conn) error { return c.Keep(p.UID) })
	}
	info := &zdspb.WorkloadInfo{Name: p.Name, Namespace: p.Namespace, ServiceAccount: p.ServiceAccount}
	connected := len(a.conns) > 0
	err := a.sendLocked("add", p.UID, func(c *Conn) error { return c.Add(p.UID, info, p.NS) })
	a.has[p.UID] = a.has[p.UID] || connected && err == nil
	return err
}

// sendLocked sends on the last connection, and drops it if that fails. a.mu is
// held.
func (a *Agent) sendLocked(request, uid string, send func(*Conn) error) error {
	if len(a.conns) == 0 {
		return nil
	}
	c := a.conns[len(a.conns)-1]
	err := send(c)
	a.answers = append(a.answers, Answer{request, uid, err})
	var refused *Refused
	if err != nil && !errors.As(err, &refused) {
		c.Close()
		a.conns = a.conns[:len(a.conns)-1]
	}
	return err
}

// Add enrols a pod, in place of one with its uid. With a proxy connected it
// returns what that said; else the pod is told when one connects.
func (a *Agent) Add(p Pod) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.forgetLocked(p.UID)
	a.pods = append(a.pods, p)
	return a.tellLocked(p)
}

// Accepted says whether a proxy has accepted the pod since it was added. Until
// then kubelet would not start its containers.
func (a *Agent) Accepted(uid string) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.has[uid]
}

// Del takes a pod off the list and says so.
func (a *Agent) Del(uid string) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if !a.forgetLocked(uid) {
		return fmt.Errorf("agent: no pod %q", uid)
	}
	return a.sendLocked("del", uid, func(c *Conn) error { return c.Del(uid) })
}

// Forget takes a pod off the list without a word: the next snapshot lacks it.
func (a *Agent) Forget(uid string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.forgetLocked(uid)
}

func (a *Agent) forgetLocked(uid string) bool {
	before := len(a.pods)
	delete(a.has, uid)
	a.pods = slices.DeleteFunc(a.pods, func(p Pod) bool { return p.UID == uid })
	return len(a.pods) < before
}

// Disconnect ends all connections, as a restart of the agent does. Proxies
// reconnect and get a new snapshot.
func (a *Agent) Disconnect() {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, c := range a.conns {
		c.Close()
	}
	a.conns = nil
}

// Snapshots is how many snapshots proxies have taken so far.
func (a *Agent) Snapshots() int {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.taken
}

// AwaitSnapshots waits until n snapshots have been taken since the start: the
// first when a proxy has connected, one more for each time that one comes back.
func (a *Agent) AwaitSnapshots(ctx context.Context, n int) error {
	for {
		a.mu.Lock()
		taken, more := a.taken, a.more
		a.mu.Unlock()
		if taken >= n {
			return nil
		}
		select {
		case <-more:
		case <-ctx.Done():
			return fmt.Errorf("agent: %d of %d snapshots were taken: %w", taken, n, ctx.Err())
		}
	}
}

// Answers are all requests so far, oldest first.
func (a *Agent) Answers() []Answer {
	a.mu.Lock()
	defer a.mu.Unlock()
	return slices.Clone(a.answers)
}

// Close ends all connections and removes the socket.
func (a *Agent) Close() error {
	a.cancel()
	a.serving.Wait()
	a.Disconnect()
	return a.listener.Close()
}
