// SPDX-License-Identifier: Apache-2.0

package hbone

import (
	"errors"
	"fmt"
	"io"
	"time"

	"golang.org/x/net/http2"

	"github.com/ztunnel-go/ztunnel/dataplane/hbone/wire"
)

const (
	// maxControl is the largest payload of a frame that is neither DATA nor
	// part of a header block: 100 settings, or the debug text of a GOAWAY.
	// (The known settings are seven.)
	maxControl = 600
	// minUpdate is the least credit that counts as work: some stacks return
	// every 4 KiB that their application reads.
	minUpdate = 1 << 10
	// keepFrame is the largest frame buffer that an idle tunnel keeps.
	keepFrame = 4 << 10
)

// A streamFault is a breach of the protocol that ends only its stream.
type streamFault struct {
	id   uint32
	code Code
	why  string
}

func (e *streamFault) Error() string {
	return fmt.Sprintf("stream %d: %v: %s", e.id, e.code, e.why)
}

// readLoop takes frames until the tunnel ends, and returns why.
func (c *conn) readLoop() error {
	if err := c.readPreface(); err != nil {
		return err
	}
	for first := true; ; first = false {
		fh, err := c.readFrameHeader()
		if err != nil {
			return err
		}
		if first && (fh.Type != http2.FrameSettings || fh.Flags.Has(http2.FlagSettingsAck)) {
			return wire.Complaint(ProtocolError, "first frame is %v, not SETTINGS", fh.Type)
		}
		err = c.readFrame(fh)
		var fault *streamFault
		if errors.As(err, &fault) {
			err = c.fault(fault)
		}
		if err != nil {
			return err
		}
	}
}

// readPreface takes what an HTTP/2 client says first (RFC 9113, section 3.4).
func (c *conn) readPreface() error {
	if c.client {
		return nil
	}
	var got [len(http2.ClientPreface)]byte
	if _, err := io.ReadFull(c.nc, got[:]); err != nil {
		return fmt.Errorf("read preface: %w", err)
	}
	if string(got[:]) != http2.ClientPreface {
		return wire.Complaint(ProtocolError, "the peer does not speak HTTP/2")
	}
	return nil
}

// readFrameHeader reads nine bytes and checks them against the frames before.
func (c *conn) readFrameHeader() (http2.FrameHeader, error) {
	fh, err := c.fr.ReadFrameHeader()
	return fh, c.frameError(err)
}

// frameError says in our words what the Framer found.
func (c *conn) frameError(err error) error {
	var ce http2.ConnectionError
	var se http2.StreamError
	switch {
	case err == nil:
		return nil
	case errors.Is(err, http2.ErrFrameTooLarge):
		return wire.Complaint(FrameSize, "frame beyond MAX_FRAME_SIZE")
	case errors.As(err, &ce):
		reason := "malformed frame"
		if detail := c.fr.ErrorDetail(); detail != nil {
			reason = detail.Error()
		}
		return &GoAwayError{Code: Code(ce), Reason: reason}
	case errors.As(err, &se):
		return &streamFault{se.StreamID, Code(se.Code), "malformed frame"}
	}
	return err
}

// readControl reads the payload of any frame but DATA. What the caller lets
// through as a size, the Framer allocates.
func (c *conn) readControl(fh http2.FrameHeader) (http2.Frame, error) {
	f, err := c.fr.ReadFrameForHeader(fh)
	if err != nil {
		err = c.frameError(err)
		var fault *streamFault
		if errors.As(err, &fault) && fh.Type != http2.FrameWindowUpdate && fh.Type != http2.FramePriority {
			// The block in it was not decoded, so the tables differ now.
			return nil, wire.Complaint(fault.code, "malformed %v", fh.Type)
		}
		return nil, err
	}
	return f, nil
}

// readFrame reads one frame and does what it says.
func (c *conn) readFrame(fh http2.FrameHeader) error {
	switch fh.Type {
	case http2.FrameData:
		return c.readData(fh)
	case http2.FrameHeaders:
		return c.readHeaders(fh)
	case http2.FramePushPromise:
		return wire.Complaint(ProtocolError, "PUSH_PROMISE, which nobody enabled")
	case http2.FrameSettings, http2.FramePing, http2.FrameGoAway, http2.FrameWindowUpdate,
		http2.FrameRSTStream, http2.FramePriority:
	default: // RFC 9113, section 4.1: unknown types are ignored
		if err := c.spend(wire.CostNoise); err != nil {
			return err
		}
		return c.discard(int(fh.Length))
	}
	if fh.Length > maxControl {
		return wire.Complaint(FrameSize, "%v of %d bytes", fh.Type, fh.Length)
	}
	f, err := c.readControl(fh)
	if err != nil {
		return err
	}
	c.mu.Lock()
	told, err := c.controlLocked(f)
	c.mu.Unlock()
	for _, f := range told {
		f()
	}
	return err
}

// controlLocked obeys a frame that carries neither data nor headers.
func (c *conn) controlLocked(f http2.Frame) ([]func(), error) {
	if c.ended {
		return nil, ErrClosed
	}
	if err := c.spendLocked(costOf(f)); err != nil {
		return nil, err
	}
	switch f := f.(type) {
	case *http2.SettingsFrame:
		return nil, c.settingsLocked(f)
	case *http2.PingFrame:
		err := c.pingLocked(f)
		return c.settleLocked(), err
	case *http2.WindowUpdateFrame:
		return nil, c.windowUpdateLocked(f)
	case *http2.RSTStreamFrame:
		return c.resetLocked(f)
	case *http2.GoAwayFrame:
		return c.goAwayLocked(f), nil
	}
	return nil, nil // PRIORITY says nothing to us
}

// costOf is what a control frame takes from the budget.
func costOf(f http2.Frame) int {
	switch f := f.(type) {
	case *http2.SettingsFrame:
		return wire.CostSettings
	case *http2.WindowUpdateFrame:
		if f.Increment >= minUpdate {
			return 0 // bounded by what we sent, or it overflows the window
		}
	case *http2.RSTStreamFrame:
		return 0 // resetLocked knows better
	}
	return wire.CostNoise
}

// resetLocked obeys RST_STREAM.
func (c *conn) resetLocked(f *http2.RSTStreamFrame) ([]func(), error) {
	s := c.streams[f.StreamID]
	c.past.End(c.lastPeer, f.StreamID)
	if s == nil {
		if err := c.spendLocked(wire.CostNoise); err != nil {
			return nil, err
		}
		return nil, c.idleLocked(f.Header())
	}
	if !c.client && !s.responded && time.Since(s.opened) < wire.Rapid {
		if err := c.spendLocked(wire.CostReset); err != nil {
			return nil, err
		}
	}
	code := Code(f.ErrCode)
	told := s.brokenLocked(&ResetError{Code: code, Remote: true, Unseen: code == RefusedStream})
	c.removeLocked(s.id)
	return append(told, c.settleLocked()...), nil
}

// goAwayLocked obeys GOAWAY: what the peer has not seen it never will.
func (c *conn) goAwayLocked(f *http2.GoAwayFrame) []func() {
	c.leaving = true
	if !c.client {
		return c.settleLocked()
	}
	cause := &GoAwayError{Code: Code(f.ErrCode), Remote: true, Reason: string(f.DebugData())}
	c.refuse = min(c.refuse, f.LastStreamID)
	var told []func()
	for id, s := range c.streams {
		if id > f.LastStreamID {
			told = append(told, s.brokenLocked(&ResetError{Code: RefusedStream, Cause: cause, Unseen: true})...)
			c.removeLocked(id)
		}
	}
	if cause.Code != NoError && c.goAway == nil {
		c.goAway = cause // if the connection breaks now, this is why
	}
	return append(told, c.settleLocked()...)
}

// idleLocked is nil for a frame of a stream that was open once, and a
// complaint for one that never was (RFC 9113, section 5.1).
func (c *conn) idleLocked(fh http2.FrameHeader) error {
	ours := c.client == (fh.StreamID%2 == 1)
	if ours && fh.StreamID < c.nextID && c.client || !ours && fh.StreamID <= c.lastPeer {
		return nil
	}
	return wire.Complaint(ProtocolError, "%v for stream %d, which is idle", fh.Type, fh.StreamID)
}

// fault resets one stream for what its peer did wrong.
func (c *conn) fault(e *streamFault) error {
	c.mu.Lock()
	var told []func()
	if s := c.streams[e.id]; s != nil {
		told = s.brokenLocked(&ResetError{Code: e.code})
		c.removeLocked(e.id)
	}
	c.writeResetLocked(e.id, e.code)
	err := c.provokedLocked()
	cost := wire.CostReset
	if e.code == RefusedStream {
		cost = wire.CostNoise // the peer may have crossed our GOAWAY or SETTINGS
	}
	if spent := c.spendLocked(cost); err == nil {
		err = spent
	}
	told = append(told, c.settleLocked()...)
	c.mu.Unlock()
	for _, f := range told {
		f()
	}
	return err
}

func (c *conn) spend(cost int) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.spendLocked(cost)
}

func (c *conn) spendLocked(cost int) error {
	if !c.budget.Spend(cost, time.Now().UnixNano()) {
		return wire.Complaint(EnhanceYourCalm, "too many frames that move nothing")
	}
	return nil
}

// discard reads n bytes that nobody wants.
func (c *conn) discard(n int) error {
	_, err := io.CopyN(io.Discard, c.nc, int64(n))
	return noEOF(err)
}

// noEOF turns an end in the middle of a frame into what it is.
func noEOF(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}
