// SPDX-License-Identifier: Apache-2.0

package engine

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/ztunnel-go/ztunnel/dataplane/hbone/record"
	"github.com/ztunnel-go/ztunnel/dataplane/hbone/wire"
	"github.com/ztunnel-go/ztunnel/dataplane/reactor"
	"github.com/ztunnel-go/ztunnel/dataplane/relay"
)

// An Adopter says who hears of the streams of a tunnel that is imported. Its
// functions run on the loop and must not wait.
type Adopter struct {
	// Joint takes on a stream that is joined with a socket: of the answer FD
	// and Client mean nothing.
	Joint func(StreamImage) relay.Join
	// Answer hears of the answer to a request of ours that has none yet.
	Answer func(*Stream, wire.Response, error)
}

// Import goes on with a tunnel. The descriptors are the engine's from then on,
// also after an error, which says that the image is none of ours: then all of
// them are closed. Requests without an answer are made to cfg.Request anew.
func (e *Engine) Import(img *Image, fds []int, cfg Config, adopt Adopter) (*Tunnel, error) {
	err := img.check(len(fds))
	var in record.Receiver
	var out record.Half
	if err == nil && !img.Plain {
		if in, err = record.NewReceiver(img.In); err == nil {
			out, err = record.NewHalf(img.Out)
		}
	}
	if err != nil {
		for _, fd := range fds {
			unix.Close(fd)
		}
		return nil, fmt.Errorf("import tunnel: %w", err)
	}
	cfg.Settings = img.Settings
	t := e.newTunnel(fds[0], img.Client, cfg)
	t.places = places{limit: img.Limit, used: img.used(), leaving: img.Leaving}
	if !img.Plain {
		t.in, t.out = &in, &out
	}
	if !t.do(func() { t.resurrect(img, fds, adopt) }) {
		for _, fd := range fds {
			unix.Close(fd)
		}
		return nil, wire.ErrClosed
	}
	return t, nil
}

// check looks at what later steps rely on; an image comes from our own kind,
// but maybe from another release.
func (i *Image) check(fds int) error {
	f := &i.Frame
	if fds < 1 || len(i.Unsent) > batchSize || len(f.Head) > frameHeader || f.Left < 0 || f.Pad < 0 || f.Pad > f.Left && f.PadKnown ||
		f.Preface < 0 || f.Preface > len(clientPreface) || len(f.Head) < frameHeader && len(f.Payload) > 0 {
		return errors.New("an image that cannot be")
	}
	seen := map[int]bool{0: true}
	for _, s := range i.Streams {
		if j := s.Joint; j != nil {
			if j.FD < 1 || j.FD >= fds || seen[j.FD] {
				return fmt.Errorf("stream %d: descriptor %d of %d", s.ID, j.FD, fds)
			}
			seen[j.FD] = true
		}
	}
	return nil
}

// resurrect is start for a tunnel that has a past.
func (t *Tunnel) resurrect(img *Image, fds []int, adopt Adopter) {
	t.set = img.Settings.WithDefaults(t.client)
	t.streams = map[uint32]*Stream{}
	t.asked, t.owesKey = img.Asked, img.Owes
	t.dec, t.budget, t.provoked = img.HPACK, img.Budget, img.Provoked
	t.drainStep, t.lastPeer, t.refuse, t.nextID = drainStep(img.Draining), img.LastPeer, img.Refuse, img.NextID
	t.peerWindow, t.peerSettings, t.acknowledged = img.PeerWindow, img.PeerSettings, img.Acknowledged
	t.sendWindow, t.recvWindow, t.uncredited = img.SendWindow, img.RecvWindow, img.Uncredited
	t.settingsDue, t.pingDue, t.pingWaits, t.goAway = img.SettingsDue, img.PingDue, img.PingWaits, img.GoAway
	t.leaving = img.Leaving
	t.past = wire.PastOf(img.Past)
	if len(img.Part) > 0 {
		t.part = append(t.lane.parts.Get()[:0], img.Part...)
	}
	t.box.later = img.Later
	if len(img.Unsent) > 0 {
		t.box.buf = t.lane.batches.Get()
		t.box.n = copy(t.box.buf, img.Unsent)
	}
	for i := range img.Streams {
		t.revive(&img.Streams[i])
	}
	t.frame.restore(&img.Frame, t.streams)
	t.box.stuck = t.box.pending()
	events := reactor.Readable
	if t.box.stuck {
		events |= reactor.Writable
	}
	if err := t.src.Watch(t.lane.loop, t.fd, events, t); err != nil {
		t.end(err)
	}
	t.arm()
	for i := range img.Streams {
		t.adopt(&img.Streams[i], fds, adopt)
	}
	if len(t.part) > 0 { // it may be whole, and the socket may have nothing more to say
		t.lane.loop.Do(func() { t.Ready(0) })
	}
	t.settle()
}

// revive makes a stream of its image.
func (t *Tunnel) revive(i *StreamImage) *Stream {
	s := &Stream{
		t: t, id: i.ID, sendWindow: i.SendWindow, recvWindow: i.RecvWindow, uncredited: i.Uncredited,
		opened: i.Opened, responded: i.Responded, recvEnded: i.RecvEnded, endSent: i.EndSent, deaf: i.Deaf, interim: i.Interim,
		readErr: i.ReadErr.err(), writeErr: i.WriteErr.err(),
	}
	s.queue.push(&t.lane.chunks, i.Queue)
	if i.Closed {
		t.orphan(s)
		return s
	}
	t.streams[s.id] = s
	return s
}

// used is how many places a client's streams take.
func (i *Image) used() (n int) {
	for _, s := range i.Streams {
		if i.Client && !s.Closed {
			n++
		}
	}
	return n
}

// adopt gives a stream back to whom it belongs.
func (t *Tunnel) adopt(i *StreamImage, fds []int, adopt Adopter) {
	s := t.streams[i.ID]
	for o := range t.orphans {
		if o.id == i.ID {
			s = o
		}
	}
	switch {
	case s == nil:
	case i.Joint != nil:
		j := &joint{
			s: s, how: adopt.Joint(*i), inOver: i.Joint.InOver, outOver: i.Joint.OutOver,
			dark: i.Joint.Dark, broken: i.Joint.Broken, cause: i.Joint.Cause.err(),
		}
		j.how.FD, j.how.Client = fds[i.Joint.FD], i.Joint.Client
		j.resurrect(i.Joint.LingerDue)
	case i.Waiting:
		s.answered = func(r wire.Response, err error) { adopt.Answer(s, r, err) }
	case len(i.Request) > 0:
		t.serving++
		s.request = &wire.Block{Fields: i.Request}
		t.cfg.Request(&Request{stream: s, Headers: s.request})
	}
}

// resurrect is begin for a joint that has a past.
func (j *joint) resurrect(linger reactor.Time) {
	s := j.s
	s.joint = j
	if ctx := j.how.Context; ctx != nil && ctx.Err() != nil {
		j.abort() // before a byte more passes
		return
	}
	j.watchContext()
	if linger != 0 {
		s.t.lane.loop.Set(&j.timer, linger, j)
	}
	if j.dark {
		j.paused = true
		j.resume()
		return
	}
	if err := j.src.Watch(s.t.lane.loop, j.how.FD, 0, j); err != nil {
		j.cause, j.broken = err, true
		s.release(wire.ConnectError)
		j.finish()
		return
	}
	j.want()
}

func (f *framePosition) restore(i *FrameImage, streams map[uint32]*Stream) {
	*f = framePosition{
		preface: i.Preface, begun: i.Begun, headN: copy(f.head[:], i.Head), left: i.Left, pad: i.Pad, padKnown: i.PadKnown,
		data: i.Data, payload: i.Payload, block: i.Block, blockID: i.BlockID, blockN: i.BlockN, blockEnd: i.BlockEnd, sink: i.Sink,
	}
	copy(f.head[:], i.Head)
	if i.Fault != nil {
		f.fault = &streamFault{i.Fault.ID, i.Fault.Code, i.Fault.Why}
	}
	if f.headN == frameHeader && f.kind() == frameData && f.fault == nil {
		f.stream = streams[f.id()]
	}
}

// restored is an error of another process.
type restored struct{ image ErrorImage }

func (e *restored) Error() string { return e.image.Text }
func (e *restored) Quiet() bool   { return e.image.Quiet }
func (e *restored) Clean() bool   { return e.image.Clean }

func imageOf(err error) *ErrorImage {
	if err == nil {
		return nil
	}
	var clean interface{ Clean() bool }
	return &ErrorImage{Text: err.Error(), Quiet: relay.Quiet(err), Clean: errors.As(err, &clean) && clean.Clean()}
}

func (i *ErrorImage) err() error {
	if i == nil {
		return nil
	}
	return &restored{*i}
}
