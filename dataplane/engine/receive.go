// SPDX-License-Identifier: Apache-2.0

package engine

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"

	"github.com/ztunnel-go/ztunnel/dataplane/hbone/record"
	"github.com/ztunnel-go/ztunnel/dataplane/hbone/wire"
	"github.com/ztunnel-go/ztunnel/internal/sock"
)

// receive takes what one read yields: records, opened where they lie, and the
// frames in them. What they carry for applications is handed on at the end,
// since until then it lies in the loop's buffer.
func (t *Tunnel) receive() {
	n, err := t.read()
	if errors.Is(err, unix.EAGAIN) {
		return
	}
	if err == nil {
		err = t.records(t.lane.loop.Buf[:n])
	}
	t.deliver()
	if err != nil {
		t.end(err)
	}
}

// read reads into the rest of the record that has come in part and, behind
// it, into the loop's buffer, of which it returns how much was filled.
func (t *Tunnel) read() (int, error) {
	loop, have := t.lane.loop, len(t.part)
	buf := loop.Buf[:min(len(loop.Buf), have+loop.Share())]
	want, err := record.Length(t.part)
	if err != nil {
		return 0, err
	}
	if have > 0 && (want == 0 || have >= want) { // not even a header, or more than was read with a handshake
		copy(buf, t.part)
		t.releasePart()
		if have >= want && want > 0 {
			return have, nil
		}
		n, err := t.sip(buf[have:])
		if errors.Is(err, unix.EAGAIN) {
			t.keep(buf[:have])
		}
		if err != nil {
			return 0, notEOF(err)
		}
		return have + n, nil
	}
	if have == 0 {
		return t.sip(buf)
	}
	t.lane.vecs = append(t.lane.vecs[:0], sock.Vec(t.part[have:want]), sock.Vec(buf))
	n, err := sock.ReadvNow(t.fd, t.lane.vecs)
	if err != nil {
		return 0, sysError(err)
	}
	if n == 0 {
		return 0, io.ErrUnexpectedEOF
	}
	first := min(n, want-have)
	t.part = t.part[:have+first]
	return n - first, nil
}

// sip is a plain read; an end is an error.
func (t *Tunnel) sip(b []byte) (int, error) {
	n, err := sock.ReadNow(t.fd, b)
	switch {
	case err != nil:
		return 0, sysError(err)
	case n == 0 && (len(t.part) > 0 || t.frame.midway()):
		return 0, io.ErrUnexpectedEOF
	case n == 0:
		return 0, io.EOF
	}
	return n, nil
}

func sysError(err error) error {
	if errors.Is(err, unix.EAGAIN) {
		return err
	}
	return os.NewSyscallError("read", err)
}

// records opens what has come: first the record that began in part, if it is
// whole now, then those in b. The rest is kept.
func (t *Tunnel) records(b []byte) error {
	if t.in == nil {
		return t.frames(b)
	}
	if len(t.part) > 0 {
		want, err := record.Length(t.part)
		if err != nil || want == 0 || len(t.part) < want {
			return err // all of what was read is in it
		}
		if err := t.open(t.part); err != nil {
			return err
		}
	}
	for {
		n, err := record.Length(b)
		if err != nil {
			return err
		}
		if n == 0 || n > len(b) {
			break
		}
		if err := t.open(b[:n]); err != nil || t.ended {
			return err
		}
		b = b[n:]
	}
	if len(b) > 0 {
		t.lane.left = b // deliver keeps it, once part is free
	}
	return nil
}

// open takes one record.
func (t *Tunnel) open(b []byte) error {
	content, event, err := t.in.Receive(b)
	switch {
	case err != nil:
		return fmt.Errorf("tls: %w", err)
	case event == record.Data:
		t.asked = t.asked && t.in.Due()
		return t.frames(content)
	case event == record.Answer:
		t.owesKey = true
		if !t.box.stuck {
			t.box.newKey(t)
		}
	case event == record.Closed:
		if t.frame.midway() {
			return io.ErrUnexpectedEOF
		}
		return io.EOF
	}
	return nil
}

// deliver hands on what was read, and keeps the beginning of a record.
func (t *Tunnel) deliver() {
	for i, s := range t.lane.touched {
		t.lane.touched[i] = nil
		s.flush()
	}
	t.lane.touched = t.lane.touched[:0]
	left := t.lane.left
	t.lane.left = nil
	want, err := record.Length(t.part)
	if err == nil && (want == 0 || len(t.part) >= want) {
		t.releasePart()
	}
	if len(left) > 0 && !t.ended {
		t.keep(left)
	}
}

// keep copies the beginning of a record.
func (t *Tunnel) keep(b []byte) {
	t.part = append(t.lane.parts.Get()[:0], b...)
}

func (t *Tunnel) releasePart() {
	if t.part != nil {
		t.lane.parts.Put(t.part)
		t.part = nil
	}
}

// A framePosition is how far a tunnel is in what it receives, at any byte.
type framePosition struct {
	preface  int // bytes of the client's preface that have yet to come
	begun    bool
	head     [frameHeader]byte
	headN    int // bytes of head that have come
	left     int // bytes of the payload that have yet to come
	pad      int // of them at the end, once padKnown
	padKnown bool
	data     int    // bytes of data in the DATA frame, for its costs
	payload  []byte // of the control frame so far; a copy, unless it came whole
	block    []byte // of a header block that goes on in CONTINUATION
	blockID  uint32
	blockN   int  // frames of it; 0: there is none
	blockEnd bool // END_STREAM of its HEADERS
	sink     bool // the payload is for nobody
	stream   *Stream
	fault    *streamFault // to be told at the end of the DATA frame
}

// midway reports whether an end here would be in the middle of something.
func (f *framePosition) midway() bool { return f.headN > 0 || f.blockN > 0 }

func (f *framePosition) kind() byte  { return f.head[3] }
func (f *framePosition) flags() byte { return f.head[4] }
func (f *framePosition) length() int {
	return int(f.head[0])<<16 | int(f.head[1])<<8 | int(f.head[2])
}
func (f *framePosition) id() uint32 { return binary.BigEndian.Uint32(f.head[5:]) & wire.MaxStreamID }

// frames takes bytes of frames, wherever they were cut.
func (t *Tunnel) frames(b []byte) error {
	f := &t.frame
	for len(b) > 0 {
		if t.ended {
			return nil
		}
		var err error
		switch {
		case f.preface > 0:
			k := min(f.preface, len(b))
			at := len(clientPreface) - f.preface
			if string(b[:k]) != clientPreface[at:at+k] {
				return wire.Complaint(wire.ProtocolError, "the peer does not speak HTTP/2")
			}
			f.preface -= k
			b = b[k:]
		case f.headN < frameHeader:
			k := copy(f.head[f.headN:], b)
			f.headN += k
			b = b[k:]
			if f.headN == frameHeader {
				f.left = f.length()
				err = t.begin()
			}
		case f.kind() == frameData && !f.sink:
			b, err = t.data(b)
		default:
			b, err = t.payload(b)
		}
		if err == nil && f.headN == frameHeader && f.left == 0 {
			err = t.finish()
		}
		if err := t.forgive(err); err != nil {
			return err
		}
	}
	return nil
}

// forgive ends only the stream if only the stream is at fault.
func (t *Tunnel) forgive(err error) error {
	var fault *streamFault
	if errors.As(err, &fault) {
		return t.fault(fault)
	}
	return err
}

// payload gathers what is no data, or throws it away.
func (t *Tunnel) payload(b []byte) ([]byte, error) {
	f := &t.frame
	k := min(f.left, len(b))
	switch {
	case f.sink:
	case k == f.left && f.payload == nil:
		f.payload = b[:k:k]
	default:
		f.payload = append(f.payload, b[:k]...)
	}
	f.left -= k
	return b[k:], nil
}

// data hands on the part of a DATA frame that has come.
func (t *Tunnel) data(b []byte) ([]byte, error) {
	f := &t.frame
	if !f.padKnown {
		f.pad, f.padKnown = int(b[0]), true
		f.left--
		b = b[1:]
		if f.pad > f.left {
			return nil, wire.Complaint(wire.ProtocolError, "padding longer than its frame")
		}
		return b, nil
	}
	if k := min(f.left-f.pad, len(b)); k > 0 {
		f.data += k
		if f.stream != nil {
			f.stream.take(b[:k])
		} else {
			t.credit(int64(k))
		}
		f.left -= k
		return b[k:], nil
	}
	k := min(f.left, len(b))
	f.left -= k
	return b[k:], nil
}

// finish does what a whole frame asks for.
func (t *Tunnel) finish() error {
	f := &t.frame
	f.headN = 0
	if f.sink {
		f.sink = false
		return nil
	}
	payload := f.payload
	f.payload = nil
	if f.kind() == frameData {
		return t.finishData()
	}
	return t.obey(payload)
}
