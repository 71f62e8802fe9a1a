// SPDX-License-Identifier: Apache-2.0

package hbone

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"sync"
	"time"

	"golang.org/x/net/http2"

	"github.com/ztunnel-go/ztunnel/dataplane/hbone/wire"
)

// maxInterim bounds the 1xx answers to one request.
const maxInterim = 8

// A goTunnel is a client's tunnel that goroutines carry.
type goTunnel struct {
	c       *conn
	max     int // streams that we open at once, whatever the peer allows
	running sync.WaitGroup
	err     error // how it ended; set before running is done
}

// goClient begins a tunnel over secured, which stands on nc.
func goClient(nc, secured net.Conn, set Settings, limit int) *goTunnel {
	t := &goTunnel{c: newConn(nc, secured, true, set), max: wire.Or(limit, wire.ClientStreams)}
	t.running.Go(func() { t.err = t.c.run() }) // ends when the tunnel does
	return t
}

// oneRecordFrames makes crypto/tls use full records from the first byte, so
// that our frames are not cut in pieces of a packet's size.
func oneRecordFrames(cfg *tls.Config) *tls.Config {
	cfg = cfg.Clone()
	cfg.DynamicRecordSizingDisabled = true
	return cfg
}

// handshake runs TLS within the time given, or closes tc.
func handshake(ctx context.Context, tc *tls.Conn, timeout time.Duration) (*tls.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	if err := tc.HandshakeContext(ctx); err != nil {
		if cause := context.Cause(ctx); cause != nil {
			err = cause
		}
		_ = tc.Close() // the handshake's error is the one to tell
		return nil, &TLSError{Err: err}
	}
	return tc, nil
}

// open is [Tunnel.Open] with a stream that was reserved, and uses the reservation up.
func (t *goTunnel) open(ctx context.Context, r Request) (Stream, Response, error) {
	c := t.c
	stop := context.AfterFunc(ctx, func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		for _, s := range c.streams {
			s.readable.Broadcast()
		}
	})
	defer stop()

	c.mu.Lock()
	s, err := t.startLocked(r)
	for err == nil && !s.answer.done && ctx.Err() == nil {
		s.readable.Wait()
	}
	if err != nil {
		told := c.settleLocked()
		c.mu.Unlock()
		for _, f := range told {
			f()
		}
		return nil, Response{}, err
	}
	got := s.answer
	c.mu.Unlock()
	switch {
	case !got.done:
		s.ResetWith(Cancel)
		return nil, Response{}, context.Cause(ctx)
	case got.err != nil:
		s.ResetWith(Cancel)
		var reset *ResetError
		if errors.As(got.err, &reset) {
			return nil, Response{}, &HandshakeError{Err: got.err}
		}
		return nil, Response{}, got.err
	}
	return s, got.response, nil
}

// startLocked turns a reservation into a stream and its request.
func (t *goTunnel) startLocked(r Request) (*stream, error) {
	c := t.c
	c.reserved--
	if c.ended || c.nextID > c.refuse || c.nextID > wire.MaxStreamID {
		err := wire.Or(c.cause, ErrUnavailable)
		return nil, &HandshakeError{Err: &ResetError{Code: RefusedStream, Cause: err, Unseen: true}}
	}
	s := c.newStreamLocked(c.nextID)
	c.nextID += 2
	c.writeHeadersLocked(s.id, r.Fields(), false)
	return s, nil
}

// reserve promises n streams to callers of open, unless the tunnel is full or
// on its way out.
func (t *goTunnel) reserve(n int) bool {
	t.c.mu.Lock()
	defer t.c.mu.Unlock()
	return t.reserveLocked(n)
}

func (t *goTunnel) reserveLocked(n int) bool {
	c := t.c
	used := len(c.streams) + c.reserved
	if c.leaving || used+n > t.limitLocked() || int64(c.nextID)+2*int64(c.reserved+n-1) > wire.MaxStreamID {
		return false
	}
	c.reserved += n
	return true
}

// promise reserves n streams of a tunnel that has none yet, for which a fresh
// one has room. If it is on its way out already, open says so to each.
func (t *goTunnel) promise(n int) {
	t.c.mu.Lock()
	defer t.c.mu.Unlock()
	t.c.reserved += n
}

func (t *goTunnel) limitLocked() int { return int(min(uint32(t.max), t.c.peerStreams)) }

// full reports whether the next stream would be beyond the limit, or there
// will be no next stream.
func (t *goTunnel) full() bool {
	t.c.mu.Lock()
	defer t.c.mu.Unlock()
	return t.c.leaving || len(t.c.streams)+t.c.reserved >= t.limitLocked()
}

// cede gives n reserved streams back.
func (t *goTunnel) cede(n int) {
	t.c.mu.Lock()
	t.c.reserved -= n
	told := t.c.settleLocked()
	t.c.mu.Unlock()
	for _, f := range told {
		f()
	}
}

func (t *goTunnel) drain()          { t.c.leave() }
func (t *goTunnel) end(cause error) { t.c.end(cause) }

func (t *goTunnel) wait() error {
	t.running.Wait()
	return t.err
}

// then needs a goroutine, whose end whoever asked waits for.
func (t *goTunnel) then(f func(error)) { go func() { f(t.wait()) }() }

// readHeaders takes HEADERS with all that continues it.
func (c *conn) readHeaders(fh http2.FrameHeader) error {
	b, err := c.readBlock(fh)
	if err != nil {
		return err
	}
	end := fh.Flags.Has(http2.FlagHeadersEndStream)
	c.mu.Lock()
	var told []func()
	switch {
	case c.ended:
		err = ErrClosed
	case c.client:
		told, err = c.responseLocked(fh, b, end)
	default:
		told, err = c.requestLocked(fh, b, end)
	}
	c.mu.Unlock()
	for _, f := range told {
		f()
	}
	return err
}

// responseLocked takes the answer to a CONNECT of ours.
func (c *conn) responseLocked(fh http2.FrameHeader, b *wire.Block, end bool) ([]func(), error) {
	s := c.streams[fh.StreamID]
	if s == nil {
		return nil, c.idleLocked(fh)
	}
	if s.responded {
		return s.trailersLocked(end)
	}
	if b.Oversized {
		return nil, &streamFault{s.id, ProtocolError, "response headers beyond MAX_HEADER_LIST_SIZE"}
	}
	status, why := 0, b.Malformed
	if why == "" {
		status, why = b.Response()
	}
	if why != "" {
		return nil, &streamFault{s.id, ProtocolError, why}
	}
	if status < 200 {
		if s.interim++; end || s.interim > maxInterim {
			return nil, &streamFault{s.id, ProtocolError, "interim responses without end"}
		}
		return nil, nil
	}
	s.responded = true
	if status != 200 {
		told := s.brokenLocked(&StatusError{Code: status})
		c.writeResetLocked(s.id, Cancel)
		c.removeLocked(s.id)
		return append(told, c.settleLocked()...), nil
	}
	s.answer = answer{response: Response{Status: status, Baggage: b.Text("baggage")}, done: true}
	s.wakeLocked()
	if end {
		return s.endReadLocked(), nil
	}
	return nil, nil
}

// trailersLocked takes HEADERS on an established stream. RFC 9113, section
// 8.5, has none there; with END_STREAM we take them for the end they are
// meant to be, as the reference does.
func (s *stream) trailersLocked(end bool) ([]func(), error) {
	switch {
	case s.recvEnded:
		return nil, &streamFault{s.id, StreamClosed, "HEADERS after END_STREAM"}
	case !end:
		return nil, &streamFault{s.id, ProtocolError, "HEADERS within a stream"}
	}
	s.c.past.End(s.c.lastPeer, s.id)
	return s.endReadLocked(), nil
}
