// SPDX-License-Identifier: Apache-2.0

package relay

import (
	"context"
	"slices"
	"sync"
	"time"
)

// A Life is the context of one user connection, from its accept to its end. It
// does what context.WithCancelCause does in a fraction of the memory: a node
// has tens of thousands of connections that do nothing but stay open. It has
// no values and no deadline, and its Err is its cause.
type Life struct {
	all        *Lives
	prev, next *Life // guarded by all.mu; both nil: it is not among them

	mu      sync.Mutex
	cause   error         // guarded by mu; not nil: it is over
	done    chan struct{} // guarded by mu; nil: nobody has asked for it
	watcher Watcher       // guarded by mu
	hooks   []*hook       // guarded by mu
}

// A hook is a function to be called at the end.
type hook struct{ f func() }

// A Watcher hears of the end of a context, on the goroutine of whoever ends it,
// and does not wait.
type Watcher interface{ LifeEnded() }

// Lives are those that are not over. The zero value has none; it is not copied.
type Lives struct {
	mu    sync.Mutex
	first *Life // guarded by mu
	cause error // guarded by mu: End was called
}

// Begin begins another. After [Lives.End] it is over at once.
func (a *Lives) Begin() *Life {
	l := &Life{all: a}
	a.mu.Lock()
	cause := a.cause
	if cause == nil {
		if l.next = a.first; l.next != nil {
			l.next.prev = l
		}
		a.first = l
	}
	a.mu.Unlock()
	if cause != nil {
		l.End(cause)
	}
	return l
}

// End ends all there are, and those that will be begun.
func (a *Lives) End(cause error) {
	a.mu.Lock()
	a.cause = cause
	var all []*Life
	for l := a.first; l != nil; l = l.next {
		all = append(all, l)
	}
	a.mu.Unlock()
	for _, l := range all {
		l.End(cause)
	}
}

func (a *Lives) leave(l *Life) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if l.prev != nil {
		l.prev.next = l.next
	} else if a.first == l {
		a.first = l.next
	}
	if l.next != nil {
		l.next.prev = l.prev
	}
	l.prev, l.next = nil, nil
}

// End ends it because of cause; nil: because there is nothing left of the
// connection, context.Canceled. The first cause stays.
func (l *Life) End(cause error) {
	if cause == nil {
		cause = context.Canceled
	}
	l.mu.Lock()
	if l.cause != nil {
		l.mu.Unlock()
		return
	}
	l.cause = cause
	done, watcher, hooks := l.done, l.watcher, l.hooks
	l.watcher, l.hooks = nil, nil
	if done != nil {
		close(done)
	}
	l.mu.Unlock()
	l.all.leave(l)
	for _, h := range hooks {
		go h.f() // as of context.AfterFunc: its caller sees to it that it ends
	}
	if watcher != nil {
		watcher.LifeEnded()
	}
}

// Deadline is none.
func (l *Life) Deadline() (time.Time, bool) { return time.Time{}, false }

// Value is nil.
func (l *Life) Value(any) any { return nil }

// Err is the cause of its end.
func (l *Life) Err() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.cause
}

// Done is closed at the end.
func (l *Life) Done() <-chan struct{} {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.done == nil {
		l.done = make(chan struct{})
		if l.cause != nil {
			close(l.done)
		}
	}
	return l.done
}

// AfterFunc has f run in a goroutine of its own at the end. Package context
// asks for it on behalf of contexts that are made of this one.
func (l *Life) AfterFunc(f func()) (stop func() bool) {
	h := &hook{f}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.cause != nil {
		go f()
		return func() bool { return false }
	}
	l.hooks = append(l.hooks, h)
	return func() bool {
		l.mu.Lock()
		defer l.mu.Unlock()
		i := slices.Index(l.hooks, h)
		if i < 0 {
			return false
		}
		if l.hooks = slices.Delete(l.hooks, i, i+1); len(l.hooks) == 0 {
			l.hooks = nil
		}
		return true
	}
}

// watch drops a Done that was asked for: whoever did has had its answer.
func (l *Life) watch(w Watcher) {
	l.mu.Lock()
	if l.cause == nil {
		l.watcher, l.done = w, nil
		w = nil
	}
	l.mu.Unlock()
	if w != nil {
		w.LifeEnded()
	}
}

// Watch has w hear of the end of ctx, at once if it is over, and until stop is
// called; stop is nil where there is nothing to call off. A [Life] has one
// watcher at a time, which has the connection from then on: Done channels that
// others got of it before are not closed any more.
func Watch(ctx context.Context, w Watcher) (stop func() bool) {
	switch l, ok := ctx.(*Life); {
	case ctx == nil:
		return nil
	case ok:
		l.watch(w)
		return nil
	}
	return context.AfterFunc(ctx, w.LifeEnded)
}

// Unwatch ends what [Watch] began, of which stop is the answer.
func Unwatch(ctx context.Context, stop func() bool) {
	if l, ok := ctx.(*Life); ok {
		l.mu.Lock()
		l.watcher = nil
		l.mu.Unlock()
	}
	if stop != nil {
		stop()
	}
}
