// SPDX-License-Identifier: Apache-2.0

// Package reactor runs a few event loops: each is one goroutine with an epoll
// instance, which it alone asks. What belongs to a loop
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
// level-triggered, so a handler does a bounded piece of work ([Loop.Share]) and
// comes back for the rest in the next turn, after everybody else.
//
// Descriptors are non-blocking and belong to whoever made them; the package
// closes none but its own. A loop that has nothing to do waits as any goroutine
// waits for a descriptor, by the runtime's poller, in which its epoll instance
// is one more: a goroutine that blocks in epoll_wait itself keeps its processor
// from others until the runtime notices, which costs connections that need
// goroutines too a hundred microseconds a step. It knows nothing of what is on them. Imports
// internal/sock and x/sys; imported by dataplane/relay and dataplane/engine.
package reactor

import (
	"fmt"
	"os"
	"runtime"
	"sync"
	"sync/atomic"
	"syscall"
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
	ep       int
	bell     int             // an epoll instance that holds ep alone: see ring
	rings    bool            // events of ep ring it
	file     *os.File        // of bell, for the runtime's poller
	poller   syscall.RawConn // of file
	deadline Time            // of file; 0: none; unknown after a kick
	events   []unix.EpollEvent
	ready    int         // of events
	asleep   atomic.Bool // the loop waits, or is about to: it has to be woken

	mu     sync.Mutex
	queue  []func() // guarded by mu
	closed bool     // guarded by mu: no function is taken any more

	spare  []func() // the array that queue had before
	slots  []slot   // the first is nobody's
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

// turnSize is about how many bytes all handlers of one turn move, and leastShare
// what each may in any case: enough for a record of TLS.
const (
	turnSize   = 4 << 20
	leastShare = 32 << 10
)

// sharing is after how many turns without a wait a loop lets others run.
const sharing = 32

// keepQueue is the longest queue whose array is kept.
const keepQueue = 4 << 10

// unknown is a deadline that somebody else has set.
const unknown Time = -1

func newLoop() (*Loop, error) {
	ep, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return nil, os.NewSyscallError("epoll_create1", err)
	}
	bell, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		unix.Close(ep)
		return nil, os.NewSyscallError("epoll_create1", err)
	}
	l := &Loop{
		ep: ep, bell: bell, slots: make([]slot, 1), clock: newClock(), Buf: make([]byte, bufSize),
		events: make([]unix.EpollEvent, batch),
	}
	if err := l.pollable(); err != nil {
		unix.Close(ep)
		unix.Close(bell)
		return nil, err
	}
	return l, nil
}

// pollable puts ep into the bell, and that into the runtime's poller, which
// takes what does not block.
func (l *Loop) pollable() (err error) {
	if err := l.control(unix.EPOLL_CTL_ADD, 0); err != nil {
		return err
	}
	if err := unix.SetNonblock(l.bell, true); err != nil {
		return os.NewSyscallError("fcntl", err)
	}
	l.file = os.NewFile(uintptr(l.bell), "epoll")
	l.poller, err = l.file.SyscallConn()
	return err
}

// control says which of ep's events ring the bell.
func (l *Loop) control(op int, events Events) error {
	return os.NewSyscallError("epoll_ctl", unix.EpollCtl(l.bell, op, l.ep, &unix.EpollEvent{Events: uint32(events)}))
}

// ring says whether events ring the bell: while the loop sleeps, and not while it
// is busy. Were ep itself in the runtime's poller, every event that comes while
// the loop is at work would wake a thread of the runtime's, which finds that
// nobody waits. A loop that sleeps after every turn leaves the bell as it is.
func (l *Loop) ring(on bool) {
	if l.rings == on {
		return
	}
	l.rings = on
	events := Events(0)
	if on {
		events = Readable
	}
	if err := l.control(unix.EPOLL_CTL_MOD, events); err != nil {
		panic(err) // both descriptors are ours: nothing can be wrong with them
	}
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

// kick wakes the loop, once for all who find it asleep: by a deadline that has
// passed, which costs neither a system call nor a way through the kernel's
// poller.
func (l *Loop) kick() {
	if l.asleep.CompareAndSwap(true, false) {
		_ = l.file.SetReadDeadline(time.Unix(1, 0)) // fails once the loop has ended, which is as well
	}
}

// An Ender is called at the end of a turn.
type Ender interface{ EndTurn() }

// AtEnd has e called at the end of this turn, once for each call.
func (l *Loop) AtEnd(e Ender) { l.ends = append(l.ends, e) }

func (l *Loop) run() {
	defer unix.Close(l.ep)
	defer l.file.Close()
	try := func(uintptr) bool { return l.poll() || l.queued() }
	for turns := 0; ; turns++ {
		if !l.poll() {
			l.wait(try)
		} else if l.ring(false); turns%sharing == 0 {
			runtime.Gosched() // there may be goroutines without a processor
		}
		l.now = 0
		for i := range l.events[:l.ready] {
			l.dispatch(&l.events[i])
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

// poll takes the next events, if there are any.
func (l *Loop) poll() bool {
	n, err := sock.PollNow(l.ep, l.events)
	if err != nil {
		panic("epoll_wait: " + err.Error()) // the descriptor is ours: nothing can be wrong with it
	}
	l.ready = n
	return n > 0
}

// queued reports whether functions wait, or the end.
func (l *Loop) queued() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.queue) > 0 || l.closed
}

// wait returns when there is something to do, of which it takes events.
func (l *Loop) wait(try func(uintptr) bool) {
	l.asleep.Store(true)
	defer l.asleep.Store(false)
	due, _ := l.timers.next()
	if due != l.deadline {
		l.deadline = due
		at := time.Time{}
		if due != 0 {
			at = l.clock.base.Add(time.Duration(due - l.clock.at))
		}
		_ = l.file.SetReadDeadline(at) // cannot fail: the file is pollable and open
	}
	l.ring(true)                               // before try looks, so that it misses nothing
	if err := l.poller.Read(try); err != nil { // a deadline: the timers', or a kick
		l.ready, l.deadline = 0, unknown
	}
}

// Share is how many bytes a handler should move at most in this turn, at least
// leastShare. The more descriptors are busy the less it is, so that none waits
// long for the others.
func (l *Loop) Share() int { return max(turnSize/max(l.ready, 1), leastShare) }

func (l *Loop) dispatch(e *unix.EpollEvent) {
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
