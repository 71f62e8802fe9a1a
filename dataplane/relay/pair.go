// SPDX-License-Identifier: Apache-2.0

package relay

import (
	"context"
	"errors"
	"os"

	"golang.org/x/sys/unix"

	"github.com/ztunnel-go/ztunnel/dataplane/reactor"
	"github.com/ztunnel-go/ztunnel/internal/sock"
)

/* Two sockets on an event loop
 *
 *	           read, or splice(2) into a pipe        write, or splice(2)
 *	an end's socket ---------------> what is held ----------------> the other's
 *
 * What a socket gives is offered to the other at once. What that does not take
 * is held, in a piece of memory or in the pipe, and nothing more is read until
 * it is gone. A direction that holds nothing has neither.
 *
 * What ends one end the other as [Copy] has it. Once a socket is dead, what it
 * had said before may wait for the other for linger at most.
 */

// A pair is two sockets between which bytes are carried. It belongs to a loop.
type pair struct {
	lane             *lane
	client, upstream end
	ctx              context.Context
	stop             func() bool // takes back what watches ctx
	counts           Counts
	done             func(error)

	timer  reactor.Timer // linger
	cause  error         // the first thing that went wrong
	broken bool          // one of the sockets is dead
	over   bool
}

// An end is one of the sockets, and the direction that begins there.
type end struct {
	pair  *pair
	other *end
	fd    int
	src   reactor.Source

	held []byte // bytes from here that other has not taken, in buf or in the pipe
	buf  []byte
	pipe pipe
	left int // bytes in the pipe

	bulk  bool // the last read filled its buffer
	over  bool // nothing more is read here
	ended bool // all that was read here was delivered, and its end passed on
	shut  bool // we have said FIN here
	dark  bool // it has nothing more to say than it has said: no use in watching
	dead  bool // it was reset, and other is to be told once it has taken what is held
}

func (e *end) join(p *pair, fd int, other *end) { e.pair, e.fd, e.other = p, fd, other }

// sending reports whether the direction that begins here is from the client.
func (e *end) sending() bool { return e == &e.pair.client }

// holds reports whether bytes wait for other.
func (e *end) holds() bool { return len(e.held) > 0 || e.left > 0 }

func (p *pair) begin() {
	p.stop = Watch(p.ctx, p)
	for _, e := range [...]*end{&p.client, &p.upstream} {
		if err := e.src.Watch(p.lane.loop, e.fd, reactor.Readable, e); err != nil {
			p.cause, p.broken = err, true
			p.finish()
			return
		}
	}
}

// LifeEnded is the end of the context.
func (p *pair) LifeEnded() { p.lane.loop.Do(p.cut) }

// cut ends both because the context has ended.
func (p *pair) cut() {
	if p.over {
		return
	}
	p.counts.Ends.Cut()
	p.cause, p.broken = context.Cause(p.ctx), true
	p.finish()
}

// Ready serves one socket.
func (e *end) Ready(ev reactor.Events) {
	if ev&reactor.Writable != 0 && e.other.holds() {
		e.other.deliver()
	}
	if ev&^reactor.Writable == 0 || e.pair.over {
		return
	}
	switch dying := ev&(reactor.Failed|reactor.Hangup) != 0; {
	case e.over && dying:
		e.watchDead(ev)
	case e.over:
	case e.holds() && dying: // it can be read to its end, but not be watched
		e.goDark()
		if ev&reactor.Failed != 0 {
			e.saw(unix.ECONNRESET)
			e.pair.breaks()
		}
	case e.holds():
	default:
		e.pull()
	}
}

// watchDead is a socket that has said FIN, and now shows that it is dead: both
// ends of TCP have closed, which is no news once we have, or it was reset.
func (e *end) watchDead(ev reactor.Events) {
	if ev&reactor.Failed == 0 && e.shut {
		e.goDark()
		return
	}
	e.fail("read", unix.ECONNRESET)
}

func (e *end) goDark() {
	e.dark = true
	e.src.Stop()
}

// light watches a socket again that is not in its last state after all.
func (e *end) light() {
	if !e.dark {
		return
	}
	e.dark = false
	if err := e.src.Watch(e.pair.lane.loop, e.fd, reactor.Readable, e); err != nil {
		e.fail("epoll_ctl", err)
	}
}

// fail is a socket that is dead in both directions; all that it had said before
// was read. What the other says is nobody's.
func (e *end) fail(call string, err error) {
	e.saw(err)
	e.pair.note(e.sending(), os.NewSyscallError(call, err))
	e.pair.breaks()
	e.over, e.dead, e.other.over = true, true, true
	e.other.drop()
	if !e.holds() {
		e.pair.finish()
		return
	}
	e.goDark()
	e.other.want()
}

// want is the socket's events that matter now.
func (e *end) want() {
	var ev reactor.Events
	if !e.over && !e.holds() {
		ev |= reactor.Readable
	}
	if e.other.holds() {
		ev |= reactor.Writable
	}
	e.src.Want(ev)
}

// turns is how often one socket is read in one turn of its loop, as long as it
// fills what it is read into.
const turns = 4

// pull reads the socket.
func (e *end) pull() {
	for range turns {
		if e.bulk && e.splice() {
			return
		}
		if !e.read() {
			return
		}
	}
}

// read moves what one read takes, and reports whether there is more.
func (e *end) read() bool {
	buf := e.pair.lane.loop.Buf[:pieceSize]
	n, err := sock.ReadNow(e.fd, buf)
	e.bulk = n == len(buf)
	switch {
	case n > 0:
		return e.offer(buf[:n]) && e.bulk
	case errors.Is(err, unix.EAGAIN):
		e.light()
	case err != nil:
		e.fail("read", err)
	default:
		e.finished()
	}
	return false
}

// offer writes b to the other socket and holds what it does not take. It
// reports whether all is gone.
func (e *end) offer(b []byte) bool {
	n, err := sock.WriteNow(e.other.fd, b)
	e.moved(n)
	switch {
	case n == len(b):
		return true
	case err != nil && !errors.Is(err, unix.EAGAIN):
		e.refused(err)
		return false
	}
	e.buf = e.pair.lane.pieces.Get()
	e.held = e.buf[:copy(e.buf, b[n:])]
	e.wait()
	return false
}

// wait has the other socket tell when it takes more.
func (e *end) wait() {
	e.want()
	e.other.want()
}

// splice moves what a pipe takes, and reports whether that was the thing to do.
func (e *end) splice() bool {
	var ok bool
	if e.pipe, ok = e.pair.lane.pipe(); !ok {
		return false
	}
	n, err := sock.SpliceNow(e.fd, e.pipe.w, spliceMax)
	if n <= 0 {
		e.empty()
		e.bulk = false
		return errors.Is(err, unix.EAGAIN) // else a read says what is wrong
	}
	e.bulk = n >= spliceMin
	e.left = n
	if e.flush() && e.left == 0 {
		e.empty()
		return true
	}
	if e.left > 0 {
		e.wait()
	}
	return true
}

// flush moves what is in the pipe, as far as the other takes it, and reports
// whether it is alive.
func (e *end) flush() bool {
	for e.left > 0 {
		n, err := sock.SpliceNow(e.pipe.r, e.other.fd, e.left)
		if n > 0 {
			e.left -= n
			e.moved(n)
		}
		if err != nil && !errors.Is(err, unix.EAGAIN) {
			e.refused(err)
			return false
		}
		if err != nil || n <= 0 {
			return true
		}
	}
	return true
}

// empty gives the pipe back.
func (e *end) empty() {
	e.pair.lane.back(e.pipe)
	e.pipe, e.left = pipe{}, 0
}

// deliver moves what is held.
func (e *end) deliver() {
	if e.left > 0 {
		if !e.flush() || e.left > 0 {
			return
		}
		e.empty()
	}
	if len(e.held) > 0 {
		n, err := sock.WriteNow(e.other.fd, e.held)
		e.moved(n)
		if err != nil && !errors.Is(err, unix.EAGAIN) {
			e.refused(err)
			return
		}
		if e.held = e.held[n:]; len(e.held) > 0 {
			return
		}
		e.drop()
	}
	e.goOn()
}

// goOn is after all that was held is delivered.
func (e *end) goOn() {
	switch {
	case e.dead:
		e.pair.finish()
	case e.over:
		e.pass()
		e.wait()
	case e.dark: // nobody will tell of what it has yet to say
		for e.dark && !e.over && !e.holds() && !e.pair.over { // ends: with its end, or something held
			e.read()
		}
		e.other.want()
	default:
		e.wait()
	}
}

// drop lets go of what is held.
func (e *end) drop() {
	if e.buf != nil {
		e.pair.lane.pieces.Put(e.buf[:cap(e.buf)])
		e.buf, e.held = nil, nil
	}
	if e.left > 0 {
		e.pipe.close() // with what is in it
		e.pipe, e.left = pipe{}, 0
	}
}

// finished is a FIN, or a reset whose error another call was told.
func (e *end) finished() {
	if !e.shut && isDead(e.fd) {
		e.fail("read", unix.ECONNRESET)
		return
	}
	e.saw(nil)
	if e.pair.broken {
		e.pair.finish()
		return
	}
	e.over = true
	e.pass()
	e.wait()
}

// isDead tells a reset from an end where a read cannot: see [tcp.howEnded].
func isDead(fd int) bool {
	fds := []unix.PollFd{{Fd: int32(fd)}}
	n, err := unix.Poll(fds, 0)
	return err == nil && n > 0 && fds[0].Revents&unix.POLLHUP != 0
}

// pass tells the other of an end.
func (e *end) pass() {
	e.ended, e.other.shut = true, true
	if err := unix.Shutdown(e.other.fd, unix.SHUT_WR); err != nil && !errors.Is(err, unix.ENOTCONN) && e.pair.cause == nil {
		e.pair.cause = &ClosingError{os.NewSyscallError("shutdown", err)}
	}
	if e.other.ended {
		e.pair.finish()
	}
}

// refused is the other socket, which cannot be written to. What it had said
// before is still to be delivered.
func (e *end) refused(err error) {
	p := e.pair
	e.other.saw(err)
	p.note(e.sending(), os.NewSyscallError("write", err))
	p.breaks()
	e.drop()
	e.over = true
	if e.other.over && !e.other.holds() {
		p.finish()
		return
	}
	e.wait()
}

// note keeps the first error, with the direction in which it was met.
func (p *pair) note(sending bool, err error) {
	if p.cause == nil {
		p.cause = &Error{Sending: sending, Err: err}
	}
}

// breaks notes that a socket is dead, and bounds the time for what it had said
// before.
func (p *pair) breaks() {
	if p.broken {
		return
	}
	p.broken = true
	loop := p.lane.loop
	loop.Set(&p.timer, loop.Now().Add(linger), p)
}

// Expired is the end of linger.
func (p *pair) Expired(*reactor.Timer) { p.finish() }

// finish closes both and says how it went.
func (p *pair) finish() {
	if p.over {
		return
	}
	p.over = true
	p.lane.loop.Cancel(&p.timer)
	Unwatch(p.ctx, p.stop)
	for _, e := range [...]*end{&p.client, &p.upstream} {
		e.over = true
		p.counts.Ends.Look(e.sending(), func() (sock.TCPInfo, error) { return sock.InfoOf(e.fd) })
		e.src.Stop()
		e.drop()
		if p.broken {
			closeHard(e.fd)
		} else {
			unix.Close(e.fd)
		}
	}
	p.done(p.cause)
}

func (e *end) saw(err error) { e.pair.counts.Ends.Saw(e.sending(), err) }

// moved counts bytes that the other has taken.
func (e *end) moved(n int) {
	count := e.pair.counts.Received
	if e.sending() {
		count = e.pair.counts.Sent
	}
	if n > 0 && count != nil {
		count(n)
	}
}
