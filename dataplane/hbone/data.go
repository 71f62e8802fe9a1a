// SPDX-License-Identifier: Apache-2.0

package hbone

import (
	"io"

	"golang.org/x/net/http2"

	"github.com/ztunnel-go/ztunnel/dataplane/hbone/wire"
)

// readData takes a DATA frame. Its payload goes from the connection straight
// into chunks, which become part of the stream's queue; the reader holds one
// only while it fills it.
func (c *conn) readData(fh http2.FrameHeader) error {
	if fh.StreamID == 0 {
		return wire.Complaint(ProtocolError, "DATA on stream 0")
	}
	n, pad, err := c.readPadLength(fh)
	if err != nil {
		return err
	}
	s, fault, err := c.admitData(fh, n)
	if err != nil {
		return err
	}
	for left := n; left > 0; {
		k := getChunk()
		k.w = min(left, chunkSize)
		if _, err := io.ReadFull(c.nc, k.buf[:k.w]); err != nil {
			putChunk(k)
			return noEOF(err)
		}
		left -= k.w
		c.deliver(s, k)
	}
	if err := c.discard(pad); err != nil {
		return err
	}
	c.finishData(s, fh, n)
	if fault != nil {
		return fault
	}
	return nil
}

// readPadLength splits the payload of fh into data and padding, of which the
// length byte has been read.
func (c *conn) readPadLength(fh http2.FrameHeader) (n, pad int, err error) {
	n = int(fh.Length)
	if !fh.Flags.Has(http2.FlagDataPadded) {
		return n, 0, nil
	}
	if n == 0 {
		return 0, 0, wire.Complaint(FrameSize, "padded DATA without a pad length")
	}
	var length [1]byte
	if _, err := io.ReadFull(c.nc, length[:]); err != nil {
		return 0, 0, noEOF(err)
	}
	n, pad = n-1, int(length[0])
	if pad > n {
		return 0, 0, wire.Complaint(ProtocolError, "padding longer than its frame")
	}
	return n - pad, pad, nil
}

// admitData charges a DATA frame with n bytes of data against the windows. A
// nil stream means that the bytes are for nobody.
func (c *conn) admitData(fh http2.FrameHeader, n int) (*stream, error, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.ended {
		return nil, nil, ErrClosed
	}
	if n == 0 && !fh.Flags.Has(http2.FlagDataEndStream) {
		if err := c.spendLocked(wire.CostNoise); err != nil {
			return nil, nil, err
		}
	} else if n > 0 {
		c.budget.Earn(1)
	}
	size := int64(fh.Length)
	if c.recvWindow -= size; c.recvWindow < 0 {
		return nil, nil, wire.Complaint(FlowControl, "more data than the tunnel's window")
	}
	fault := func(code Code, why string) (*stream, error, error) {
		return nil, &streamFault{fh.StreamID, code, why}, nil
	}
	s := c.streams[fh.StreamID]
	if s == nil {
		if err := c.idleLocked(fh); err != nil || c.past.Of(c.lastPeer, fh.StreamID) != wire.FateEnded {
			return nil, nil, err
		}
		return fault(StreamClosed, "DATA for a stream that its sender had closed")
	}
	switch {
	case s.recvEnded:
		return fault(StreamClosed, "DATA after END_STREAM")
	case c.client && !s.responded:
		return fault(ProtocolError, "DATA before the response")
	case s.recvWindow < size:
		return fault(FlowControl, "more data than the stream's window")
	}
	s.recvWindow -= size
	return s, nil, nil
}

// deliver gives a filled chunk to its stream, or back to the pool if the
// stream is gone.
func (c *conn) deliver(s *stream, k *chunk) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if s == nil || s.readErr != nil {
		c.creditTunnelLocked(k.w)
		putChunk(k)
		return
	}
	s.in.push(k)
	s.readable.Broadcast()
}

// finishData credits what was padding, and ends the stream if the frame says
// so.
func (c *conn) finishData(s *stream, fh http2.FrameHeader, n int) {
	c.mu.Lock()
	var told []func()
	end := fh.Flags.Has(http2.FlagDataEndStream)
	if end {
		c.past.End(c.lastPeer, fh.StreamID)
	}
	if s == nil {
		c.creditTunnelLocked(int(fh.Length) - n)
	} else {
		c.creditLocked(s, int(fh.Length)-n)
		if end {
			told = s.endReadLocked()
		}
	}
	c.mu.Unlock()
	for _, f := range told {
		f()
	}
}
