// SPDX-License-Identifier: Apache-2.0

package hbone

import (
	"errors"
	"io"
	"net"
	"sync"
	"time"

	"github.com/ztunnel-go/ztunnel/dataplane/hbone/wire"
	"github.com/ztunnel-go/ztunnel/internal/sock"
)

// errWriteAfterEnd is a Write after CloseWrite: a mistake of the caller.
var errWriteAfterEnd = errors.New("write after CloseWrite")

// A stream is a [Stream] of goroutines. It behaves as a TCP connection
// does: bytes in order, two directions that end on their own, and a reset
// that ends both.
//
//	peer's END_STREAM       Read returns io.EOF after what came before it
//	peer's RST_STREAM       Write fails at once, Read after what came before it
//	peer's RST(NO_ERROR)    the same, but Read returns io.EOF: a clean end
//	loss of the tunnel      as RST_STREAM; the error has its cause
//
// Read (or WriteTo), Write and the others may be called from different
// goroutines. A stream without bytes under way holds no buffer.
type stream struct {
	c  *conn
	id uint32

	writing sync.Mutex // one Write at a time; taken before c.mu

	readable, writable *sync.Cond // their lock is c.mu

	// All below is guarded by c.mu.

	in         queue
	recvEnded  bool  // END_STREAM came
	readErr    error // what Read returns once in is empty
	recvWindow int64
	uncredited int64

	pending    []byte // the rest of the Write under way
	queued     bool   // in c.sendQueue
	endSent    bool   // END_STREAM is queued or out
	writeErr   error  // what Write returns
	sendWindow int64

	onBroken func(error)

	opened    time.Time
	responded bool   // client: a 200 came; server: the handler answered
	interim   int    // client: 1xx answers that came
	answer    answer // client
	cancel    func() // server: ends the context of the request
}

// answer is what a CONNECT of ours came to.
type answer struct {
	response Response
	err      error
	done     bool
}

func (c *conn) newStreamLocked(id uint32) *stream {
	s := &stream{
		c: c, id: id, opened: time.Now(),
		readable: sync.NewCond(&c.mu), writable: sync.NewCond(&c.mu),
		recvWindow: c.firstWindowLocked(), sendWindow: c.peerWindow,
	}
	c.streams[id] = s
	return s
}

// Read reads what the peer sent. It returns io.EOF after the peer's
// END_STREAM, and a [*ResetError] if the stream ended otherwise.
func (s *stream) Read(p []byte) (int, error) {
	s.c.mu.Lock()
	defer s.c.mu.Unlock()
	if len(p) == 0 {
		return 0, nil
	}
	if err := s.waitReadableLocked(); err != nil {
		return 0, err
	}
	n := s.in.read(p)
	s.c.creditLocked(s, n)
	return n, nil
}

// waitReadableLocked returns nil once there is something in the queue.
func (s *stream) waitReadableLocked() error {
	for s.in.size == 0 {
		switch {
		case s.readErr != nil:
			return s.readErr
		case s.recvEnded:
			return io.EOF
		}
		s.readable.Wait()
	}
	return nil
}

// WriteTo hands what arrives to w, without a buffer of its own, until the
// peer's END_STREAM (nil) or another end. Bytes count as delivered, and are
// credited to the peer, when w has taken them.
func (s *stream) WriteTo(w io.Writer) (total int64, err error) {
	for {
		s.c.mu.Lock()
		if err := s.waitReadableLocked(); err != nil {
			s.c.mu.Unlock()
			if errors.Is(err, io.EOF) {
				err = nil
			}
			return total, err
		}
		k := s.in.pop()
		s.c.mu.Unlock()

		n, err := w.Write(k.buf[k.r:k.w])
		total += int64(n)

		s.c.mu.Lock()
		s.c.creditLocked(s, k.w-k.r)
		s.c.mu.Unlock()
		putChunk(k)
		if err != nil {
			return total, err
		}
	}
}

// Write sends p. It returns when the last of p is on its way into the tunnel,
// so a peer that grants no window holds it up. It fails at once when the
// stream has ended.
func (s *stream) Write(p []byte) (int, error) {
	s.writing.Lock()
	defer s.writing.Unlock()
	s.c.mu.Lock()
	defer s.c.mu.Unlock()
	if err := s.writableLocked(); err != nil {
		return 0, err
	}
	s.pending = p
	s.c.queueLocked(s)
	for len(s.pending) > 0 && s.writeErr == nil {
		s.writable.Wait()
	}
	n := len(p) - len(s.pending)
	s.pending = nil
	if n < len(p) {
		return n, s.writeErr
	}
	return n, nil
}

func (s *stream) writableLocked() error {
	switch {
	case s.writeErr != nil:
		return s.writeErr
	case s.endSent:
		return errWriteAfterEnd
	}
	return nil
}

// CloseWrite says that no more will be written: END_STREAM, in an empty DATA
// frame (contract 4.8). The other direction goes on.
func (s *stream) CloseWrite() error {
	s.writing.Lock() // a Write under way is sent first
	defer s.writing.Unlock()
	s.c.mu.Lock()
	if s.endSent {
		s.c.mu.Unlock()
		return nil
	}
	if err := s.writeErr; err != nil {
		s.c.mu.Unlock()
		return err
	}
	s.endSent = true
	_ = s.c.wf.WriteData(s.id, true, nil)
	s.c.work.Signal()
	told := s.closedLocked()
	s.c.mu.Unlock()
	for _, f := range told {
		f()
	}
	return nil
}

// Reset ends the stream as TCP's RST does: RST_STREAM with CONNECT_ERROR (RFC
// 9113, section 8.5). What was not delivered is dropped.
func (s *stream) Reset() { s.ResetWith(ConnectError) }

// ResetWith is [stream.Reset] with another code.
func (s *stream) ResetWith(code Code) { s.release(&ResetError{Code: code}) }

// Close gives the stream up. If a direction is open yet, the peer is told by
// RST_STREAM: CANCEL, or NO_ERROR from a server that had sent all it had
// (RFC 9113, section 8.1). Close after both ends is how a stream ends cleanly.
func (s *stream) Close() error {
	s.c.mu.Lock()
	code := Cancel
	if s.endSent && !s.c.client {
		code = NoError
	}
	s.c.mu.Unlock()
	s.release(&ResetError{Code: code, Cause: nil})
	return nil
}

// release ends what is open of s and drops what nobody read.
func (s *stream) release(err *ResetError) {
	c := s.c
	c.mu.Lock()
	s.onBroken = nil
	if n := s.in.drop(); n > 0 {
		c.creditTunnelLocked(n)
	}
	if s.readErr == nil {
		s.readErr = net.ErrClosed
	}
	if s.writeErr == nil {
		s.writeErr = net.ErrClosed
	}
	if _, open := c.streams[s.id]; open {
		c.writeResetLocked(s.id, err.Code)
		c.removeLocked(s.id)
	}
	s.wakeLocked()
	told := c.settleLocked()
	c.mu.Unlock()
	for _, f := range told {
		f()
	}
}

// OnBroken has f called, once and with the reason, when the peer resets the
// stream (other than with NO_ERROR) or the tunnel is lost while a direction is
// open; at once if that has happened. It tells the relay what no Read may be
// there to notice. f runs in a goroutine of the tunnel's and must not wait.
// Close and Reset call it off, as does an end of both directions.
func (s *stream) OnBroken(f func(error)) {
	s.c.mu.Lock()
	var broken *ResetError
	if errors.As(s.writeErr, &broken) && broken.Code != NoError {
		s.c.mu.Unlock()
		f(broken)
		return
	}
	s.onBroken = f
	s.c.mu.Unlock()
}

// brokenLocked ends s because of its peer or its tunnel. What is queued stays
// readable. The caller removes s from the tunnel and runs what is returned.
func (s *stream) brokenLocked(err error) (told []func()) {
	var reset *ResetError
	clean := errors.As(err, &reset) && reset.Remote && reset.Code == NoError
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
	if !s.answer.done {
		s.answer = answer{err: err, done: true}
	}
	if f := s.onBroken; f != nil && !clean {
		s.onBroken = nil
		told = append(told, func() { f(err) })
	}
	if s.cancel != nil {
		told = append(told, s.cancel)
	}
	s.wakeLocked()
	return told
}

// endReadLocked takes the peer's END_STREAM.
func (s *stream) endReadLocked() []func() {
	if s.recvEnded || s.readErr != nil {
		return nil
	}
	s.recvEnded = true
	s.wakeLocked()
	return s.closedLocked()
}

// closedLocked removes s once both directions have ended.
func (s *stream) closedLocked() []func() {
	if !s.recvEnded || !s.endSent {
		return nil
	}
	s.onBroken = nil
	s.c.removeLocked(s.id)
	return s.c.settleLocked()
}

func (s *stream) wakeLocked() {
	s.readable.Broadcast()
	s.writable.Broadcast()
}

// TCPInfo is [Stream.TCPInfo].
func (s *stream) TCPInfo() (sock.TCPInfo, error) {
	switch c := s.c.raw.(type) {
	case *net.TCPConn:
		return sock.InfoOfConn(c)
	case interface {
		TCPInfo() (sock.TCPInfo, error)
	}:
		return c.TCPInfo()
	}
	return sock.TCPInfo{}, net.ErrClosed
}

// Conn is [Stream.Conn].
func (s *stream) Conn() net.Conn {
	return wire.NetConn(s, s.c.raw.LocalAddr(), s.c.raw.RemoteAddr())
}
