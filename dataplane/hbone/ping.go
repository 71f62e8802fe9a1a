// SPDX-License-Identifier: Apache-2.0

package hbone

import (
	"time"

	"golang.org/x/net/http2"

	"github.com/ztunnel-go/ztunnel/dataplane/hbone/wire"
)

// A pinger is one side's independent keepalive (contract 4.4): a PING, its
// pong within the timeout, a pause, the next PING. Its timer's callback takes
// the lock, looks, and never waits.
type pinger struct {
	timer   *time.Timer
	waiting bool      // for a pong
	due     time.Time // when the timer means something; earlier firings lost a race with a pong
}

func (c *conn) startPingLocked() {
	c.ping.due = time.Now().Add(c.set.PingInterval)
	c.ping.timer = time.AfterFunc(c.set.PingInterval, c.pingDue)
}

func (c *conn) armPingLocked(waiting bool, after time.Duration) {
	c.ping.waiting = waiting
	c.ping.due = time.Now().Add(after)
	c.ping.timer.Reset(after)
}

func (c *conn) pingDue() {
	c.mu.Lock()
	if c.ended || time.Now().Before(c.ping.due) {
		c.mu.Unlock()
		return
	}
	if c.ping.waiting {
		c.timers.Add(1) // run waits only once the tunnel has ended
		c.mu.Unlock()
		defer c.timers.Done()
		c.end(ErrPingTimeout)
		return
	}
	_ = c.wf.WritePing(false, keepalivePing)
	c.work.Signal()
	c.armPingLocked(true, c.set.PingTimeout)
	c.mu.Unlock()
}

// pingLocked answers a PING, or takes the answer to ours.
func (c *conn) pingLocked(f *http2.PingFrame) error {
	switch {
	case !f.IsAck():
		_ = c.wf.WritePing(true, f.Data)
		return c.provokedLocked()
	case f.Data == keepalivePing && c.ping.waiting && !c.ended:
		c.armPingLocked(false, c.set.PingInterval)
	case f.Data == drainPing:
		c.drainedLocked()
	}
	return nil
}

// drainStep is how far a server is in saying that it leaves:
//
//	none --drain--> asked --pong--> told
type drainStep uint8

const (
	drainNone  drainStep = iota
	drainAsked           // GOAWAY with the highest id is out, and a PING behind it
	drainTold            // the peer knows which of its streams are served
)

// drain begins a graceful end (contract 15.3): streams that the peer opens
// before it can know are still served.
func (c *conn) drain() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.ended || c.drainStep != drainNone {
		return
	}
	c.drainStep, c.leaving = drainAsked, true
	_ = c.wf.WriteGoAway(wire.MaxStreamID, http2.ErrCodeNo, nil)
	_ = c.wf.WritePing(false, drainPing)
	c.work.Signal()
}

// drainedLocked says which streams are served, now that the peer has heard the
// first GOAWAY.
func (c *conn) drainedLocked() {
	if c.ended || c.drainStep != drainAsked {
		return
	}
	c.drainStep = drainTold
	c.refuse = c.lastPeer
	_ = c.wf.WriteGoAway(c.lastPeer, http2.ErrCodeNo, nil)
	c.work.Signal()
}
