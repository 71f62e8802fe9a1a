// SPDX-License-Identifier: Apache-2.0

// Package inpod knows which pods of the node are enrolled, and keeps a proxy
// running for each.
//
// It follows what the node agent says over a [zds.Session]: snapshot, keep,
// add, delete, and begins anew when the agent comes back. What a proxy is, it
// does not know: one is started by a function it is given. It never imports
// package dataplane.
//
// Every pod is looked after by a goroutine of its own, so none waits for
// another's failing start. A pod that a snapshot does not name is parked: no
// longer served, its capture closed, until the agent deletes it or has been
// connected for a minute without naming it.
//
// There is one lock, [Enrollment]'s. It is never held while a proxy starts or
// stops; the hooks of [Config] are called with it.
package inpod

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/ztunnel-go/ztunnel/internal/netns"
	"github.com/ztunnel-go/ztunnel/internal/zds"
)

// Metrics is told how many pods there are. It is called with a lock held and
// must not call back.
type Metrics interface {
	SetActive(n int)  // pods that are served
	SetPending(n int) // pods whose proxy failed to start and is tried again
	Started()         // a proxy was started
	Stopped()         // a proxy has stopped
}

// Config is what an [Enrollment] needs.
type Config struct {
	Socket  string    // the agent's, INPOD_UDS
	Start   StartFunc // see there
	Logger  *slog.Logger
	Metrics Metrics // nil: nobody counts
	// Ready is called when readiness changes, and whenever what is waited for
	// does: ready after a snapshot with every pod served and healthy. waiting
	// names the pods that are not ("namespace/name", sorted); it is empty too
	// while there is no snapshot. nil: nobody asks. It is called with a lock
	// held and must not call back.
	Ready func(ready bool, waiting []string)
	// Settled is called when the agent has been connected for a minute after
	// its snapshot: what it has not told of by now is gone. It may block, and
	// is not called again before it has returned; Close waits for it. nil:
	// nobody asks.
	Settled func()
	// Missing is asked every ten seconds after the snapshot whether there are
	// pods that the agent has told another proxy, which is gone: it tells each
	// change to the one that connected last, so to one that is being replaced
	// if that was the last to reconnect. Then the conversation is begun anew,
	// and so with a snapshot. nil: there are none.
	Missing func() bool
}

const (
	// startWait is how long an answer waits for a start. Istio's agent gives
	// up on the connection after 5 s, and takes all pods with it.
	startWait = 4 * time.Second
	// startLimit is when a start is told to give up.
	startLimit = 30 * time.Second
	// retryInterval is the reference's (contract 10.3).
	retryInterval = 5 * time.Second
	// parkTime is how long an agent must have been connected without naming a
	// pod for it to be taken for gone.
	parkTime = time.Minute
	// missingInterval is between questions for pods that were told elsewhere.
	missingInterval = 10 * time.Second
	// healthInterval is between questions to a proxy about its health.
	healthInterval = 2 * time.Second
)

// An Enrollment is the set of pods that are served.
type Enrollment struct {
	cfg  Config
	log  *slog.Logger
	dial func(context.Context, string) (*zds.Session, error) // zds.Dial, but in tests

	keepers sync.WaitGroup // one per pod, which ends when it is gone or drained, and calls of Settled

	mu       sync.Mutex
	pods     map[string]*keeper   // guarded by mu; by uid
	leaving  map[*keeper]struct{} // guarded by mu; removed, not yet gone
	seen     map[string]struct{}  // guarded by mu; uids told on this connection before its snapshot
	snapshot bool                 // guarded by mu; this connection's snapshot is complete
	settle   *time.Timer          // guarded by mu; Settled is to be called
	settling sync.Mutex           // held while it is
	closed   bool                 // guarded by mu
	told     string               // guarded by mu; what Ready was told last
}

// New makes an Enrollment without pods. Run fills it, Close empties it.
func New(cfg Config) *Enrollment {
	e := &Enrollment{
		cfg: cfg, log: cfg.Logger, dial: zds.Dial,
		pods: map[string]*keeper{}, leaving: map[*keeper]struct{}{}, seen: map[string]struct{}{},
	}
	if e.log == nil {
		e.log = slog.New(slog.DiscardHandler)
	}
	return e
}

// A ProtocolError is a request out of order. There is no way on from it: the
// agent and we disagree about which pods there are.
type ProtocolError struct{ reason string }

// Error is in the words of the reference (contract 10.3).
func (e *ProtocolError) Error() string { return fmt.Sprintf("ProtocolError(%q)", e.reason) }

var (
	errNoInfo         = &ProtocolError{"workload_info is required but not present"}
	errLateKeep       = &ProtocolError{"pod keep received after snapshot"}
	errSecondSnapshot = &ProtocolError{"pod snapshot received already"}
)

// begin is a new connection: the agent tells everything again. Pods stay as
// they are until its snapshot, so that a restart of the agent disturbs none.
func (e *Enrollment) begin() {
	e.mu.Lock()
	defer e.mu.Unlock()
	clear(e.seen)
	e.snapshot = false
	e.changedLocked()
}

// end is the end of a connection. Time without an agent is no proof that a pod
// is gone.
func (e *Enrollment) end() {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.snapshot = false
	e.unsettleLocked()
	for _, k := range e.pods {
		k.disarmLocked()
	}
	e.changedLocked()
}

// handle does what the agent asks. The error is the refusal to answer with; a
// *ProtocolError ends everything.
func (e *Enrollment) handle(ctx context.Context, req zds.Request) error {
	switch req.Kind {
	case zds.Add:
		return e.add(ctx, req)
	case zds.Keep:
		return e.keep(req.UID)
	case zds.Del:
		e.del(req.UID)
		return nil
	case zds.SnapshotSent:
		return e.reconcile()
	}
	return &ProtocolError{"unknown request " + req.Kind.String()}
}

// add waits until the pod's proxy has started or failed to.
func (e *Enrollment) add(ctx context.Context, req zds.Request) error {
	if req.Info == nil {
		closeNS(req.NetNS)
		return errNoInfo
	}
	pod := Pod{UID: req.UID, Name: req.Info.Name, Namespace: req.Info.Namespace, ServiceAccount: req.Info.ServiceAccount, Late: req.Late}
	e.log.Info("pod received, starting proxy", "uid", pod.UID, "name", pod.Name, "namespace", pod.Namespace)
	k, try := e.enrol(pod, req)
	if try == nil {
		return nil
	}
	late := time.NewTimer(startWait)
	defer late.Stop()
	select {
	case <-try.done:
	case <-late.C:
		return k.overdue(try)
	case <-ctx.Done():
		return ctx.Err()
	}
	return refusal(try.err)
}

// enrol finds or makes the keeper of a pod, and the start to wait for; none
// where the pod is served already.
func (e *Enrollment) enrol(pod Pod, req zds.Request) (*keeper, *attempt) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.closed {
		closeNS(req.NetNS)
		return nil, &attempt{done: closedChan(), err: context.Canceled}
	}
	if !e.snapshot {
		e.seen[pod.UID] = struct{}{}
	}
	k := e.pods[pod.UID]
	if k != nil && k.sameNS(req.NetNS) {
		closeNS(req.NetNS)
		k.reviveLocked()
		if k.running != nil {
			return k, nil
		}
		return k, k.tryLocked()
	}
	if k != nil {
		e.removeLocked(k)
	}
	k = &keeper{e: e, pod: pod, ns: req.NetNS, nsErr: req.NotNetNS, gone: make(chan struct{}), wake: make(chan struct{}, 1), want: up}
	for other := range e.leaving {
		if other.sameNS(k.ns) {
			k.after = append(k.after, other.gone)
			other.hurryLocked() // its capture stands in the way of ours
		}
	}
	e.pods[pod.UID] = k
	try := k.tryLocked()
	e.keepers.Go(k.run)
	return k, try
}

// keep is for a pod that the agent knows and whose namespace it cannot send.
func (e *Enrollment) keep(uid string) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.snapshot {
		return errLateKeep
	}
	e.log.Info("pod keep received. will not delete it when snapshot is sent", "uid", uid)
	e.seen[uid] = struct{}{}
	if k := e.pods[uid]; k != nil {
		k.reviveLocked() // we may have its namespace still
	}
	return nil
}

func (e *Enrollment) del(uid string) {
	e.log.Info("pod delete request, shutting down proxy", "uid", uid)
	e.mu.Lock()
	defer e.mu.Unlock()
	delete(e.seen, uid)
	k := e.pods[uid]
	switch {
	case k == nil:
	case e.snapshot || k.running == nil && k.parked == nil:
		e.removeLocked(k)
	default:
		k.deleted = true // the snapshot will have it removed, and not parked
	}
	e.changedLocked()
}

// reconcile is the end of the snapshot: pods that were not told are parked.
func (e *Enrollment) reconcile() error {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.snapshot {
		return errSecondSnapshot
	}
	e.log.Info("received snapshot sent")
	e.snapshot = true
	for uid, k := range e.pods {
		if _, ok := e.seen[uid]; ok {
			continue
		}
		if k.deleted {
			e.removeLocked(k)
		} else {
			k.parkLocked()
		}
	}
	clear(e.seen)
	if e.cfg.Settled != nil {
		e.settle = time.AfterFunc(parkTime, e.settled)
	}
	e.changedLocked()
	return nil
}

// settled is the end of the minute.
func (e *Enrollment) settled() {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.settle == nil || e.closed {
		return // it was about to be stopped
	}
	e.settle = nil
	e.keepers.Go(func() {
		e.settling.Lock()
		defer e.settling.Unlock()
		e.cfg.Settled()
	})
}

func (e *Enrollment) unsettleLocked() {
	if e.settle != nil {
		e.settle.Stop()
		e.settle = nil
	}
}

// removeLocked has k's proxy removed, in the background. e.mu is held.
func (e *Enrollment) removeLocked(k *keeper) {
	delete(e.pods, k.pod.UID)
	e.leaving[k] = struct{}{}
	k.disarmLocked()
	k.setLocked(gone)
	e.changedLocked()
}

// changedLocked tells the hooks what is new. e.mu is held.
func (e *Enrollment) changedLocked() {
	var active, pending int
	var waiting []string
	for _, k := range e.pods {
		switch {
		case k.want != up:
		case k.running == nil && k.late:
			pending++
			waiting = append(waiting, k.pod.Namespace+"/"+k.pod.Name)
		case k.running != nil:
			active++
			if k.err != nil {
				waiting = append(waiting, k.pod.Namespace+"/"+k.pod.Name)
			}
		}
	}
	if m := e.cfg.Metrics; m != nil {
		m.SetActive(active)
		m.SetPending(pending)
	}
	if e.cfg.Ready == nil {
		return
	}
	slices.Sort(waiting)
	ready := e.snapshot && len(waiting) == 0 && !e.closed
	if tell := fmt.Sprint(ready, waiting); tell != e.told {
		e.told = tell
		e.cfg.Ready(ready, waiting)
	}
}

// Close drains every proxy, all at the same time, and returns when they and
// those removed before have stopped. Call it after Run has returned; later
// calls wait like the first.
func (e *Enrollment) Close() {
	e.mu.Lock()
	e.closed = true
	e.unsettleLocked()
	for _, k := range e.pods {
		k.disarmLocked()
		k.setLocked(drained)
	}
	e.changedLocked()
	e.mu.Unlock()
	e.keepers.Wait()
}

func refusal(err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("failure to start proxy : %w", err)
}

func closeNS(ns *netns.NS) {
	if ns != nil {
		ns.Close()
	}
}

func closedChan() chan struct{} {
	c := make(chan struct{})
	close(c)
	return c
}
