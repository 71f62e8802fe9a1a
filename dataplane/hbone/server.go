// SPDX-License-Identifier: Apache-2.0

package hbone

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"net/netip"
	"sync"

	"golang.org/x/net/http2"

	"github.com/ztunnel-go/ztunnel/dataplane/engine"
	"github.com/ztunnel-go/ztunnel/dataplane/hbone/wire"
	"github.com/ztunnel-go/ztunnel/internal/identity"
	"github.com/ztunnel-go/ztunnel/internal/mtls"
)

// ServerConfig is how tunnels that peers make are served.
type ServerConfig struct {
	// Handler answers one request, in a goroutine of its own. The stream it
	// accepts ends when it returns.
	Handler func(*Connect)
	// Quick is asked first where an event loop carries the tunnel, and on that
	// loop, so that it must not wait. It says whether it has taken the request,
	// whose [Connect.Finish] it then calls. Nil: everything is Handler's.
	Quick    func(*Connect) bool
	Settings Settings
	// Engine carries the tunnel on an event loop, if it is TCP; nil: goroutines
	// do.
	Engine *engine.Engine
	// Identity reads the peer's identity from a finished handshake. Nil:
	// mtls.PeerIdentity.
	Identity func(tls.ConnectionState) (identity.ID, bool)
}

// A ServerConn is a tunnel that a peer made.
type ServerConn struct {
	c        *conn       // carried by goroutines
	loop     *loopServer // or by a loop; one of the two is set
	cfg      ServerConfig
	peer     netip.AddrPort
	local    netip.AddrPort
	id       identity.ID
	handlers sync.WaitGroup // one per request; ends when the handler returns
}

// Accept takes nc, which is the tunnel's from then on, and does the handshake
// of TLS with cfg (plain if nil, for tests) within its time and ctx. A
// handshake that fails is a [*TLSError].
func Accept(ctx context.Context, nc net.Conn, tlsCfg *tls.Config, cfg ServerConfig) (*ServerConn, error) {
	s := &ServerConn{cfg: cfg, peer: addrPort(nc.RemoteAddr()), local: addrPort(nc.LocalAddr())}
	timeout := cfg.Settings.WithDefaults(false).HandshakeTimeout
	if tcp, ok := nc.(*net.TCPConn); ok && cfg.Engine != nil {
		return s, s.take(ctx, tcp, tlsCfg, timeout)
	}
	secured := nc
	if tlsCfg != nil {
		t, err := handshake(ctx, tls.Server(nc, oneRecordFrames(tlsCfg)), timeout)
		if err != nil {
			return nil, err
		}
		secured = t
		s.know(t.ConnectionState())
	}
	s.begin(nc, secured)
	return s, nil
}

// know keeps what the handshake proved.
func (s *ServerConn) know(state tls.ConnectionState) {
	identify := s.cfg.Identity
	if identify == nil {
		identify = mtls.PeerIdentity
	}
	s.id, _ = identify(state) // zero if the certificate names none
}

// begin has goroutines carry the tunnel.
func (s *ServerConn) begin(raw, secured net.Conn) {
	s.c = newConn(raw, secured, false, s.cfg.Settings)
	s.c.accept = s.serve
}

// ServeConn is [Accept] and [ServerConn.Serve] in one.
func ServeConn(ctx context.Context, nc net.Conn, tlsCfg *tls.Config, cfg ServerConfig) error {
	s, err := Accept(ctx, nc, tlsCfg, cfg)
	if err != nil {
		return err
	}
	return s.Serve(ctx)
}

// addrPort is the canonical form of a TCP address, or zero.
func addrPort(a net.Addr) netip.AddrPort {
	tcp, ok := a.(*net.TCPAddr)
	if !ok {
		return netip.AddrPort{}
	}
	ap := tcp.AddrPort()
	return netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port())
}

// Peer is who made the tunnel, by address and by certificate; the identity is
// zero if the certificate names none.
func (s *ServerConn) Peer() (netip.AddrPort, identity.ID) { return s.peer, s.id }

// Serve carries the tunnel until it has ended and every handler has returned.
// It returns nil unless the peer or we had something to complain of. The end
// of ctx closes the tunnel at once. Call it once.
func (s *ServerConn) Serve(ctx context.Context) error {
	stop := context.AfterFunc(ctx, func() { s.end(ErrClosed) })
	defer stop()
	var err error
	if s.loop != nil {
		err = s.loop.run(s)
	} else {
		err = s.c.run()
	}
	s.handlers.Wait()
	return err
}

// ServeThen is [ServerConn.Serve] for those who need not wait: done is called
// once, with what Serve would return, on a goroutine of its own. It takes no
// context: see [ServerConn.End].
func (s *ServerConn) ServeThen(done func(error)) {
	ended := func(err error) {
		go func() { // its owner waits for done
			s.handlers.Wait()
			done(err)
		}()
	}
	if s.loop == nil {
		go func() { ended(s.c.run()) }()
		return
	}
	s.loop.start(s, ended)
}

// Drain asks the peer, by GOAWAY, for no more streams, and lets the tunnel end
// with those there are (contract 15.3). It returns at once; Serve returns at
// the end.
func (s *ServerConn) Drain() {
	if s.loop != nil {
		s.loop.tell((*engine.Tunnel).DrainServer)
		return
	}
	s.c.drain()
}

// Close ends the tunnel with all its streams. Serve returns when it is done.
func (s *ServerConn) Close() error {
	s.end(ErrClosed)
	return nil
}

// End ends the tunnel with all its streams, whose error then is an
// [*EndedError] with cause; the peer is told GOAWAY. Serve returns when it is
// done.
func (s *ServerConn) End(cause error) { s.end(&EndedError{Cause: cause}) }

func (s *ServerConn) end(cause error) {
	if s.loop != nil {
		s.loop.end(cause)
		return
	}
	s.c.end(cause)
}

// A Connect is a request of a peer, to be answered by Accept or Reject.
type Connect struct {
	Method    string // CONNECT, or what the peer sent instead
	Authority string // as sent; may be empty or nonsense
	Peer      netip.AddrPort
	Local     netip.AddrPort
	Identity  identity.ID // zero: the peer's certificate names none

	ctx     context.Context
	answer  answerer
	headers *wire.Block
	finish  func() // on an event loop
}

// An answerer is a request of either engine.
type answerer interface {
	accept(baggage *string) (Stream, error)
	reject(status int) error
}

// Context ends when the stream or its tunnel does while the request is
// unanswered, so that a dial for a peer that is gone can be given up. At the
// latest it ends with the handler.
func (r *Connect) Context() context.Context { return r.ctx }

// Header returns the values of a header by its lower-case name, in order.
func (r *Connect) Header(name string) []string {
	var values []string
	for _, f := range r.headers.Fields {
		if f.Name == name {
			values = append(values, f.Value)
		}
	}
	return values
}

// errAnswered is an answer to a request that has one: a mistake of the caller.
var errAnswered = errors.New("request was answered before")

// Accept answers 200, with a baggage header unless it is nil, and returns the
// stream. It fails if the stream has ended meanwhile.
func (r *Connect) Accept(baggage *string) (Stream, error) { return r.answer.accept(baggage) }

// Reject answers with another status and ends the stream: HEADERS with
// END_STREAM, then RST_STREAM(NO_ERROR) (contract 4.6).
func (r *Connect) Reject(status int) error { return r.answer.reject(status) }

func (s *stream) accept(baggage *string) (Stream, error) {
	s.c.mu.Lock()
	told, err := s.acceptLocked(baggage)
	s.c.mu.Unlock()
	for _, f := range told {
		f()
	}
	if err != nil {
		return nil, err
	}
	return s, nil
}

func (s *stream) acceptLocked(baggage *string) ([]func(), error) {
	switch {
	case s.responded:
		return nil, errAnswered
	case s.writeErr != nil:
		return nil, s.writeErr
	}
	s.responded = true
	s.cancel = nil
	s.c.writeHeadersLocked(s.id, wire.ResponseFields(200, baggage), false)
	return s.c.answeredLocked(), nil
}

// answeredLocked counts an answer: a peer may ask again and again for what is
// refused or given up, without reading.
func (c *conn) answeredLocked() []func() {
	if err := c.provokedLocked(); err != nil {
		return c.endLocked(err)
	}
	return nil
}

func (s *stream) reject(status int) error {
	c := s.c
	c.mu.Lock()
	switch {
	case s.responded:
		c.mu.Unlock()
		return errAnswered
	case s.writeErr != nil:
		c.mu.Unlock()
		return s.writeErr
	}
	c.rejectLocked(s, status)
	told := append(c.answeredLocked(), c.settleLocked()...)
	c.mu.Unlock()
	for _, f := range told {
		f()
	}
	return nil
}

// rejectLocked answers and forgets s.
func (c *conn) rejectLocked(s *stream, status int) {
	s.responded, s.endSent = true, true
	c.writeHeadersLocked(s.id, wire.ResponseFields(status, nil), true)
	if !s.recvEnded {
		c.writeResetLocked(s.id, NoError)
	}
	if n := s.in.drop(); n > 0 {
		c.creditTunnelLocked(n)
	}
	s.readErr, s.writeErr = net.ErrClosed, net.ErrClosed
	c.removeLocked(s.id)
	s.wakeLocked()
}

// statusTooLarge answers a header list beyond our limit (RFC 6585).
const statusTooLarge = 431

// requestLocked takes a new stream of the peer.
func (c *conn) requestLocked(fh http2.FrameHeader, b *wire.Block, end bool) ([]func(), error) {
	if s := c.streams[fh.StreamID]; s != nil {
		return s.trailersLocked(end)
	}
	if fh.StreamID%2 == 0 {
		return nil, wire.Complaint(ProtocolError, "HEADERS for stream %d, which is ours to open", fh.StreamID)
	}
	if fh.StreamID <= c.lastPeer {
		return nil, c.lateLocked(fh.StreamID, end)
	}
	c.past.Open(c.lastPeer, fh.StreamID)
	c.lastPeer = fh.StreamID
	if end {
		c.past.End(fh.StreamID, fh.StreamID)
	}
	if fault := c.admitRequestLocked(fh.StreamID, b); fault != nil {
		return nil, fault
	}
	s := c.newStreamLocked(fh.StreamID)
	s.recvEnded = end
	if b.Oversized {
		c.rejectLocked(s, statusTooLarge)
		return c.settleLocked(), c.spendLocked(wire.CostReset)
	}
	c.accept(s, b)
	return nil, nil
}

// lateLocked takes HEADERS for a stream that is closed.
func (c *conn) lateLocked(id uint32, end bool) error {
	switch fate := c.past.Of(c.lastPeer, id); {
	case fate == wire.FateEnded:
		return wire.Complaint(StreamClosed, "HEADERS for stream %d, which its sender had closed", id)
	case fate == wire.FateOurs && end:
		return nil // trailers that crossed our reset
	}
	return wire.Complaint(ProtocolError, "HEADERS for stream %d, which is closed", id)
}

// admitRequestLocked says why a request gets no stream. A handler outlives a
// stream that its peer resets, so what runs is counted too (rapid reset,
// CVE-2023-44487), with room for handlers that are about to return.
func (c *conn) admitRequestLocked(id uint32, b *wire.Block) error {
	switch {
	case id > c.refuse:
		return &streamFault{id, RefusedStream, "opened after GOAWAY"}
	case len(c.streams) >= int(c.set.MaxStreams), c.serving >= 2*int(c.set.MaxStreams):
		return &streamFault{id, RefusedStream, "beyond MAX_CONCURRENT_STREAMS"}
	case b.Malformed != "":
		return &streamFault{id, ProtocolError, b.Malformed}
	case b.Oversized:
		return nil
	}
	if why := b.Request(); why != "" {
		return &streamFault{id, ProtocolError, why}
	}
	return nil
}

// connect is a request as its handler sees it.
func (s *ServerConn) connect(ctx context.Context, a answerer, b *wire.Block) *Connect {
	return &Connect{
		Method: b.Text(":method"), Authority: b.Text(":authority"),
		Peer: s.peer, Local: s.local, Identity: s.id,
		ctx: ctx, answer: a, headers: b,
	}
}

// serve starts the handler of a request; called by the reader with the lock.
func (s *ServerConn) serve(stream *stream, b *wire.Block) {
	ctx, cancel := context.WithCancel(context.Background())
	stream.cancel = cancel
	r := s.connect(ctx, stream, b)
	s.c.serving++
	s.handlers.Go(func() {
		defer s.served(stream, cancel)
		s.cfg.Handler(r)
	})
}

// served ends what a handler left open.
func (s *ServerConn) served(stream *stream, cancel func()) {
	cancel()
	_ = stream.Close()
	s.c.mu.Lock()
	s.c.serving--
	told := s.c.settleLocked()
	s.c.mu.Unlock()
	for _, f := range told {
		f()
	}
}
