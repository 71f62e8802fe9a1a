// SPDX-License-Identifier: Apache-2.0

package engine

import (
	"context"
	"errors"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ztunnel-go/ztunnel/dataplane/hbone/wire"
	"github.com/ztunnel-go/ztunnel/dataplane/reactor"
	"github.com/ztunnel-go/ztunnel/dataplane/relay"
	"github.com/ztunnel-go/ztunnel/internal/sock"
)

/* A stream and the socket of its application
 *
 *	out: socket --> stream     over with FIN, or when either end is dead
 *	in:  stream --> socket     over with END_STREAM, or when either end is dead
 *
 * What ends one ends the other as TCP has it (design 5, "TCP truth"), and as
 * package relay does it for goroutines:
 *
 *	FIN                      END_STREAM
 *	END_STREAM               FIN, after what came before it
 *	RST                      RST_STREAM CONNECT_ERROR, after what came before it
 *	RST_STREAM, lost tunnel  RST, after what came before it
 *	RST_STREAM NO_ERROR      FIN, and nothing more is read there
 *
 * Once one side is dead, what it had said before may wait for the other for
 * linger at most.
 */

// linger is package relay's, for the same reason.
const linger = 5 * time.Second

// A joint is a stream and its socket.
type joint struct {
	s     *Stream
	how   relay.Join
	src   reactor.Source
	timer reactor.Timer // linger

	cause   error // the first thing that went wrong
	inOver  bool
	outOver bool
	paused  bool // nothing is read, for want of room in the tunnel
	dark    bool // the socket has nothing more to say than it has said: no use in watching
	broken  bool // one side is dead
	over    bool

	stop func() bool // takes back what watches how.Context
}

// Join carries bytes between s and a socket until both directions have ended:
// see [relay.Joiner].
func (s *Stream) Join(how relay.Join) {
	j := &joint{s: s, how: how}
	if !s.t.do(j.begin) {
		unix.Close(how.FD)
		how.Done(wire.ErrClosed)
	}
}

// abort ends both sides because the context has ended: RST for the socket; for
// the stream CANCEL if it was the peer's (contract 5.5), and else what a socket
// that was reset would be.
func (j *joint) abort() {
	if j.over {
		return
	}
	code := wire.ConnectError
	if !j.s.t.client {
		code = wire.Cancel
	}
	j.how.Counts.Ends.Cut()
	j.cause, j.broken = context.Cause(j.how.Context), true
	j.s.release(code)
	j.finish()
}

func (j *joint) begin() {
	s := j.s
	s.joint = j
	j.watchContext()
	if err := j.src.Watch(s.t.lane.loop, j.how.FD, reactor.Readable, j); err != nil {
		j.cause, j.broken = err, true
		s.release(wire.ConnectError)
		j.finish()
		return
	}
	if s.queue.size > 0 {
		j.drain()
	}
	switch {
	case j.over:
	case s.readErr != nil || s.writeErr != nil:
		err := wire.Or(s.readErr, s.writeErr)
		var reset *wire.ResetError
		j.lost(err, errors.As(err, &reset) && reset.Clean())
	case s.recvEnded:
		j.ended()
	}
}

func (j *joint) watchContext() { j.stop = relay.Watch(j.how.Context, j) }

func (j *joint) unwatch() { relay.Unwatch(j.how.Context, j.stop) }

// LifeEnded is the end of the context.
func (j *joint) LifeEnded() { j.s.t.do(j.abort) }

// Ready serves the socket.
func (j *joint) Ready(e reactor.Events) {
	if e&reactor.Writable != 0 && j.s.queue.size > 0 {
		j.drain()
	}
	if e&^reactor.Writable == 0 || j.over {
		return
	}
	switch dead := e&(reactor.Failed|reactor.Hangup) != 0; {
	case j.outOver && dead:
		j.watchDead(e)
	case j.outOver:
	case j.paused && dead: // it can be read to its end, but not be watched
		j.goDark()
		if e&reactor.Failed != 0 {
			j.saw(true, unix.ECONNRESET)
			j.breaks()
		}
	case j.paused:
	default:
		j.pull()
	}
}

// watchDead is a socket that has said FIN, and now shows that it is dead: both
// ends of TCP have closed, which is no news once we have, or it was reset.
func (j *joint) watchDead(e reactor.Events) {
	if e&reactor.Failed == 0 && j.inOver {
		j.src.Stop()
		return
	}
	j.saw(true, unix.ECONNRESET)
	j.note(j.how.Client, os.NewSyscallError("read", unix.ECONNRESET))
	j.breaks()
	j.s.release(wire.ConnectError)
	j.finish()
}

// goDark stops watching a socket that is in its last state.
func (j *joint) goDark() {
	j.dark = true
	j.src.Stop()
}

// want is the socket's events that matter now.
func (j *joint) want() {
	var e reactor.Events
	if !j.outOver && !j.paused {
		e |= reactor.Readable
	}
	if j.s.queue.size > 0 && !j.inOver {
		e |= reactor.Writable
	}
	j.src.Want(e)
}

// pull reads the socket once into the tunnel.
func (j *joint) pull() {
	s := j.s
	if s.stall() {
		j.paused = true
		j.want()
		return
	}
	got := s.t.box.read(s.t, j.how.FD, s.id, s.room())
	switch {
	case got.n > 0:
		s.sent(got.n)
		j.moved(j.how.Client, got.n)
	case errors.Is(got.err, unix.EAGAIN):
	case errors.Is(got.err, errStuck):
		s.t.starve(s)
		j.paused = true
		j.want()
	case got.err != nil: // all that came before was sent
		j.saw(true, got.err)
		j.note(j.how.Client, os.NewSyscallError("read", got.err))
		j.breaks()
		s.release(wire.ConnectError)
		j.finish()
	case j.broken:
		s.release(wire.ConnectError)
		j.finish()
	default:
		j.saw(true, nil)
		j.outOver = true
		j.want()
		s.endWrite()
		j.check()
	}
}

// resume goes on reading after a pause.
func (j *joint) resume() {
	if !j.paused || j.outOver || j.over {
		return
	}
	j.paused = false
	if !j.dark {
		j.want()
		return
	}
	for !j.paused && !j.outOver && !j.over { // ends: with a pause, or the end of what it said
		j.pull()
	}
}

// deliver writes pieces to the socket, unless others wait before them, and
// returns what it did not take.
func (j *joint) deliver(pieces [][]byte) [][]byte {
	s := j.s
	if j.inOver {
		for _, p := range pieces {
			s.t.credit(int64(len(p)))
		}
		return nil
	}
	if s.queue.size > 0 {
		return pieces
	}
	for len(pieces) > 0 {
		n, err := j.write(pieces)
		if errors.Is(err, unix.EAGAIN) {
			j.src.Want(j.src.Wanted() | reactor.Writable)
			return pieces
		}
		if err != nil {
			j.refused(err)
			for _, p := range pieces {
				s.t.credit(int64(len(p)))
			}
			return nil
		}
		pieces = advance(pieces, n)
	}
	return nil
}

// write is one write, counted and credited.
func (j *joint) write(pieces [][]byte) (n int, err error) {
	if len(pieces) == 1 {
		n, err = sock.WriteNow(j.how.FD, pieces[0])
	} else {
		n, err = sock.WritevNow(j.how.FD, j.s.t.lane.vec(pieces))
	}
	if n > 0 {
		j.moved(!j.how.Client, n)
		j.s.delivered(n)
	}
	return n, err
}

// advance drops n bytes from the front of pieces.
func advance(pieces [][]byte, n int) [][]byte {
	for len(pieces) > 0 && n >= len(pieces[0]) {
		n -= len(pieces[0])
		pieces = pieces[1:]
	}
	if n > 0 {
		pieces[0] = pieces[0][n:]
	}
	return pieces
}

// drain writes what has waited.
func (j *joint) drain() {
	s := j.s
	lane := s.t.lane
	for s.queue.size > 0 && !j.inOver {
		array := lane.pieces()
		pieces := s.queue.slices(array)
		n, err := j.write(pieces)
		lane.back(pieces)
		if errors.Is(err, unix.EAGAIN) {
			break
		}
		if err != nil {
			j.refused(err)
			return
		}
		s.queue.skip(&lane.chunks, n)
	}
	j.want()
	if s.queue.size > 0 {
		return
	}
	switch {
	case s.readErr != nil:
		j.finish()
	case s.recvEnded:
		j.shut()
	}
}

// refused is a socket that cannot be written to. What it had said before is
// still to be sent.
func (j *joint) refused(err error) {
	s := j.s
	j.saw(true, err)
	j.note(!j.how.Client, os.NewSyscallError("write", err))
	j.breaks()
	j.inOver, s.deaf = true, true
	s.t.credit(int64(s.queue.drop(&s.t.lane.chunks)))
	if j.outOver {
		s.release(wire.ConnectError)
		j.finish()
		return
	}
	j.want()
}

// ended is the peer's END_STREAM.
func (j *joint) ended() {
	j.saw(false, nil)
	if j.s.queue.size == 0 && !j.inOver {
		j.shut()
	}
}

// shut passes the end on.
func (j *joint) shut() {
	j.inOver = true
	err := unix.Shutdown(j.how.FD, unix.SHUT_WR)
	if err != nil && !errors.Is(err, unix.ENOTCONN) && j.cause == nil {
		j.cause = &relay.ClosingError{Err: os.NewSyscallError("shutdown", err)}
	}
	j.check()
}

// lost is a stream that its peer reset, or whose tunnel is gone.
func (j *joint) lost(err error, clean bool) {
	if j.over {
		return
	}
	j.saw(false, err)
	j.lookWithin(err)
	j.outOver = true
	if !clean {
		j.note(!j.how.Client, err)
		j.breaks()
	}
	j.want()
	switch {
	case j.s.queue.size > 0 && !j.inOver: // drain goes on
	case !clean:
		j.finish()
	case !j.inOver:
		j.shut()
	default:
		j.check()
	}
}

func (j *joint) check() {
	if j.inOver && j.outOver {
		j.finish()
	}
}

// note keeps the first error, with the direction in which it was met.
func (j *joint) note(sending bool, err error) {
	if j.cause == nil {
		j.cause = &relay.Error{Sending: sending, Err: err}
	}
}

// breaks notes that one side is dead, and bounds the time for what it had said
// before.
func (j *joint) breaks() {
	if j.broken {
		return
	}
	j.broken = true
	loop := j.s.t.lane.loop
	loop.Set(&j.timer, loop.Now().Add(linger), j)
}

// Expired is the end of linger.
func (j *joint) Expired(*reactor.Timer) {
	j.s.release(wire.ConnectError)
	j.finish()
}

// finish closes both sides and says how it went.
func (j *joint) finish() {
	if j.over {
		return
	}
	j.over, j.inOver, j.outOver = true, true, true
	j.look()
	j.s.t.lane.loop.Cancel(&j.timer)
	j.src.Stop()
	j.unwatch()
	if j.broken { // RST; on a socket that is dead already it changes nothing
		_ = unix.SetsockoptLinger(j.how.FD, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1})
	}
	unix.Close(j.how.FD)
	j.s.giveUp()
	delete(j.s.t.orphans, j.s)
	j.how.Done(j.cause)
}

// saw notes how the socket's side ended, or the stream's.
func (j *joint) saw(socket bool, err error) {
	j.how.Counts.Ends.Saw(j.how.Client == socket, err)
}

// lookWithin asks the kernel about a tunnel that is about to be gone.
func (j *joint) lookWithin(err error) {
	var reset *wire.ResetError
	if ends := j.how.Counts.Ends; ends != nil && errors.As(err, &reset) && reset.Lost() {
		ends.Look(!j.how.Client, j.s.t.info)
	}
}

// look asks the kernel about both sides, if that is wanted.
func (j *joint) look() {
	ends := j.how.Counts.Ends
	if ends == nil {
		return
	}
	ends.Look(j.how.Client, func() (sock.TCPInfo, error) { return sock.InfoOf(j.how.FD) })
	ends.Look(!j.how.Client, j.s.t.info)
}

// moved counts bytes from client to upstream (sending), or the other way.
func (j *joint) moved(sending bool, n int) {
	count := j.how.Counts.Received
	if sending {
		count = j.how.Counts.Sent
	}
	if count != nil {
		count(n)
	}
}
