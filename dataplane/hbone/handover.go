// SPDX-License-Identifier: Apache-2.0

package hbone

import (
	"net"
	"net/netip"

	"github.com/ztunnel-go/ztunnel/dataplane/engine"
	"github.com/ztunnel-go/ztunnel/internal/identity"
)

/* A tunnel that goes on in another process
 *
 *	old:  ServerConn.Settle, Tunnel.Settle    what it is, as plain values
 *	new:  Resume, Pool.Adopt                  the same, served or shared again
 *
 * Only what event loops carry can travel. The old one's Serve, or what watches
 * a tunnel of a pool, ends with [ErrMoved], and its connections hear nothing.
 */

// ErrMoved is how a tunnel ends here that is carried on elsewhere.
var ErrMoved = engine.ErrMoved

// Settle takes the tunnel out if nothing in it is half-way: see
// [engine.Tunnel.Settle].
func (s *ServerConn) Settle() (*engine.Image, []int, error) {
	t := s.carried()
	if t == nil {
		return nil, nil, engine.ErrImmovable
	}
	return t.Settle()
}

// Hold is [engine.Tunnel.Hold].
func (s *ServerConn) Hold(hold bool) {
	if t := s.carried(); t != nil {
		t.Hold(hold)
	}
}

// carried is the tunnel on its loop; nil: it is not there yet, or goroutines
// carry it.
func (s *ServerConn) carried() *engine.Tunnel {
	if s.loop == nil {
		return nil
	}
	s.loop.mu.Lock()
	defer s.loop.mu.Unlock()
	return s.loop.tunnel
}

// A Past is what a tunnel of a peer's was known by before it travelled.
type Past struct {
	Peer, Local netip.AddrPort
	Identity    identity.ID
}

// An Importer makes a tunnel of what another process has sent, on an event
// loop, with what it is to be configured by.
type Importer func(engine.Config) (*engine.Tunnel, error)

// Resume goes on with a tunnel that a peer made. Serve it as one that was
// accepted.
func Resume(past Past, cfg ServerConfig, of Importer) (*ServerConn, error) {
	s := &ServerConn{cfg: cfg, peer: past.Peer, local: past.Local, id: past.Identity}
	local, remote := net.TCPAddrFromAddrPort(past.Local), net.TCPAddrFromAddrPort(past.Peer)
	s.loop = &loopServer{fd: -1, local: local, remote: remote}
	s.loop.mu.Lock() // requests may come at once
	defer s.loop.mu.Unlock()
	t, err := of(engine.Config{Settings: cfg.Settings, Local: local, Remote: remote, Request: s.request})
	if err != nil {
		return nil, err
	}
	s.loop.tunnel = t
	return s, nil
}

// A Member is a tunnel of a pool.
type Member struct {
	Key    Key
	Tunnel *Tunnel
	Pooled bool // it takes more streams
}

// Members are all tunnels of the pool that have not ended.
func (p *Pool) Members() []Member {
	p.mu.Lock()
	defer p.mu.Unlock()
	all := make([]Member, 0, len(p.all))
	for t, key := range p.all {
		el := p.pooled[key]
		all = append(all, Member{key, t, el != nil && el.Value.(*entry).t == t})
	}
	return all
}

// Settle takes the tunnel out if nothing in it is half-way: see
// [engine.Tunnel.Settle]. Its pool forgets it.
func (t *Tunnel) Settle() (*engine.Image, []int, error) {
	if loop, ok := t.carrier.(loopTunnel); ok {
		return loop.Settle()
	}
	return nil, nil, engine.ErrImmovable
}

// Adopt goes on with a tunnel that another pool made. opened is that of its
// [Handshake]; its error ends the tunnel and is returned. A pool that drains
// lets the tunnel end with its last stream.
func (p *Pool) Adopt(m Member, opened func(*Tunnel) (release func(), err error), of Importer) error {
	lt, err := of(engine.Config{
		Settings: p.cfg.Settings, MaxStreams: p.cfg.MaxStreams, Remote: net.TCPAddrFromAddrPort(m.Key.Dst),
	})
	if err != nil {
		return err
	}
	t := &Tunnel{loopTunnel{lt}}
	release, err := Handshake{Opened: opened}.opened(t)
	p.mu.Lock()
	defer p.mu.Unlock()
	p.all[t] = m.Key
	p.tunnels.Add(1)
	t.then(func(err error) {
		p.ended(t, m.Key, err)
		release()
		p.tunnels.Done()
	})
	switch {
	case err != nil:
		t.End(err)
	case p.closed || !m.Pooled:
		p.tunnels.Go(t.Drain)
	case p.pooled[m.Key] != nil: // what was made meanwhile is better known
		p.tunnels.Go(t.Drain)
	default:
		p.poolLocked(m.Key, t)
	}
	return err
}
