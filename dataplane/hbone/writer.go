// SPDX-License-Identifier: Apache-2.0

package hbone

import (
	"bytes"
	"encoding/binary"
	"io"
	"sync"
	"time"

	"golang.org/x/net/http2"

	"github.com/ztunnel-go/ztunnel/dataplane/hbone/wire"
)

const (
	frameHeader = 9

	// recordSize is the most that one TLS record carries (RFC 8446, section
	// 5.1); maxData makes a DATA frame fill exactly one.
	recordSize = 16 << 10
	maxData    = recordSize - frameHeader

	// batchSize is how much leaves in one write: four records, which one
	// writer seals while user connections fill the next.
	batchSize = 4 * recordSize
	// minRoom is how little of a batch is not worth another DATA frame.
	minRoom = 1 << 10

	// maxProvoked bounds the answers that wait for a peer which asks without
	// reading.
	maxProvoked = 1000
	// keepControl is the largest control buffer kept while nothing is queued.
	keepControl = 4 << 10
)

// batches keeps what the writer fills; it holds one only while it writes.
var batches = sync.Pool{New: func() any { return new([batchSize]byte) }}

// writeLoop sends batches until the tunnel has ended and nothing is queued,
// then closes the connection.
func (c *conn) writeLoop() {
	for c.waitWork() {
		array := batches.Get().(*[batchSize]byte)
		c.mu.Lock()
		batch := c.fillLocked(array[:0])
		c.mu.Unlock()
		_, err := c.nc.Write(batch)
		batches.Put(array)
		if err != nil {
			c.end(err)
			_ = c.raw.Close() // first, since TLS would try to say goodbye
			break
		}
	}
	c.part()
	_ = c.nc.Close() // there is nobody left to tell
}

// part shuts our side of a connection whose tunnel has ended, and waits until
// the peer has shut its own, where nobody complained. A socket that is closed
// with something unread, or that gets something afterwards, is reset, and what
// it had still to send is lost: the end of the last stream. The peer's
// WINDOW_UPDATEs for that very stream are enough.
func (c *conn) part() {
	c.mu.Lock()
	well := benign(c.cause)
	c.mu.Unlock()
	over, ok := c.nc.(interface{ CloseWrite() error }) // TLS's end
	under, also := c.raw.(interface{ CloseWrite() error })
	if !well || !ok || !also || over.CloseWrite() != nil || c.raw != c.nc && under.CloseWrite() != nil {
		return
	}
	_ = c.raw.SetReadDeadline(time.Now().Add(partingTimeout))
	select {
	case <-c.heard: // at the peer's end, or with the next frame
	case <-time.After(partingTimeout):
	}
	_, _ = io.Copy(io.Discard, c.raw) // ends at the peer's end, or at once, or at the deadline
}

// waitWork reports whether there is something to send; false once the tunnel
// has ended and all was sent.
func (c *conn) waitWork() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	for {
		if c.control.Len() > 0 {
			return true
		}
		if c.ended {
			return false
		}
		if len(c.sendQueue) > 0 && c.sendWindow > 0 {
			return true
		}
		c.work.Wait()
	}
}

// fillLocked appends the next batch: control frames first, then DATA, one
// frame from each stream in turn. The order between a stream's own frames
// holds all the same: what stands in control for a stream was put there after
// its earlier bytes had left the queue.
func (c *conn) fillLocked(batch []byte) []byte {
	batch = append(batch, c.control.Next(cap(batch))...)
	if c.control.Len() == 0 {
		c.provoked = 0
		if c.control.Cap() > keepControl {
			c.control = bytes.Buffer{} // c.wf points to the field and stays right
		}
	} else {
		return batch
	}
	for len(c.sendQueue) > 0 && c.sendWindow > 0 && cap(batch)-len(batch) >= minRoom {
		s := c.sendQueue[0]
		c.sendQueue[0] = nil
		c.sendQueue = c.sendQueue[1:]
		batch = c.takeLocked(s, batch)
	}
	if len(c.sendQueue) == 0 {
		c.sendQueue = nil
	}
	return batch
}

// takeLocked appends one DATA frame of s and queues s again if it has more.
func (c *conn) takeLocked(s *stream, batch []byte) []byte {
	s.queued = false
	if s.writeErr != nil || len(s.pending) == 0 {
		return batch
	}
	n := min(len(s.pending), maxData, c.peerMaxFrame, cap(batch)-len(batch)-frameHeader)
	n = int(min(int64(n), c.sendWindow, s.sendWindow))
	if n <= 0 {
		return batch // WINDOW_UPDATE queues s again
	}
	batch = appendDataHeader(batch, s.id, n)
	batch = append(batch, s.pending[:n]...)
	s.pending = s.pending[n:]
	s.sendWindow -= int64(n)
	c.sendWindow -= int64(n)
	c.budget.Earn(1)
	if len(s.pending) == 0 {
		s.writable.Broadcast()
		return batch
	}
	c.queueLocked(s)
	return batch
}

func appendDataHeader(b []byte, id uint32, n int) []byte {
	b = append(b, byte(n>>16), byte(n>>8), byte(n), byte(http2.FrameData), 0)
	return binary.BigEndian.AppendUint32(b, id)
}

// queueLocked puts s in line for the writer if it may send something.
func (c *conn) queueLocked(s *stream) {
	if s.queued || len(s.pending) == 0 || s.sendWindow <= 0 {
		return
	}
	s.queued = true
	c.sendQueue = append(c.sendQueue, s)
	c.work.Signal()
}

// writeHeadersLocked queues a header block, in as many frames as the peer's
// frame size asks for.
func (c *conn) writeHeadersLocked(id uint32, list []wire.Field, endStream bool) {
	rest := wire.AppendBlock(nil, list)
	first := rest[:min(len(rest), c.peerMaxFrame)]
	rest = rest[len(first):]
	_ = c.wf.WriteHeaders(http2.HeadersFrameParam{
		StreamID: id, BlockFragment: first, EndStream: endStream, EndHeaders: len(rest) == 0,
	})
	for len(rest) > 0 {
		next := rest[:min(len(rest), c.peerMaxFrame)]
		rest = rest[len(next):]
		_ = c.wf.WriteContinuation(id, len(rest) == 0, next)
	}
	c.work.Signal()
}

// writeResetLocked queues RST_STREAM.
func (c *conn) writeResetLocked(id uint32, code Code) {
	if c.ended {
		return
	}
	_ = c.wf.WriteRSTStream(id, http2.ErrCode(code))
	c.work.Signal()
}

// provokedLocked counts a frame that the peer made us queue.
func (c *conn) provokedLocked() error {
	c.work.Signal()
	if c.provoked++; c.provoked > maxProvoked {
		return wire.Complaint(EnhanceYourCalm, "more than %d answers wait to be read", maxProvoked)
	}
	return nil
}
