// SPDX-License-Identifier: Apache-2.0

package engine

import (
	"context"
	"crypto/tls"
	"io"
	"net"
	"sync"
	"testing"
	"time"

	"github.com/ztunnel-go/ztunnel/dataplane/hbone/record"
	"github.com/ztunnel-go/ztunnel/dataplane/hbone/wire"
	"github.com/ztunnel-go/ztunnel/dataplane/reactor"
	"github.com/ztunnel-go/ztunnel/dataplane/relay"
	"github.com/ztunnel-go/ztunnel/internal/certs"
	"github.com/ztunnel-go/ztunnel/internal/certs/certstest"
	"github.com/ztunnel-go/ztunnel/internal/identity"
	"github.com/ztunnel-go/ztunnel/internal/mtls"
	"github.com/ztunnel-go/ztunnel/internal/sock"
	"github.com/ztunnel-go/ztunnel/test/leak"
)

const patience = 20 * time.Second

// A rig is an engine and the certificates of both sides.
type rig struct {
	testing.TB
	engine         *Engine
	group          *reactor.Group
	client, server *certs.Bundle
}

func newRig(t testing.TB) *rig {
	t.Helper()
	leak.Check(t)
	ca := certstest.Issuer(t, time.Hour)
	group, err := reactor.Start(2)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(group.Close)
	return &rig{
		TB: t, group: group, engine: New(group),
		client: ca.Bundle("spiffe://cluster.local/ns/a/sa/client"),
		server: ca.Bundle("spiffe://cluster.local/ns/b/sa/server"),
	}
}

func (r *rig) serverTLS() *tls.Config { return mtls.Server(r.server, mtls.Options{}) }
func (r *rig) clientTLS() *tls.Config {
	return mtls.Client(r.client, []identity.ID{r.server.Identity()}, mtls.Options{})
}

func within(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	t.Cleanup(cancel)
	return ctx
}

// pair is a TCP connection over loopback.
func pair(t testing.TB) (near, far *net.TCPConn) {
	t.Helper()
	a, b := loosePair(t)
	t.Cleanup(func() {
		a.Close()
		b.Close()
	})
	return a, b
}

// loosePair is a pair that others close.
func loosePair(t testing.TB) (near, far *net.TCPConn) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	a, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	b, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	return a.(*net.TCPConn), b.(*net.TCPConn)
}

func take(t testing.TB, c *net.TCPConn) int {
	t.Helper()
	fd, err := sock.TakeFD(c)
	if err != nil {
		t.Fatal(err)
	}
	return fd
}

// sessions is a finished handshake over a connection, as both see it.
func (r *rig) sessions(near, far *net.TCPConn) (client, server *record.Session) {
	r.Helper()
	var wg sync.WaitGroup
	var serr error
	wg.Go(func() { server, serr = record.Server(within(r), far, r.serverTLS()) })
	client, cerr := record.Client(within(r), near, r.clientTLS())
	wg.Wait()
	if cerr != nil || serr != nil {
		r.Fatal(cerr, serr)
	}
	return client, server
}

// tunnels is a tunnel between two engines' sides; requests go to handler, in
// goroutines that the rig waits for.
func (r *rig) tunnels(set wire.Settings, handler func(*Request)) (client, server *Tunnel) {
	near, far := pair(r)
	cs, ss := r.sessions(near, far)
	client = r.engine.Client(take(r, near), cs, Config{Settings: set})
	server = r.engine.Server(take(r, far), ss, Config{Settings: set, Request: r.serve(handler)})
	r.Cleanup(client.Close)
	r.Cleanup(server.Close)
	return client, server
}

func (r *rig) serve(handler func(*Request)) func(*Request) {
	var wg sync.WaitGroup
	r.Cleanup(wg.Wait)
	return func(q *Request) {
		wg.Go(func() {
			defer q.Release()
			handler(q)
		})
	}
}

// joined is an application's connection whose other end is joined with s.
func (r *rig) joined(s *Stream, client bool) (app *net.TCPConn, done chan error, sent, received *int64) {
	app, inner := pair(r)
	done = make(chan error, 1)
	sent, received = new(int64), new(int64)
	s.Join(relay.Join{
		FD: take(r, inner), Client: client,
		Counts: relay.Counts{Sent: func(n int) { *sent += int64(n) }, Received: func(n int) { *received += int64(n) }},
		Done:   func(err error) { done <- err },
	})
	return app, done, sent, received
}

func await[T any](t testing.TB, ch <-chan T) T {
	t.Helper()
	select {
	case v := <-ch:
		return v
	case <-time.After(patience):
		t.Fatal("never")
		panic("unreachable")
	}
}

// discard is an application that takes everything and says nothing.
func discard(t testing.TB) relay.Join {
	t.Helper()
	app, inner := pair(t)
	go io.Copy(io.Discard, app) // ends with the test, which closes app
	return relay.Join{FD: take(t, inner), Done: func(error) {}}
}
