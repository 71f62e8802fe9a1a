// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"slices"
	"syscall"
	"time"

	"github.com/ztunnel-go/ztunnel/dataplane/hbone"
	"github.com/ztunnel-go/ztunnel/dataplane/live"
	"github.com/ztunnel-go/ztunnel/dataplane/relay"
	"github.com/ztunnel-go/ztunnel/dataplane/route"
)

// maxRetries is how many further endpoints a connection is offered to. Each
// may cost the time of a connect, which the application waits.
const maxRetries = 2

// reach connects to the next hop. One that cannot be reached is left alone for
// a while, and if it was one of several, another has the connection: f then
// says which. So it is with one whose application cannot be reached. The error is that of the last attempt.
// first is the first attempt, and p.connect all others.
func (p *Proxy) reach(ctx context.Context, f *forwarding,
	first func(context.Context, *forwarding) (relay.Conn, error)) (relay.Conn, error) {
	began, connect := time.Now(), first
	for retries := 0; ; retries++ {
		if f.out.Kind != route.DoubleTunnel { // which counts from the end of this
			f.report.Began = began
		}
		upstream, err := connect(ctx, f)
		connect = p.connect
		p.learn(ctx, f.out, err)
		if err == nil || !unreached(ctx, err) && !unanswered(ctx, err) || retries == maxRetries || !p.turn(f, err) {
			return upstream, err
		}
	}
}

// learn remembers whether a next hop could be reached. A closed port of a
// workload without a tunnel says nothing of its others, so such a failure
// counts only where the port is a service's.
func (p *Proxy) learn(ctx context.Context, out route.Outcome, err error) {
	switch {
	case out.NextHop == nil:
	case err == nil:
		p.balance.Reached(out.NextHop.UID)
	case unreached(ctx, err) && (out.Kind != route.Direct || out.Rivals):
		p.balance.Failed(out.NextHop.UID)
	case unanswered(ctx, err) && out.Rivals:
		p.balance.Failed(out.NextHop.UID)
	}
}

// attempt enters f in the admin dump, and as a load of whom it goes to, until
// f.done is called.
func (p *Proxy) attempt(f *forwarding) {
	entry := p.live.Track(live.Outbound{
		Src: f.conn.Peer, OriginalDst: f.conn.Dst, ActualDst: f.out.Dial, Protocol: live.Protocol(f.out.Kind.String()),
	}, f.cancel)
	closed := p.balance.Opened(f.out.Endpoints)
	f.entry = entry
	f.done = func() {
		closed()
		entry.Done()
	}
}

// turn directs f to an endpoint that has not failed it, if there is one.
// Nothing that was to go through a tunnel goes without.
func (p *Proxy) turn(f *forwarding, failure error) bool {
	if !f.out.Rivals {
		return false
	}
	failed := f.out.NextHop.UID
	out := p.ask(f.log, f.out.Another())
	if out.Kind == route.Refuse || out.NextHop == nil || out.Kind == route.Direct && f.out.Kind != route.Direct {
		return false
	}
	p.balance.Retried()
	f.log.Debug("connecting to another endpoint", slog.String("failed", failed),
		slog.String("next", out.NextHop.UID), slog.String("error", failure.Error()))
	f.done()
	f.out, f.report = out, outboundReport(f.conn, f.source, out)
	p.attempt(f)
	return true
}

// A beyondError is what failed behind a next hop that had accepted the
// connection. The text is its cause's.
type beyondError struct{ error }

func (e *beyondError) Unwrap() error { return e.error }

// unreached reports whether err says that the next hop could not be reached
// and has certainly not acted on the request: no connection, no TLS, or a
// tunnel that refused the stream unseen. Any answer, and what is wrong with
// ourselves, is no reason to ask somebody else.
func unreached(ctx context.Context, err error) bool {
	var (
		handshake *hbone.TLSError
		reset     *hbone.ResetError
		identity  *identityError
		beyond    *beyondError
	)
	switch {
	case ctx.Err() != nil, errors.As(err, &identity), errors.As(err, &beyond):
		return false
	case errors.As(err, &handshake):
		return true
	case errors.As(err, &reset):
		return reset.Unprocessed()
	}
	return unconnected(err)
}

// unanswered reports whether err is the next hop's word that it could not
// connect the application (contract 4.6), which therefore has seen nothing of
// the client: its pod may be on its way out. Of the pod's other ports that says
// nothing.
func unanswered(ctx context.Context, err error) bool {
	var (
		status *hbone.StatusError
		beyond *beyondError
	)
	return ctx.Err() == nil && !errors.As(err, &beyond) && errors.As(err, &status) && status.Code == http.StatusServiceUnavailable
}

// unconnected reports whether err is a TCP connection that the far side or the
// way to it did not allow. Want of descriptors or of a permission is ours; and
// a reset comes from an application that had accepted the connection.
func unconnected(err error) bool {
	var timeout net.Error
	if errors.As(err, &timeout) && timeout.Timeout() {
		return true
	}
	var errno syscall.Errno
	return errors.As(err, &errno) && slices.Contains([]syscall.Errno{
		syscall.ECONNREFUSED, syscall.ETIMEDOUT, syscall.EHOSTUNREACH,
		syscall.EHOSTDOWN, syscall.ENETUNREACH, syscall.ENETDOWN,
	}, errno)
}
