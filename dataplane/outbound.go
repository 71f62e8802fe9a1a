// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"context"
	"encoding/binary"
	"encoding/hex"
	"log/slog"
	"math/rand/v2"
	"net"
	"strings"

	"github.com/ztunnel-go/ztunnel/dataplane/capture"
	"github.com/ztunnel-go/ztunnel/dataplane/hbone"
	"github.com/ztunnel-go/ztunnel/dataplane/live"
	"github.com/ztunnel-go/ztunnel/dataplane/relay"
	"github.com/ztunnel-go/ztunnel/dataplane/report"
	"github.com/ztunnel-go/ztunnel/dataplane/route"
	"github.com/ztunnel-go/ztunnel/internal/identity"
	"github.com/ztunnel-go/ztunnel/internal/logs"
	"github.com/ztunnel-go/ztunnel/internal/mesh"
	"github.com/ztunnel-go/ztunnel/internal/mtls"
)

/* The life of an outbound connection (contract 3.1)
 *
 *	accept -> not to ourselves -> who are we -> decide -+- tunnel -+-> relay -> report
 *	                                              ^     +- direct -+
 *	                                              +-- retry --+
 *
 * Functions stand in this order. Until the decision is made an error is an
 * early deny; from then on the connection is tracked and every error goes
 * through report.
 */

func (p *Proxy) outbound(c *capture.Conn) {
	p.shared.Reporter.SocketOpened(report.Source)
	trace := newTrace()
	log := logs.Span(p.logFor(targetOutbound), "outbound", slog.Any("id", logs.Bare(trace.id)))
	p.send(log, c, trace)
}

// send is what becomes of a connection once it is known where it is going. It
// returns at the end of the connection, or when others carry it.
func (p *Proxy) send(log *slog.Logger, c *capture.Conn, trace trace) {
	closed := func() { p.shared.Reporter.SocketClosed(report.Source) }
	source, out, err := p.decide(log, c)
	if err != nil {
		defer closed()
		abort(c)
		p.denied(report.Source, c, err)
		return
	}
	for _, w := range out.Warnings {
		log.Warn(w)
	}

	life := p.lives.Begin()
	p.forward(life, &forwarding{
		conn: c, source: source, out: out, trace: trace, log: log, cancel: life.End, report: outboundReport(c, source, out),
		closed: closed,
	})
}

// decide answers who is calling and where to. Its errors are early denies.
func (p *Proxy) decide(log *slog.Logger, c *capture.Conn) (*mesh.Workload, route.Outcome, error) {
	if err := p.cfg.Illegal.Outbound(c.Dst); err != nil {
		return nil, route.Outcome{}, err
	}
	source, err := p.workload(log)
	if err != nil {
		return nil, route.Outcome{}, err
	}
	out := p.ask(log, route.Query{
		Source: source, SourceIP: c.Peer.Addr(), Network: p.cfg.Network, Dst: c.Dst, OnDemand: p.shared.Demand != nil,
	})
	switch {
	case out.Kind == route.Refuse && p.ctx.Err() != nil: // it may be for want of a name
		return nil, out, context.Cause(p.ctx)
	case out.Kind == route.Refuse:
		return nil, out, out.Err
	}
	return source, out, nil
}

func outboundReport(c *capture.Conn, source *mesh.Workload, out route.Outcome) report.Params {
	r := report.Params{
		Reporter: report.Source,
		Src:      c.Peer, Dst: out.Dial, HBONEAddr: out.Authority,
		Source: source, Destination: out.NextHop, Service: out.Service,
	}
	if out.Kind == route.Tunnel || out.Kind == route.DoubleTunnel {
		r.MutualTLS, r.SourceIdentity = true, source.Identity()
	}
	return r
}

// forwarding is one decided connection.
type forwarding struct {
	conn   *capture.Conn
	source *mesh.Workload
	trace  trace
	log    *slog.Logger
	cancel context.CancelCauseFunc // ends it
	closed func()                  // takes back what was counted when it was accepted

	out    route.Outcome // these three change when it is retried
	report report.Params
	entry  *live.Entry // of the attempt
	done   func()      // ends what is known of the attempt
}

// forward connects to the next hop, copies until both directions ended, and
// tells what became of it.
func (p *Proxy) forward(ctx context.Context, f *forwarding) {
	rep := p.begin(f)
	upstream, err := p.reach(ctx, f, p.connect)
	p.proceed(ctx, f, rep, upstream, err)
}

// begin enters a connection where it is to be seen. It is opened before it is
// dialled, but for one into another network, or to one of several endpoints:
// who is at its far end is known only then (contract 3.1 step 5), and what is
// returned is nil.
func (p *Proxy) begin(f *forwarding) *report.Conn {
	p.attempt(f)
	if f.out.Kind == route.DoubleTunnel || f.out.Rivals {
		return nil
	}
	return p.shared.Reporter.Open(f.report)
}

// proceed goes on with what reach has come to.
func (p *Proxy) proceed(ctx context.Context, f *forwarding, rep *report.Conn, upstream relay.Conn, err error) {
	rep = p.reported(rep, f)
	if err != nil {
		abort(f.conn)
		rep.Close(outboundFailure(ctx, err))
		f.end()
		return
	}
	p.relay(ctx, relay.TCP(f.conn.TCPConn), upstream, p.held(f, rep))
}

// held is what is held for one that has both its ends.
func (p *Proxy) held(f *forwarding, rep *report.Conn) *holding {
	return &holding{proxy: p, rep: rep, end: f.ending(), out: f.entry.Outbound(), endpoints: f.out.Endpoints}
}

// end is when nothing is left of a connection.
func (f *forwarding) end() { f.ending()() }

// ending is end without the rest of f, which need not stay in memory for as
// long as the connection is carried.
func (f *forwarding) ending() func() {
	done, cancel, closed := f.done, f.cancel, f.closed
	return func() {
		done()
		cancel(nil)
		closed()
	}
}

func (p *Proxy) connect(ctx context.Context, f *forwarding) (relay.Conn, error) {
	switch f.out.Kind {
	case route.Direct:
		c, err := p.sockets.Dial(ctx, f.out.Dial)
		if err != nil {
			return nil, err
		}
		return relay.TCP(c), nil
	case route.DoubleTunnel:
		return p.connectAcross(ctx, f)
	}
	s, err := p.openStream(ctx, f)
	if err != nil {
		return nil, err
	}
	return s, nil
}

// openStream asks the next hop for the connection, over a tunnel that others
// may share.
func (p *Proxy) openStream(ctx context.Context, f *forwarding) (hbone.Stream, error) {
	stream, _, err := p.pool.Open(ctx, p.keyOf(f), f.request())
	return stream, err
}

func (p *Proxy) keyOf(f *forwarding) hbone.Key {
	return hbone.Key{
		Local:  f.source.Identity(),
		Expect: joinIDs(f.out.Expect),
		Dst:    f.out.Dial,
		Src:    f.conn.Peer.Addr(),
	}
}

// request is the CONNECT of contract 4.5.
func (f *forwarding) request() hbone.Request {
	return hbone.Request{
		Authority:   f.out.Authority,
		Baggage:     report.BaggageOf(f.source).String(),
		Forwarded:   route.Forwarded(f.conn.Peer, f.out.Service),
		TraceParent: f.trace.parent(),
	}
}

// dialTunnel is the pool's way to a peer.
func (p *Proxy) dialTunnel(ctx context.Context, k hbone.Key) (net.Conn, error) {
	c, err := p.sockets.Dial(ctx, k.Dst)
	if err != nil {
		return nil, err
	}
	return c, nil
}

// handshake is how a new tunnel begins. The certificate is that of the moment.
func (p *Proxy) handshake(ctx context.Context, k hbone.Key) (hbone.Handshake, error) {
	bundle, err := p.certificate(ctx, k.Local)
	if err != nil {
		return hbone.Handshake{}, &identityError{err}
	}
	opts, seen := p.witnessed()
	return hbone.Handshake{
		Config: mtls.Client(bundle, splitIDs(k.Expect), opts),
		Opened: p.opened(seen),
	}, nil
}

// relay has bytes carried between the two ends, counted as they go, and tells
// what became of it. It returns at the end, or when an event loop carries them;
// h ends at the end.
func (p *Proxy) relay(ctx context.Context, client, upstream relay.Conn, h *holding) {
	p.conns.Add(1) // our caller is one of them, so nobody has stopped waiting
	h.ends = p.wantEnds()
	counts, done := h.hears(ctx)
	p.shared.Engine.Plain().Carry(ctx, client, upstream, counts, done)
}

// join is relay of a socket, of which how says more, and of a stream on an
// event loop. It does not wait. The connection is one of p.conns already.
func (p *Proxy) join(ctx context.Context, stream relay.Joiner, how relay.Join, h *holding) {
	h.ends = p.wantEnds()
	how.Context = ctx
	how.Counts, how.Done = h.hears(ctx)
	stream.Join(how)
}

// idSeparator joins identities to a part of a pool's key.
const idSeparator = "\n"

// joinIDs leaves out an identity that holds the separator, which would come
// back as another one. No authority issues such a name.
func joinIDs(ids []identity.ID) string {
	var b strings.Builder
	for _, id := range ids {
		text := id.String()
		if strings.Contains(text, idSeparator) {
			continue
		}
		if b.Len() > 0 {
			b.WriteString(idSeparator)
		}
		b.WriteString(text)
	}
	return b.String()
}

// splitIDs undoes joinIDs. What does not parse matches nobody and is left out.
func splitIDs(s string) []identity.ID {
	var ids []identity.ID
	for part := range strings.SplitSeq(s, idSeparator) {
		if id, err := identity.Parse(part); err == nil {
			ids = append(ids, id)
		}
	}
	return ids
}

// A trace names one user connection in both proxies' logs (contract 4.5).
type trace struct{ id, span string }

func newTrace() trace {
	// Names, and no secrets: the runtime's generator is good enough, and a tenth
	// of the price of one that is approved for keys.
	var b [24]byte
	for at := 0; at < len(b); at += 8 {
		binary.LittleEndian.PutUint64(b[at:], rand.Uint64()) //nolint:gosec // see above
	}
	return trace{hex.EncodeToString(b[:16]), hex.EncodeToString(b[16:])}
}

// parent is the traceparent header's value.
func (t trace) parent() string { return "00-" + t.id + "-" + t.span + "-00" }

// traceID reads the id out of a traceparent header, or makes a new one
// (contract 5.1).
func traceID(headers []string) string {
	if len(headers) == 1 {
		if id, ok := parseTraceParent(headers[0]); ok {
			return id
		}
	}
	return newTrace().id
}

// parseTraceParent wants two, 32, 16 and two hex digits (W3C Trace Context,
// section 3.2).
func parseTraceParent(header string) (id string, ok bool) {
	parts := strings.Split(header, "-")
	if len(parts) != 4 {
		return "", false
	}
	for i, digits := range [4]int{2, 32, 16, 2} {
		if _, err := hex.DecodeString(parts[i]); err != nil || len(parts[i]) != digits {
			return "", false
		}
	}
	return strings.ToLower(parts[1]), true
}
