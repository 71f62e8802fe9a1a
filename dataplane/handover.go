// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"context"
	"crypto/x509"
	"errors"
	"log/slog"
	"net/netip"
	"time"

	"github.com/ztunnel-go/ztunnel/dataplane/capture"
	"github.com/ztunnel-go/ztunnel/dataplane/engine"
	"github.com/ztunnel-go/ztunnel/dataplane/handover"
	"github.com/ztunnel-go/ztunnel/dataplane/hbone"
	"github.com/ztunnel-go/ztunnel/dataplane/live"
	"github.com/ztunnel-go/ztunnel/dataplane/relay"
	"github.com/ztunnel-go/ztunnel/dataplane/report"
	"github.com/ztunnel-go/ztunnel/internal/revocation"
)

/* Connections that go on in another process
 *
 *	old:  Handover().Stop    tunnels stand still, with what is held for each of their connections
 *	new:  Adoptable          could they go on here
 *	new:  Adopt              policy is asked again, then they do, under new keys
 *	old:  Forget             nothing of them is left; or Resume, which is Adopt
 *
 * A connection is counted as opened by the process that accepted it, as closed
 * by the one in which it ends, and its line is written there.
 */

// A holding is an open connection that has both its ends, and what is held for
// it. It is the owner (see [relay.Counts]) of its joint.
type holding struct {
	proxy     *Proxy
	rep       *report.Conn
	ends      *relay.Ends
	in        *live.Inbound  // one of the two is set
	out       *live.Outbound //
	endpoints []string       // that it is a load for
	end       func()         // gives back what is held, at the end
}

// hears is who hears of the connection's bytes and its end. The proxy's conns
// count it.
func (h *holding) hears(ctx context.Context) (relay.Counts, func(error)) {
	p := h.proxy
	return relay.Counts{
			Sent:     h.rep.AddReceived, // metrics take the server's view: what the client sends is received
			Received: h.rep.AddSent,
			Ends:     h.ends,
			Owner:    h,
		}, func(err error) {
			defer p.conns.Done()
			if err != nil && ctx.Err() == nil && p.severed.Load() {
				err = ErrSevered
			}
			tellEnds(h.rep, h.ends)
			h.rep.Close(endOf(ctx, err))
			h.end()
		}
}

// move gives back what is held for a connection that has been stopped, and says
// what it was. The proxy's conns go on counting it.
func (h *holding) move() *handover.Connection {
	past, _ := h.rep.Move() // it is open: nobody has told of its end
	c := &handover.Connection{Report: past, Inbound: h.in, Outbound: h.out, Endpoints: h.endpoints}
	if h.ends != nil {
		ends := h.ends.State()
		c.Ends = &ends
	}
	h.end()
	return c
}

// arrived is what is known of a tunnel of a peer's.
type arrived struct {
	peer, dst netip.AddrPort
	proof     *witness
}

// opened has an outbound tunnel ended once its peer is revoked, and remembers
// what its handshake verified.
func (p *Proxy) opened(seen *witness) func(*hbone.Tunnel) (func(), error) {
	return func(t *hbone.Tunnel) (func(), error) {
		release, err := p.enter(revocation.Source, seen, t.End)
		if err != nil {
			return nil, err
		}
		p.mu.Lock()
		p.proofs[t] = seen
		p.mu.Unlock()
		return func() {
			p.mu.Lock()
			delete(p.proofs, t)
			p.mu.Unlock()
			release()
		}, nil
	}
}

// A giving is one handover of a pod's tunnels. One goroutine uses it.
type giving struct {
	p     *Proxy
	stays map[any]bool // *hbone.ServerConn or *hbone.Tunnel: refused by the other process
	tries int
}

// Handover is for a process that gives the pod's tunnels to another.
func (p *Proxy) Handover() handover.Pod { return &giving{p: p, stays: map[any]bool{}} }

// holdEvery is how many vain looks at busy tunnels come before one is held, and
// holdFor how long that is at most.
const (
	holdEvery = 8
	holdFor   = 4 * time.Millisecond
	holdStep  = 200 * time.Microsecond
)

// A movable is a tunnel that may be taken out.
type movable struct {
	key    any
	settle func() (*engine.Image, []int, error)
	hold   func(bool) // nil: there is no use in it
	facts  handover.Tunnel
}

func (g *giving) movables() []movable {
	var all []movable
	p := g.p
	p.mu.Lock()
	for t, from := range p.tunnels {
		_, id := t.Peer()
		all = append(all, movable{t, t.Settle, t.Hold, handover.Tunnel{
			Local: from.dst, Remote: from.peer, Chains: p.provedBy(from.proof),
			Server: &handover.Server{Peer: from.peer, Dst: from.dst, Identity: id},
		}})
	}
	p.mu.Unlock()
	for _, m := range p.pool.Members() {
		p.mu.Lock()
		proof := p.proofs[m.Tunnel]
		p.mu.Unlock()
		all = append(all, movable{m.Tunnel, m.Tunnel.Settle, nil, handover.Tunnel{
			Remote: m.Key.Dst, Chains: p.provedBy(proof), Client: &handover.Client{Key: m.Key, Pooled: m.Pooled},
		}})
	}
	return all
}

// Stop is [handover.Pod].
func (g *giving) Stop(limit handover.Limit) (lot []*handover.Tunnel, later int) {
	began, descriptors := time.Now(), 0
	var busy []movable
	for _, m := range g.movables() {
		if len(lot) > 0 && (len(lot) >= limit.Tunnels || descriptors >= limit.Descriptors || time.Since(began) > limit.Time) {
			later++
			continue
		}
		if g.stays[m.key] {
			continue
		}
		switch t, err := g.take(m); {
		case err == nil:
			lot = append(lot, t)
			descriptors += len(t.FDs)
		case errors.Is(err, engine.ErrBusy):
			busy = append(busy, m)
		}
	}
	later += len(busy)
	if len(lot) == 0 && len(busy) > 0 {
		if g.tries++; g.tries%holdEvery == 0 {
			lot = g.hold(busy[g.tries/holdEvery%len(busy)])
			later -= len(lot)
		}
	}
	return lot, later
}

// hold lets what is half-way in one tunnel come to an end, while nothing more
// begins.
func (g *giving) hold(m movable) []*handover.Tunnel {
	if m.hold == nil {
		return nil
	}
	m.hold(true)
	for deadline := time.Now().Add(holdFor); time.Now().Before(deadline); time.Sleep(holdStep) {
		if t, err := g.take(m); err == nil {
			return []*handover.Tunnel{t}
		}
	}
	m.hold(false)
	return nil
}

// take stops one tunnel.
func (g *giving) take(m movable) (*handover.Tunnel, error) {
	g.p.conns.Add(1) // so that a Stop waits for what becomes of it
	img, fds, err := m.settle()
	if err != nil {
		g.p.conns.Done()
		return nil, err
	}
	t := m.facts
	t.Image, t.FDs, t.Connections = img, fds, map[uint32]*handover.Connection{}
	for n := range img.Streams {
		s := &img.Streams[n]
		if h, ok := s.Owner.(*holding); ok {
			t.Connections[s.ID] = h.move()
		}
		s.Owner = nil
	}
	return &t, nil
}

// Forget is [handover.Pod].
func (g *giving) Forget(lot []*handover.Tunnel) {
	for _, t := range lot {
		n := len(t.Connections)
		t.Close()
		g.p.conns.Add(-n - 1)
	}
}

// Resume is [handover.Pod].
func (g *giving) Resume(lot []*handover.Tunnel, refused bool) {
	for _, t := range lot {
		n := len(t.Connections)
		key, err := g.p.adopt(t)
		if err != nil {
			g.p.log.Error("a tunnel is lost that stays here", slog.Any("peer", t.Remote), slog.String("error", err.Error()))
		}
		if refused && key != nil {
			g.stays[key] = true
		}
		g.p.conns.Add(-n - 1)
	}
}

// errStays is why a tunnel stays with the process that has it. It is told to
// that process, and is no reason of any connection's end.
type errStays string

func (e errStays) Error() string { return string(e) }

// Adoptable says why a tunnel of another process could not go on here. It does
// not wait.
func (p *Proxy) Adoptable(t *handover.Tunnel) error {
	switch {
	case p.shared.Engine == nil:
		return errStays("there are no event loops here")
	case t.Server != nil && p.pod.in(p.shared.Store, p.cfg.Node) == nil:
		return errStays("workload " + p.pod.label() + " is not known")
	case p.isDraining():
		return errStays("the pod is on its way out")
	case p.cfg.TLS.Revocation != nil && len(t.Chains) == 0:
		return errStays("nobody knows which certificates its peer has shown")
	}
	w, err := witnessOf(t.Chains)
	if err != nil {
		return err
	}
	side := revocation.Source
	if t.Server != nil {
		side = revocation.Destination
	}
	return p.cfg.TLS.Revocation.Check(side, w.chains)
}

// Adopt goes on with a tunnel of another process, under new keys. It owns the
// tunnel, also after an error.
func (p *Proxy) Adopt(t *handover.Tunnel) error {
	_, err := p.adopt(t)
	return err
}

// adopt returns what [giving] knows the tunnel by.
func (p *Proxy) adopt(t *handover.Tunnel) (key any, err error) {
	defer t.Image.Wipe()
	seen, err := witnessOf(t.Chains)
	if err != nil {
		t.Close()
		return nil, err
	}
	for range t.Connections {
		p.conns.Add(1)
	}
	of := func(cfg engine.Config) (*engine.Tunnel, error) {
		fds := t.FDs
		t.FDs = nil // the engine's, in any case
		tunnel, err := p.shared.Engine.Import(t.Image, fds, cfg, engine.Adopter{
			Joint: func(s engine.StreamImage) relay.Join { return p.rejoin(t.Connections[s.ID]) },
		})
		if err != nil {
			p.mourn(t, err)
			return nil, err
		}
		tunnel.Rekey()
		return tunnel, nil
	}
	if t.Server != nil {
		return p.adoptServer(t, seen, of)
	}
	member := hbone.Member{Key: t.Client.Key, Pooled: t.Client.Pooled}
	opened := p.opened(seen)
	err = p.pool.Adopt(member, func(t *hbone.Tunnel) (func(), error) {
		key = t
		return opened(t)
	}, of)
	return key, err
}

func (p *Proxy) adoptServer(t *handover.Tunnel, seen *witness, of hbone.Importer) (any, error) {
	from := &capture.Conn{Peer: t.Server.Peer, Dst: t.Server.Dst}
	conn, err := hbone.Resume(hbone.Past{Peer: t.Server.Peer, Local: t.Server.Dst, Identity: t.Server.Identity}, p.serving(from), of)
	if err != nil {
		return nil, err
	}
	p.shared.Reporter.SocketOpened(report.Destination)
	release, err := p.enter(revocation.Destination, seen, conn.End)
	if err != nil {
		release = func() {}
		conn.End(err)
	}
	p.carry(conn, arrived{from.Peer, from.Dst, seen}, func() {
		release()
		p.shared.Reporter.SocketClosed(report.Destination)
	})
	return conn, nil
}

// mourn tells of connections that are lost with their tunnel.
func (p *Proxy) mourn(t *handover.Tunnel, err error) {
	for _, c := range t.Connections {
		why, cause := endOf(p.ctx, err)
		p.shared.Reporter.Resume(c.Report).Close(why, cause)
		p.conns.Done()
	}
}

// rejoin takes on a connection of another process, on the loop. Policy is asked
// again: one that is not allowed any more ends before a byte passes.
func (p *Proxy) rejoin(c *handover.Connection) relay.Join {
	life := p.lives.Begin()
	h := &holding{proxy: p, rep: p.shared.Reporter.Resume(c.Report), in: c.Inbound, out: c.Outbound, endpoints: c.Endpoints}
	if h.ends = p.wantEnds(); h.ends != nil && c.Ends != nil {
		h.ends = relay.EndsOf(*c.Ends)
	}
	if c.Inbound != nil {
		h.end = p.readmit(c, life.End)
	} else {
		h.end = p.retrack(c, life.End)
	}
	counts, done := h.hears(life)
	return relay.Join{Context: life, Counts: counts, Done: done}
}

// readmit is Admit for a connection that was admitted elsewhere.
func (p *Proxy) readmit(c *handover.Connection, cancel context.CancelCauseFunc) (end func()) {
	if local := p.pod.in(p.shared.Store, p.cfg.Node); local != nil {
		c.Inbound.Destination = local
	}
	if c.Inbound.Destination == nil { // it was there when the tunnel was looked at
		cancel(live.ErrPolicyChange)
		return func() { cancel(nil) }
	}
	entry, err := p.live.Admit(*c.Inbound, cancel)
	if err != nil {
		cancel(live.ErrPolicyChange)
		return func() { cancel(nil) }
	}
	entry.Since(c.Report.Opened)
	return func() {
		entry.Done()
		cancel(nil)
	}
}

func (p *Proxy) retrack(c *handover.Connection, cancel context.CancelCauseFunc) (end func()) {
	p.shared.Reporter.SocketOpened(report.Source)
	entry := p.live.Track(*c.Outbound, cancel)
	entry.Since(c.Report.Opened)
	closed := p.balance.Opened(c.Endpoints)
	return func() {
		closed()
		entry.Done()
		cancel(nil)
		p.shared.Reporter.SocketClosed(report.Source)
	}
}

// provedBy is what the handshake verified, if there is any list that it is for.
func (p *Proxy) provedBy(w *witness) [][][]byte {
	if w == nil || p.cfg.TLS.Revocation == nil {
		return nil
	}
	var chains [][][]byte
	for _, chain := range w.chains {
		var certificates [][]byte
		for _, c := range chain {
			certificates = append(certificates, c.Raw)
		}
		chains = append(chains, certificates)
	}
	return chains
}

func witnessOf(chains [][][]byte) (*witness, error) {
	w := &witness{}
	for _, chain := range chains {
		var certificates []*x509.Certificate
		for _, der := range chain {
			c, err := x509.ParseCertificate(der)
			if err != nil {
				return nil, errStays("a certificate that was verified: " + err.Error())
			}
			certificates = append(certificates, c)
		}
		w.chains = append(w.chains, certificates)
	}
	return w, nil
}

// Descriptors is about how many there are to hand over.
func (p *Proxy) Descriptors() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.live.Len() + len(p.tunnels) + len(p.proofs)
}
