// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"net/netip"
	"strings"
	"sync"

	"github.com/ztunnel-go/ztunnel/dataplane/capture"
	"github.com/ztunnel-go/ztunnel/dataplane/hbone"
	"github.com/ztunnel-go/ztunnel/dataplane/live"
	"github.com/ztunnel-go/ztunnel/dataplane/proxyproto"
	"github.com/ztunnel-go/ztunnel/dataplane/rbac"
	"github.com/ztunnel-go/ztunnel/dataplane/reason"
	"github.com/ztunnel-go/ztunnel/dataplane/relay"
	"github.com/ztunnel-go/ztunnel/dataplane/report"
	"github.com/ztunnel-go/ztunnel/dataplane/route"
	"github.com/ztunnel-go/ztunnel/internal/logs"
	"github.com/ztunnel-go/ztunnel/internal/mesh"
	"github.com/ztunnel-go/ztunnel/internal/mtls"
	"github.com/ztunnel-go/ztunnel/internal/revocation"
)

/* The life of an inbound connection (contract 5)
 *
 *	tunnel:    accept -> certificate -> handshake -> CONNECT -> target ----+
 *	                                                                        +-> admit -> deliver -> answer -> relay -> report
 *	plaintext: accept -> not to ourselves -> who are we --------------------+
 *
 * Functions stand in this order. What fails before admit is an early deny;
 * from then on the connection is tracked. The part they share is written once:
 * arrive.
 */

// tunnel serves one connection to port 15008. It returns after the handshake.
func (p *Proxy) tunnel(c *capture.Conn) {
	p.shared.Reporter.SocketOpened(report.Destination)
	over := func() { p.shared.Reporter.SocketClosed(report.Destination) }
	if full := p.shared.Gate.enter(c.Peer.Addr()); full != "" {
		p.shared.Metrics.crowded(full)
		p.shared.Reporter.Refused(report.Destination, reason.TooManyHandshakes)
		abort(c)
		over()
		p.logFor(targetInbound).Debug("connection refused", slog.Any("peer", c.Peer), slog.String("error", crowded))
		return
	}
	outside := sync.OnceFunc(func() { p.shared.Gate.leave(c.Peer.Addr()) })
	defer outside()
	if err := p.serveTunnel(c, outside, over); err != nil {
		if p.ctx.Err() != nil {
			err = context.Cause(p.ctx) // which is why it failed
		}
		p.denied(report.Destination, c, err)
		c.Close()
		over()
	}
}

// serveTunnel returns the errors that come before the first request; later
// ones are the requests' own business. proved is called once the handshake is
// done, and over, unless there is an error, when the tunnel has ended.
func (p *Proxy) serveTunnel(c *capture.Conn, proved, over func()) error {
	local, err := p.workload(p.logFor(targetInbound))
	if err != nil {
		return reason.Errorf(reason.WorkloadUnknown, "signing error: workload is unknown: %s", p.pod.label())
	}
	bundle, err := p.certificate(p.ctx, local.Identity())
	if err != nil {
		return reason.Errorf(whyCertificate(err), "signing error: %w", err)
	}
	opts, seen := p.witnessed()
	from := &capture.Conn{Peer: c.Peer, Dst: c.Dst} // what there is to know of c for as long as the tunnel lasts
	conn, err := hbone.Accept(p.ctx, c.TCPConn, mtls.Server(bundle, opts), p.serving(from))
	proved()
	if err != nil {
		return reason.New(whyTLS(err), "tls handshake error: "+ioText(err))
	}
	release, err := p.enter(revocation.Destination, seen, conn.End)
	if err != nil {
		conn.Close() // always nil
		return err
	}
	p.carry(conn, arrived{c.Peer, c.Dst, seen}, func() {
		release()
		over()
	})
	return nil
}

// carry has a tunnel served until it is gone, or carried on elsewhere, when over
// is called. Our caller is one of p.conns, so nobody has stopped waiting.
func (p *Proxy) carry(conn *hbone.ServerConn, from arrived, over func()) {
	p.addTunnel(conn, from)
	p.conns.Add(1)
	conn.ServeThen(func(err error) {
		defer p.conns.Done()
		p.removeTunnel(conn)
		if err != nil && !errors.Is(err, hbone.ErrMoved) {
			p.shared.Metrics.broke(err)
			p.logFor(targetInbound).Debug("tunnel ended", slog.Any("peer", from.peer), slog.String("error", err.Error()))
		}
		over()
	})
}

// serving is how the requests of a tunnel are answered that came from a peer.
func (p *Proxy) serving(from *capture.Conn) hbone.ServerConfig {
	return hbone.ServerConfig{
		Settings: p.cfg.Settings,
		Engine:   p.shared.Engine,
		Handler:  func(r *hbone.Connect) { p.serveConnect(from, r) },
		Quick:    func(r *hbone.Connect) bool { return p.serveNow(from, r) },
		Identity: mtls.PeerIdentity,
	}
}

// serveConnect is one user connection of a tunnel.
func (p *Proxy) serveConnect(c *capture.Conn, r *hbone.Connect) {
	log := p.logOf(c, r)
	a, status, err := p.target(log, c, r)
	if err != nil {
		p.denied(report.Destination, c, err)
		p.reject(log, r, status)
		return
	}
	p.arrive(a, tunnelled{p, log, r, a.local})
}

func (p *Proxy) logOf(c *capture.Conn, r *hbone.Connect) *slog.Logger {
	return logs.Span(p.logFor(targetInbound), "inbound",
		slog.Any("id", logs.Bare(traceID(r.Header("traceparent")))), slog.Any("peer", c.Peer))
}

// target is steps 1 to 6 of the pipeline: what may be refused before anybody
// is asked for permission (contract 5.2).
func (p *Proxy) target(log *slog.Logger, c *capture.Conn, r *hbone.Connect) (arrival, int, error) {
	if r.Method != http.MethodConnect {
		return arrival{}, http.StatusBadRequest, reason.Errorf(reason.BadMethod, "expected method CONNECT, got %s", r.Method)
	}
	target, err := route.ParseTarget(r.Authority)
	if err != nil {
		return arrival{}, http.StatusBadRequest, err
	}
	local, err := p.workload(log)
	if err != nil {
		return arrival{}, http.StatusServiceUnavailable, err
	}
	in := route.Inbound{
		Local: local, Addr: c.Dst.Addr(), Network: p.cfg.Network,
		Illegal: p.cfg.Illegal, LocalhostTunnel: p.cfg.LocalhostTunnel,
	}
	if err := p.learnTarget(in, target); err != nil {
		return arrival{}, http.StatusServiceUnavailable, err
	}
	if err := in.Validate(p.view, target); err != nil {
		return arrival{}, http.StatusBadRequest, err
	}
	up, err := in.Upstream(p.view, target)
	if err != nil {
		return arrival{}, http.StatusServiceUnavailable, err
	}
	forwarded := forwardedHost(r.Header("forwarded"))
	a := arrival{
		src: c.Peer, dst: up.Addr, dial: up.Dial, announce: up.Proxy, local: local,
		host: forwarded,
		report: report.Params{
			Reporter: report.Destination,
			Src:      c.Peer, Dst: c.Dst, HBONEAddr: r.Authority,
			Destination: local, MutualTLS: true, SourceIdentity: r.Identity,
			Service: route.GuessService(p.view, local, up.Services, forwarded, up.Addr.Port()),
		},
	}
	a.report.Source, a.report.SourceBaggage = p.caller(c.Peer.Addr(), r)
	return a, 0, nil
}

// caller says who the labels name as the source: the workload with the peer's
// address, unless a gateway stands between, else the peer's own word for it
// (contract 5.8, 12.4).
func (p *Proxy) caller(ip netip.Addr, r *hbone.Connect) (*mesh.Workload, *report.Baggage) {
	if network := r.Header("x-forwarded-network"); len(network) == 0 || strings.EqualFold(network[0], p.cfg.Network) {
		if w := p.peer(ip); w != nil {
			return w, nil
		}
	}
	if !p.cfg.ResponseBaggage {
		return nil, nil
	}
	if b, ok := report.ParseBaggage(r.Header("baggage")); ok {
		return nil, &b
	}
	return nil, nil
}

func forwardedHost(headers []string) string {
	if len(headers) == 0 {
		return ""
	}
	return route.ForwardedHost(headers[0])
}

// tunnelled is the client's end of an arrival through a tunnel.
type tunnelled struct {
	proxy *Proxy
	log   *slog.Logger
	conn  *hbone.Connect
	local *mesh.Workload
}

func (t tunnelled) waiting() context.Context { return t.conn.Context() }

func (t tunnelled) ending() func() { return nil }

func (t tunnelled) refuse(err error) {
	status := http.StatusServiceUnavailable
	if denied := (*rbac.DeniedError)(nil); errors.As(err, &denied) || errors.Is(err, live.ErrPolicyChange) {
		status = http.StatusUnauthorized
	}
	t.proxy.reject(t.log, t.conn, status)
}

func (t tunnelled) accept(ctx context.Context) (relay.Conn, error) {
	var baggage *string
	if t.proxy.cfg.ResponseBaggage {
		b := report.BaggageOf(t.local).String()
		baggage = &b
	}
	s, err := t.conn.Accept(baggage)
	if err != nil {
		return nil, err
	}
	if _, ok := s.(relay.Joiner); ok {
		return s, nil // which knows itself what served is for
	}
	return served{s, ctx}, nil
}

// served is a stream that ends by CANCEL if it is we who end it (contract
// 5.5), and by CONNECT_ERROR if the application does.
type served struct {
	hbone.Stream
	ctx context.Context // tells who ended the stream
}

func (s served) Reset() {
	if s.ctx.Err() != nil {
		s.ResetWith(hbone.Cancel)
		return
	}
	s.Stream.Reset()
}

// WriteTo is the stream's.
func (s served) WriteTo(w io.Writer) (int64, error) { return io.Copy(w, s.Stream) }

func (p *Proxy) reject(log *slog.Logger, r *hbone.Connect, status int) {
	if err := r.Reject(status); err != nil {
		log.Debug("peer did not take the answer", slog.Int("status", status), slog.String("error", err.Error()))
	}
}

// plaintext serves one connection to port 15006 (contract 5.7).
func (p *Proxy) plaintext(c *capture.Conn) {
	p.shared.Reporter.SocketOpened(report.Destination)
	closed := func() { p.shared.Reporter.SocketClosed(report.Destination) }
	deny := func(err error) {
		defer closed()
		abort(c)
		p.denied(report.Destination, c, err)
	}
	if err := p.cfg.Illegal.Inbound(c.Dst.Port()); err != nil {
		deny(err)
		return
	}
	local, err := p.workload(p.logFor(targetPlaintext))
	if err != nil {
		deny(err)
		return
	}
	p.arrive(arrival{
		src: c.Peer, dst: c.Dst, dial: c.Dst, local: local,
		report: report.Params{
			Reporter: report.Destination,
			Src:      c.Peer, Dst: c.Dst,
			Source:      p.peer(c.Peer.Addr()),
			Destination: local,
			Service:     route.GuessService(p.view, local, route.Services(p.view, local), "", c.Dst.Port()),
		},
	}, plain{c, closed})
}

// plain is the client's end of an arrival without a tunnel.
type plain struct {
	conn   *capture.Conn
	closed func() // takes back what was counted when it was accepted
}

func (c plain) ending() func() { return c.closed }

// waiting never ends: nothing is read from the client yet, so nobody knows.
func (c plain) waiting() context.Context { return context.Background() }

func (c plain) refuse(error) { abort(c.conn) }

func (c plain) accept(context.Context) (relay.Conn, error) { return relay.TCP(c.conn.TCPConn), nil }

// An arrival is a connection that has reached its pod and knows its target.
type arrival struct {
	src      netip.AddrPort // the TCP peer
	dst      netip.AddrPort // what policy judges
	dial     netip.AddrPort // where the application is
	announce netip.AddrPort // what a PROXY header names as the destination; invalid: there is none
	local    *mesh.Workload
	host     string // of the forwarded header, for the admin dump
	report   report.Params
}

// from is the address that the application sees: the client's, or on loopback
// that, where no other could be seen (contract 5.6).
func (a *arrival) from() netip.Addr {
	if a.dial.Addr().IsLoopback() {
		return a.dial.Addr()
	}
	return a.src.Addr()
}

// preface is what an application tunnel is told before the first byte of the
// client (contract 4.10).
func (a *arrival) preface() []byte {
	if !a.announce.IsValid() {
		return nil
	}
	return proxyproto.Header{Source: a.src, Destination: a.announce, Identity: a.report.SourceIdentity}.Append(nil)
}

// A caller is the end from which an arrival came: told no, or told yes and
// then copied with.
type caller interface {
	waiting() context.Context // ends when the caller has gone before it was told
	refuse(error)
	accept(context.Context) (relay.Conn, error) // the context is that of the connection
	ending() func()                             // is called when nothing is left of it; nil: it need not be. It stays in memory until then
}

// arrive is what both kinds of inbound connections have in common: admit,
// deliver, answer, relay, report (contract 5.2 steps 6 to 9).
func (p *Proxy) arrive(a arrival, from caller) {
	ad := p.announce(a, from)
	local, err := p.awaitPolicies(ad.ctx, a.local)
	if err != nil {
		from.refuse(err)
		ad.rep.Close(endOf(ad.ctx, err))
		return
	}
	if p.admit(ad, local) {
		p.complete(ad)
	}
}

// An advent is an arrival that is known to all who want to know of it.
type advent struct {
	arrival
	from     caller
	ctx      context.Context
	cancel   context.CancelCauseFunc
	answered func() bool // the caller is told, so that its going is no news
	rep      *report.Conn
	entry    *live.Entry // once it is admitted
}

func (p *Proxy) announce(a arrival, from caller) *advent {
	life := p.lives.Begin()
	ad := &advent{arrival: a, from: from, ctx: life, cancel: life.End}
	ad.answered = context.AfterFunc(from.waiting(), func() { ad.cancel(p.whyGone()) })
	ad.rep = p.shared.Reporter.Open(a.report)
	return ad
}

// end is when nothing is left of it.
func (ad *advent) end() { ad.ending()() }

// ending is end without the rest of ad, which need not stay in memory for as
// long as the connection is carried.
func (ad *advent) ending() func() {
	entry, cancel, over := ad.entry, ad.cancel, ad.from.ending()
	return func() {
		if entry != nil {
			entry.Done()
		}
		cancel(nil)
		if over != nil {
			over()
		}
	}
}

// admit asks policy, and refuses for it.
func (p *Proxy) admit(ad *advent, local *mesh.Workload) bool {
	entry, err := p.live.Admit(live.Inbound{
		Src: ad.src, Source: ad.report.SourceIdentity, Dst: ad.dst, Destination: local, Service: ad.host,
	}, ad.cancel)
	if err != nil {
		ad.answered()
		ad.from.refuse(err)
		ad.rep.Close(Why(err), err)
		ad.end()
		return false
	}
	ad.entry = entry
	return true
}

// holds is what is held for one that has both its ends.
func (p *Proxy) holds(ad *advent) *holding {
	return &holding{proxy: p, rep: ad.rep, in: ad.entry.Inbound(), end: ad.ending()}
}

// complete takes an admitted connection to its application.
func (p *Proxy) complete(ad *advent) {
	client, application, err := p.deliver(ad.ctx, ad.arrival, ad.from)
	ad.answered() // from now on copying finds out what becomes of either end, and why
	if err != nil {
		ad.rep.Close(endOf(ad.ctx, err))
		ad.end()
		return
	}
	p.relay(ad.ctx, client, application, p.holds(ad))
}

// whyGone is why a caller ended before it was answered: because of us, or of
// its own will.
func (p *Proxy) whyGone() error {
	if p.ctx.Err() != nil {
		return context.Cause(p.ctx)
	}
	return errGone
}

// deliver connects to the application and answers the caller. Of what it
// returns relay closes both; on error nothing is left.
func (p *Proxy) deliver(ctx context.Context, a arrival, from caller) (client, upstream relay.Conn, err error) {
	application, err := p.sockets.Deliver(ctx, a.from(), a.dial)
	p.learnDelivery(err)
	if err != nil {
		return nil, nil, undelivered(ctx, from, err)
	}
	upstream = relay.TCP(application)
	if client, err = from.accept(ctx); err != nil {
		upstream.Reset()
		return nil, nil, err
	}
	if _, err := application.Write(a.preface()); err != nil {
		client.Reset()
		upstream.Reset()
		return nil, nil, err
	}
	return client, upstream, nil
}

// undelivered refuses a caller because of err.
func undelivered(ctx context.Context, from caller, err error) error {
	if ctx.Err() != nil {
		err = context.Cause(ctx) // which is why it failed
	}
	from.refuse(err)
	return &deliveryError{err}
}

// abort closes a client's connection that got no upstream, by a reset: it must
// not look like an empty answer.
func abort(c *capture.Conn) {
	relay.TCP(c.TCPConn).Reset()
}
