// SPDX-License-Identifier: Apache-2.0

package roster

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/ztunnel-go/ztunnel/internal/zds"
)

// A conn is a proxy that is connected. One goroutine talks to it.
type conn struct {
	*zds.Peer

	// All below is guarded by the roster's mu.

	snapshot bool              // it has been sent
	told     map[string]uint64 // versions of what it was told, by uid
	accepted map[string]uint64 // of these, what it has accepted
	dels     map[string]bool   // uids that it is still to be told are gone
}

// acceptPause is between proxies: one that connects and ends in a loop must
// not take the node's time.
const acceptPause = 100 * time.Millisecond

// Run listens for proxies and tells them the list until ctx ends.
func (r *Roster) Run(ctx context.Context) error {
	l, err := zds.Listen(r.cfg.Socket)
	if err != nil {
		return err
	}
	stop := context.AfterFunc(ctx, func() { l.Close() })
	defer func() {
		if stop() {
			l.Close()
		}
	}()
	var talks sync.WaitGroup
	defer talks.Wait()
	for {
		peer, err := l.Accept()
		switch {
		case ctx.Err() != nil:
			if err == nil {
				peer.Close()
			}
			return nil
		case err != nil:
			return fmt.Errorf("accept proxies: %w", err)
		}
		talks.Go(func() { r.serve(ctx, peer) })
		pause(ctx, acceptPause)
	}
}

func pause(ctx context.Context, d time.Duration) {
	select {
	case <-time.After(d):
	case <-ctx.Done():
	}
}

// serve talks to one proxy until it goes, misbehaves, or ctx ends.
func (r *Roster) serve(ctx context.Context, peer *zds.Peer) {
	defer peer.Close()
	if err := peer.Hello(); err != nil {
		r.log.Warn("a proxy has connected in vain", "error", err)
		return
	}
	c := r.join(peer)
	err := r.talk(ctx, c)
	r.part(c)
	if ctx.Err() == nil {
		r.log.Warn("a proxy is gone", "error", err, "connected", r.Proxies())
	}
}

func (r *Roster) join(peer *zds.Peer) *conn {
	r.mu.Lock()
	defer r.mu.Unlock()
	c := &conn{Peer: peer, told: map[string]uint64{}, accepted: map[string]uint64{}, dels: maps.Clone(r.gone)}
	r.conns = append(r.conns, c)
	r.judgeLocked()
	r.log.Info("a proxy has connected", "connected", len(r.conns), "pods", len(r.pods))
	return c
}

func (r *Roster) part(c *conn) {
	r.mu.Lock()
	r.conns = slices.DeleteFunc(r.conns, func(other *conn) bool { return other == c })
	r.judgeLocked()
	r.mu.Unlock()
}

// judgeLocked looks again who serves the pods, after the last connection has
// become another. r.mu is held.
func (r *Roster) judgeLocked() {
	for uid, e := range r.pods {
		switch {
		case e.pod.NS == nil:
			e.state = Unknown
		case len(r.conns) > 0 && r.conns[len(r.conns)-1].accepted[uid] == e.version:
			e.state = Served
		default:
			e.state = Waiting
		}
		e.err = nil
	}
	r.changedLocked()
}

var errClosed = errors.New("it has closed the connection")

func (r *Roster) talk(ctx context.Context, c *conn) error {
	for {
		req, version, more, err := r.next(c)
		if err != nil {
			return err
		}
		if req.Kind == 0 {
			select {
			case <-more:
				continue
			case <-c.Gone():
				return errClosed
			case <-ctx.Done():
				return nil
			}
		}
		err = c.Ask(req)
		closeNS(req.NetNS)
		r.answered(c, req, version, err)
		var refused *zds.Refused
		if err != nil && !errors.As(err, &refused) {
			return err
		}
		if ctx.Err() != nil {
			return nil
		}
	}
}

// next is what c is to be told now; a zero Kind is nothing until more is closed.
func (r *Roster) next(c *conn) (req zds.Request, version uint64, more chan struct{}, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if c.snapshot {
		for uid := range c.dels { // before adds: a namespace may have a new owner
			delete(c.dels, uid)
			delete(c.told, uid)
			delete(c.accepted, uid)
			return zds.Request{Kind: zds.Del, UID: uid}, 0, nil, nil
		}
	}
	if last := r.conns[len(r.conns)-1]; last == c || !c.snapshot {
		for uid, e := range r.pods {
			if c.told[uid] == e.version {
				continue
			}
			c.told[uid] = e.version
			if e.pod.NS == nil && c.snapshot {
				continue // a keep has no place here
			}
			req, err := e.request()
			return req, e.version, nil, err
		}
	}
	if !c.snapshot {
		c.snapshot = true
		return zds.Request{Kind: zds.SnapshotSent}, 0, nil, nil
	}
	return zds.Request{}, 0, r.more, nil
}

// answered takes note of what a proxy said.
func (r *Roster) answered(c *conn, req zds.Request, version uint64, err error) {
	var refused *zds.Refused
	result := "accepted"
	switch {
	case errors.As(err, &refused):
		result = "refused"
	case err != nil:
		result = "lost"
	}
	r.mu.Lock()
	r.counts[Count{req.Kind.String(), result}]++
	last := len(r.conns) > 0 && r.conns[len(r.conns)-1] == c
	if req.Kind == zds.Del && err == nil && last && r.pods[req.UID] == nil {
		delete(r.gone, req.UID)
	}
	changed := false
	if e := r.pods[req.UID]; req.Kind == zds.Add && result != "lost" && e != nil && e.version == version {
		if err == nil {
			c.accepted[req.UID] = version
		}
		if last {
			e.state, e.err, changed = Served, err, true
			if err != nil {
				e.state = Refused
			}
		}
	}
	r.changedLocked()
	r.mu.Unlock()
	switch {
	case result == "accepted" && req.Kind == zds.Add:
		r.log.Info("the proxy captures a pod", "uid", req.UID, "name", req.Info.Name, "namespace", req.Info.Namespace, "late", req.Late)
	case err != nil:
		r.log.Warn("the proxy was told in vain", "request", req.Kind.String(), "uid", req.UID, "error", err)
	}
	if changed && r.cfg.Changed != nil {
		r.cfg.Changed(req.UID)
	}
}
