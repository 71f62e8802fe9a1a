// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"context"
	"io"

	"github.com/ztunnel-go/ztunnel/dataplane/hbone"
	"github.com/ztunnel-go/ztunnel/dataplane/relay"
	"github.com/ztunnel-go/ztunnel/dataplane/report"
	"github.com/ztunnel-go/ztunnel/internal/mtls"
	"github.com/ztunnel-go/ztunnel/internal/revocation"
)

// connectAcross reaches into another network: a tunnel to its gateway, which
// others may share, and in that one of this connection's own to whoever the
// gateway chooses. The gateway sees only bytes (contract 4.9). What the far
// side says of itself goes into f's report.
func (p *Proxy) connectAcross(ctx context.Context, f *forwarding) (relay.Conn, error) {
	outer, err := p.openStream(ctx, f)
	if err != nil {
		return nil, err
	}
	inner, release, err := p.tunnelWithin(ctx, f, outer)
	if err != nil {
		_ = outer.Close() // the first error is the one to tell
		return nil, &beyondError{err}
	}
	request := f.request()
	request.ForwardedNetwork = &p.cfg.Network
	stream, response, err := inner.Open(ctx, request)
	a := &across{Stream: stream, tunnel: inner}
	p.conns.Go(func() { // ends with the tunnel, which ends after its stream or with p.ctx
		stop := context.AfterFunc(p.ctx, func() { inner.End(context.Cause(p.ctx)) })
		defer stop()
		inner.Wait()
		release()
	})
	if err != nil {
		inner.Drain()
		return nil, &beyondError{err}
	}
	if b, ok := report.ParseBaggage([]string{response.Baggage}); ok && response.Baggage != "" {
		f.report.DestinationBaggage = &b
	}
	return a, nil
}

// tunnelWithin makes the inner tunnel, which is ours from then on.
func (p *Proxy) tunnelWithin(ctx context.Context, f *forwarding, outer hbone.Stream) (*hbone.Tunnel, func(), error) {
	bundle, err := p.certificate(ctx, f.source.Identity())
	if err != nil {
		return nil, nil, &identityError{err}
	}
	opts, seen := p.witnessed()
	inner, err := hbone.NewTunnel(ctx, outer.Conn(), mtls.Client(bundle, f.out.InnerExpect, opts), p.cfg.Settings)
	if err != nil {
		return nil, nil, err
	}
	release, err := p.enter(revocation.Source, seen, inner.End)
	if err != nil {
		_ = inner.Close()
		return nil, nil, err
	}
	f.report.DestinationIdentity = seen.peer()
	return inner, release, nil
}

// across is the only stream of an inner tunnel, which ends after it.
type across struct {
	hbone.Stream
	tunnel *hbone.Tunnel
}

// WriteTo is the stream's.
func (a *across) WriteTo(w io.Writer) (int64, error) { return io.Copy(w, a.Stream) }

// Close lets the tunnel end once it has sent what the stream has left it.
func (a *across) Close() error {
	err := a.Stream.Close()
	a.tunnel.Drain()
	return err
}
