// SPDX-License-Identifier: Apache-2.0

package engine

import (
	"errors"
	"io"
	"net"
	"slices"

	"github.com/ztunnel-go/ztunnel/dataplane/hbone/record"
	"github.com/ztunnel-go/ztunnel/dataplane/hbone/wire"
	"github.com/ztunnel-go/ztunnel/internal/sock"
)

// A stream that is not joined with a socket is read and written by goroutines:
// a tunnel within a tunnel stands on one (contract 4.9).

// waits is who waits for a stream. Only streams that somebody reads or writes
// have it.
type waits struct {
	readers  []*wait
	writers  []*wait
	onBroken func(error)
}

// A wait is one Read or Write.
type wait struct {
	p    []byte
	n    int
	err  error
	end  bool // a CloseWrite
	done chan struct{}
}

func (s *Stream) waiting() *waits {
	if s.waits == nil {
		s.waits = &waits{}
	}
	return s.waits
}

// run has f start w on the loop, and waits for it.
func (s *Stream) run(w *wait, f func(*wait)) (int, error) {
	w.done = make(chan struct{})
	if !s.t.do(func() { f(w) }) {
		return 0, net.ErrClosed
	}
	<-w.done
	return w.n, w.err
}

// Read reads what the peer sent. It returns io.EOF after the peer's
// END_STREAM, and a [*wire.ResetError] if the stream ended otherwise.
func (s *Stream) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	return s.run(&wait{p: p}, func(w *wait) {
		s.waiting().readers = append(s.waits.readers, w)
		s.wakeReader()
	})
}

// wakeReader gives readers what there is.
func (s *Stream) wakeReader() {
	for s.waits != nil && len(s.waits.readers) > 0 {
		w := s.waits.readers[0]
		switch {
		case s.queue.size > 0:
			w.n = s.queue.read(&s.t.lane.chunks, w.p)
			s.delivered(w.n)
		case s.readErr != nil:
			w.err = s.readErr
		case s.recvEnded:
			w.err = io.EOF
		default:
			return
		}
		s.waits.readers = slices.Delete(s.waits.readers, 0, 1)
		close(w.done)
	}
}

// errWriteAfterEnd is a Write after CloseWrite: a mistake of the caller.
var errWriteAfterEnd = errors.New("write after CloseWrite")

// Write sends p. It returns when the last of p is on its way into the tunnel,
// so a peer that grants no window holds it up. It fails at once when the
// stream has ended.
func (s *Stream) Write(p []byte) (int, error) {
	return s.run(&wait{p: p}, s.startWrite)
}

// CloseWrite says that no more will be written. The other direction goes on.
func (s *Stream) CloseWrite() error {
	_, err := s.run(&wait{end: true}, s.startWrite)
	return err
}

func (s *Stream) startWrite(w *wait) {
	s.waiting().writers = append(s.waits.writers, w)
	s.pushWrites()
}

// pushWrites sends what writers have, as far as windows and the socket go.
func (s *Stream) pushWrites() {
	for s.waits != nil && len(s.waits.writers) > 0 {
		w := s.waits.writers[0]
		switch {
		case w.end && s.endSent:
		case s.writeErr != nil:
			w.err = s.writeErr
		case s.endSent:
			w.err = errWriteAfterEnd
		case w.end:
			s.endWrite()
		default:
			if !s.pushWrite(w) {
				return
			}
		}
		if s.waits == nil || len(s.waits.writers) == 0 || s.waits.writers[0] != w {
			return // the stream ended meanwhile, and told everybody
		}
		s.waits.writers = slices.Delete(s.waits.writers, 0, 1)
		close(w.done)
	}
}

// pushWrite reports whether all of w was sent.
func (s *Stream) pushWrite(w *wait) bool {
	for w.n < len(w.p) {
		if s.stall() {
			return false
		}
		k := min(len(w.p)-w.n, s.room(), record.MaxContent-frameHeader)
		s.t.box.data(s.t, s.id, w.p[w.n:w.n+k])
		s.sent(k)
		w.n += k
	}
	return true
}

// wakeAll tells everybody that the stream is broken.
func (s *Stream) wakeAll(err error, clean bool) {
	if s.waits == nil {
		return
	}
	if f := s.waits.onBroken; f != nil {
		s.waits.onBroken = nil
		if err != nil && !clean {
			f(err)
		}
	}
	s.wakeReader()
	s.pushWrites()
}

// OnBroken has f called, once and with the reason, when the peer resets the
// stream (other than with NO_ERROR) or the tunnel is lost while a direction is
// open; at once if that has happened. f runs on the loop and must not wait.
// Close and Reset call it off, as does an end of both directions.
func (s *Stream) OnBroken(f func(error)) {
	s.t.do(func() {
		var reset *wire.ResetError
		if errors.As(s.writeErr, &reset) && reset.Code != wire.NoError {
			f(reset)
			return
		}
		if s.open() {
			s.waiting().onBroken = f
		}
	})
}

// Reset ends the stream as TCP's RST does: RST_STREAM with CONNECT_ERROR (RFC
// 9113, section 8.5). What was not delivered is dropped.
func (s *Stream) Reset() { s.ResetWith(wire.ConnectError) }

// ResetWith is [Stream.Reset] with another code.
func (s *Stream) ResetWith(code wire.Code) { s.t.do(func() { s.release(code) }) }

// Close gives the stream up. If a direction is open yet, the peer is told by
// RST_STREAM. Close after both ends is how a stream ends cleanly.
func (s *Stream) Close() error {
	s.t.do(s.giveUp)
	return nil
}

// TCPInfo is what the kernel knows of the tunnel's connection. It waits for the
// loop.
func (s *Stream) TCPInfo() (info sock.TCPInfo, err error) {
	done := make(chan struct{})
	if !s.t.do(func() { info, err = s.t.info(); close(done) }) {
		return info, net.ErrClosed
	}
	<-done
	return info, err
}

// info is [Stream.TCPInfo] on the loop.
func (t *Tunnel) info() (sock.TCPInfo, error) {
	if t.closed {
		return sock.TCPInfo{}, net.ErrClosed
	}
	return sock.InfoOf(t.fd)
}

// Conn shows the stream as a net.Conn: see [wire.NetConn].
func (s *Stream) Conn() net.Conn { return wire.NetConn(s, s.t.cfg.Local, s.t.cfg.Remote) }
