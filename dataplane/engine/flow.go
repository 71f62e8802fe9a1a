// SPDX-License-Identifier: Apache-2.0

package engine

import "github.com/ztunnel-go/ztunnel/dataplane/hbone/wire"

// Flow control (RFC 9113, section 5.2). Credit follows delivery: what the
// application has not taken is not given back to the peer, neither for its
// stream nor for the tunnel. So what a tunnel buffers is bounded by its
// window, and streams that stall share that window with the others: at the
// contract's values it takes four full ones to stop a tunnel.

// credit returns n delivered bytes of the tunnel to the peer, in steps of half
// a window.
func (t *Tunnel) credit(n int64) {
	if t.ended {
		return
	}
	t.uncredited += n
	if t.uncredited >= int64(t.set.ConnWindow)/2 {
		t.recvWindow += t.uncredited
		t.writeUpdate(0, t.uncredited)
		t.uncredited = 0
	}
}

// credit is the stream's part; the tunnel's is apart from it.
func (s *Stream) credit(n int64) {
	t := s.t
	s.uncredited += n
	if t.ended || s.recvEnded || t.streams[s.id] != s {
		return // no more will come
	}
	if s.uncredited >= int64(t.set.StreamWindow)/2 {
		s.recvWindow += s.uncredited
		t.writeUpdate(s.id, s.uncredited)
		s.uncredited = 0
	}
}

// delivered is both.
func (s *Stream) delivered(n int) {
	s.t.credit(int64(n))
	s.credit(int64(n))
}

// firstWindow is what a new stream's peer may send. Until it has seen our
// SETTINGS that is the protocol's initial window, if ours is smaller (RFC 9113,
// section 6.9.3).
func (t *Tunnel) firstWindow() int64 {
	if own := int64(t.set.StreamWindow); t.acknowledged || own > wire.InitialWindow {
		return own
	}
	return wire.InitialWindow
}

// settingsSeen is the peer's acknowledgement: it has shrunk its windows, maybe
// below zero.
func (t *Tunnel) settingsSeen() {
	if t.acknowledged {
		return
	}
	less := t.firstWindow() - int64(t.set.StreamWindow)
	t.acknowledged = true
	for _, s := range t.streams {
		s.recvWindow -= less
	}
}

// obeyUpdate lets us send more.
func (t *Tunnel) obeyUpdate(n int64) error {
	if n < minUpdate { // more is bounded by what we sent, or it overflows the window
		if err := t.spend(wire.CostNoise); err != nil {
			return err
		}
	}
	id := t.frame.id()
	if id == 0 {
		if n == 0 {
			return wire.Complaint(wire.ProtocolError, "WINDOW_UPDATE of 0")
		}
		if t.sendWindow += n; t.sendWindow > wire.MaxWindow {
			return wire.Complaint(wire.FlowControl, "window of the tunnel beyond 2^31-1")
		}
		t.resume()
		return nil
	}
	s := t.streams[id]
	if s == nil {
		if n == 0 {
			return wire.Complaint(wire.ProtocolError, "WINDOW_UPDATE of 0 for stream %d", id)
		}
		return t.idle()
	}
	if n == 0 {
		return &streamFault{id, wire.ProtocolError, "WINDOW_UPDATE of 0"}
	}
	if s.sendWindow += n; s.sendWindow > wire.MaxWindow {
		return &streamFault{id, wire.FlowControl, "window of the stream beyond 2^31-1"}
	}
	s.resume()
	return nil
}

// setPeerWindow changes what the peer gives each stream, also those that are
// open (RFC 9113, section 6.9.2).
func (t *Tunnel) setPeerWindow(size uint32) error {
	if size > wire.MaxWindow {
		return wire.Complaint(wire.FlowControl, "INITIAL_WINDOW_SIZE %d", size)
	}
	delta := int64(size) - t.peerWindow
	t.peerWindow = int64(size)
	for _, s := range t.streams {
		if s.sendWindow += delta; s.sendWindow > wire.MaxWindow {
			return wire.Complaint(wire.FlowControl, "INITIAL_WINDOW_SIZE %d overflows a window", size)
		}
		s.resume()
	}
	return nil
}

// room is how much s may send now.
func (s *Stream) room() int { return int(min(s.sendWindow, s.t.sendWindow)) }

// starve has s wait for the tunnel's window or socket.
func (t *Tunnel) starve(s *Stream) {
	if !s.starved {
		s.starved = true
		t.starved = append(t.starved, s)
	}
}

// resume lets streams go on that waited for the tunnel, in the order in which
// they began to wait.
func (t *Tunnel) resume() {
	if len(t.starved) == 0 || t.box.stuck || t.sendWindow <= 0 {
		return
	}
	list := t.starved
	t.starved = nil
	for _, s := range list {
		s.starved = false
		s.resume()
	}
}
