// SPDX-License-Identifier: Apache-2.0

package h2spec

import (
	"context"
	"crypto/tls"
	"io"
	"net"
	"net/http"
	"sync"
	"testing"
	"time"

	"github.com/ztunnel-go/ztunnel/dataplane/engine"
	"github.com/ztunnel-go/ztunnel/dataplane/hbone"
	"github.com/ztunnel-go/ztunnel/dataplane/reactor"
	"github.com/ztunnel-go/ztunnel/dataplane/relay"
	"github.com/ztunnel-go/ztunnel/internal/certs"
	"github.com/ztunnel-go/ztunnel/internal/certs/certstest"
	"github.com/ztunnel-go/ztunnel/internal/identity"
	"github.com/ztunnel-go/ztunnel/internal/mtls"
)

// A server is the serving side of HBONE as the inbound listener has it, with an
// application behind it.
type server struct {
	addr           string
	client, server *certs.Bundle
	app            *net.TCPListener
	running        sync.WaitGroup
}

// newServer serves until the end of the test. With eng nil goroutines carry
// the tunnels (TLS_ENGINE=std).
func newServer(t *testing.T, eng *engine.Engine) *server {
	t.Helper()
	ca := certstest.Issuer(t, time.Hour)
	s := &server{
		client: ca.Bundle("spiffe://cluster.local/ns/a/sa/client"),
		server: ca.Bundle("spiffe://cluster.local/ns/b/sa/server"),
	}
	tunnels := listen(t)
	s.addr, s.app = tunnels.Addr().String(), listen(t)
	ctx, cancel := context.WithCancel(context.Background())
	s.accept(tunnels, func(c *net.TCPConn) {
		// What ends a tunnel is what is tested, and it is seen from outside.
		_ = hbone.ServeConn(ctx, c, mtls.Server(s.server, mtls.Options{}), hbone.ServerConfig{Engine: eng, Handler: s.serve})
	})
	s.accept(s.app, answer)
	t.Cleanup(func() {
		cancel()
		tunnels.Close()
		s.app.Close()
		s.running.Wait()
	})
	return s
}

// loops is an engine that ends with the test.
func loops(t *testing.T) *engine.Engine {
	t.Helper()
	group, err := reactor.Start(2)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(group.Close)
	return engine.New(group)
}

func listen(t *testing.T) *net.TCPListener {
	t.Helper()
	l, err := net.ListenTCP("tcp", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// accept gives every connection a goroutine; they end before the test.
func (s *server) accept(l *net.TCPListener, f func(*net.TCPConn)) {
	s.running.Go(func() {
		for {
			c, err := l.AcceptTCP()
			if err != nil {
				return
			}
			s.running.Go(func() { f(c) })
		}
	})
}

// text is what the application says: enough for the cases of flow control.
const text = "hello, whoever you are"

// answer is the application: it hears its client out, and then speaks.
func answer(c *net.TCPConn) {
	defer c.Close()
	if _, err := io.Copy(io.Discard, c); err == nil {
		_, _ = io.WriteString(c, text) // nobody has to listen
	}
}

// serve answers a request as the inbound pipeline does (contract 5.2), but that
// every CONNECT may go to the application.
func (s *server) serve(r *hbone.Connect) {
	if r.Method != http.MethodConnect {
		_ = r.Reject(http.StatusBadRequest) // or it has gone
		return
	}
	var d net.Dialer
	c, err := d.DialContext(r.Context(), "tcp", s.app.Addr().String())
	if err != nil {
		_ = r.Reject(http.StatusServiceUnavailable)
		return
	}
	application := relay.TCP(c.(*net.TCPConn))
	stream, err := r.Accept(nil)
	if err != nil {
		application.Reset()
		return
	}
	relay.Carry(context.Background(), stream, application, relay.Counts{}, func(error) {})
}

func (s *server) dial(ctx context.Context) (net.Conn, error) {
	var d net.Dialer
	c, err := d.DialContext(ctx, "tcp", s.addr)
	if err != nil {
		return nil, err
	}
	secured := tls.Client(c, mtls.Client(s.client, []identity.ID{s.server.Identity()}, mtls.Options{}))
	if err := secured.HandshakeContext(ctx); err != nil {
		c.Close()
		return nil, err
	}
	return secured, nil
}
