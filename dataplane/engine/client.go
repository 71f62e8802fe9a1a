// SPDX-License-Identifier: Apache-2.0

package engine

import (
	"context"
	"errors"

	"github.com/ztunnel-go/ztunnel/dataplane/hbone/record"
	"github.com/ztunnel-go/ztunnel/dataplane/hbone/wire"
)

// Client begins the client's side of a tunnel over fd, a non-blocking socket
// that is the tunnel's from then on, as is the finished handshake s. It does
// not wait for the peer's SETTINGS (contract 4.7). A nil s is for tests
// without TLS.
func (e *Engine) Client(fd int, s *record.Session, cfg Config) *Tunnel {
	return e.begin(fd, s, cfg, true)
}

func (e *Engine) begin(fd int, s *record.Session, cfg Config, client bool) *Tunnel {
	t := e.newTunnel(fd, client, cfg)
	if !t.do(func() { t.start(s) }) { // the engine has ended
		t.set = cfg.Settings.WithDefaults(client)
		t.ended, t.cause = true, wire.ErrClosed
		t.close()
	}
	return t
}

// Reserve promises n streams, which [Tunnel.Open] uses up, unless the tunnel
// is full or on its way out.
func (t *Tunnel) Reserve(n int) bool {
	t.places.mu.Lock()
	defer t.places.mu.Unlock()
	if t.places.leaving || t.places.used+n > t.places.limit {
		return false
	}
	t.places.used += n
	return true
}

// Promise reserves n streams of a tunnel that has none yet, for which a fresh
// one has room. If it is on its way out already, Open says so to each.
func (t *Tunnel) Promise(n int) {
	t.places.mu.Lock()
	defer t.places.mu.Unlock()
	t.places.used += n
}

// Cede gives n reserved streams back.
func (t *Tunnel) Cede(n int) {
	t.Promise(-n)
	t.do(t.settle)
}

// Full reports whether the next stream would be beyond the limit, or there
// will be no next stream.
func (t *Tunnel) Full() bool {
	t.places.mu.Lock()
	defer t.places.mu.Unlock()
	return t.places.leaving || t.places.used >= t.places.limit
}

// Drain lets the tunnel end with its last stream: GOAWAY, then close.
func (t *Tunnel) Drain() {
	t.places.mu.Lock()
	t.places.leaving = true
	t.places.mu.Unlock()
	t.do(func() {
		t.leave()
		t.settle()
	})
}

// OpenReserved asks for a connection, for a reservation, and waits for the
// answer, or for ctx. Its errors are [*wire.StatusError] (any answer but 200),
// [*wire.ResetError] within a [*wire.HandshakeError], and the cause of ctx.
func (t *Tunnel) OpenReserved(ctx context.Context, r wire.Request) (*Stream, wire.Response, error) {
	type answer struct {
		r   wire.Response
		err error
	}
	answers := make(chan answer, 1)
	var s *Stream // belongs to the loop until there is an answer
	opened := t.do(func() {
		s = t.connect(r, func(r wire.Response, err error) { answers <- answer{r, err} })
	})
	if !opened {
		return nil, wire.Response{}, closedError()
	}
	select {
	case a := <-answers:
		if a.err == nil {
			return s, a.r, nil
		}
		return nil, wire.Response{}, refusal(a.err)
	case <-ctx.Done():
		t.do(func() {
			if s != nil {
				s.release(wire.Cancel)
			}
		})
		return nil, wire.Response{}, context.Cause(ctx)
	}
}

// refusal is the error of a stream that did not come about.
func refusal(err error) error {
	var reset *wire.ResetError
	if errors.As(err, &reset) {
		return &wire.HandshakeError{Err: err}
	}
	return err
}

func closedError() error {
	return &wire.HandshakeError{Err: &wire.ResetError{Code: wire.RefusedStream, Cause: wire.ErrClosed, Unseen: true}}
}

// Open is [Tunnel.Reserve] and [Tunnel.OpenReserved]; also
// [wire.ErrUnavailable].
func (t *Tunnel) Open(ctx context.Context, r wire.Request) (*Stream, wire.Response, error) {
	if !t.Reserve(1) {
		return nil, wire.Response{}, wire.ErrUnavailable
	}
	return t.OpenReserved(ctx, r)
}

// connect turns a reservation into a stream and its request, on the loop. The
// answer is told on the loop, maybe at once.
func (t *Tunnel) connect(r wire.Request, answered func(wire.Response, error)) *Stream {
	if t.ended || t.nextID > t.refuse || t.nextID > wire.MaxStreamID {
		t.Promise(-1)
		cause := wire.Or(t.cause, wire.ErrUnavailable)
		answered(wire.Response{}, &wire.ResetError{Code: wire.RefusedStream, Cause: cause, Unseen: true})
		t.settle()
		return nil
	}
	s := t.newStream(t.nextID)
	s.answered = answered
	if t.nextID += 2; t.nextID > wire.MaxStreamID-2 {
		t.leave()
	}
	t.writeHeaders(s.id, r.Fields(), false)
	return s
}
