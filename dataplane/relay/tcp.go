// SPDX-License-Identifier: Apache-2.0

package relay

import (
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ztunnel-go/ztunnel/internal/sock"
)

// TCP makes a [Conn] of c, whose owner it becomes. Between two of them bytes
// pass by splice(2) once they come in bulk.
func TCP(c *net.TCPConn) Conn { return &tcp{c: c} }

type tcp struct {
	c      *net.TCPConn
	closed sync.Once

	mu       sync.Mutex
	awaiting bool // guarded by mu: awaitReset is under way

	shut atomic.Bool // we have said FIN, or are about to
}

var (
	_ Conn  = (*tcp)(nil)
	_ waker = (*tcp)(nil)
)

func (t *tcp) Read(p []byte) (int, error)  { return t.c.Read(p) }
func (t *tcp) Write(p []byte) (int, error) { return t.c.Write(p) }

// CloseWrite says FIN.
func (t *tcp) CloseWrite() error {
	t.shut.Store(true)
	return t.c.CloseWrite()
}

// TCPInfo is what the kernel knows of the connection.
func (t *tcp) TCPInfo() (sock.TCPInfo, error) { return sock.InfoOfConn(t.c) }

// Reset closes with SO_LINGER 0: the peer sees RST, and bytes that it has not
// acknowledged are dropped.
func (t *tcp) Reset() {
	t.closed.Do(func() {
		_ = t.c.SetLinger(0) // fails on a socket that is dead already
		_ = t.c.Close()
	})
}

func (t *tcp) Close() (err error) {
	t.closed.Do(func() { err = t.c.Close() })
	return err
}

// What a direction reads with: a little first, and more once that was filled.
// Neither is held while there is nothing to read.
const (
	small = iota
	large
)

const smallSize = 16 << 10

var buffers = [...]sync.Pool{
	small: {New: func() any { b := make([]byte, smallSize); return &b }},
	large: {New: func() any { b := make([]byte, 4*smallSize); return &b }},
}

func getBuffer(size int) *[]byte { return buffers[size].Get().(*[]byte) }

// spliceMin is how much must wait in a socket for splice(2), with its pipe and
// its two calls, to be worth more than a copy.
const spliceMin = 64 << 10

// spliceMax is how much moves at most before it is counted: a socket may hold
// many megabytes, and counts are to be live.
const spliceMax = 1 << 20

// pump carries bytes from t until its end.
func (t *tcp) pump(to *sink) error {
	raw, err := t.c.SyscallConn()
	if err != nil {
		return err
	}
	from := &source{raw: raw, size: small}
	slow := newStall(raw, to.d)
	defer slow.timer.Stop()
	out, _ := to.d.dst.(*tcp)
	for {
		if out != nil && from.filled && from.size == large {
			slow.begin()
			err := t.splice(out, raw, to)
			slow.end()
			if err != nil {
				return err
			}
		}
		p, err := from.next()
		if err != nil {
			return err
		}
		if p == nil {
			return t.howEnded(raw)
		}
		slow.begin()
		_, err = to.Write((*p)[:from.n])
		slow.end()
		from.done(p)
		if err != nil {
			return err
		}
	}
}

// splice moves what waits in t's socket, as long as it is plenty. An error of
// either side counts as the receiver's, since those bytes were there to read;
// if that is wrong, linger puts it right.
func (t *tcp) splice(out *tcp, raw syscall.RawConn, to *sink) error {
	for {
		var waiting int
		var err error
		if cerr := raw.Control(func(fd uintptr) { waiting, err = unix.IoctlGetInt(int(fd), unix.SIOCINQ) }); cerr != nil {
			return cerr
		}
		if err != nil || waiting < spliceMin {
			return nil // an ordinary read says what is wrong, if anything is
		}
		n, err := out.c.ReadFrom(&io.LimitedReader{R: t.c, N: int64(min(waiting, spliceMax))})
		to.moved(int(n), err)
		if err != nil {
			return err
		}
	}
}

// A source reads from a socket with a buffer that it takes when there is
// something to read. Its fields are what one read leaves behind, so that a
// read needs no closure of its own.
type source struct {
	raw    syscall.RawConn
	size   int // small or large
	buf    *[]byte
	n      int
	err    error
	filled bool // the last read filled its buffer
	try    func(fd uintptr) bool
}

// next returns what was read, in a buffer to be given to done, or nil at the
// end of the stream.
func (s *source) next() (*[]byte, error) {
	if s.try == nil {
		s.try = s.read
	}
	if err := s.raw.Read(s.try); err != nil {
		return nil, err
	}
	if s.n <= 0 {
		s.drop()
		return nil, s.err
	}
	s.filled = s.n == len(*s.buf)
	return s.buf, nil
}

// read reads if there is something; false has the poller wait.
func (s *source) read(fd uintptr) bool {
	s.buf = getBuffer(s.size)
	for {
		s.n, s.err = unix.Read(int(fd), *s.buf)
		if !errors.Is(s.err, unix.EINTR) {
			break
		}
	}
	if errors.Is(s.err, unix.EAGAIN) {
		s.drop()
		return false
	}
	if s.err != nil {
		s.err = os.NewSyscallError("read", s.err)
	}
	return true
}

// howEnded tells a reset from an end where a read cannot: the error of a reset
// goes to one call only, which may have been a write of the other direction.
// A socket is dead in both directions by FINs only once we have sent ours.
func (t *tcp) howEnded(raw syscall.RawConn) error {
	dead := false
	err := raw.Control(func(fd uintptr) { dead = isDead(int(fd)) })
	if err == nil && dead && !t.shut.Load() {
		return errReset()
	}
	return nil
}

// done takes the buffer back, and chooses the next by how full it was.
func (s *source) done(p *[]byte) {
	buffers[s.size].Put(p)
	s.buf = nil
	switch {
	case s.filled:
		s.size = large
	case s.n < smallSize:
		s.size = small
	}
}

func (s *source) drop() {
	buffers[s.size].Put(s.buf)
	s.buf = nil
}

// awaitReset waits, after the peer's FIN, for its RST.
func (t *tcp) awaitReset(over func() bool) error {
	t.mu.Lock()
	t.awaiting = true
	t.mu.Unlock()
	raw, err := t.c.SyscallConn()
	if err != nil {
		return nil // closed, so there is nothing to wait for
	}
	reset := false
	_ = raw.Read(func(fd uintptr) bool { // ends by itself, by wake, or by Close
		if over() {
			return true
		}
		reset = hasReset(int(fd))
		return reset
	})
	if reset {
		return errReset()
	}
	return nil
}

// hasReset asks without taking the error away from whoever writes. It does not
// go by POLLHUP, which a socket also shows once both sides have sent FIN.
func hasReset(fd int) bool {
	fds := []unix.PollFd{{Fd: int32(fd)}}
	n, err := unix.Poll(fds, 0)
	return err == nil && n > 0 && fds[0].Revents&unix.POLLERR != 0
}

func errReset() error { return os.NewSyscallError("read", unix.ECONNRESET) }

// stallCheck is how often a connection that nobody reads, because its receiver
// takes no more, is looked at for a reset.
const stallCheck = time.Second

// A stall looks after the sender while a direction is stuck in a write.
type stall struct {
	raw   syscall.RawConn
	d     *direction
	timer *time.Timer

	mu    sync.Mutex
	stuck bool // guarded by mu: between begin and end
}

func newStall(raw syscall.RawConn, d *direction) *stall {
	s := &stall{raw: raw, d: d}
	s.timer = time.AfterFunc(d.s.wait.stall, s.check)
	s.timer.Stop()
	return s
}

func (s *stall) begin() {
	s.mu.Lock()
	s.stuck = true
	s.mu.Unlock()
	s.timer.Reset(s.d.s.wait.stall)
}

func (s *stall) end() {
	s.timer.Stop()
	s.mu.Lock()
	s.stuck = false
	s.mu.Unlock()
}

// check runs in the timer's goroutine and does not wait.
func (s *stall) check() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.stuck {
		return
	}
	reset := false
	if s.raw.Control(func(fd uintptr) { reset = hasReset(int(fd)) }) != nil {
		return // closed, which ends the write too
	}
	if reset {
		s.d.s.ends.Saw(s.d.sending, errReset())
		s.d.s.breaks(s.d, errReset())
		return
	}
	s.timer.Reset(s.d.s.wait.stall)
}

// wake ends awaitReset. While it is not under way it changes nothing: a read
// may be, and awaitReset asks before it waits.
func (t *tcp) wake() {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.awaiting {
		_ = t.c.SetReadDeadline(time.Unix(1, 0)) // fails if it is closed
	}
}
