// SPDX-License-Identifier: Apache-2.0

package inpod

import (
	"context"
	"errors"
	"time"

	"github.com/ztunnel-go/ztunnel/internal/netns"
)

// A keeper brings one pod to the state that is wanted of it.
//
//	        start            Stop(Park)
//	(new) --------> running ------------> parked
//	  ^                |  ^                |   |
//	  | fails: 5 s     |  +----- start ----+   |
//	  +---             | Stop(Remove)          | Stop(Remove)
//	                   +-------> gone <--------+
//
// What is wanted may change at any time; run looks again after every step.
type keeper struct {
	e     *Enrollment
	pod   Pod
	ns    *netns.NS         // ours until gone: while it is open its ID is its own
	nsErr error             // why ns is nil
	after []<-chan struct{} // earlier keepers of the namespace: their removal would undo our start
	gone  chan struct{}     // closed at the end
	wake  chan struct{}     // want has changed, or somebody asks for a start

	// All below is guarded by e.mu.

	want     want
	running  Proxy              // serves
	parked   Proxy              // was stopped by Park
	stopping Proxy              // Stop has been called
	cancel   context.CancelFunc // of a start in flight
	try      *attempt           // a start in flight or asked for
	late     bool               // a start has failed or is overdue
	err      error              // of the last start, or of Health
	failed   error              // the last err that was one, also when all is well again
	failedAt time.Time          // when that was
	deleted  bool               // by the agent, before its snapshot
	expiry   *time.Timer        // ends parking
	until    time.Time          // when it does
}

// A want is the state that is wanted of a pod.
type want uint8

const (
	up want = iota + 1
	parked
	gone
	drained
)

// An attempt is one start, for those who wait for it. err may be read when
// done is closed.
type attempt struct {
	done chan struct{}
	err  error
}

func newAttempt() *attempt { return &attempt{done: make(chan struct{})} }

var errOverdue = errors.New("it takes longer than 4 s and goes on")

// run ends when the pod is gone or drained.
func (k *keeper) run() {
	defer close(k.gone)
	for _, c := range k.after {
		<-c
	}
	for k.step() {
	}
}

// step does one thing towards what is wanted, or waits for that to change. It
// reports whether there is more to come.
func (k *keeper) step() bool {
	k.e.mu.Lock()
	want, running, wasParked := k.want, k.running, k.parked
	if want == parked && running == nil && wasParked == nil {
		k.leaveLocked() // never served: there is nothing to keep closed
		k.e.mu.Unlock()
		return false
	}
	k.e.mu.Unlock()
	switch {
	case want == up && running == nil:
		k.start()
	case want == up:
		k.watch(running)
	case want == parked && running != nil:
		k.stop(running, Park)
	case want == parked:
		<-k.wake
	default:
		k.finish(want, running, wasParked)
		return false
	}
	return true
}

// finish ends the keeper.
func (k *keeper) finish(want want, running, wasParked Proxy) {
	switch {
	case want == drained && running != nil:
		k.stop(running, Drain)
	case want == drained && wasParked != nil:
		k.logStop(Forget, wasParked.Stop(Forget))
	case want == gone && running != nil:
		k.stop(running, Remove)
	case want == gone && wasParked != nil:
		k.logStop(Remove, wasParked.Stop(Remove))
	}
	k.e.mu.Lock()
	defer k.e.mu.Unlock()
	k.leaveLocked()
}

// leaveLocked lets go of everything. e.mu is held.
func (k *keeper) leaveLocked() {
	if k.e.pods[k.pod.UID] == k {
		delete(k.e.pods, k.pod.UID)
	}
	delete(k.e.leaving, k)
	k.disarmLocked()
	closeNS(k.ns)
	k.ns = nil
	k.e.changedLocked()
	k.endTryLocked(context.Canceled)
}

// start tries once, and after a failure waits for the next time.
func (k *keeper) start() {
	ctx, cancel := context.WithTimeout(context.Background(), startLimit)
	defer cancel()
	k.e.mu.Lock()
	if k.want != up {
		k.e.mu.Unlock()
		return
	}
	select {
	case <-k.wake: // whatever it was for is known now; it must not cut the pause short
	default:
	}
	k.cancel = cancel
	again := k.late
	if k.try == nil {
		k.try = newAttempt()
	}
	k.e.mu.Unlock()
	if again {
		k.e.log.Info("retrying workload", "uid", k.pod.UID)
	}
	proxy, err := k.startIn(ctx)
	if k.started(proxy, err) {
		k.e.log.Warn("failed to start proxy, scheduling retry", "uid", k.pod.UID, "name", k.pod.Name, "namespace", k.pod.Namespace, "error", err)
		k.pause()
	}
}

// started takes note of how a start ended, and reports whether to try again.
func (k *keeper) started(proxy Proxy, err error) (retry bool) {
	k.e.mu.Lock()
	k.cancel = nil
	k.noteLocked(err)
	k.late = err != nil
	var before Proxy
	if err == nil {
		k.running, before, k.parked = proxy, k.parked, nil
		if k.e.cfg.Metrics != nil {
			k.e.cfg.Metrics.Started()
		}
	}
	retry = err != nil && k.want == up
	k.e.changedLocked()
	k.endTryLocked(err) // last: what the agent is answered, readiness and metrics say already
	k.e.mu.Unlock()
	if before != nil {
		k.logStop(Forget, before.Stop(Forget))
	}
	return retry
}

func (k *keeper) startIn(ctx context.Context) (Proxy, error) {
	if k.ns == nil {
		return nil, k.nsErr
	}
	ns, err := k.ns.Dup()
	if err != nil {
		return nil, err
	}
	return k.e.cfg.Start(ctx, k.pod, ns)
}

// pause waits until a failed start is to be tried again.
func (k *keeper) pause() {
	if k.ns == nil {
		<-k.wake // it can only fail; the agent has to send another
		return
	}
	retry := time.NewTimer(retryInterval)
	defer retry.Stop()
	select {
	case <-retry.C:
	case <-k.wake:
	}
}

// watch asks p how it is until something else is wanted.
func (k *keeper) watch(p Proxy) {
	tick := time.NewTicker(healthInterval)
	defer tick.Stop()
	for {
		select {
		case <-k.wake:
			return
		case <-tick.C:
		}
		err := p.Health()
		k.e.mu.Lock()
		was := k.err
		k.noteLocked(err)
		k.e.changedLocked()
		k.e.mu.Unlock()
		switch {
		case err != nil && was == nil:
			k.e.log.Error("pod is not captured as it should be", "uid", k.pod.UID, "name", k.pod.Name, "namespace", k.pod.Namespace, "error", err)
		case err == nil && was != nil:
			k.e.log.Info("pod is captured again", "uid", k.pod.UID, "name", k.pod.Name, "namespace", k.pod.Namespace)
		}
	}
}

// stop stops the proxy that runs.
func (k *keeper) stop(p Proxy, mode StopMode) {
	k.e.mu.Lock()
	k.running, k.stopping = nil, p
	k.e.changedLocked()
	k.e.mu.Unlock()
	k.logStop(mode, p.Stop(mode))
	k.e.mu.Lock()
	defer k.e.mu.Unlock()
	k.stopping, k.err = nil, nil
	if mode == Park {
		k.parked = p
	}
	if k.e.cfg.Metrics != nil {
		k.e.cfg.Metrics.Stopped()
	}
}

// noteLocked takes note of how the pod is. e.mu is held.
func (k *keeper) noteLocked(err error) {
	k.err = err
	if err != nil {
		k.failed, k.failedAt = err, time.Now()
	}
}

func (k *keeper) logStop(mode StopMode, err error) {
	if err != nil {
		k.e.log.Error("failed to stop proxy", "uid", k.pod.UID, "name", k.pod.Name, "namespace", k.pod.Namespace, "mode", mode.String(), "error", err)
	}
}

// setLocked changes what is wanted, and interrupts a start that is no longer.
// e.mu is held.
func (k *keeper) setLocked(w want) {
	if k.want == w || k.want == gone || k.want == drained {
		return // those two are for good
	}
	k.want = w
	if k.cancel != nil && w != up {
		k.cancel()
	}
	k.wakeLocked()
}

func (k *keeper) wakeLocked() {
	select {
	case k.wake <- struct{}{}:
	default:
	}
}

// reviveLocked has the pod served again, if it was not. e.mu is held.
func (k *keeper) reviveLocked() {
	k.deleted = false
	k.disarmLocked()
	k.setLocked(up)
}

// parkLocked begins to park the pod, or counts its minute anew. e.mu is held.
func (k *keeper) parkLocked() {
	k.setLocked(parked)
	k.disarmLocked()
	k.until = time.Now().Add(parkTime)
	k.expiry = time.AfterFunc(parkTime, k.expire)
}

func (k *keeper) disarmLocked() {
	if k.expiry != nil {
		k.expiry.Stop()
		k.expiry = nil
	}
}

// expire removes a pod that was parked for long enough.
func (k *keeper) expire() {
	k.e.mu.Lock()
	defer k.e.mu.Unlock()
	if k.expiry == nil || k.e.closed || !k.e.snapshot || k.want != parked || time.Now().Before(k.until) {
		return // it was about to be stopped
	}
	k.e.log.Info("pod was not named by the node agent for a minute, removing it", "uid", k.pod.UID, "name", k.pod.Name, "namespace", k.pod.Namespace)
	k.e.removeLocked(k)
}

// hurryLocked ends the grace of a pod that goes. e.mu is held.
func (k *keeper) hurryLocked() {
	for _, p := range []Proxy{k.running, k.stopping} {
		if p != nil {
			p.Hurry()
		}
	}
}

// tryLocked is the start in flight; if there is none, one is asked for. e.mu
// is held.
func (k *keeper) tryLocked() *attempt {
	if k.try == nil {
		k.try = newAttempt()
		k.wakeLocked()
	}
	return k.try
}

func (k *keeper) endTryLocked(err error) {
	if k.try != nil {
		k.try.err = err
		close(k.try.done)
		k.try = nil
	}
}

// overdue answers an agent that cannot wait any longer for a start.
func (k *keeper) overdue(try *attempt) error {
	k.e.mu.Lock()
	defer k.e.mu.Unlock()
	if k.try != try {
		return refusal(try.err) // it has ended just now
	}
	k.late, k.err = true, errOverdue
	k.e.changedLocked()
	return refusal(errOverdue)
}

// sameNS reports whether k's namespace is ns. e.mu is held, or k is new.
func (k *keeper) sameNS(ns *netns.NS) bool {
	return k.ns != nil && ns != nil && k.ns.ID() == ns.ID()
}

func (k *keeper) statusLocked() Status {
	s := Status{Pod: k.pod, State: StatePending, Err: k.err, LastErr: k.failed, LastErrAt: k.failedAt, Proxy: k.running}
	switch {
	case k.stopping != nil:
		s.State, s.Proxy = StateStopping, k.stopping
	case k.want == gone || k.want == drained:
		s.State = StateStopping
	case k.running != nil:
		s.State = StateUp
	case k.want == parked:
		s.State = StateParked
	}
	return s
}
