// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"context"
	"fmt"
	"log/slog"
	"time"

	"github.com/ztunnel-go/ztunnel/dataplane/capture"
	"github.com/ztunnel-go/ztunnel/dataplane/engine"
	"github.com/ztunnel-go/ztunnel/dataplane/hbone"
	"github.com/ztunnel-go/ztunnel/dataplane/relay"
	"github.com/ztunnel-go/ztunnel/dataplane/report"
	"github.com/ztunnel-go/ztunnel/dataplane/route"
	"github.com/ztunnel-go/ztunnel/internal/logs"
)

/* Outbound connections on event loops
 *
 *	accept -> decide -+- tunnel, and one is there --> open -> join -> report
 *	                  +- anything else --> a goroutine, as of outbound.go
 *
 * The steps are those of outbound.go, in its order. Here nothing waits: what
 * would is left to a goroutine, which goes on from the step that was reached.
 * A connection thus costs no goroutine, and no step waits for one to run.
 */

// A prompter is an Acceptor that event loops can ask.
type prompter interface {
	Prompt() (*capture.Prompt, error)
}

// A quickAcceptor is a listener that a loop watches.
type quickAcceptor struct {
	prompt *capture.Prompt
	watch  *engine.Acceptor
}

// listenQuick has l's connections accepted on a loop, if that is possible.
func (p *Proxy) listenQuick(l listener) bool {
	from, ok := l.Acceptor.(prompter)
	if !ok || l.quick == nil || p.shared.Engine == nil {
		return false
	}
	prompt, err := from.Prompt()
	if err != nil {
		return false // goroutines can do without
	}
	pause := minPause
	watch, err := p.shared.Engine.Listen(prompt.FD(), func() time.Duration {
		if !p.acceptNow(l, prompt) {
			pause = minPause
			return 0
		}
		now := pause
		pause = min(2*pause, maxPause)
		return now
	})
	if err != nil {
		_ = prompt.Close() // it was only duplicated
		return false
	}
	p.quick = append(p.quick, quickAcceptor{prompt, watch})
	return true
}

// acceptBatch is how many connections one turn of a loop takes.
const acceptBatch = 16

// acceptNow takes what is there, and reports whether the machine lacks what
// connections need.
func (p *Proxy) acceptNow(l listener, prompt *capture.Prompt) (exhaust bool) {
	for range acceptBatch {
		s, err := prompt.Accept()
		switch {
		case err != nil:
			p.logFor(l.target).Error(fmt.Sprintf("Failed TCP handshake %v", err))
			if exhausted(err) {
				return true
			}
		case s == nil:
			return false
		default:
			p.conns.Add(1)
			l.quick(s)
		}
	}
	return false
}

// closeQuick ends accepting on loops.
func (p *Proxy) closeQuick() {
	for _, q := range p.quick {
		q.watch.Close()
		if err := q.prompt.Close(); err != nil {
			p.log.Warn("close listener", slog.String("error", err.Error()))
		}
	}
	p.quick = nil
}

// leave has a goroutine serve a connection of which nothing is known yet.
func (p *Proxy) leave(s *capture.Socket) {
	go func() { // one of conns, which Stop waits for
		defer p.conns.Done()
		c, err := s.Conn()
		if err != nil {
			p.logFor(targetOutbound).Error(fmt.Sprintf("Failed TCP handshake %v", err))
			return
		}
		p.outbound(c)
	}()
}

// outboundNow is outbound on a loop.
func (p *Proxy) outboundNow(s *capture.Socket) {
	source := p.pod.in(p.shared.Store, p.cfg.Node)
	if source == nil || p.shared.Demand != nil || p.cfg.Illegal.Outbound(s.Dst) != nil {
		p.leave(s)
		return
	}
	out := route.Decide(p.view, route.Query{
		Source: source, SourceIP: s.Peer.Addr(), Network: p.cfg.Network, Dst: s.Dst,
	}, p.balance.Choose)
	if out.Kind == route.Resolve || out.Kind == route.Learn || out.Kind == route.Refuse {
		p.leave(s)
		return
	}
	p.shared.Reporter.SocketOpened(report.Source)
	trace := newTrace()
	log := logs.Span(p.logFor(targetOutbound), "outbound", slog.Any("id", logs.Bare(trace.id)))
	for _, w := range out.Warnings {
		log.Warn(w)
	}
	life := p.lives.Begin()
	f := &forwarding{
		conn: &capture.Conn{Peer: s.Peer, Dst: s.Dst}, source: source, out: out, trace: trace, log: log, cancel: life.End,
		closed: func() { p.shared.Reporter.SocketClosed(report.Source) },
	}
	f.report = outboundReport(f.conn, source, out)
	if out.Kind != route.Tunnel {
		p.resume(life, f, s, p.begin(f), p.connect)
		return
	}
	p.forwardNow(life, f, s)
}

// forwardNow is forward over a tunnel that is there.
func (p *Proxy) forwardNow(ctx context.Context, f *forwarding, s *capture.Socket) {
	began := time.Now()
	rep := p.begin(f)
	f.report.Began = began
	opened := p.pool.OpenNow(ctx, p.keyOf(f), f.request(), func(stream hbone.Stream, again bool, err error) {
		joiner, ok := stream.(relay.Joiner)
		switch {
		case err == nil && ok:
			p.learn(ctx, f.out, nil)
			p.join(ctx, joiner, relay.Join{FD: s.FD, Client: true}, p.held(f, p.reported(rep, f)))
		default: // what is left may wait
			p.resume(ctx, f, s, rep, func(context.Context, *forwarding) (relay.Conn, error) {
				if again {
					stream, _, err = p.pool.OpenAgain(ctx, p.keyOf(f), f.request())
				}
				if err != nil {
					return nil, err // an interface that is nil
				}
				return stream, nil
			})
		}
	})
	if !opened {
		p.resume(ctx, f, s, rep, p.connect)
	}
}

// resume goes on in a goroutine with a connection that has been begun: first is
// its first attempt to reach the next hop.
func (p *Proxy) resume(ctx context.Context, f *forwarding, s *capture.Socket, rep *report.Conn,
	first func(context.Context, *forwarding) (relay.Conn, error)) {
	go func() { // one of conns
		defer p.conns.Done()
		c, err := s.Conn()
		if err != nil {
			rep = p.reported(rep, f)
			rep.Close(outboundFailure(ctx, err))
			f.end()
			return
		}
		f.conn = c
		upstream, err := p.reach(ctx, f, first)
		p.proceed(ctx, f, rep, upstream, err)
	}()
}

// reported is rep, or what is opened now because nobody knew before who would
// be at the far end.
func (p *Proxy) reported(rep *report.Conn, f *forwarding) *report.Conn {
	if rep == nil {
		rep = p.shared.Reporter.Open(f.report)
	}
	return rep
}
