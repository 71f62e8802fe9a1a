// SPDX-License-Identifier: Apache-2.0

package hbone

import (
	"context"
	"crypto/tls"
	"net"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ztunnel-go/ztunnel/dataplane/engine"
	"github.com/ztunnel-go/ztunnel/dataplane/hbone/record"
	"github.com/ztunnel-go/ztunnel/internal/sock"
)

// A loopServer is a peer's tunnel that an event loop carries, from the end of
// its handshake on. It waits for run; what it is told before, it does then.
type loopServer struct {
	fd            int
	session       *record.Session
	local, remote net.Addr

	mu     sync.Mutex
	tunnel *engine.Tunnel         // guarded by mu: set by run
	early  []func(*engine.Tunnel) // guarded by mu
	over   error                  // guarded by mu: it was ended before it ran
}

// take is Accept for an event loop. TLS 1.2 falls to goroutines.
func (s *ServerConn) take(ctx context.Context, nc *net.TCPConn, cfg *tls.Config, timeout time.Duration) error {
	l := &loopServer{local: nc.LocalAddr(), remote: nc.RemoteAddr()}
	var err error
	l.fd, l.session, err = take(ctx, nc, cfg, shaking{record.Server, timeout})
	if err != nil {
		return err
	}
	if l.session != nil {
		s.know(l.session.TLS)
	}
	if l.session != nil && l.session.Std != nil {
		s.begin(nc, l.session.Std)
		return nil
	}
	s.loop = l
	return nil
}

// tell does f with the tunnel, now or once it runs. f does not wait.
func (l *loopServer) tell(f func(*engine.Tunnel)) {
	l.mu.Lock()
	t := l.tunnel
	if t == nil {
		l.early = append(l.early, f)
	}
	l.mu.Unlock()
	if t != nil {
		f(t)
	}
}

// end ends the tunnel, or keeps it from beginning.
func (l *loopServer) end(cause error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case l.tunnel != nil:
		l.tunnel.EndWith(cause)
	case l.over == nil:
		l.over = cause
		unix.Close(l.fd)
		if l.session != nil {
			l.session.Wipe()
		}
	}
}

// run carries the tunnel until it is gone.
func (l *loopServer) run(s *ServerConn) error {
	over := make(chan error, 1)
	l.start(s, func(err error) { over <- err })
	return <-over
}

// start has the tunnel carried; done hears of its end, where it must not wait.
func (l *loopServer) start(s *ServerConn, done func(error)) {
	l.mu.Lock()
	if l.over != nil {
		l.mu.Unlock()
		done(nil)
		return
	}
	t := l.tunnel // of one that has travelled
	if t == nil {
		t = s.cfg.Engine.Server(l.fd, l.session, engine.Config{
			Settings: s.cfg.Settings, Local: l.local, Remote: l.remote, Request: s.request})
	}
	l.tunnel, l.session = t, nil // which holds certificates
	early := l.early
	l.early = nil
	l.mu.Unlock()
	for _, f := range early {
		f(t)
	}
	t.Then(done)
}

// request answers a request at once, or starts its handler; called on the loop.
func (s *ServerConn) request(q *engine.Request) {
	ctx, cancel := context.WithCancel(context.Background())
	answer := &loopRequest{q: q}
	q.OnGone(func(err error) {
		answer.mu.Lock()
		answer.gone = err
		answer.mu.Unlock()
		cancel()
	})
	r := s.connect(ctx, answer, q.Headers)
	s.handlers.Add(1)
	r.finish = func() {
		cancel()
		q.Release()
		s.handlers.Done()
	}
	if s.cfg.Quick != nil && s.cfg.Quick(r) {
		return
	}
	go func() { // one of handlers, which its owner waits for
		defer r.finish()
		s.cfg.Handler(r)
	}()
}

// Await has done called on the tunnel's event loop, once, when d is connected
// or with the reason why not, within patience; the end of ctx is one. It is for
// [ServerConfig.Quick] alone.
func (r *Connect) Await(ctx context.Context, d *sock.Dialing, patience time.Duration, done func(error)) {
	r.answer.(*loopRequest).q.Await(ctx, d, patience, done)
}

// Finish is for a request that [ServerConfig.Quick] took, when nothing is left
// to do for it: a stream that was not joined with a socket by then ends.
func (r *Connect) Finish() { r.finish() }

// A loopRequest is a request on an event loop.
type loopRequest struct {
	q *engine.Request

	mu       sync.Mutex
	answered bool  // guarded by mu
	gone     error // guarded by mu: why the stream has ended
}

func (r *loopRequest) first() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.answered {
		return errAnswered
	}
	r.answered = true
	return r.gone
}

func (r *loopRequest) accept(baggage *string) (Stream, error) {
	if err := r.first(); err != nil {
		return nil, err
	}
	return r.q.Accept(baggage), nil
}

func (r *loopRequest) reject(status int) error {
	if err := r.first(); err != nil {
		return err
	}
	r.q.Reject(status)
	return nil
}
