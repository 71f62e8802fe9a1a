// SPDX-License-Identifier: Apache-2.0

package engine

import (
	"encoding/binary"
	"errors"
	"os"

	"golang.org/x/sys/unix"

	"github.com/ztunnel-go/ztunnel/dataplane/hbone/record"
	"github.com/ztunnel-go/ztunnel/dataplane/hbone/wire"
	"github.com/ztunnel-go/ztunnel/dataplane/reactor"
	"github.com/ztunnel-go/ztunnel/internal/sock"
)

const (
	sockMaxVec = sock.MaxVec

	// maxProvoked bounds the answers that wait for a peer which asks without
	// reading.
	maxProvoked = 1000
)

func sockVec(b []byte) unix.Iovec { return sock.Vec(b) }

/* The outbox is what leaves in the next write
 *
 *	buf  [ sealed records | 5 | content of the open record ... | room ]
 *	       off         n       fill
 *
 * Small frames share the open record; application data is read into the rest
 * of it and into the slots behind it, which are a full record apart, so that
 * each can be sealed where it lies. At the end of a turn the open record is
 * sealed and all is written. If the socket does not take all of it the outbox
 * is stuck: streams pause, and the few frames that cannot wait go to later.
 */

// An outbox has a buffer only while there is something in it.
type outbox struct {
	buf   []byte
	off   int    // written so far; the outbox is stuck if there is more
	n     int    // end of what is sealed
	fill  int    // content of the open record, which begins at n
	stuck bool   // the socket takes no more
	later []byte // frames, not yet in records
	due   bool   // flush will be called at the end of this turn
}

func (o *outbox) pending() bool { return o.buf != nil || len(o.later) > 0 }

// room makes sure that there is a buffer, and that the end of this turn looks
// at it.
func (o *outbox) room(t *Tunnel) {
	if o.buf == nil {
		o.buf = t.lane.batches.Get()
	}
	if !o.due {
		o.due = true
		t.lane.loop.AtEnd(t)
	}
}

// control adds whole frames.
func (o *outbox) control(t *Tunnel, b []byte) {
	if t.closed {
		return
	}
	if o.stuck {
		o.later = append(o.later, b...)
		return
	}
	o.room(t)
	for len(b) > 0 && !o.stuck {
		if !o.fits(t) {
			break
		}
		k := copy(o.buf[o.n+record.HeaderLen+o.fill:o.n+record.HeaderLen+record.MaxContent], b)
		o.fill += k
		b = b[k:]
		if o.fill == record.MaxContent {
			o.seal(t)
		}
	}
	if len(b) > 0 {
		o.later = append(o.later, b...)
	}
}

// fits makes place for another record, by writing if need be, and reports
// whether there is one.
func (o *outbox) fits(t *Tunnel) bool {
	if o.n+stride <= records*stride {
		return true
	}
	o.write(t)
	if t.closed || o.stuck {
		return false
	}
	o.room(t)
	return true
}

// seal closes the open record.
func (o *outbox) seal(t *Tunnel) {
	if o.fill > 0 {
		o.sealAt(t, o.n, o.fill)
		o.fill = 0
	}
}

// sealAt makes a record of the n bytes of content behind at, where records end
// now or, without TLS, some way behind that.
func (o *outbox) sealAt(t *Tunnel, at, n int) {
	if t.out == nil {
		o.n += copy(o.buf[o.n:], o.buf[at+record.HeaderLen:at+record.HeaderLen+n])
		return
	}
	k, err := t.out.Seal(o.buf[at:], n)
	if err != nil {
		t.lane.loop.Do(func() { t.end(err) }) // not here, in the middle of things
		return
	}
	o.n += k
}

// A fill is what read took from an application.
type fill struct {
	n   int // bytes
	err error
}

// read takes at most limit bytes from fd into DATA frames of stream id. The
// outbox is not stuck. It may come out stuck with nothing read: see errStuck.
func (o *outbox) read(t *Tunnel, fd int, id uint32, limit int) fill {
	o.room(t)
	if o.fill > 0 && record.MaxContent-o.fill < frameHeader+minRoom {
		o.seal(t)
	}
	if !o.fits(t) {
		return fill{err: errStuck}
	}
	lane, base, first := t.lane, o.n, o.fill
	limit = min(limit, lane.loop.Share())
	lane.vecs = lane.vecs[:0]
	for at, used, left := base, first, limit; left > 0 && at+stride <= records*stride; at, used = at+stride, 0 {
		k := min(left, record.MaxContent-used-frameHeader)
		start := at + record.HeaderLen + used + frameHeader
		lane.vecs = append(lane.vecs, sock.Vec(o.buf[start:start+k]))
		left -= k
	}
	n, err := sock.ReadvNow(fd, lane.vecs)
	if n <= 0 || err != nil {
		return fill{err: err}
	}
	o.frame(t, id, n)
	return fill{n: n}
}

// frame makes DATA frames, and records of all but the last, of n bytes that
// read has put into place.
func (o *outbox) frame(t *Tunnel, id uint32, n int) {
	for at := o.n; n > 0; at += stride {
		k := min(n, record.MaxContent-o.fill-frameHeader)
		start := at + record.HeaderLen + o.fill
		appendHead(o.buf[start:start:start+frameHeader], k, frameData, 0, id)
		o.fill += frameHeader + k
		n -= k
		if n > 0 || o.fill == record.MaxContent {
			o.sealAt(t, at, o.fill)
			o.fill = 0
		} else if at != o.n { // without TLS there may be a gap
			copy(o.buf[o.n+record.HeaderLen:], o.buf[at+record.HeaderLen:at+record.HeaderLen+o.fill])
		}
	}
}

// errStuck says that nothing was read, since nothing could be sent.
var errStuck = errors.New("the tunnel's socket takes nothing")

// data adds a DATA frame with a copy of b, of at most a record.
func (o *outbox) data(t *Tunnel, id uint32, b []byte) {
	var head [frameHeader]byte
	o.control(t, appendHead(head[:0], len(b), frameData, 0, id))
	o.control(t, b)
}

// flush sends all there is.
func (o *outbox) flush(t *Tunnel) {
	o.due = false
	if t.closed || o.stuck || o.buf == nil {
		return
	}
	o.write(t)
}

// write seals what is open and writes what is sealed.
func (o *outbox) write(t *Tunnel) {
	o.seal(t)
	if t.out != nil && (t.out.Due() || t.in.Due() || t.renew) {
		o.newKey(t)
	}
	for o.off < o.n {
		k, err := sock.WriteNow(t.fd, o.buf[o.off:o.n])
		if errors.Is(err, unix.EAGAIN) {
			o.block(t)
			return
		}
		if err != nil {
			o.fail(t, err)
			return
		}
		o.off += k
	}
	t.lane.batches.Put(o.buf)
	o.buf, o.off, o.n, t.provoked = nil, 0, 0, 0
}

// fail is a socket that cannot be written to. Reading may yet tell why, and
// what came before it; the end of the tunnel waits for that.
func (o *outbox) fail(t *Tunnel, err error) {
	err = os.NewSyscallError("write", err)
	if t.ended {
		t.close()
		return
	}
	o.drop(t)
	t.lane.loop.Do(func() { t.end(err) })
	o.stuck = true
}

// block waits for the socket.
func (o *outbox) block(t *Tunnel) {
	o.stuck = true
	t.src.Want(t.src.Wanted() | reactor.Writable)
}

// retry goes on with what the socket did not take, and lets streams go on.
func (o *outbox) retry(t *Tunnel) {
	o.stuck = false
	if o.buf != nil {
		o.write(t)
	}
	if !o.stuck && (t.owesKey || t.renew) {
		o.newKey(t)
	}
	for !o.stuck && len(o.later) > 0 && !t.closed {
		later := o.later
		o.later = nil
		o.control(t, later)
	}
	if o.stuck || t.closed {
		return
	}
	t.src.Want(t.src.Wanted() &^ reactor.Writable)
	if !o.pending() && t.ended {
		t.close()
		return
	}
	t.resume()
}

// drop forgets what was not sent.
func (o *outbox) drop(t *Tunnel) {
	if o.buf != nil {
		t.lane.batches.Put(o.buf)
	}
	*o = outbox{due: o.due}
}

// newKey changes our key where that is due: the peer asked for it, or a key has
// sealed enough. It comes before any data that is sealed later, as RFC 8446,
// section 4.6.3, demands of an answer: while the outbox is stuck nothing is.
func (o *outbox) newKey(t *Tunnel) {
	if t.out == nil || t.ended || t.closed {
		return
	}
	ask := (t.in.Due() || t.renew) && !t.asked
	if !t.owesKey && !t.renew && !ask && !t.out.Due() {
		return
	}
	o.room(t)
	o.seal(t)
	if len(o.buf)-o.n < 2*record.ControlLen { // one of them is for an alert
		return
	}
	k, err := t.out.KeyUpdate(o.buf[o.n:], ask)
	if err != nil {
		t.lane.loop.Do(func() { t.end(err) })
		return
	}
	o.n += k
	t.owesKey, t.renew, t.asked = false, false, t.asked || ask
}

// alert adds the last record.
func (o *outbox) alert(t *Tunnel, a record.Alert) {
	if t.out == nil || o.stuck {
		return // no TLS; or the socket takes nothing, and the peer has to guess
	}
	o.room(t)
	o.seal(t)
	if len(o.buf)-o.n < record.ControlLen {
		return
	}
	if k, err := t.out.Alert(o.buf[o.n:], a); err == nil {
		o.n += k
	}
}

// appendHead appends a frame header (RFC 9113, section 4.1).
func appendHead(b []byte, n int, kind, flags byte, id uint32) []byte {
	b = append(b, byte(n>>16), byte(n>>8), byte(n), kind, flags)
	return binary.BigEndian.AppendUint32(b, id)
}

func appendUpdate(b []byte, id, n uint32) []byte {
	return binary.BigEndian.AppendUint32(appendHead(b, 4, frameUpdate, 0, id), n)
}

func (t *Tunnel) writeUpdate(id uint32, n int64) {
	var b [frameHeader + 4]byte
	t.box.control(t, appendUpdate(b[:0], id, uint32(n)))
}

func (t *Tunnel) writeReset(id uint32, code wire.Code) {
	if t.ended {
		return
	}
	var b [frameHeader + 4]byte
	t.box.control(t, binary.BigEndian.AppendUint32(appendHead(b[:0], 4, frameReset, 0, id), uint32(code)))
}

func (t *Tunnel) writeGoAway(last uint32, code wire.Code, why string) {
	b := appendHead(nil, 8+len(why), frameGoAway, 0, 0)
	b = binary.BigEndian.AppendUint32(b, last)
	b = binary.BigEndian.AppendUint32(b, uint32(code))
	t.box.control(t, append(b, why...))
}

func (t *Tunnel) writePing(ack byte, data []byte) {
	var b [frameHeader + 8]byte
	t.box.control(t, append(appendHead(b[:0], 8, framePing, ack, 0), data...))
}

// writeHeaders adds a header block. Any peer takes frames of MinFrameSize.
func (t *Tunnel) writeHeaders(id uint32, list []wire.Field, end bool) {
	block := wire.AppendBlock(nil, list)
	kind, flags := byte(frameHeaders), byte(0)
	if end {
		flags = flagEnd
	}
	b := make([]byte, 0, frameHeader+len(block))
	for first := true; first || len(block) > 0; first = false {
		k := min(len(block), wire.MinFrameSize)
		if k == len(block) {
			flags |= flagEndHeaders
		}
		b = append(appendHead(b, k, kind, flags, id), block[:k]...)
		block = block[k:]
		kind, flags = frameContinuation, 0
	}
	t.box.control(t, b)
}
