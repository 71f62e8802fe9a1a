// SPDX-License-Identifier: Apache-2.0

package engine

import (
	"encoding/binary"
	"fmt"
	"time"

	"github.com/ztunnel-go/ztunnel/dataplane/hbone/wire"
	"github.com/ztunnel-go/ztunnel/dataplane/reactor"
)

// Frame types and flags (RFC 9113, section 6).
const (
	frameData         = 0x0
	frameHeaders      = 0x1
	framePriority     = 0x2
	frameReset        = 0x3
	frameSettings     = 0x4
	framePush         = 0x5
	framePing         = 0x6
	frameGoAway       = 0x7
	frameUpdate       = 0x8
	frameContinuation = 0x9

	flagEnd        = 0x1 // END_STREAM
	flagAck        = 0x1
	flagEndHeaders = 0x4
	flagPadded     = 0x8
	flagPriority   = 0x20
)

// maxControl is the largest payload of a frame that is neither DATA nor part
// of a header block: 100 settings, or the debug text of a GOAWAY. (The known
// settings are seven.)
const maxControl = 600

// minUpdate is the least credit that counts as work: some stacks return every
// 4 KiB that their application reads.
const minUpdate = 1 << 10

// A streamFault is a breach of the protocol that ends only its stream.
type streamFault struct {
	id   uint32
	code wire.Code
	why  string
}

func (e *streamFault) Error() string {
	return fmt.Sprintf("stream %d: %v: %s", e.id, e.code, e.why)
}

// sizes is the one length that a frame of some types may have.
var sizes = [...]int{framePriority: 5, frameReset: 4, framePing: 8, frameUpdate: 4, frameContinuation: 0}

// begin looks at a frame header, before any of the payload is taken. All its
// errors end the tunnel.
func (t *Tunnel) begin() error {
	f := &t.frame
	kind, id, n := f.kind(), f.id(), f.length()
	f.padKnown, f.pad, f.data, f.stream, f.fault = f.flags()&flagPadded == 0, 0, 0, nil, nil
	switch {
	case n > int(t.set.MaxFrameSize):
		return wire.Complaint(wire.FrameSize, "frame beyond MAX_FRAME_SIZE")
	case !f.begun && (kind != frameSettings || f.flags()&flagAck != 0):
		return wire.Complaint(wire.ProtocolError, "first frame is of type %d, not SETTINGS", kind)
	case f.blockN > 0 && kind != frameContinuation:
		return wire.Complaint(wire.ProtocolError, "frame of type %d within a header block", kind)
	}
	f.begun = true
	switch kind {
	case frameData:
		return t.beginData()
	case frameHeaders, frameContinuation:
		return t.beginBlock()
	case framePush:
		return wire.Complaint(wire.ProtocolError, "PUSH_PROMISE, which nobody enabled")
	case frameSettings, framePing, frameGoAway:
		if id != 0 {
			return wire.Complaint(wire.ProtocolError, "frame of type %d on stream %d", kind, id)
		}
	case frameReset, framePriority:
		if id == 0 {
			return wire.Complaint(wire.ProtocolError, "frame of type %d on stream 0", kind)
		}
	case frameUpdate:
	default: // RFC 9113, section 4.1: unknown types are ignored
		f.sink = true
		return t.spend(wire.CostNoise)
	}
	if n > maxControl || kind < byte(len(sizes)) && sizes[kind] > 0 && n != sizes[kind] {
		return wire.Complaint(wire.FrameSize, "frame of type %d with %d bytes", kind, n)
	}
	return nil
}

// beginData charges a DATA frame against the windows. Without a stream its
// bytes are for nobody.
func (t *Tunnel) beginData() error {
	f := &t.frame
	id, size := f.id(), int64(f.length())
	if id == 0 {
		return wire.Complaint(wire.ProtocolError, "DATA on stream 0")
	}
	if f.flags()&flagPadded != 0 && size == 0 {
		return wire.Complaint(wire.FrameSize, "padded DATA without a pad length")
	}
	if t.recvWindow -= size; t.recvWindow < 0 {
		return wire.Complaint(wire.FlowControl, "more data than the tunnel's window")
	}
	s := t.streams[id]
	if s == nil {
		if err := t.idle(); err != nil {
			return err
		}
		if t.fate(id) == wire.FateEnded {
			f.fault = &streamFault{id, wire.StreamClosed, "DATA for a stream that its sender had closed"}
		}
		return nil
	}
	switch {
	case s.recvEnded:
		f.fault = &streamFault{id, wire.StreamClosed, "DATA after END_STREAM"}
	case t.client && !s.responded:
		f.fault = &streamFault{id, wire.ProtocolError, "DATA before the response"}
	case s.recvWindow < size:
		f.fault = &streamFault{id, wire.FlowControl, "more data than the stream's window"}
	default:
		s.recvWindow -= size
		f.stream = s
	}
	return nil
}

// finishData credits what was padding, and ends the stream if the frame says
// so.
func (t *Tunnel) finishData() error {
	f := &t.frame
	s := f.stream
	f.stream = nil
	if s != nil && t.streams[f.id()] != s {
		s = nil // it ended while the frame came
	}
	if extra := int64(f.length() - f.data); extra > 0 {
		t.credit(extra)
		if s != nil {
			s.credit(extra)
		}
	}
	end := f.flags()&flagEnd != 0
	if f.data > 0 {
		t.budget.Earn(1)
	} else if !end {
		if err := t.spend(wire.CostNoise); err != nil {
			return err
		}
	}
	if f.fault != nil {
		return f.fault
	}
	if end {
		t.past.End(t.lastPeer, f.id())
	}
	if end && s != nil {
		s.endRead()
	}
	return nil
}

// obey does what a control frame asks for.
func (t *Tunnel) obey(p []byte) error {
	f := &t.frame
	switch f.kind() {
	case frameHeaders, frameContinuation:
		return t.block(p)
	case frameReset:
		return t.obeyReset(wire.Code(binary.BigEndian.Uint32(p)))
	case frameUpdate:
		return t.obeyUpdate(int64(binary.BigEndian.Uint32(p) & wire.MaxWindow))
	}
	cost := wire.CostNoise
	if f.kind() == frameSettings {
		cost = wire.CostSettings
	}
	if err := t.spend(cost); err != nil {
		return err
	}
	switch f.kind() {
	case frameSettings:
		return t.obeySettings(p)
	case framePing:
		return t.obeyPing(p)
	case frameGoAway:
		return t.obeyGoAway(p)
	}
	return nil // PRIORITY says nothing to us
}

// obeySettings takes the peer's settings (RFC 9113, section 6.5.2).
func (t *Tunnel) obeySettings(p []byte) error {
	if t.frame.flags()&flagAck != 0 {
		if len(p) > 0 {
			return wire.Complaint(wire.FrameSize, "acknowledgement of SETTINGS with %d bytes", len(p))
		}
		t.settingsSeen()
		return nil
	}
	if len(p)%6 != 0 {
		return wire.Complaint(wire.FrameSize, "SETTINGS of %d bytes", len(p))
	}
	for ; len(p) > 0; p = p[6:] {
		if err := t.obeySetting(wire.Setting{ID: binary.BigEndian.Uint16(p), Val: binary.BigEndian.Uint32(p[2:])}); err != nil {
			return err
		}
	}
	if !t.peerSettings {
		t.peerSettings = true
		t.settingsDue = 0
		t.arm()
	}
	var b [frameHeader]byte
	t.box.control(t, appendHead(b[:0], 0, frameSettings, flagAck, 0))
	t.resume()
	return t.provoke()
}

func (t *Tunnel) obeySetting(v wire.Setting) error {
	switch v.ID {
	case wire.SettingWindow:
		return t.setPeerWindow(v.Val)
	case wire.SettingFrameSize:
		if v.Val < wire.MinFrameSize || v.Val > wire.MaxFrameSize {
			return wire.Complaint(wire.ProtocolError, "MAX_FRAME_SIZE %d", v.Val)
		}
	case wire.SettingMaxStreams:
		t.places.mu.Lock()
		t.places.limit = int(min(uint32(wire.Or(t.cfg.MaxStreams, wire.ClientStreams)), v.Val))
		t.places.mu.Unlock()
	case wire.SettingPush:
		if v.Val > 1 || t.client && v.Val == 1 {
			return wire.Complaint(wire.ProtocolError, "ENABLE_PUSH %d", v.Val)
		}
	}
	return nil // our encoder has no table, our frames fit anyone, and we push nothing
}

// obeyReset takes RST_STREAM.
func (t *Tunnel) obeyReset(code wire.Code) error {
	s := t.streams[t.frame.id()]
	t.past.End(t.lastPeer, t.frame.id())
	if s == nil {
		if err := t.spend(wire.CostNoise); err != nil {
			return err
		}
		return t.idle()
	}
	if !t.client && !s.responded && time.Duration(t.lane.loop.Now()-s.opened) < wire.Rapid {
		if err := t.spend(wire.CostReset); err != nil {
			return err
		}
	}
	s.broken(&wire.ResetError{Code: code, Remote: true, Unseen: code == wire.RefusedStream})
	return nil
}

// obeyGoAway takes GOAWAY: what the peer has not seen it never will.
func (t *Tunnel) obeyGoAway(p []byte) error {
	if len(p) < 8 {
		return wire.Complaint(wire.FrameSize, "GOAWAY of %d bytes", len(p))
	}
	t.leave()
	if !t.client {
		return nil
	}
	last := binary.BigEndian.Uint32(p) & wire.MaxStreamID
	cause := &wire.GoAwayError{Code: wire.Code(binary.BigEndian.Uint32(p[4:])), Remote: true, Reason: string(p[8:])}
	t.refuse = min(t.refuse, last)
	for id, s := range t.streams {
		if id > last {
			s.broken(&wire.ResetError{Code: wire.RefusedStream, Cause: cause, Unseen: true})
		}
	}
	if cause.Code != wire.NoError && t.goAway == nil {
		t.goAway = cause // if the connection breaks now, this is why
	}
	return nil
}

// idle is nil for a frame of a stream that was open once, and a complaint for
// one that never was (RFC 9113, section 5.1).
func (t *Tunnel) idle() error {
	id := t.frame.id()
	ours := t.client == (id%2 == 1)
	if ours && t.client && id < t.nextID || !ours && id <= t.lastPeer {
		return nil
	}
	return wire.Complaint(wire.ProtocolError, "frame of type %d for stream %d, which is idle", t.frame.kind(), id)
}

// fate is how a stream of the peer's was closed. A server's are no news to us.
func (t *Tunnel) fate(id uint32) wire.Fate { return t.past.Of(t.lastPeer, id) }

// fault resets one stream for what its peer did wrong.
func (t *Tunnel) fault(e *streamFault) error {
	t.writeReset(e.id, e.code)
	if s := t.streams[e.id]; s != nil {
		s.broken(&wire.ResetError{Code: e.code})
	}
	if err := t.provoke(); err != nil {
		return err
	}
	cost := wire.CostReset
	if e.code == wire.RefusedStream {
		cost = wire.CostNoise // the peer may have crossed our GOAWAY or SETTINGS
	}
	return t.spend(cost)
}

func (t *Tunnel) spend(cost int) error {
	if !t.budget.Spend(cost, int64(t.lane.loop.Now())) {
		return wire.Complaint(wire.EnhanceYourCalm, "too many frames that move nothing")
	}
	return nil
}

// provoke counts a frame that the peer made us send.
func (t *Tunnel) provoke() error {
	if t.provoked++; t.provoked > maxProvoked {
		return wire.Complaint(wire.EnhanceYourCalm, "more than %d answers wait to be read", maxProvoked)
	}
	return nil
}

// keepalivePing and drainPing are the payloads of our PINGs (contract 4.4; the
// second is ours to choose).
const (
	keepalivePing = "\x3b\x7c\xdb\x7a\x0b\x87\x16\xb4"
	drainPing     = "draining"
)

// obeyPing answers a PING, or takes the answer to ours.
func (t *Tunnel) obeyPing(p []byte) error {
	switch {
	case t.frame.flags()&flagAck == 0:
		t.writePing(flagAck, p)
		return t.provoke()
	case string(p) == keepalivePing && t.pingWaits:
		t.pingWaits = false
		t.pingDue = t.lane.loop.Now().Add(t.set.PingInterval)
		t.arm()
	case string(p) == drainPing && t.drainStep == drainAsked:
		t.drainStep = drainTold
		t.refuse = t.lastPeer
		t.writeGoAway(t.lastPeer, wire.NoError, "")
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

// drain begins a graceful end of a server (contract 15.3): streams that the
// peer opens before it can know are still served.
func (t *Tunnel) drain() {
	if t.ended || t.drainStep != drainNone {
		return
	}
	t.drainStep = drainAsked
	t.leave()
	t.writeGoAway(wire.MaxStreamID, wire.NoError, "")
	t.writePing(0, []byte(drainPing))
}

// arm sets the timer to what is due first.
func (t *Tunnel) arm() {
	var first reactor.Time
	for _, due := range []reactor.Time{t.settingsDue, t.pingDue, t.goodbyeDue} {
		if due != 0 && (first == 0 || due < first) {
			first = due
		}
	}
	if first == 0 {
		t.lane.loop.Cancel(&t.timer)
		return
	}
	t.lane.loop.Set(&t.timer, first, t)
}

// Expired does what has become due.
func (t *Tunnel) Expired(*reactor.Timer) {
	now := t.lane.loop.Now()
	past := func(due reactor.Time) bool { return due != 0 && due <= now }
	switch {
	case past(t.goodbyeDue):
		t.close()
		return
	case past(t.settingsDue):
		t.end(wire.Complaint(wire.SettingsTimeout, "no SETTINGS from the peer in %v", t.set.HandshakeTimeout))
		return
	case past(t.pingDue) && t.pingWaits:
		t.end(wire.ErrPingTimeout)
		return
	case past(t.pingDue):
		t.pingWaits = true
		t.pingDue = now.Add(t.set.PingTimeout)
		t.writePing(0, []byte(keepalivePing))
	}
	t.arm()
}
