// SPDX-License-Identifier: Apache-2.0

package relay

import (
	"context"
	"errors"
	"io"
	"sync"
	"time"
)

// A session is what the two directions share.
type session struct {
	client, upstream Conn
	wait             patience
	ends             *Ends

	mu    sync.Mutex
	cause error       // guarded by mu: the first thing that went wrong
	timer *time.Timer // guarded by mu: set once a side is dead
	done  bool        // guarded by mu: nothing can go wrong any more
}

// abort resets both sides.
func (s *session) abort() {
	s.reset(s.client)
	s.reset(s.upstream)
}

// cut is abort because the context has ended.
func (s *session) cut() {
	s.ends.Cut()
	s.abort()
}

// reset resets one side, which can be looked at until then.
func (s *session) reset(c Conn) {
	s.ends.look(c == s.client, c)
	c.Reset()
}

// breaks notes that one side is dead in both directions, and bounds the time
// for what it had said before.
func (s *session) breaks(d *direction, err error) {
	if err != nil {
		s.note(&Error{Sending: d.sending, Err: err})
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.timer == nil && !s.done {
		s.timer = time.AfterFunc(s.wait.linger, s.abort)
	}
}

// note keeps the first error.
func (s *session) note(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.cause == nil {
		s.cause = err
	}
}

func (s *session) broken() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.timer != nil
}

// finish closes both sides and says how it went. Both directions are over.
func (s *session) finish(ctx context.Context) error {
	s.mu.Lock()
	s.done = true
	broken, cause := s.timer != nil, s.cause
	if broken {
		s.timer.Stop()
	}
	s.mu.Unlock()
	if broken || ctx.Err() != nil {
		s.abort()
	}
	s.ends.look(true, s.client)
	s.ends.look(false, s.upstream)
	closing := errors.Join(s.client.Close(), s.upstream.Close())
	switch {
	case ctx.Err() != nil:
		return context.Cause(ctx)
	case cause != nil:
		return cause
	case closing != nil && !Quiet(closing):
		return &ClosingError{closing}
	}
	return nil
}

// A direction carries bytes one way.
type direction struct {
	s        *session
	src, dst Conn
	back     *direction
	count    func(int)
	sending  bool

	mu   sync.Mutex
	over bool // guarded by mu: nobody reads src any more
}

// watch has resets of src noticed where no Read does. While the direction
// runs, its Read finds the reset behind what came before it, and only a
// receiver that does not take that must be hurried.
func (d *direction) watch() {
	b, ok := d.src.(interface{ OnBroken(func(error)) })
	if !ok {
		return
	}
	b.OnBroken(func(err error) {
		d.s.ends.Saw(d.sending, err)
		if _, ok := d.src.(Joiner); !ok { // whose loop calls us, and must not wait for itself
			d.s.ends.look(d.sending, d.src) // while there is a tunnel
		}
		d.s.breaks(d, err)
		if d.isOver() {
			d.s.reset(d.dst)
		}
	})
}

func (d *direction) isOver() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.over
}

// run carries bytes until an end, and passes that on. What is decided here
// after over was set, and what others decide after they saw it, leave no gap:
// one of both sees that a side is dead.
func (d *direction) run() {
	writing, err := d.transfer()
	d.s.ends.Saw(d.sending != writing, err) // of who was read, or written to
	d.mu.Lock()
	d.over = true
	d.mu.Unlock()
	switch {
	case writing && isClean(err):
		// The receiver wants no more, without complaint. What src still says
		// is nobody's; the other direction goes on.
	case writing:
		// The receiver is dead. What it had said before is the other
		// direction's to deliver, which then finds the same and resets src.
		d.s.breaks(d, err)
		if d.back.isOver() {
			d.s.reset(d.src)
		}
	case err != nil || d.s.broken():
		// The sender is dead, and all that came before was delivered.
		d.s.breaks(d, err)
		d.s.reset(d.dst)
	default:
		d.half()
	}
	if w, ok := d.dst.(waker); ok {
		w.wake() // the other direction may wait for nothing but a reset
	}
}

// half passes an end on, and then watches src, which may yet be reset.
func (d *direction) half() {
	if err := d.dst.CloseWrite(); err != nil && !Quiet(err) {
		d.s.note(&ClosingError{err})
	}
	w, ok := d.src.(waker)
	if !ok {
		return
	}
	if err := w.awaitReset(d.back.isOver); err != nil {
		d.s.ends.Saw(d.sending, err)
		d.s.breaks(d, err)
		d.s.reset(d.dst)
	}
}

// isClean reports whether err says that a peer wants no more, without
// complaint (RST_STREAM with NO_ERROR).
func isClean(err error) bool {
	var verdict interface{ Clean() bool }
	return errors.As(err, &verdict) && verdict.Clean()
}

// A waker is a Conn whose reset, after its end, is noticed by waiting for it.
type waker interface {
	// awaitReset returns an error if the connection is reset, and nil when
	// over says that there is no more need; wake has it ask.
	awaitReset(over func() bool) error
	wake()
}

// transfer carries bytes until src ends (nil) or something breaks; writing
// says that it was dst.
func (d *direction) transfer() (writing bool, err error) {
	to := &sink{d: d}
	switch src := d.src.(type) {
	case *tcp:
		err = src.pump(to)
	case io.WriterTo:
		_, err = src.WriteTo(to)
	default:
		err = pump(src, to)
	}
	if to.err != nil {
		return true, to.err
	}
	return false, err
}

// pump is the way for a Conn of which nothing more is known.
func pump(src io.Reader, to *sink) error {
	b := getBuffer(small)
	defer buffers[small].Put(b)
	for {
		n, err := src.Read(*b)
		if n > 0 {
			if _, err := to.Write((*b)[:n]); err != nil {
				return err
			}
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// A sink counts what the receiver has taken, and keeps its error apart from
// those of the sender.
type sink struct {
	d   *direction
	err error
}

func (t *sink) Write(p []byte) (int, error) {
	n, err := t.d.dst.Write(p)
	t.moved(n, err)
	return n, err
}

func (t *sink) moved(n int, err error) {
	if n > 0 && t.d.count != nil {
		t.d.count(n)
	}
	if err != nil {
		t.err = err
	}
}
