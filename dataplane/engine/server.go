// SPDX-License-Identifier: Apache-2.0

package engine

import (
	"net"

	"github.com/ztunnel-go/ztunnel/dataplane/hbone/record"
	"github.com/ztunnel-go/ztunnel/dataplane/hbone/wire"
)

// Server begins the server's side of a tunnel, as [Engine.Client] does the
// client's. cfg.Request must be set.
func (e *Engine) Server(fd int, s *record.Session, cfg Config) *Tunnel {
	return e.begin(fd, s, cfg, false)
}

// DrainServer asks the peer, by GOAWAY, for no more streams, and lets the
// tunnel end with those there are (contract 15.3). It returns at once.
func (t *Tunnel) DrainServer() {
	t.do(func() {
		t.drain()
		t.settle()
	})
}

// A Request is a stream of a peer's that wants an answer: Accept or Reject,
// and in any case Release. Those may be called from any goroutine.
type Request struct {
	Headers *wire.Block
	stream  *Stream
}

// OnGone has f called, on the loop, if the stream or its tunnel ends before the
// answer, with the reason. Only Config.Request may call it.
func (r *Request) OnGone(f func(error)) { r.stream.onGone = f }

// Accept answers 200, with a baggage header unless it is nil. If the stream has
// ended meanwhile, that is what is found out from it.
func (r *Request) Accept(baggage *string) *Stream {
	s := r.stream
	s.t.do(func() {
		if s.responded || s.writeErr != nil {
			return
		}
		s.responded, s.onGone, s.request = true, nil, nil
		s.t.writeHeaders(s.id, wire.ResponseFields(200, baggage), false)
		s.t.answered()
	})
	return s
}

// Reject answers with another status and ends the stream: HEADERS with
// END_STREAM, then RST_STREAM(NO_ERROR) (contract 4.6).
func (r *Request) Reject(status int) {
	r.stream.t.do(func() {
		if !r.stream.responded && r.stream.writeErr == nil {
			r.stream.reject(status)
			r.stream.t.answered()
		}
	})
}

// answered counts an answer: a peer may ask again and again for what is refused
// or given up, without reading.
func (t *Tunnel) answered() {
	if err := t.provoke(); err != nil {
		t.end(err)
	}
}

// reject answers and forgets s.
func (s *Stream) reject(status int) {
	t := s.t
	s.responded, s.endSent, s.onGone, s.request = true, true, nil, nil
	t.writeHeaders(s.id, wire.ResponseFields(status, nil), true)
	if !s.recvEnded {
		t.writeReset(s.id, wire.NoError)
	}
	s.deaf = true
	if n := s.queue.drop(&t.lane.chunks); n > 0 {
		t.credit(int64(n))
	}
	s.readErr, s.writeErr = net.ErrClosed, net.ErrClosed
	t.remove(s)
	s.wakeAll(nil, true)
}

// Release says that the handler of the request has returned. A stream that
// was not joined with a socket ends.
func (r *Request) Release() {
	s := r.stream
	s.t.do(func() {
		if s.joint == nil {
			s.giveUp()
		}
		s.t.serving--
		s.t.settle()
	})
}
