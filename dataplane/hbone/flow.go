// SPDX-License-Identifier: Apache-2.0

package hbone

import (
	"golang.org/x/net/http2"

	"github.com/ztunnel-go/ztunnel/dataplane/hbone/wire"
)

// Flow control (RFC 9113, section 5.2). Credit follows delivery: what the
// application has not taken is not given back to the peer, neither for its
// stream nor for the tunnel. So what a tunnel buffers is bounded by its
// window, and streams that stall share that window with the others: at the
// contract's values it takes four full ones to stop a tunnel.

// creditLocked returns n delivered bytes of s to the peer, in steps of half a
// window.
func (c *conn) creditLocked(s *stream, n int) {
	if c.ended {
		return
	}
	c.creditTunnelLocked(n)
	s.uncredited += int64(n)
	if s.recvEnded || s.writeErr != nil && s.readErr != nil {
		return // no more will come
	}
	if s.uncredited >= int64(c.set.StreamWindow)/2 {
		_ = c.wf.WriteWindowUpdate(s.id, uint32(s.uncredited))
		s.recvWindow += s.uncredited
		s.uncredited = 0
		c.work.Signal()
	}
}

func (c *conn) creditTunnelLocked(n int) {
	if c.ended {
		return
	}
	c.uncredited += int64(n)
	if c.uncredited >= int64(c.set.ConnWindow)/2 {
		_ = c.wf.WriteWindowUpdate(0, uint32(c.uncredited))
		c.recvWindow += c.uncredited
		c.uncredited = 0
		c.work.Signal()
	}
}

// windowUpdateLocked lets us send more.
func (c *conn) windowUpdateLocked(f *http2.WindowUpdateFrame) error {
	if f.StreamID == 0 {
		if c.sendWindow += int64(f.Increment); c.sendWindow > wire.MaxWindow {
			return wire.Complaint(FlowControl, "window of the tunnel beyond 2^31-1")
		}
		c.work.Signal()
		return nil
	}
	s := c.streams[f.StreamID]
	if s == nil {
		return c.idleLocked(f.Header())
	}
	if s.sendWindow += int64(f.Increment); s.sendWindow > wire.MaxWindow {
		return &streamFault{s.id, FlowControl, "window of the stream beyond 2^31-1"}
	}
	c.queueLocked(s)
	return nil
}

// firstWindowLocked is what a new stream's peer may send. Until it has seen our
// SETTINGS that is the protocol's initial window, if ours is smaller (RFC 9113,
// section 6.9.3).
func (c *conn) firstWindowLocked() int64 {
	if own := int64(c.set.StreamWindow); c.acknowledged || own > wire.InitialWindow {
		return own
	}
	return wire.InitialWindow
}

// settingsSeenLocked is the peer's acknowledgement: it has shrunk its windows,
// maybe below zero.
func (c *conn) settingsSeenLocked() {
	if c.acknowledged {
		return
	}
	less := c.firstWindowLocked() - int64(c.set.StreamWindow)
	c.acknowledged = true
	for _, s := range c.streams {
		s.recvWindow -= less
	}
}

// settingsLocked takes the peer's settings (RFC 9113, section 6.5.2).
func (c *conn) settingsLocked(f *http2.SettingsFrame) error {
	if f.IsAck() {
		c.settingsSeenLocked()
		return nil
	}
	err := f.ForeachSetting(func(v http2.Setting) error {
		switch v.ID {
		case http2.SettingInitialWindowSize:
			return c.peerWindowLocked(v.Val)
		case http2.SettingMaxFrameSize:
			if v.Val < wire.MinFrameSize || v.Val > wire.MaxFrameSize {
				return wire.Complaint(ProtocolError, "MAX_FRAME_SIZE %d", v.Val)
			}
			c.peerMaxFrame = int(v.Val)
		case http2.SettingMaxConcurrentStreams:
			c.peerStreams = v.Val
		case http2.SettingEnablePush:
			if v.Val > 1 || c.client && v.Val == 1 {
				return wire.Complaint(ProtocolError, "ENABLE_PUSH %d", v.Val)
			}
		}
		return nil // our encoder has no table, and we push nothing
	})
	if err != nil {
		return err
	}
	if !c.peerSettings {
		c.peerSettings = true
		c.settingsTimer.Stop()
	}
	_ = c.wf.WriteSettingsAck()
	return c.provokedLocked()
}

// peerWindowLocked changes what the peer gives each stream, also those that
// are open (RFC 9113, section 6.9.2).
func (c *conn) peerWindowLocked(size uint32) error {
	if size > wire.MaxWindow {
		return wire.Complaint(FlowControl, "INITIAL_WINDOW_SIZE %d", size)
	}
	delta := int64(size) - c.peerWindow
	c.peerWindow = int64(size)
	for _, s := range c.streams {
		if s.sendWindow += delta; s.sendWindow > wire.MaxWindow {
			return wire.Complaint(FlowControl, "INITIAL_WINDOW_SIZE %d overflows a window", size)
		}
		c.queueLocked(s)
	}
	return nil
}
