// SPDX-License-Identifier: Apache-2.0

package hbone

import (
	"context"
	"crypto/tls"

	"net"
	"time"

	"github.com/ztunnel-go/ztunnel/dataplane/engine"
	"github.com/ztunnel-go/ztunnel/dataplane/hbone/record"
	"github.com/ztunnel-go/ztunnel/dataplane/relay"
	"github.com/ztunnel-go/ztunnel/internal/sock"
)

// A Stream is one user connection in a tunnel. It behaves as a TCP connection
// does: bytes in order, two directions that end on their own, and a reset
// that ends both.
//
//	peer's END_STREAM       Read returns io.EOF after what came before it
//	peer's RST_STREAM       Write fails at once, Read after what came before it
//	peer's RST(NO_ERROR)    the same, but Read returns io.EOF: a clean end
//	loss of the tunnel      as RST_STREAM; the error has its cause
//
// One that an event loop carries is a [relay.Joiner] besides.
type Stream interface {
	relay.Conn
	// ResetWith is Reset with another code than CONNECT_ERROR.
	ResetWith(Code)
	// OnBroken has f called, once and with the reason, when the peer resets the
	// stream (other than with NO_ERROR) or the tunnel is lost while a direction
	// is open; at once if that has happened. f must not wait. Close and Reset
	// call it off, as does an end of both directions.
	OnBroken(f func(error))
	// TCPInfo is what the kernel knows of the tunnel's connection, or of that of
	// the tunnel in which it is.
	TCPInfo() (sock.TCPInfo, error)
	// Conn shows the stream as a net.Conn, so that a tunnel can be made within
	// it (contract 4.9). The addresses are those of the tunnel. A deadline that
	// passes resets the stream; one that is moved in time does nothing.
	Conn() net.Conn
}

// A carrier is a client's tunnel, whoever carries it.
type carrier interface {
	// reserve promises n streams to callers of open, unless the tunnel is full
	// or on its way out; promise does so whatever there is, for a tunnel that
	// has none yet; cede gives them back. full says that the next one would be
	// too many, or that there will be no next one.
	reserve(n int) bool
	promise(n int)
	cede(n int)
	full() bool
	// open is [Tunnel.Open] with a stream that was reserved.
	open(ctx context.Context, r Request) (Stream, Response, error)
	drain()
	end(cause error)
	wait() error
	// then has f called with what wait returns, on a goroutine that must not
	// wait.
	then(f func(error))
}

var (
	_ carrier = (*goTunnel)(nil)
	_ carrier = loopTunnel{}
	_ Stream  = (*stream)(nil)
	_ Stream  = (*engine.Stream)(nil)
)

// A Tunnel is our side of a tunnel that we made. [Pool] shares tunnels among
// user connections; a tunnel within a tunnel (contract 4.9) is used alone.
type Tunnel struct{ carrier }

// NewTunnel makes a tunnel over nc, which is the tunnel's from then on: TLS with
// cfg (plain if nil, for tests) within the handshake's time and ctx, then
// HTTP/2. It does not wait for the peer's SETTINGS (contract 4.7). A
// handshake that fails is a [*TLSError]. Goroutines carry it.
func NewTunnel(ctx context.Context, nc net.Conn, cfg *tls.Config, set Settings) (*Tunnel, error) {
	return making{set: set}.tunnel(ctx, nc, cfg)
}

// A making is how tunnels of a pool are made.
type making struct {
	set    Settings
	max    int            // streams on one
	engine *engine.Engine // nil: goroutines carry them
}

func (m making) tunnel(ctx context.Context, nc net.Conn, cfg *tls.Config) (*Tunnel, error) {
	timeout := m.set.WithDefaults(true).HandshakeTimeout
	if tcp, ok := nc.(*net.TCPConn); ok && m.engine != nil {
		fd, session, err := take(ctx, tcp, cfg, shaking{record.Client, timeout})
		if err != nil {
			return nil, err
		}
		if session == nil || session.Std == nil {
			t := m.engine.Client(fd, session, engine.Config{
				Settings: m.set, MaxStreams: m.max, Local: nc.LocalAddr(), Remote: nc.RemoteAddr()})
			return &Tunnel{loopTunnel{t}}, nil
		}
		return &Tunnel{goClient(nc, session.Std, m.set, m.max)}, nil
	}
	secured := nc
	if cfg != nil {
		t, err := handshake(ctx, tls.Client(nc, oneRecordFrames(cfg)), timeout)
		if err != nil {
			return nil, err
		}
		secured = t
	}
	return &Tunnel{goClient(nc, secured, m.set, m.max)}, nil
}

// Open asks for a connection and waits for the answer, or for ctx. Its errors
// are [ErrUnavailable], [*StatusError] (any answer but 200), [*ResetError]
// within a [*HandshakeError], and the cause of ctx.
func (t *Tunnel) Open(ctx context.Context, r Request) (Stream, Response, error) {
	if !t.reserve(1) {
		return nil, Response{}, ErrUnavailable
	}
	return t.open(ctx, r)
}

// Drain lets the tunnel end with its last stream: GOAWAY, then close.
func (t *Tunnel) Drain() { t.drain() }

// Close ends the tunnel with all its streams, and waits until it is gone.
func (t *Tunnel) Close() error {
	t.end(ErrClosed)
	_ = t.wait() // it was closed: there is nothing to tell
	return nil
}

// Wait returns when the tunnel has ended, by itself or by others' doing.
func (t *Tunnel) Wait() { _ = t.wait() }

// End ends the tunnel with all its streams, whose error then is an
// [*EndedError] with cause. It does not wait.
func (t *Tunnel) End(cause error) { t.end(&EndedError{Cause: cause}) }

// loopTunnel is a tunnel that an event loop carries.
type loopTunnel struct{ *engine.Tunnel }

func (t loopTunnel) reserve(n int) bool { return t.Reserve(n) }
func (t loopTunnel) promise(n int)      { t.Promise(n) }
func (t loopTunnel) cede(n int)         { t.Cede(n) }
func (t loopTunnel) full() bool         { return t.Full() }
func (t loopTunnel) drain()             { t.Drain() }
func (t loopTunnel) end(cause error)    { t.EndWith(cause) }
func (t loopTunnel) wait() error        { return t.Wait() }
func (t loopTunnel) then(f func(error)) { t.Then(f) }

func (t loopTunnel) open(ctx context.Context, r Request) (Stream, Response, error) {
	s, response, err := t.OpenReserved(ctx, r)
	if err != nil {
		return nil, response, err // an interface that is nil
	}
	return s, response, nil
}

// shaking is one side's handshake.
type shaking struct {
	side    func(context.Context, net.Conn, *tls.Config) (*record.Session, error)
	timeout time.Duration
}

// take does the handshake of a connection that an event loop is to carry, and
// takes its descriptor: unless the session is one for goroutines. Without cfg
// there is no session. On error nc is closed.
func take(ctx context.Context, nc *net.TCPConn, cfg *tls.Config, how shaking) (int, *record.Session, error) {
	var session *record.Session
	if cfg != nil {
		ctx, cancel := context.WithTimeout(ctx, how.timeout)
		defer cancel()
		var err error
		if session, err = how.side(ctx, nc, oneRecordFrames(cfg)); err != nil {
			if cause := context.Cause(ctx); cause != nil {
				err = cause
			}
			_ = nc.Close() // the handshake's error is the one to tell
			return -1, nil, &TLSError{Err: err}
		}
		if session.Std != nil {
			return -1, session, nil
		}
	}
	fd, err := sock.TakeFD(nc)
	if err != nil {
		if session != nil {
			session.Wipe()
		}
		return -1, nil, err
	}
	return fd, session, nil
}
