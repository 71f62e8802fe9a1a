// SPDX-License-Identifier: Apache-2.0

// Package reactor runs a few event loops: each is one goroutine on a thread of
// its own with an epoll instance, which it alone asks. What belongs to a loop
// is touched by that loop only, so there is no lock on the way of a byte, no
// goroutine for a connection, and no read that learns only that there is
// nothing.
//
//	Loop.Do      from any goroutine: run a function on the loop
//	Source       a descriptor and who hears of it
//	Timer        an absolute deadline and who hears of it
//	Loop.AtEnd   once more at the end of this turn, after all events
//
// A turn is: events of one batch, functions that had been queued by then,
// timers that are due, and what was left for the end. Polling is
// level-triggered, so a handler does a bounded piece of work and comes back
// for the rest in the next turn, after everybody else.
//
// Descriptors are non-blocking and belong to whoever made them; the package
// closes none but its own. It knows nothing of what is on them. Imports
// internal/sock and x/sys; imported by dataplane/relay and dataplane/engine.
package reactor

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ztunnel-go/ztunnel/internal/sock"
)

// Events says what a descriptor is ready for, or waits for.
type Events uint32

// Hangup and Failed come whether asked for or not.
const (
	Readable Events = unix.EPOLLIN
	Writable Events = unix.EPOLLOUT
	HalfOpen Events = unix.EPOLLRDHUP // the peer has sent FIN
	Hangup   Events = unix.EPOLLHUP   // both directions are over
	Failed   Events = unix.EPOLLERR
)

// A Handler hears of a descriptor. It runs on the loop and must not wait.
type Handler interface{ Ready(Events) }

// batch is how many events one turn takes.
const batch = 128

// A Group is the loops of a process. Make it with [Start], end it with
// [Group.Close].
type Group struct {
	loops []*Loop
	turn  atomic.Uint32
	ends  sync.WaitGroup // one per loop; ends with Close
}

// Start starts n loops, at least one.
func Start(n int) (*Group, error) {
	g := &Group{}
	for range max(n, 1) {
		l, err := newLoop()
		if err != nil {
			g.Close()
			return nil, fmt.Errorf("event loop: %w", err)
		}
		g.loops = append(g.loops, l)
		g.ends.Go(l.run) // ends with Close
	}
	return g, nil
}

// Loops are all loops of the group.
func (g *Group) Loops() []*Loop { return g.loops }

// Pick names the loops in turn.
func (g *Group) Pick() *Loop { return g.loops[int(g.turn.Add(1)-1)%len(g.loops)] }

// Close ends the loops and waits for them. What was queued until now is run;
// descriptors that are still watched are left to their owners.
func (g *Group) Close() {
	for _, l := range g.loops {
		l.mu.Lock()
		l.closed = true
		l.mu.Unlock()
		l.kick()
	}
	g.ends.Wait()
}

// A Loop is one event loop. Only Do may be called from elsewhere.
type Loop struct {
	ep, wake int
	asleep   atomic.Bool // the loop waits, or is about to: it has to be woken

	mu     sync.Mutex
	queue  []func() // guarded by mu
	closed bool     // guarded by mu: no function is taken any more

	spare  []func() // the array that queue had before
	slots  []slot
	free   []uint32 // slots without a source
	timers timers
	ends   []Ender
	now    Time // of this turn; 0: nobody has asked yet
	clock  clock
	// Buf is for whoever runs; it is somebody else's after that.
	Buf []byte
}

// A slot is where events of one source go. Its generation tells events of the
// source that is there from those of one that was: the kernel hands out
// batches, and a descriptor of the same number may be somebody else's by the
// time an event is looked at.
type slot struct {
	generation uint32
	handler    Handler
}

// bufSize is what one read from a busy tunnel takes at most.
const bufSize = 256 << 10

// keepQueue is the longest queue whose array is kept.
const keepQueue = 4 << 10

// wakeSlot is the generation-less slot of the eventfd.
const wakeSlot = 0

func newLoop() (*Loop, error) {
	ep, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return nil, os.NewSyscallError("epoll_create1", err)
	}
	wake, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		unix.Close(ep)
		return nil, os.NewSyscallError("eventfd", err)
	}
	l := &Loop{ep: ep, wake: wake, slots: make([]slot, 1), clock: newClock(), Buf: make([]byte, bufSize)}
	if err := unix.EpollCtl(ep, unix.EPOLL_CTL_ADD, wake, &unix.EpollEvent{Events: unix.EPOLLIN, Fd: wakeSlot}); err != nil {
		unix.Close(wake)
		unix.Close(ep)
		return nil, os.NewSyscallError("epoll_ctl", err)
	}
	return l, nil
}

// Do has f run on the loop, after what was queued before. It reports false if
// the loop has been closed, and then f never runs.
func (l *Loop) Do(f func()) bool {
	l.mu.Lock()
	if l.closed {
		l.mu.Unlock()
		return false
	}
	l.queue = append(l.queue, f)
	l.mu.Unlock()
	if l.asleep.Load() {
		l.kick()
	}
	return true
}

// kick wakes the loop, once for all who find it asleep.
func (l *Loop) kick() {
	if l.asleep.CompareAndSwap(true, false) {
		one := [8]byte{1} // a number in the machine's order, and any but 0 will do
		_, _ = sock.WriteNow(l.wake, one[:])
	}
}

// An Ender is called at the end of a turn.
type Ender interface{ EndTurn() }

// AtEnd has e called at the end of this turn, once for each call.
func (l *Loop) AtEnd(e Ender) { l.ends = append(l.ends, e) }

func (l *Loop) run() {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	defer unix.Close(l.ep)
	defer unix.Close(l.wake)
	events := make([]unix.EpollEvent, batch)
	for {
		n := l.wait(events)
		l.now = 0
		for i := range events[:n] {
			l.dispatch(&events[i])
		}
		open := l.runQueue()
		l.timers.fire(l)
		for i := 0; i < len(l.ends); i++ { // an Ender may add others
			e := l.ends[i]
			l.ends[i] = nil
			e.EndTurn()
		}
		l.ends = l.ends[:0]
		if !open {
			return
		}
	}
}

// wait returns the next events; none if there is something else to do.
func (l *Loop) wait(events []unix.EpollEvent) int {
	n, err := sock.PollNow(l.ep, events)
	if n > 0 || err != nil {
		return l.polled(n, err)
	}
	l.asleep.Store(true)
	defer l.asleep.Store(false)
	l.mu.Lock()
	busy := len(l.queue) > 0 || l.closed
	l.mu.Unlock()
	if busy {
		return 0
	}
	n, err = unix.EpollWait(l.ep, events, l.patience())
	return l.polled(n, err)
}

func (l *Loop) polled(n int, err error) int {
	if err != nil && !errors.Is(err, unix.EINTR) {
		panic("epoll_wait: " + err.Error()) // the descriptor is ours: nothing can be wrong with it
	}
	return max(n, 0)
}

// patience is how long there is to wait, in milliseconds; -1: for ever.
func (l *Loop) patience() int {
	due, ok := l.timers.next()
	if !ok {
		return -1
	}
	left := time.Duration(due - l.clock.now())
	return int(max(0, (left+time.Millisecond-1)/time.Millisecond))
}

func (l *Loop) dispatch(e *unix.EpollEvent) {
	if e.Fd == wakeSlot {
		var count [8]byte
		_, _ = sock.ReadNow(l.wake, count[:]) // there is something: it said so
		return
	}
	s := &l.slots[e.Fd]
	if s.handler != nil && s.generation == uint32(e.Pad) {
		s.handler.Ready(Events(e.Events))
	}
}

// runQueue runs what is queued by now, and reports whether the loop goes on.
func (l *Loop) runQueue() bool {
	l.mu.Lock()
	queue, open := l.queue, !l.closed
	l.queue = l.spare[:0]
	l.mu.Unlock()
	for i, f := range queue {
		queue[i] = nil
		f()
	}
	if l.spare = queue; cap(queue) > keepQueue {
		l.spare = nil
	}
	return open
}
