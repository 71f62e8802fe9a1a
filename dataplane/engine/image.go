// SPDX-License-Identifier: Apache-2.0

package engine

import (
	"errors"
	"slices"

	"github.com/ztunnel-go/ztunnel/dataplane/hbone/record"
	"github.com/ztunnel-go/ztunnel/dataplane/hbone/wire"
	"github.com/ztunnel-go/ztunnel/dataplane/reactor"
)

// An Image is a tunnel as plain values: with its descriptors it is all that
// another process needs to go on with it, at any byte (see [Tunnel.Export] and
// [Engine.Import]). It holds secrets, and may be used once: two processes that
// seal with one secret and one sequence number break the cipher.
type Image struct {
	Client   bool
	Settings wire.Settings
	Limit    int // streams that a client opens at once

	Plain bool // no TLS, in tests
	In    record.ReceiverState
	Out   record.State
	Asked bool // the peer was asked for a new key
	Owes  bool // the peer has asked us for one

	Part   []byte // the beginning of a record that has come
	Unsent []byte // records that the socket has not taken
	Later  []byte // frames behind them, not in records yet
	Frame  FrameImage
	HPACK  wire.Decoder

	Leaving      bool
	Draining     uint8
	LastPeer     uint32
	Refuse       uint32
	NextID       uint32
	PeerWindow   int64
	PeerSettings bool
	Acknowledged bool // the peer has seen our settings
	SendWindow   int64
	RecvWindow   int64
	Uncredited   int64
	Budget       wire.Budget
	Provoked     int
	SettingsDue  reactor.Time // CLOCK_MONOTONIC, as are the others
	PingDue      reactor.Time
	PingWaits    bool
	GoAway       *wire.GoAwayError

	Past    wire.PastState // server: of streams that are closed
	Streams []StreamImage  // in the order of their ids
}

// FrameImage is how far the frame is that arrives.
type FrameImage struct {
	Preface  int // bytes of the client's preface to come
	Begun    bool
	Head     []byte // of the frame, as far as it has come
	Left     int    // bytes of the payload to come
	Pad      int
	PadKnown bool
	Data     int
	Payload  []byte
	Block    []byte // of a header block that goes on
	BlockID  uint32
	BlockN   int
	BlockEnd bool
	Sink     bool
	Fault    *FaultImage // that the stream is reset for at the end of the frame
}

// FaultImage is a breach of the protocol that ends a stream.
type FaultImage struct {
	ID   uint32
	Code wire.Code
	Why  string
}

// StreamImage is one stream. One that is closed in both directions is there
// for what its application has not taken yet.
type StreamImage struct {
	ID         uint32
	Closed     bool
	SendWindow int64
	RecvWindow int64
	Uncredited int64
	Opened     reactor.Time
	Responded  bool
	RecvEnded  bool
	EndSent    bool
	Deaf       bool
	Interim    uint8
	ReadErr    *ErrorImage
	WriteErr   *ErrorImage
	Queue      []byte       // that nobody has taken yet
	Request    []wire.Field // of a peer's request without an answer; it is made again
	Waiting    bool         // for the answer to a request of ours
	Joint      *JointImage
	Owner      any `json:"-"` // [relay.Counts.Owner] of the joint; it is not written down
}

// JointImage is the socket that a stream is joined with.
type JointImage struct {
	FD        int // which of the descriptors
	Client    bool
	InOver    bool
	OutOver   bool
	Dark      bool
	Broken    bool
	LingerDue reactor.Time
	Cause     *ErrorImage
}

// ErrorImage is an error as others will see it.
type ErrorImage struct {
	Text  string
	Quiet bool // see relay.Quiet
	Clean bool // a peer that wanted no more
}

// ErrMoved is why an exported tunnel ended here.
var ErrMoved = errors.New("tunnel carried on elsewhere")

// ErrImmovable is a tunnel that cannot be exported: it has ended, or one of its
// streams is read or written by a goroutine.
var ErrImmovable = errors.New("tunnel cannot be moved")

// Export takes the tunnel out of this process: what it is, and its
// descriptors, which are the caller's from then on. Nothing is heard of it any
// more: no Done is called, and Wait returns [ErrMoved]. [Engine.Import] goes on
// with it, here or elsewhere. After an error, which is [ErrImmovable], nothing
// has changed.
func (t *Tunnel) Export() (*Image, []int, error) {
	var img *Image
	var fds []int
	done := make(chan struct{})
	if !t.do(func() { img, fds = t.export(); close(done) }) {
		return nil, nil, ErrImmovable
	}
	<-done
	if img == nil {
		return nil, nil, ErrImmovable
	}
	return img, fds, nil
}

func (t *Tunnel) export() (*Image, []int) {
	if t.ended || t.closed {
		return nil, nil
	}
	all := t.everyStream()
	for _, s := range all {
		if s.waits != nil && len(s.waits.readers)+len(s.waits.writers) > 0 {
			return nil, nil
		}
	}
	t.box.seal(t)
	t.places.mu.Lock()
	limit := t.places.limit
	t.places.mu.Unlock()
	img := &Image{
		Client: t.client, Settings: t.set, Limit: limit,
		Asked: t.asked, Owes: t.owesKey,
		Part: slices.Clone(t.part), Later: t.box.later, Frame: t.frame.image(), HPACK: t.dec,
		Leaving: t.leaving, Draining: uint8(t.drainStep), LastPeer: t.lastPeer, Refuse: t.refuse, NextID: t.nextID,
		PeerWindow: t.peerWindow, PeerSettings: t.peerSettings, Acknowledged: t.acknowledged,
		SendWindow: t.sendWindow, RecvWindow: t.recvWindow, Uncredited: t.uncredited,
		Budget: t.budget, Provoked: t.provoked,
		SettingsDue: t.settingsDue, PingDue: t.pingDue, PingWaits: t.pingWaits, GoAway: t.goAway,
	}
	if !t.client {
		img.Past = t.past.State()
	}
	if img.Plain = t.in == nil; !img.Plain {
		img.In, img.Out = t.in.State(), t.out.State()
	}
	if t.box.buf != nil {
		img.Unsent = slices.Clone(t.box.buf[t.box.off:t.box.n])
	}
	fds := []int{t.fd}
	for _, s := range all {
		img.Streams = append(img.Streams, s.image(&fds))
	}
	t.vacate()
	return img, fds
}

// everyStream is all that have anything to them, by id.
func (t *Tunnel) everyStream() []*Stream {
	all := make([]*Stream, 0, len(t.streams)+len(t.orphans))
	for _, s := range t.streams {
		all = append(all, s)
	}
	for s := range t.orphans {
		all = append(all, s)
	}
	slices.SortFunc(all, func(a, b *Stream) int { return int(int64(a.id) - int64(b.id)) })
	return all
}

// vacate ends the tunnel here without a trace on the wire.
func (t *Tunnel) vacate() {
	t.ended, t.closed, t.cause = true, true, ErrMoved
	t.leave()
	t.src.Stop()
	t.lane.loop.Cancel(&t.timer)
	t.releasePart()
	t.box.drop(t)
	for _, s := range t.everyStream() {
		s.queue.drop(&t.lane.chunks)
		s.readErr, s.writeErr, s.deaf = ErrMoved, ErrMoved, true
		s.answered, s.onGone = nil, nil
	}
	clear(t.streams)
	t.orphans, t.starved = nil, nil
	if t.in != nil {
		t.in.Wipe()
		t.out.Wipe()
	}
	t.vanish()
}

func (f *framePosition) image() FrameImage {
	i := FrameImage{
		Preface: f.preface, Begun: f.begun, Head: slices.Clone(f.head[:f.headN]),
		Left: f.left, Pad: f.pad, PadKnown: f.padKnown, Data: f.data, Payload: f.payload,
		Block: f.block, BlockID: f.blockID, BlockN: f.blockN, BlockEnd: f.blockEnd, Sink: f.sink,
	}
	if f.fault != nil {
		i.Fault = &FaultImage{f.fault.id, f.fault.code, f.fault.why}
	}
	return i
}

func (s *Stream) image(fds *[]int) StreamImage {
	i := StreamImage{
		ID: s.id, Closed: !s.open(), SendWindow: s.sendWindow, RecvWindow: s.recvWindow, Uncredited: s.uncredited,
		Opened: s.opened, Responded: s.responded, RecvEnded: s.recvEnded, EndSent: s.endSent, Deaf: s.deaf, Interim: s.interim,
		ReadErr: imageOf(s.readErr), WriteErr: imageOf(s.writeErr), Waiting: s.answered != nil,
	}
	if s.queue.size > 0 {
		i.Queue = make([]byte, 0, s.queue.size)
		for _, b := range s.queue.slices(nil) {
			i.Queue = append(i.Queue, b...)
		}
	}
	if s.request != nil {
		i.Request = s.request.Fields
	}
	if j := s.joint; j != nil && !j.over {
		i.Joint = &JointImage{
			FD: len(*fds), Client: j.how.Client, InOver: j.inOver, OutOver: j.outOver, Dark: j.dark, Broken: j.broken,
			LingerDue: j.timer.At, Cause: imageOf(j.cause),
		}
		i.Owner = j.how.Counts.Owner
		*fds = append(*fds, j.how.FD)
		j.vacate()
	}
	return i
}

// vacate lets go of the socket.
func (j *joint) vacate() {
	j.over, j.inOver, j.outOver = true, true, true
	j.s.t.lane.loop.Cancel(&j.timer)
	j.src.Stop()
	j.unwatch()
}
