// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"time"

	"github.com/ztunnel-go/ztunnel/dataplane/capture"
	"github.com/ztunnel-go/ztunnel/dataplane/report"
	"github.com/ztunnel-go/ztunnel/dataplane/socks"
	"github.com/ztunnel-go/ztunnel/internal/logs"
)

// socksWait bounds a negotiation, with the name that has to be looked up.
// The reference waits for ever, and with it whoever opens many connections and
// says nothing.
const socksWait = 10 * time.Second

// socks serves a connection to port 15080 (contract 6): it says where it is
// going, is told that it is there, and from then on is like any other that
// leaves the pod.
func (p *Proxy) socks(c *capture.Conn) {
	p.shared.Reporter.SocketOpened(report.Source)
	trace := newTrace()
	log := logs.Span(p.logFor(targetSOCKS), "socks5", slog.Any("id", logs.Bare(trace.id)))
	dst, err := p.negotiate(c)
	if err != nil {
		p.shared.Reporter.SocketClosed(report.Source)
		p.shared.Reporter.Refused(report.Source, whySOCKS(err))
		_ = c.Close() // the first error is the one to tell
		log.Warn(fmt.Sprintf("failed to negotiate socks connection: %v", err))
		return
	}
	p.send(log, &capture.Conn{TCPConn: c.TCPConn, Peer: c.Peer, Dst: dst}, trace)
}

// negotiate hears where the client wants to go, within Config.SOCKSWait.
func (p *Proxy) negotiate(c *capture.Conn) (netip.AddrPort, error) {
	ctx, done := context.WithTimeout(p.ctx, p.cfg.SOCKSWait)
	defer done()
	if err := c.SetDeadline(time.Now().Add(p.cfg.SOCKSWait)); err != nil {
		return netip.AddrPort{}, err
	}
	// p.ctx and not ctx, so that nothing but the end of the proxy moves the
	// deadline after we have lifted it.
	stop := context.AfterFunc(p.ctx, func() {
		_ = c.SetDeadline(time.Unix(1, 0)) // on error it is closed, which does as well
	})
	defer stop()
	dst, err := socks.Negotiate(ctx, c.TCPConn, p.resolver(c))
	if p.ctx.Err() != nil {
		return netip.AddrPort{}, context.Cause(p.ctx)
	}
	if err != nil {
		return netip.AddrPort{}, err
	}
	return dst, c.SetDeadline(time.Time{})
}

// resolver looks up names for a client, in its own family; nil without DNS.
func (p *Proxy) resolver(c *capture.Conn) socks.Resolver {
	if p.sockets.Resolve == nil {
		return nil
	}
	return func(ctx context.Context, name string) (netip.Addr, error) {
		return p.sockets.Resolve(ctx, name, c.Peer.Addr().Is6())
	}
}
