// SPDX-License-Identifier: Apache-2.0

package engine

import (
	"errors"
	"net"

	"github.com/ztunnel-go/ztunnel/dataplane/hbone/wire"
	"github.com/ztunnel-go/ztunnel/dataplane/reactor"
)

// A Stream is one user connection in a tunnel, as a TCP connection is: bytes
// in order, two directions that end on their own, and a reset that ends both.
//
//	peer's END_STREAM       an end, after what came before it
//	peer's RST_STREAM       nothing can be sent; an error after what came before it
//	peer's RST(NO_ERROR)    the same, but an end: it wants no more, that is all
//	loss of the tunnel      as RST_STREAM; the error has its cause
//
// It is either joined with a socket (see [Stream.Join]) or read and written by
// goroutines (see blocking.go); until then what comes waits within the window.
type Stream struct {
	t  *Tunnel
	id uint32

	// All below belongs to the loop.

	sendWindow int64
	recvWindow int64
	uncredited int64
	opened     reactor.Time

	responded bool // client: a 200 came; server: the handler answered
	recvEnded bool // END_STREAM came
	endSent   bool
	deaf      bool  // nobody wants what still comes
	starved   bool  // is in t.starved
	interim   uint8 // client: 1xx answers that came

	readErr  error // what comes after what is queued
	writeErr error // nothing can be sent

	pieces [][]byte // of the loop's buffer, that have just come
	queue  queue

	joint    *joint
	waits    *waits
	answered func(wire.Response, error) // client: waits for the answer
	request  *wire.Block                // server: until it is answered
	onGone   func(error)                // server: the request ended without one
}

// newStream enters a stream.
func (t *Tunnel) newStream(id uint32) *Stream {
	s := &Stream{
		t: t, id: id, opened: t.lane.loop.Now(),
		recvWindow: t.firstWindow(), sendWindow: t.peerWindow,
	}
	t.streams[id] = s
	return s
}

// open reports whether a direction is.
func (s *Stream) open() bool { return s.t.streams[s.id] == s }

// take is bytes of the peer's, in the loop's buffer.
func (s *Stream) take(b []byte) {
	lane := s.t.lane
	if s.deaf || s.readErr != nil {
		s.t.credit(int64(len(b)))
		return
	}
	if s.pieces == nil {
		s.pieces = lane.pieces()
		lane.touched = append(lane.touched, s)
	}
	s.pieces = append(s.pieces, b)
}

// flush hands on what was taken, and keeps what the receiver does not take.
func (s *Stream) flush() {
	if s.pieces == nil {
		return
	}
	pieces := s.pieces
	s.pieces = nil
	rest := pieces
	if s.joint != nil {
		rest = s.joint.deliver(pieces)
	}
	for _, b := range rest {
		s.queue.push(&s.t.lane.chunks, b)
	}
	s.t.lane.back(pieces)
	s.wakeReader()
}

// endRead takes the peer's END_STREAM.
func (s *Stream) endRead() {
	s.flush()
	if s.recvEnded || s.readErr != nil {
		return
	}
	s.recvEnded = true
	s.closeIfEnded()
	if s.joint != nil {
		s.joint.ended()
	}
	s.wakeReader()
}

// endWrite says that no more will be sent: END_STREAM, in an empty DATA frame
// (contract 4.8).
func (s *Stream) endWrite() {
	if s.endSent || s.writeErr != nil {
		return
	}
	s.endSent = true
	var b [frameHeader]byte
	s.t.box.control(s.t, appendHead(b[:0], 0, frameData, flagEnd, s.id))
	s.closeIfEnded()
}

// closeIfEnded removes s once both directions have ended.
func (s *Stream) closeIfEnded() {
	if s.recvEnded && s.endSent {
		s.t.remove(s)
	}
}

// broken ends s because of its peer or its tunnel. What came before can still
// be taken.
func (s *Stream) broken(err error) {
	s.flush()
	var reset *wire.ResetError
	clean := errors.As(err, &reset) && reset.Clean()
	if !s.recvEnded && s.readErr == nil {
		if clean {
			s.recvEnded = true
		} else {
			s.readErr = err
		}
	}
	if s.writeErr == nil {
		s.writeErr = err
	}
	s.t.remove(s)
	s.answer(wire.Response{}, err)
	if f := s.onGone; f != nil {
		s.onGone = nil
		f(err)
	}
	if s.joint != nil {
		s.joint.lost(err, clean)
	}
	s.wakeAll(err, clean)
}

// answer tells whoever opened the stream.
func (s *Stream) answer(r wire.Response, err error) {
	if f := s.answered; f != nil {
		s.answered = nil
		f(r, err)
	}
}

// release ends what is open of s, for ourselves, and drops what nobody took.
func (s *Stream) release(code wire.Code) {
	s.deaf = true
	if s.pieces != nil {
		for _, b := range s.pieces {
			s.t.credit(int64(len(b)))
		}
		s.t.lane.back(s.pieces)
		s.pieces = nil
	}
	if n := s.queue.drop(&s.t.lane.chunks); n > 0 {
		s.t.credit(int64(n))
	}
	if s.readErr == nil {
		s.readErr = net.ErrClosed
	}
	if s.writeErr == nil {
		s.writeErr = net.ErrClosed
	}
	s.answered, s.onGone = nil, nil
	if s.open() {
		s.t.writeReset(s.id, code)
		s.t.remove(s)
	}
	s.wakeAll(nil, true)
}

// giveUp is release of somebody who needs s no more: CANCEL, or NO_ERROR from a
// server that had sent all it had (RFC 9113, section 8.1). After both ends it
// does nothing but drop.
func (s *Stream) giveUp() {
	code := wire.Cancel
	if s.endSent && !s.t.client {
		code = wire.NoError
	}
	s.release(code)
}

// resume goes on sending, if s waited for windows or the socket.
func (s *Stream) resume() {
	switch {
	case s.writeErr != nil:
	case s.joint != nil:
		s.joint.resume()
	default:
		s.pushWrites()
	}
}

// stall reports whether s must wait before it sends, and sees to it that it is
// told when to go on.
func (s *Stream) stall() bool {
	t := s.t
	if t.box.stuck || t.sendWindow <= 0 {
		t.starve(s)
		return true
	}
	return s.sendWindow <= 0 // WINDOW_UPDATE of the stream resumes it
}

// sent charges n bytes that were put into DATA frames.
func (s *Stream) sent(n int) {
	s.sendWindow -= int64(n)
	s.t.sendWindow -= int64(n)
	s.t.budget.Earn(1)
}

// Tunnel is what the stream is in.
func (s *Stream) Tunnel() *Tunnel { return s.t }

// Window is how many bytes the peer takes on the stream as of now; it waits for
// the loop.
func (s *Stream) Window() (n int64) {
	done := make(chan struct{})
	if s.t.do(func() { n = s.sendWindow; close(done) }) {
		<-done
	}
	return n
}
