// SPDX-License-Identifier: Apache-2.0

package hbone

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"sync"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
	"golang.org/x/sys/unix"

	"github.com/ztunnel-go/ztunnel/dataplane/engine"
	"github.com/ztunnel-go/ztunnel/dataplane/hbone/wire"
	"github.com/ztunnel-go/ztunnel/dataplane/reactor"
	"github.com/ztunnel-go/ztunnel/internal/certs"
	"github.com/ztunnel-go/ztunnel/internal/certs/certstest"
	"github.com/ztunnel-go/ztunnel/internal/identity"
	"github.com/ztunnel-go/ztunnel/internal/mtls"
	"github.com/ztunnel-go/ztunnel/internal/sock"
	"github.com/ztunnel-go/ztunnel/test/leak"
)

const patience = 15 * time.Second

// theEngine carries the tunnels of tests that do not say who does; nil:
// goroutines do. TestMain runs all tests with either.
var theEngine *engine.Engine

func TestMain(m *testing.M) {
	code := m.Run()
	group, err := reactor.Start(2)
	if err != nil {
		panic(err)
	}
	theEngine = engine.New(group)
	os.Exit(max(code, m.Run()))
}

// ofGoroutines is for tests that look into the engine of goroutines: true says
// that there is nothing to look into.
func ofGoroutines() bool { return theEngine != nil }

// carried is the tunnel of a stream, to be compared.
func carried(s Stream) any {
	if s, ok := s.(*stream); ok {
		return s.c
	}
	return s.(*engine.Stream).Tunnel()
}

// full reports whether the tunnel of s is on its way out.
func leaving(s Stream) bool {
	if s, ok := s.(*stream); ok {
		s.c.mu.Lock()
		defer s.c.mu.Unlock()
		return s.c.leaving
	}
	return s.(*engine.Stream).Tunnel().Full()
}

// A rig is a server of ours on loopback and the certificates of both sides.
type rig struct {
	t              *testing.T
	client, server *certs.Bundle
	addr           netip.AddrPort

	mu    sync.Mutex
	conns []*ServerConn // guarded by mu, in order of arrival
	wires []*os.File    // guarded by mu, their sockets
	wg    sync.WaitGroup
}

func newRig(t *testing.T, handler func(*Connect)) *rig { return newRigWith(t, Settings{}, handler) }

func newRigWith(t *testing.T, set Settings, handler func(*Connect)) *rig {
	t.Helper()
	leak.Check(t)
	ca := certstest.Issuer(t, time.Hour)
	r := &rig{
		t:      t,
		client: ca.Bundle("spiffe://cluster.local/ns/a/sa/client"),
		server: ca.Bundle("spiffe://cluster.local/ns/b/sa/server"),
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	r.addr = netip.MustParseAddrPort(l.Addr().String())
	ctx, cancel := context.WithCancel(context.Background())
	r.wg.Go(func() {
		for {
			nc, err := l.Accept()
			if err != nil {
				return
			}
			r.wg.Go(func() { r.serve(ctx, nc, ServerConfig{Handler: handler, Settings: set}) })
		}
	})
	t.Cleanup(func() {
		l.Close()
		cancel()
		r.wg.Wait()
	})
	return r
}

func (r *rig) serve(ctx context.Context, nc net.Conn, cfg ServerConfig) {
	cfg.Engine = theEngine
	wire, err := nc.(*net.TCPConn).File()
	if err != nil {
		r.t.Error(err)
		return
	}
	defer wire.Close()
	s, err := Accept(ctx, nc, r.serverTLS(), cfg)
	if err != nil {
		return
	}
	r.mu.Lock()
	r.conns = append(r.conns, s)
	r.wires = append(r.wires, wire)
	r.mu.Unlock()
	s.Serve(ctx)
}

func (r *rig) accepted() []*ServerConn {
	r.mu.Lock()
	defer r.mu.Unlock()
	return append([]*ServerConn(nil), r.conns...)
}

// cut breaks the connection of the tunnel that arrived as number i; -1 is the
// last.
func (r *rig) cut(i int) {
	r.t.Helper()
	r.mu.Lock()
	defer r.mu.Unlock()
	if i < 0 {
		i += len(r.wires)
	}
	err := sock.Control(r.wires[i], func(fd int) error { return unix.Shutdown(fd, unix.SHUT_RDWR) })
	if err != nil {
		r.t.Logf("cut: %v", err) // it has ended by itself
	}
}

func (r *rig) serverTLS() *tls.Config { return mtls.Server(r.server, mtls.Options{}) }

func (r *rig) clientTLS() *tls.Config {
	return mtls.Client(r.client, []identity.ID{r.server.Identity()}, mtls.Options{})
}

func (r *rig) key() Key {
	return Key{Local: r.client.Identity(), Expect: r.server.Identity().String(), Dst: r.addr}
}

func (r *rig) pool(change func(*PoolConfig)) *Pool {
	cfg := PoolConfig{
		Dial: func(ctx context.Context, k Key) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "tcp", k.Dst.String())
		},
		TLS:    func(context.Context, Key) (Handshake, error) { return Handshake{Config: r.clientTLS()}, nil },
		Engine: theEngine,
	}
	if change != nil {
		change(&cfg)
	}
	p := NewPool(cfg)
	r.t.Cleanup(func() { p.Close() })
	return p
}

func (r *rig) open(p *Pool) Stream {
	r.t.Helper()
	s, _, err := p.Open(within(r.t), r.key(), Request{Authority: "10.0.0.1:80"})
	if err != nil {
		r.t.Fatalf("open: %v", err)
	}
	return s
}

func within(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	t.Cleanup(cancel)
	return ctx
}

// echo accepts everything and sends it back, end included.
func echo(r *Connect) {
	s, err := r.Accept(nil)
	if err != nil {
		return
	}
	if _, err := io.Copy(s, s); err != nil {
		s.Reset()
		return
	}
	s.CloseWrite()
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(patience); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("never: %s", what)
		}
	}
}

// A peer speaks frames, one by one, to a side of ours.
type peer struct {
	t   testing.TB
	nc  net.Conn
	fr  *http2.Framer
	enc *hpack.Encoder
	buf bytes.Buffer
}

func newPeer(t testing.TB, nc net.Conn) *peer {
	p := &peer{t: t, nc: nc, fr: http2.NewFramer(nc, nc)}
	p.fr.AllowIllegalWrites = true
	p.fr.SetMaxReadFrameSize(wire.MinFrameSize) // what a peer takes that says nothing
	p.fr.ReadMetaHeaders = hpack.NewDecoder(4096, nil)
	p.enc = hpack.NewEncoder(&p.buf)
	nc.SetDeadline(time.Now().Add(patience))
	t.Cleanup(func() { nc.Close() })
	return p
}

// tcpPair is a connection over loopback.
func tcpPair(t testing.TB) (a, b net.Conn) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	a, err = net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	b, err = l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	return a, b
}

// rawServer is a server of ours, without TLS, to which a peer has said hello.
func rawServer(t *testing.T, set Settings, handler func(*Connect)) (*peer, *ServerConn, chan error) {
	t.Helper()
	leak.Check(t)
	near, far := tcpPair(t)
	s, err := Accept(t.Context(), far, nil, ServerConfig{Handler: handler, Settings: set, Engine: theEngine})
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- s.Serve(context.Background()) }()
	t.Cleanup(func() { s.Close() })
	p := newPeer(t, near)
	p.raw([]byte(http2.ClientPreface))
	p.settings()
	return p, s, done
}

// rawClient is a tunnel of ours, without TLS, whose peer has read what it says
// first.
func rawClient(t *testing.T, set Settings) (*peer, *Tunnel) {
	t.Helper()
	leak.Check(t)
	near, far := tcpPair(t)
	tunnel, err := making{set: set, engine: theEngine}.tunnel(t.Context(), far, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { tunnel.Close() })
	p := newPeer(t, near)
	preface := make([]byte, len(http2.ClientPreface))
	if _, err := io.ReadFull(near, preface); err != nil || string(preface) != http2.ClientPreface {
		t.Fatalf("preface %q, %v", preface, err)
	}
	return p, tunnel
}

func (p *peer) raw(b []byte) {
	p.t.Helper()
	if _, err := p.nc.Write(b); err != nil {
		p.t.Fatalf("write: %v", err)
	}
}

func (p *peer) ok(err error) {
	p.t.Helper()
	if err != nil {
		p.t.Fatalf("write frame: %v", err)
	}
}

func (p *peer) settings(list ...http2.Setting) {
	p.t.Helper()
	p.ok(p.fr.WriteSettings(list...))
}

func (p *peer) block(pairs ...string) []byte {
	p.buf.Reset()
	for i := 0; i < len(pairs); i += 2 {
		p.enc.WriteField(hpack.HeaderField{Name: pairs[i], Value: pairs[i+1]})
	}
	return bytes.Clone(p.buf.Bytes())
}

func (p *peer) headers(id uint32, end bool, pairs ...string) {
	p.t.Helper()
	p.ok(p.fr.WriteHeaders(http2.HeadersFrameParam{
		StreamID: id, BlockFragment: p.block(pairs...), EndHeaders: true, EndStream: end,
	}))
}

func (p *peer) connect(id uint32) {
	p.t.Helper()
	p.headers(id, false, ":method", "CONNECT", ":authority", "10.0.0.1:80")
}

// next returns the next frame that is not bookkeeping of the connection.
func (p *peer) next() http2.Frame {
	p.t.Helper()
	for {
		f, err := p.fr.ReadFrame()
		if err != nil {
			p.t.Fatalf("read frame: %v", err)
		}
		switch f := f.(type) {
		case *http2.SettingsFrame:
			continue
		case *http2.WindowUpdateFrame:
			if f.StreamID == 0 {
				continue
			}
		}
		return f
	}
}

func want[F http2.Frame](p *peer) F {
	p.t.Helper()
	f := p.next()
	typed, ok := f.(F)
	if !ok {
		p.t.Fatalf("got %v, want a %T", f, typed)
	}
	return typed
}

func (p *peer) wantReset(id uint32, code Code) {
	p.t.Helper()
	if f := want[*http2.RSTStreamFrame](p); f.StreamID != id || Code(f.ErrCode) != code {
		p.t.Fatalf("got %v, want RST_STREAM(%v) on %d", f, code, id)
	}
}

// wantGoAway reads until GOAWAY, and then the end of the connection.
func (p *peer) wantGoAway(code Code) {
	p.t.Helper()
	for {
		f, err := p.fr.ReadFrame()
		if err != nil {
			p.t.Fatalf("read frame: %v; want GOAWAY(%v)", err, code)
		}
		if g, ok := f.(*http2.GoAwayFrame); ok {
			if Code(g.ErrCode) != code {
				p.t.Fatalf("got %v %q, want %v", g, g.DebugData(), code)
			}
			return
		}
	}
}

func (p *peer) wantEnd() {
	p.t.Helper()
	for {
		if _, err := p.fr.ReadFrame(); err != nil {
			var ne net.Error
			if errors.As(err, &ne) && ne.Timeout() {
				p.t.Fatal("the connection was not closed")
			}
			return
		}
	}
}
