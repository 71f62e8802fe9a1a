// SPDX-License-Identifier: Apache-2.0

package engine

import (
	"context"
	"time"

	"github.com/ztunnel-go/ztunnel/dataplane/hbone/wire"
	"github.com/ztunnel-go/ztunnel/dataplane/reactor"
	"github.com/ztunnel-go/ztunnel/internal/sock"
)

// What loops wait for on behalf of connections that are being made, so that
// none needs a goroutine: for the answer to a request of ours, and for the
// application that a request of a peer's is for.

// Begin asks for a connection, for a reservation, and does not wait: done hears
// of the answer on the loop, once, as [Tunnel.OpenReserved] would return it. It
// must not wait, and may be called before Begin returns. The end of ctx is an
// answer too.
func (t *Tunnel) Begin(ctx context.Context, r wire.Request, done func(*Stream, wire.Response, error)) {
	began := t.do(func() {
		var s *Stream
		var stop func() bool
		told := false
		s = t.connect(r, func(a wire.Response, err error) {
			told = true
			if stop != nil {
				stop()
			}
			if err != nil {
				done(nil, wire.Response{}, refusal(err))
				return
			}
			done(s, a, nil)
		})
		if told {
			return
		}
		stop = context.AfterFunc(ctx, func() {
			t.do(func() {
				if !told {
					told = true
					s.release(wire.Cancel)
					done(nil, wire.Response{}, context.Cause(ctx))
				}
			})
		})
	})
	if !began {
		done(nil, wire.Response{}, closedError())
	}
}

// A wait for a socket that connects.
type connecting struct {
	d     *sock.Dialing
	src   reactor.Source
	timer reactor.Timer
	loop  *reactor.Loop
	stop  func() bool
	done  func(error)
}

// Await has done called on the loop, once, when d is connected, or with the
// error that says why not: those of [sock.Dialing], and the cause of ctx. d's
// descriptor stays its owner's. Only Config.Request may call it.
func (r *Request) Await(ctx context.Context, d *sock.Dialing, patience time.Duration, done func(error)) {
	loop := r.stream.t.lane.loop
	c := &connecting{d: d, loop: loop, done: done}
	if err := c.src.Watch(loop, d.FD, reactor.Writable, c); err != nil {
		done(err)
		return
	}
	loop.Set(&c.timer, loop.Now().Add(patience), c)
	c.stop = context.AfterFunc(ctx, func() { loop.Do(func() { c.end(context.Cause(ctx)) }) })
}

// Ready looks whether it is connected.
func (c *connecting) Ready(reactor.Events) {
	if done, err := c.d.Check(); done {
		c.end(err)
	}
}

// Expired is the end of patience.
func (c *connecting) Expired(*reactor.Timer) { c.end(c.d.Late()) }

func (c *connecting) end(err error) {
	if !c.src.Watching() {
		return
	}
	c.src.Stop()
	c.loop.Cancel(&c.timer)
	c.stop()
	c.done(err)
}

// An Acceptor has a listener watched by a loop.
type Acceptor struct {
	loop   *reactor.Loop
	src    reactor.Source
	timer  reactor.Timer
	fd     int
	accept func() (pause time.Duration)
}

// Listen has accept called, on a loop, whenever there are connections to be
// accepted on fd, a listener that does not block. accept takes some, and must
// not wait; it is not called again before pause has passed. The descriptor
// stays the caller's.
func (e *Engine) Listen(fd int, accept func() (pause time.Duration)) (*Acceptor, error) {
	a := &Acceptor{loop: e.pick().loop, fd: fd, accept: accept}
	began := make(chan error, 1)
	if !a.loop.Do(func() { began <- a.src.Watch(a.loop, fd, reactor.Readable, a) }) {
		return nil, wire.ErrClosed
	}
	if err := <-began; err != nil {
		return nil, err
	}
	return a, nil
}

// Ready is for the loop.
func (a *Acceptor) Ready(reactor.Events) {
	if pause := a.accept(); pause > 0 && a.src.Watching() {
		a.src.Want(0)
		a.loop.Set(&a.timer, a.loop.Now().Add(pause), a)
	}
}

// Expired is for the loop.
func (a *Acceptor) Expired(*reactor.Timer) { a.src.Want(reactor.Readable) }

// Close ends it: when it returns accept is not running, and will not be called
// again.
func (a *Acceptor) Close() {
	ended := make(chan struct{})
	stop := func() {
		a.src.Stop()
		a.loop.Cancel(&a.timer)
		close(ended)
	}
	if a.loop.Do(stop) {
		<-ended
	}
}
