// SPDX-License-Identifier: Apache-2.0

package engine

import (
	"github.com/ztunnel-go/ztunnel/dataplane/hbone/wire"
)

// maxInterim bounds the 1xx answers to one request.
const maxInterim = 8

// beginBlock looks at the header of HEADERS or CONTINUATION.
func (t *Tunnel) beginBlock() error {
	f := &t.frame
	first := f.kind() == frameHeaders
	switch limit := wire.BlockSlack * int(t.set.MaxHeaderList); {
	case f.id() == 0:
		return wire.Complaint(wire.ProtocolError, "header block on stream 0")
	case !first && f.blockN == 0:
		return wire.Complaint(wire.ProtocolError, "CONTINUATION of nothing")
	case !first && f.id() != f.blockID:
		return wire.Complaint(wire.ProtocolError, "header block of stream %d continued on %d", f.blockID, f.id())
	case len(f.block)+f.length() > limit || f.blockN > wire.MaxContinuations:
		return wire.Complaint(wire.EnhanceYourCalm, "header block of %d bytes in %d frames", len(f.block)+f.length(), f.blockN+1)
	}
	if first {
		f.blockID, f.blockEnd = f.id(), f.flags()&flagEnd != 0
	}
	f.blockN++
	return nil
}

// block takes the fragment in HEADERS or CONTINUATION, and the whole block at
// its end. What is wrong with a frame ends the tunnel, since the decoder would
// lose step with the peer.
func (t *Tunnel) block(p []byte) error {
	f := &t.frame
	if f.kind() == frameHeaders {
		var err error
		if p, err = fragment(p, f.flags()); err != nil {
			return err
		}
	}
	if f.flags()&flagEndHeaders == 0 {
		f.block = append(f.block, p...)
		return nil
	}
	if len(f.block) > 0 {
		p = append(f.block, p...)
	}
	f.block, f.blockN = nil, 0
	b := &wire.Block{Left: int(t.set.MaxHeaderList)}
	if err := t.dec.Decode(p, b.Add); err != nil {
		return wire.Complaint(wire.Compression, "header block: %v", err)
	}
	if b.Bomb {
		return wire.Complaint(wire.EnhanceYourCalm, "header block of %d bytes unpacks to millions", len(p))
	}
	if t.client {
		return t.response(b)
	}
	return t.request(b)
}

// fragment strips padding and priority (RFC 9113, section 6.2).
func fragment(p []byte, flags byte) ([]byte, error) {
	pad := 0
	if flags&flagPadded != 0 {
		if len(p) == 0 {
			return nil, wire.Complaint(wire.FrameSize, "padded HEADERS without a pad length")
		}
		pad, p = int(p[0]), p[1:]
	}
	if flags&flagPriority != 0 {
		if len(p) < 5 {
			return nil, wire.Complaint(wire.FrameSize, "HEADERS with priority of %d bytes", len(p))
		}
		p = p[5:]
	}
	if pad > len(p) {
		return nil, wire.Complaint(wire.ProtocolError, "padding longer than its frame")
	}
	return p[:len(p)-pad], nil
}

// response takes the answer to a CONNECT of ours.
func (t *Tunnel) response(b *wire.Block) error {
	f := &t.frame
	s := t.streams[f.blockID]
	switch {
	case s == nil:
		return t.idle()
	case s.responded:
		return s.trailers(f.blockEnd)
	case b.Oversized:
		return &streamFault{s.id, wire.ProtocolError, "response headers beyond MAX_HEADER_LIST_SIZE"}
	}
	status, why := 0, b.Malformed
	if why == "" {
		status, why = b.Response()
	}
	if why != "" {
		return &streamFault{s.id, wire.ProtocolError, why}
	}
	if status < 200 {
		if s.interim++; f.blockEnd || s.interim > maxInterim {
			return &streamFault{s.id, wire.ProtocolError, "interim responses without end"}
		}
		return nil
	}
	s.responded = true
	if status != 200 {
		t.writeReset(s.id, wire.Cancel)
		s.broken(&wire.StatusError{Code: status})
		return nil
	}
	s.answer(wire.Response{Status: status, Baggage: b.Text("baggage")}, nil)
	if f.blockEnd {
		s.endRead()
	}
	return nil
}

// trailers takes HEADERS on an established stream. RFC 9113, section 8.5, has
// none there; with END_STREAM we take them for the end they are meant to be,
// as the reference does.
func (s *Stream) trailers(end bool) error {
	switch {
	case s.recvEnded:
		return &streamFault{s.id, wire.StreamClosed, "HEADERS after END_STREAM"}
	case !end:
		return &streamFault{s.id, wire.ProtocolError, "HEADERS within a stream"}
	}
	s.t.past.End(s.t.lastPeer, s.id)
	s.endRead()
	return nil
}

// statusTooLarge answers a header list beyond our limit (RFC 6585).
const statusTooLarge = 431

// request takes a new stream of the peer.
func (t *Tunnel) request(b *wire.Block) error {
	f := &t.frame
	id, end := f.blockID, f.blockEnd
	if s := t.streams[id]; s != nil {
		return s.trailers(end)
	}
	if id%2 == 0 {
		return wire.Complaint(wire.ProtocolError, "HEADERS for stream %d, which is ours to open", id)
	}
	if id <= t.lastPeer {
		return t.late(id, end)
	}
	t.past.Open(t.lastPeer, id)
	t.lastPeer = id
	if end {
		t.past.End(id, id)
	}
	if fault := t.admit(id, b); fault != nil {
		return fault
	}
	s := t.newStream(id)
	s.recvEnded = end
	if b.Oversized {
		s.reject(statusTooLarge)
		return t.spend(wire.CostReset)
	}
	t.serving++
	s.request = b
	t.cfg.Request(&Request{stream: s, Headers: b})
	return nil
}

// late takes HEADERS for a stream that is closed.
func (t *Tunnel) late(id uint32, end bool) error {
	switch fate := t.fate(id); {
	case fate == wire.FateEnded:
		return wire.Complaint(wire.StreamClosed, "HEADERS for stream %d, which its sender had closed", id)
	case fate == wire.FateOurs && end:
		return nil // trailers that crossed our reset
	}
	return wire.Complaint(wire.ProtocolError, "HEADERS for stream %d, which is closed", id)
}

// admit says why a request gets no stream. A handler outlives a stream that
// its peer resets, so what runs is counted too (rapid reset, CVE-2023-44487),
// with room for handlers that are about to return.
func (t *Tunnel) admit(id uint32, b *wire.Block) error {
	limit := int(t.set.MaxStreams)
	switch {
	case id > t.refuse:
		return &streamFault{id, wire.RefusedStream, "opened after GOAWAY"}
	case len(t.streams) >= limit, t.serving >= 2*limit:
		return &streamFault{id, wire.RefusedStream, "beyond MAX_CONCURRENT_STREAMS"}
	case b.Malformed != "":
		return &streamFault{id, wire.ProtocolError, b.Malformed}
	case b.Oversized:
		return nil
	}
	if why := b.Request(); why != "" {
		return &streamFault{id, wire.ProtocolError, why}
	}
	return nil
}
