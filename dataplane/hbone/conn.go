// SPDX-License-Identifier: Apache-2.0

package hbone

import (
	"bytes"
	"errors"
	"io"
	"math"
	"net"
	"os"
	"sync"
	"syscall"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"github.com/ztunnel-go/ztunnel/dataplane/hbone/wire"
)

/* The life of a tunnel
 *
 *	open --goAway, peer's GOAWAY--> leaving --last stream ends--+
 *	  |                                                         v
 *	  +---- error, Close, ping timeout ------------------>    ended
 *
 * A leaving tunnel carries its streams to their end and takes no new ones. An
 * ended tunnel has no streams; its writer sends what is queued (a GOAWAY), parts
 * from the peer and closes the connection, which ends the reader. run returns
 * after both.
 */

// goodbyeTimeout bounds the last write to a peer that may not be reading.
const goodbyeTimeout = time.Second

// partingTimeout is how long the peer of a tunnel that has ended well has to
// close its side.
const partingTimeout = 2 * time.Second

// keepalivePing and drainPing are the payloads of our PINGs (contract 4.4; the
// second is ours to choose).
var (
	keepalivePing = [8]byte{59, 124, 219, 122, 11, 135, 22, 180}
	drainPing     = [8]byte{'d', 'r', 'a', 'i', 'n', 'i', 'n', 'g'}
)

// A conn is the state of a tunnel, at either side. Beside the two goroutines
// there is nothing else that the tunnel consists of.
type conn struct {
	raw    net.Conn // what nc stands on
	nc     net.Conn // TLS, or raw itself in tests
	client bool
	set    Settings

	accept func(*stream, *wire.Block) // server: a request arrived; called by the reader

	fr  *http2.Framer  // the reader's
	dec *hpack.Decoder // the reader's

	heard  chan struct{}  // closed when the reader has ended
	writer sync.WaitGroup // ends when the tunnel has ended and nothing is queued
	timers sync.WaitGroup // callbacks of timers that ended the tunnel

	mu   sync.Mutex
	work *sync.Cond // the writer waits here; its lock is mu

	// All below is guarded by mu.

	cause   error // why the tunnel ended; nil while it lives, or if it just did
	ended   bool
	leaving bool // ends with its last stream, and takes no new ones

	control  bytes.Buffer  // encoded frames that wait for the writer
	wf       *http2.Framer // writes to control
	provoked int           // frames in control that the peer made us send

	streams  map[uint32]*stream
	lastPeer uint32    // highest stream id of the peer that we have seen
	past     wire.Past // server: of the streams up to lastPeer
	refuse   uint32    // server: streams above it are not served; client: last id the peer serves
	nextID   uint32    // client: id of the next stream
	reserved int       // client: streams that a caller was promised
	serving  int       // server: handlers that run

	peerWindow    int64  // what the peer gives each new stream
	peerMaxFrame  int    // bytes of payload that the peer takes in a frame
	peerStreams   uint32 // how many streams the peer serves at once
	peerSettings  bool   // the peer's first SETTINGS have come
	acknowledged  bool   // the peer has seen ours
	sendWindow    int64  // what the peer takes now, over all streams
	recvWindow    int64  // what the peer may send now, over all streams
	uncredited    int64  // delivered, and not yet given back to the peer
	sendQueue     []*stream
	budget        wire.Budget
	settingsTimer *time.Timer
	ping          pinger
	drainStep     drainStep
	goAway        *GoAwayError // the peer complained, and has not closed yet
}

// newConn queues what each side says first. The tunnel lives once run is
// called.
func newConn(raw, nc net.Conn, client bool, set Settings) *conn {
	set = set.WithDefaults(client)
	c := &conn{
		raw: raw, nc: nc, client: client, set: set,
		heard:      make(chan struct{}),
		streams:    map[uint32]*stream{},
		refuse:     wire.MaxStreamID,
		nextID:     1,
		peerWindow: wire.InitialWindow, peerMaxFrame: wire.MinFrameSize, peerStreams: math.MaxUint32,
		sendWindow: wire.InitialWindow, recvWindow: int64(set.ConnWindow),
	}
	c.work = sync.NewCond(&c.mu)
	c.wf = http2.NewFramer(&c.control, nil)
	c.resetFramer()
	c.dec = hpack.NewDecoder(4096, nil)
	c.dec.SetMaxStringLength(wire.BlockSlack * int(set.MaxHeaderList))
	if client {
		c.control.WriteString(http2.ClientPreface)
	}
	// Writes to a bytes.Buffer do not fail, so errors of wf are those of
	// arguments that this package never passes.
	_ = c.wf.WriteSettings(http2Settings(set.Wire(client))...)
	if raise := set.ConnWindow - wire.InitialWindow; raise > 0 {
		_ = c.wf.WriteWindowUpdate(0, raise)
	}
	return c
}

func http2Settings(list []wire.Setting) []http2.Setting {
	out := make([]http2.Setting, len(list))
	for i, v := range list {
		out[i] = http2.Setting{ID: http2.SettingID(v.ID), Val: v.Val}
	}
	return out
}

// resetFramer gives the reader a Framer without a buffer: a Framer keeps the
// largest that it ever needed.
func (c *conn) resetFramer() {
	c.fr = http2.NewFramer(nil, c.nc)
	c.fr.SetMaxReadFrameSize(c.set.MaxFrameSize)
}

// run carries the tunnel until it has ended, and returns why; nil if nobody
// complained.
func (c *conn) run() error {
	c.mu.Lock()
	if !c.ended {
		c.settingsTimer = time.AfterFunc(c.set.HandshakeTimeout, c.settingsLate)
		c.startPingLocked()
	}
	c.mu.Unlock()
	c.writer.Go(c.writeLoop)
	c.end(c.readLoop())
	close(c.heard)
	c.writer.Wait()
	c.timers.Wait()
	c.mu.Lock()
	cause := c.cause
	c.mu.Unlock()
	if benign(cause) {
		return nil
	}
	return cause
}

func (c *conn) settingsLate() {
	c.mu.Lock()
	late := !c.peerSettings && !c.ended
	if late {
		c.timers.Add(1) // run waits only once the tunnel has ended
	}
	c.mu.Unlock()
	if late {
		defer c.timers.Done()
		c.end(wire.Complaint(SettingsTimeout, "no SETTINGS from the peer in %v", c.set.HandshakeTimeout))
	}
}

// end ends the tunnel because of err. The first cause stays.
func (c *conn) end(err error) {
	c.mu.Lock()
	if c.ended {
		c.mu.Unlock()
		return
	}
	told := c.endLocked(err)
	c.mu.Unlock()
	for _, f := range told {
		f()
	}
}

// endLocked is end for a holder of mu, who then calls what it returns without
// the lock.
func (c *conn) endLocked(err error) (told []func()) {
	c.ended, c.leaving = true, true
	if c.goAway != nil && (err == nil || benign(err) || dropped(err)) {
		err = c.goAway
	}
	c.cause = err
	lost := &ResetError{Code: InternalError, Cause: wire.Or(notEOF(err), ErrClosed)}
	for id, s := range c.streams {
		told = append(told, s.brokenLocked(lost)...)
		c.removeLocked(id)
	}
	c.sendQueue = nil
	for _, timer := range []*time.Timer{c.settingsTimer, c.ping.timer} {
		if timer != nil { // the tunnel runs
			timer.Stop()
		}
	}
	c.sayGoodbyeLocked(err)
	// The writer may be stuck in a write to a peer that does not read, and
	// what is queued may find it so.
	_ = c.nc.SetWriteDeadline(time.Now().Add(goodbyeTimeout))
	c.work.Signal()
	return told
}

// notEOF keeps the end of a tunnel from passing for the end of its streams,
// which readers know by io.EOF in whatever it is wrapped.
func notEOF(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}

// sayGoodbyeLocked tells the peer why, if it can still hear it.
func (c *conn) sayGoodbyeLocked(err error) {
	var own *GoAwayError
	var ended *EndedError
	switch {
	case errors.As(err, &own) && !own.Remote:
		_ = c.wf.WriteGoAway(c.lastPeer, http2.ErrCode(own.Code), []byte(own.Reason))
	case err == nil, errors.Is(err, ErrClosed), errors.Is(err, ErrPingTimeout), errors.As(err, &ended):
		_ = c.wf.WriteGoAway(c.lastPeer, http2.ErrCodeNo, nil)
	}
}

// benign reports whether err is how a tunnel ends when nobody complains: it
// was closed by either side.
func benign(err error) bool {
	var goaway *GoAwayError
	if errors.As(err, &goaway) {
		return goaway.Code == NoError
	}
	return err == nil || errors.Is(err, ErrClosed) || errors.Is(err, io.EOF) || errors.Is(err, net.ErrClosed)
}

// dropped reports whether err is a connection that broke.
func dropped(err error) bool {
	return errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, syscall.ECONNRESET) ||
		errors.Is(err, syscall.EPIPE) || errors.Is(err, os.ErrDeadlineExceeded)
}

// leave lets the tunnel end with its last stream.
func (c *conn) leave() {
	c.mu.Lock()
	c.leaving = true
	told := c.settleLocked()
	c.mu.Unlock()
	for _, f := range told {
		f()
	}
}

// settleLocked ends a leaving tunnel that nothing needs any more.
func (c *conn) settleLocked() []func() {
	if c.ended || !c.leaving || len(c.streams) > 0 || c.reserved > 0 {
		return nil
	}
	if c.drainStep == drainAsked || c.serving > 0 {
		return nil // the peer may not know yet, or a handler has yet to answer
	}
	return c.endLocked(nil)
}

// removeLocked forgets a stream that is closed in both directions.
func (c *conn) removeLocked(id uint32) { delete(c.streams, id) }
