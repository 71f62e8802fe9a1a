// SPDX-License-Identifier: Apache-2.0

// Package drain ends groups of goroutines in two steps: first they are asked
// (stop accepting, finish what is open), then, at a deadline, they are told.
//
// It knows nothing of sockets or connections: a member of a [Group] watches
// [Group.Draining] to stop taking work and its context to drop what it has.
// It imports only the standard library; anyone may import it.
package drain

import (
	"context"
	"errors"
	"sync"
	"time"
)

// ErrForced is the cause of the context of a group that was told to end, be
// it at the deadline or at once (contract 14.6).
var ErrForced = errors.New("connection closed due to connection drain")

// ErrDeadline is what [Group.Drain] returns when members were still busy at
// the deadline (contract 14.6).
var ErrDeadline = errors.New("connection failed to drain within the timeout")

// A Group is a set of tasks that end together:
//
//	open --Begin--> draining --deadline or Force--> forced
//
// A Group is used from any number of goroutines. Its steps are idempotent,
// and none goes back.
type Group struct {
	ctx      context.Context
	force    context.CancelCauseFunc
	draining chan struct{} // closed by Begin
	empty    chan struct{} // closed when draining and no member is left

	mu      sync.Mutex
	begun   bool // guarded by mu
	members int  // guarded by mu
}

// New returns an open group. Cancelling parent tells its members to end, but
// does not begin a drain by itself.
func New(parent context.Context) *Group {
	ctx, force := context.WithCancelCause(parent)
	return &Group{ctx: ctx, force: force, draining: make(chan struct{}), empty: make(chan struct{})}
}

// Context is what members run under. It ends, with [ErrForced] as its cause,
// when they have to end at once.
func (g *Group) Context() context.Context { return g.ctx }

// Draining is closed when members have to stop taking new work.
func (g *Group) Draining() <-chan struct{} { return g.draining }

// Begun reports whether a drain has begun.
func (g *Group) Begun() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.begun
}

// Enter adds a member, which must call leave once when it ends. ok is false,
// and leave nil, once a drain has begun.
func (g *Group) Enter() (leave func(), ok bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.begun {
		return nil, false
	}
	g.members++
	return sync.OnceFunc(g.leave), true
}

func (g *Group) leave() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.members--
	g.closeIfEmptyLocked()
}

// closeIfEmptyLocked is called with mu held and after every change that can
// make it true; begun stops later entries, so that it is true only once.
func (g *Group) closeIfEmptyLocked() {
	if g.begun && g.members == 0 {
		close(g.empty)
	}
}

// Go runs task as a member in a goroutine that Drain and Force wait for. It
// reports false, and runs nothing, once a drain has begun.
func (g *Group) Go(task func(ctx context.Context)) bool {
	leave, ok := g.Enter()
	if !ok {
		return false
	}
	go func() {
		defer leave()
		task(g.ctx)
	}()
	return true
}

// Begin asks members to finish: no new ones may enter.
func (g *Group) Begin() {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.begun {
		return
	}
	g.begun = true
	close(g.draining)
	g.closeIfEmptyLocked()
}

// Drain begins a drain, gives members until the deadline has passed, tells
// those that are left to end, and waits for them. A deadline of zero or less
// tells them at once. The error is nil or [ErrDeadline].
func (g *Group) Drain(deadline time.Duration) error {
	g.Begin()
	if deadline > 0 {
		timer := time.NewTimer(deadline)
		defer timer.Stop()
		select {
		case <-g.empty:
		case <-timer.C:
		case <-g.ctx.Done():
		}
	}
	select {
	case <-g.empty:
		g.force(nil) // releases the context; nobody is left to notice
		return nil
	default:
	}
	g.Force()
	return ErrDeadline
}

// Force begins a drain, tells members to end at once and waits for them.
func (g *Group) Force() {
	g.Begin()
	g.force(ErrForced)
	<-g.empty
}

// Wait waits until a drain has begun and every member has left, or ctx ends,
// whose cause it then returns. It makes nobody leave.
func (g *Group) Wait(ctx context.Context) error {
	select {
	case <-g.empty:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
