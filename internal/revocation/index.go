// SPDX-License-Identifier: Apache-2.0

package revocation

import (
	"crypto/sha256"
	"crypto/x509"
	"encoding/binary"
	"errors"
	"log/slog"
)

// ErrPeerRevoked ends a tunnel whose peer was trusted when it was made. Its
// text, which each connection on the tunnel ends with, is contract 5.9's.
var ErrPeerRevoked = errors.New("connection closed: peer certificate revoked by CRL")

// chainsKey is a hash of all certificates of a tunnel's chains.
type chainsKey [sha256.Size]byte

// A group is the tunnels whose peers have the same chains, so that a new list
// costs one check for each and not one for each tunnel.
type group struct {
	chains  [][]*x509.Certificate
	tunnels map[*tunnel]struct{} // guarded by Enforcer.mu; never empty while the group is entered
}

type tunnel struct {
	reporter Reporter
	end      func(error)
}

// Register enters a tunnel that was made just now, by the chains that its
// handshake verified. If a list that came since the handshake revokes them,
// the error is [ErrPeerRevoked], and the caller ends the tunnel. Otherwise
// end is called, once, with the same error and on a goroutine of its own, if
// that happens later. The caller calls release when the tunnel has ended;
// release may be called more than once, and does not wait for end.
//
// A tunnel with no chains cannot be entered. It is counted and lives on
// (contract 7.8).
func (e *Enforcer) Register(r Reporter, chains [][]*x509.Certificate, end func(error)) (release func(), err error) {
	if e == nil {
		return func() {}, nil
	}
	if !hasLeaf(chains) {
		if e.cfg.Recorder != nil {
			e.cfg.Recorder.Untracked(r)
		}
		e.log.Warn("tunnel cannot be tracked for revocation", slog.String("reporter", r.String()))
		return func() {}, nil
	}
	key := keyOf(chains)
	t := &tunnel{r, end}
	if err := e.enter(key, chains, t); err != nil {
		e.reject(r, err)
		return nil, ErrPeerRevoked
	}
	return func() { e.leave(key, t) }, nil
}

// enter looks at the lists and enters t under one lock, and sweep takes the
// lock after the lists are in force: so one of the two sees the other.
func (e *Enforcer) enter(key chainsKey, chains [][]*x509.Certificate, t *tunnel) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	if s := e.state.Load(); s.lists != nil {
		var revoked *RevokedError
		if err := s.lists.check(chains); errors.As(err, &revoked) {
			return err
		}
	}
	g := e.groups[key]
	if g == nil {
		g = &group{chains: chains, tunnels: map[*tunnel]struct{}{}}
		e.groups[key] = g
	}
	g.tunnels[t] = struct{}{}
	return nil
}

func (e *Enforcer) leave(key chainsKey, t *tunnel) {
	e.mu.Lock()
	defer e.mu.Unlock()
	g := e.groups[key]
	if g == nil {
		return // swept
	}
	delete(g.tunnels, t)
	if len(g.tunnels) == 0 {
		delete(e.groups, key)
	}
}

// sweep ends the tunnels that rest on what found revokes. One whose lists
// cannot be verified stays: it was trusted, and nobody has taken that back.
func (e *Enforcer) sweep(found *lists) {
	e.mu.Lock()
	defer e.mu.Unlock()
	for key, g := range e.groups {
		var revoked *RevokedError
		err := found.check(g.chains)
		if e.closed || !errors.As(err, &revoked) {
			continue
		}
		delete(e.groups, key)
		for t := range g.tunnels {
			e.reject(t.reporter, err)
			// Each on its own: one that hangs must not keep the others alive.
			e.running.Go(func() { t.end(ErrPeerRevoked) })
		}
	}
}

func hasLeaf(chains [][]*x509.Certificate) bool {
	for _, chain := range chains {
		if len(chain) == 0 {
			return false
		}
	}
	return len(chains) > 0
}

func keyOf(chains [][]*x509.Certificate) chainsKey {
	h := sha256.New()
	number := func(n int) {
		var b [8]byte
		binary.BigEndian.PutUint64(b[:], uint64(n))
		h.Write(b[:])
	}
	for _, chain := range chains {
		number(len(chain))
		for _, c := range chain {
			number(len(c.Raw))
			h.Write(c.Raw)
		}
	}
	return chainsKey(h.Sum(nil))
}
