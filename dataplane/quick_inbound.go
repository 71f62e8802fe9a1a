// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"errors"
	"io"

	"github.com/ztunnel-go/ztunnel/dataplane/capture"
	"github.com/ztunnel-go/ztunnel/dataplane/hbone"
	"github.com/ztunnel-go/ztunnel/dataplane/relay"
	"github.com/ztunnel-go/ztunnel/internal/sock"
)

/* Requests on event loops
 *
 *	CONNECT -> target -> admit -> connect -> answer -> join -> report
 *
 * The steps are those of inbound.go, in its order, with nothing between them
 * but the application's own answer. What would have to wait for anything else
 * is left to the goroutine that inbound.go gives each request.
 */

// serveNow is serveConnect on a loop; false leaves the request as it was. What
// is to be refused before policy is asked is left, too: it is not in a hurry.
func (p *Proxy) serveNow(c *capture.Conn, r *hbone.Connect) bool {
	if p.sockets.DeliverNow == nil || p.shared.Demand != nil || p.pod.in(p.shared.Store, p.cfg.Node) == nil {
		return false
	}
	log := p.logOf(c, r)
	a, _, err := p.target(log, c, r)
	if err != nil || p.lacksPolicies(a.local) {
		return false
	}
	ad := p.announce(a, tunnelled{p, log, r, a.local})
	if !p.admit(ad, a.local) {
		r.Finish()
		return true
	}
	d, err := p.sockets.DeliverNow(a.from(), a.dial)
	switch {
	case errors.Is(err, sock.ErrLater):
		go func() { // one of the tunnel's handlers, as is what follows
			defer r.Finish()
			p.complete(ad)
		}()
	case err != nil || d.Done:
		p.delivered(ad, r, d, err)
	default:
		r.Await(ad.ctx, d, d.Patience(), func(err error) { p.delivered(ad, r, d, err) })
	}
	return true
}

// delivered goes on with what the application has answered.
func (p *Proxy) delivered(ad *advent, r *hbone.Connect, d *sock.Dialing, err error) {
	defer r.Finish()
	p.sockets.Delivered(err)
	p.learnDelivery(err)
	if err != nil {
		err = undelivered(ad.ctx, ad.from, err)
	}
	var client relay.Joiner
	if err == nil {
		client, err = p.answer(ad, d)
	}
	ad.answered()
	if err != nil {
		if d != nil {
			d.Close()
		}
		ad.rep.Close(endOf(ad.ctx, err))
		ad.end()
		return
	}
	p.conns.Add(1) // our tunnel is one of them
	p.join(ad.ctx, client, relay.Join{FD: d.FD}, p.holds(ad))
}

// answer says yes to the caller, and to the application what it is to hear
// before anything of the client's.
func (p *Proxy) answer(ad *advent, d *sock.Dialing) (relay.Joiner, error) {
	stream, err := ad.from.accept(ad.ctx)
	if err != nil {
		return nil, err
	}
	preface := ad.preface()
	n, err := sock.WriteNow(d.FD, preface)
	if err == nil && n < len(preface) {
		err = io.ErrShortWrite // an empty socket has room for more than this
	}
	if err != nil {
		stream.Reset()
		return nil, err
	}
	return stream.(relay.Joiner), nil // as all streams of event loops are
}
