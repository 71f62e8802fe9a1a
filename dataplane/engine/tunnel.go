// SPDX-License-Identifier: Apache-2.0

package engine

import (
	"errors"
	"io"
	"math"
	"net"
	"os"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ztunnel-go/ztunnel/dataplane/hbone/record"
	"github.com/ztunnel-go/ztunnel/dataplane/hbone/wire"
	"github.com/ztunnel-go/ztunnel/dataplane/reactor"
)

/* The life of a tunnel
 *
 *	open --drain, peer's GOAWAY--> leaving --last stream ends--+
 *	  |                                                        v
 *	  +---- error, Close, ping timeout ------------------>   ended --> closed
 *
 * A leaving tunnel carries its streams to their end and takes no new ones. An
 * ended tunnel has no streams and hears nothing; once what it had to say is with
 * the socket, or after goodbyeTimeout, it is parted from (see farewell) and closed.
 */

// goodbyeTimeout bounds the last write to a peer that may not be reading.
const goodbyeTimeout = time.Second

// Config is what a tunnel is told at its beginning.
type Config struct {
	Settings wire.Settings // of contract 4.4 where zero
	// MaxStreams is how many streams a client opens at once, whatever the peer
	// allows; 0: 100.
	MaxStreams int
	// Request takes the requests that arrive at a server. It runs on the loop
	// and must not wait: see [Request].
	Request func(*Request)
	// Local and Remote are told to those who ask a stream for them.
	Local, Remote net.Addr
}

// A Tunnel is one side of a tunnel. Its exported methods may be called from
// any goroutine, unless they say otherwise.
type Tunnel struct {
	lane   *lane
	client bool
	set    wire.Settings
	cfg    Config
	gone   chan struct{} // closed when the descriptor is

	places places // streams there are and streams that were promised

	// All below belongs to the loop.

	fd    int
	src   reactor.Source
	in    *record.Receiver // nil: no TLS, in tests
	out   *record.Half
	box   outbox
	part  []byte // of a record, with len of what has come
	frame framePosition
	dec   wire.Decoder

	then    func(error) // hears that it is gone
	cause   error       // why it ended
	ended   bool
	closed  bool
	leaving bool
	busy    bool // Ready is at work, and looks after what it leaves

	streams  map[uint32]*Stream
	orphans  map[*Stream]struct{} // closed, but joined with sockets that have not taken all
	lastPeer uint32               // highest stream id of the peer that we have seen
	past     wire.Past            // server: of the streams up to lastPeer
	refuse   uint32               // server: streams above it are not served; client: last id the peer serves
	nextID   uint32               // client: id of the next stream
	serving  int                  // server: requests whose handler has not let go

	peerWindow   int64 // what the peer gives each new stream
	peerSettings bool  // the peer's first SETTINGS have come
	acknowledged bool  // the peer has seen ours
	sendWindow   int64
	recvWindow   int64
	uncredited   int64
	starved      []*Stream // wait for the tunnel's window or its socket, in order
	budget       wire.Budget
	provoked     int // frames in the outbox that the peer made us send

	timer       reactor.Timer
	settingsDue reactor.Time // the peer's first SETTINGS
	goodbyeDue  reactor.Time // closing
	parting     bool         // see farewell
	pingDue     reactor.Time
	pingWaits   bool // for a pong
	drainStep   drainStep
	goAway      *wire.GoAwayError // the peer complained, and has not closed yet
	asked       bool              // we asked for a new key, and have none yet
	owesKey     bool              // the peer asked us for a new key
	renew       bool              // see Rekey
}

// places counts streams of a client, for goroutines that look for a tunnel
// with room.
type places struct {
	mu      sync.Mutex
	used    int // guarded by mu: open, or promised
	limit   int // guarded by mu: what we allow, and what the peer does
	leaving bool
}

// start begins a tunnel on its loop. s may be nil in tests: no TLS.
func (t *Tunnel) start(s *record.Session) {
	t.set = t.cfg.Settings.WithDefaults(t.client)
	t.streams = map[uint32]*Stream{}
	t.refuse = wire.MaxStreamID
	t.nextID = 1
	t.peerWindow = wire.InitialWindow
	t.sendWindow, t.recvWindow = wire.InitialWindow, int64(t.set.ConnWindow)
	if !t.client {
		t.frame.preface = len(clientPreface)
	}
	if s != nil {
		t.in, t.out = s.In, s.Out
		if len(s.Unread) > 0 {
			t.part = append(t.lane.parts.Get()[:0], s.Unread...)
		}
	}
	now := t.lane.loop.Now()
	t.settingsDue = now.Add(t.set.HandshakeTimeout)
	t.pingDue = now.Add(t.set.PingInterval)
	if err := t.src.Watch(t.lane.loop, t.fd, reactor.Readable, t); err != nil {
		t.end(err)
		return
	}
	t.arm()
	t.sayHello()
	if len(t.part) > 0 {
		t.lane.loop.Do(func() { t.Ready(0) }) // the socket may have nothing more to say
	}
}

// clientPreface is RFC 9113, section 3.4.
const clientPreface = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"

// sayHello is what each side says first.
func (t *Tunnel) sayHello() {
	if t.client {
		t.box.control(t, []byte(clientPreface))
	}
	list := t.set.Wire(t.client)
	b := appendHead(nil, 6*len(list), frameSettings, 0, 0)
	for _, v := range list {
		b = append(b, byte(v.ID>>8), byte(v.ID), byte(v.Val>>24), byte(v.Val>>16), byte(v.Val>>8), byte(v.Val))
	}
	if raise := t.set.ConnWindow - wire.InitialWindow; raise > 0 {
		b = appendUpdate(b, 0, raise)
	}
	t.box.control(t, b)
}

// Ready serves the tunnel's socket.
func (t *Tunnel) Ready(e reactor.Events) {
	t.busy = true
	if e&(reactor.Writable|reactor.Hangup|reactor.Failed) != 0 && t.box.stuck {
		t.box.retry(t)
	}
	switch {
	case t.closed:
	case t.ended: // only the last write counts
		if e&(reactor.Hangup|reactor.Failed) != 0 {
			t.close()
		} else if t.parting {
			t.discard()
		}
	case e != reactor.Writable:
		t.receive()
	}
	t.busy = false
	t.settle()
}

// end ends the tunnel because of err; nil: nobody complained. The first cause
// stays.
func (t *Tunnel) end(err error) {
	if t.ended {
		return
	}
	t.ended = true
	t.leave()
	if t.goAway != nil && (err == nil || benign(err) || dropped(err)) {
		err = t.goAway
	}
	t.cause = err
	lost := &wire.ResetError{Code: wire.InternalError, Cause: wire.Or(notEOF(err), wire.ErrClosed)}
	for _, s := range t.streams {
		s.broken(lost)
	}
	t.starved = nil
	t.settingsDue, t.pingDue = 0, 0
	t.releasePart()
	if !t.src.Watching() {
		t.close()
		return
	}
	t.src.Want(0)
	t.sayGoodbye(err)
	t.goodbyeDue = t.lane.loop.Now().Add(goodbyeTimeout)
	t.arm()
	t.lane.loop.AtEnd(t) // closes once everything is written
}

// notEOF keeps the end of a tunnel from passing for the end of its streams,
// which readers know by io.EOF in whatever it is wrapped.
func notEOF(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}

// sayGoodbye tells the peer why, if it can still hear it.
func (t *Tunnel) sayGoodbye(err error) {
	var own *wire.GoAwayError
	var ended *wire.EndedError
	var alert *record.AlertError
	switch {
	case errors.As(err, &own) && !own.Remote:
		t.writeGoAway(t.lastPeer, own.Code, own.Reason)
	case err == nil, errors.Is(err, wire.ErrClosed), errors.Is(err, wire.ErrPingTimeout), errors.As(err, &ended):
		t.writeGoAway(t.lastPeer, wire.NoError, "")
	}
	last := record.CloseNotify
	if errors.As(err, &alert) && !alert.Remote {
		last = alert.Alert
	}
	t.box.alert(t, last)
}

// EndTurn sends what the turn has gathered.
func (t *Tunnel) EndTurn() {
	t.box.flush(t)
	if t.ended && !t.box.pending() {
		t.farewell()
	}
}

// close gives the descriptor back. The tunnel has ended.
func (t *Tunnel) close() {
	if t.closed {
		return
	}
	t.closed = true
	t.src.Stop()
	t.lane.loop.Cancel(&t.timer)
	t.box.drop(t)
	unix.Close(t.fd)
	if t.in != nil {
		t.in.Wipe()
		t.out.Wipe()
	}
	t.vanish()
}

// vanish tells those who wait for the tunnel to be gone.
func (t *Tunnel) vanish() {
	close(t.gone)
	if f := t.then; f != nil {
		t.then = nil
		f(t.complaint())
	}
}

func (t *Tunnel) complaint() error {
	if benign(t.cause) {
		return nil
	}
	return t.cause
}

// Wait returns when the tunnel is gone, and why; nil if nobody complained.
func (t *Tunnel) Wait() error {
	<-t.gone
	return t.complaint()
}

// Then is Wait without a goroutine: f is called once and later, with what Wait
// returns, on the loop, where it must not wait. One is called at most: the last.
func (t *Tunnel) Then(f func(error)) {
	watched := t.do(func() {
		if t.closed {
			f(t.complaint())
			return
		}
		t.then = f
	})
	if !watched { // the loops have ended, and the tunnel with them
		go f(wire.ErrClosed)
	}
}

// benign reports whether err is how a tunnel ends when nobody complains: it
// was closed by either side.
func benign(err error) bool {
	var goaway *wire.GoAwayError
	if errors.As(err, &goaway) {
		return goaway.Code == wire.NoError
	}
	return err == nil || errors.Is(err, wire.ErrClosed) || errors.Is(err, io.EOF) || errors.Is(err, net.ErrClosed)
}

// dropped reports whether err is a connection that broke.
func dropped(err error) bool {
	return errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, syscall.ECONNRESET) ||
		errors.Is(err, syscall.EPIPE) || errors.Is(err, os.ErrDeadlineExceeded)
}

// leave takes no new streams from now on.
func (t *Tunnel) leave() {
	t.leaving = true
	t.places.mu.Lock()
	t.places.leaving = true
	t.places.mu.Unlock()
}

// settle ends a leaving tunnel that nothing needs any more.
func (t *Tunnel) settle() {
	if t.ended || t.busy || !t.leaving || len(t.streams) > 0 {
		return
	}
	if t.drainStep == drainAsked || t.serving > 0 {
		return // the peer may not know yet, or a handler has yet to answer
	}
	t.places.mu.Lock()
	promised := t.places.used > 0
	t.places.mu.Unlock()
	if !promised {
		t.end(nil)
	}
}

// remove forgets a stream that is closed in both directions.
func (t *Tunnel) remove(s *Stream) {
	if t.streams[s.id] != s {
		return
	}
	delete(t.streams, s.id)
	if s.joint != nil && !s.joint.over {
		t.orphan(s)
	}
	if t.client {
		t.places.mu.Lock()
		t.places.used--
		t.places.mu.Unlock()
	}
	t.settle()
}

// orphan remembers a stream that is closed and not yet over.
func (t *Tunnel) orphan(s *Stream) {
	if t.orphans == nil {
		t.orphans = map[*Stream]struct{}{}
	}
	t.orphans[s] = struct{}{}
}

// do runs f on the loop, and reports whether it will.
func (t *Tunnel) do(f func()) bool { return t.lane.loop.Do(f) }

// Close ends the tunnel with all its streams, and waits until it is gone.
func (t *Tunnel) Close() {
	t.EndWith(wire.ErrClosed)
	<-t.gone
}

// End ends the tunnel with all its streams, whose error then is a
// [*wire.EndedError] with cause; the peer is told GOAWAY. It does not wait.
func (t *Tunnel) End(cause error) { t.EndWith(&wire.EndedError{Cause: cause}) }

// EndWith is [Tunnel.End] with cause itself as what the streams are told.
func (t *Tunnel) EndWith(cause error) { t.do(func() { t.end(cause) }) }

// newTunnel is a tunnel that is not on its loop yet.
func (e *Engine) newTunnel(fd int, client bool, cfg Config) *Tunnel {
	t := &Tunnel{lane: e.pick(), client: client, cfg: cfg, fd: fd, gone: make(chan struct{})}
	t.places.limit = min(wire.Or(cfg.MaxStreams, wire.ClientStreams), math.MaxInt32)
	return t
}
