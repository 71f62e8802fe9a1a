// SPDX-License-Identifier: Apache-2.0

package relay_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/ztunnel-go/ztunnel/dataplane/hbone"
	"github.com/ztunnel-go/ztunnel/dataplane/relay"
	"github.com/ztunnel-go/ztunnel/test/leak"
)

// A mesh is two relays with a tunnel between them:
//
//	client - TCP - relay - tunnel - relay - TCP - server
type mesh struct {
	client, server    *net.TCPConn
	near, far         chan error // how the relays ended
	cancel            context.CancelCauseFunc
	wire              net.Conn // of the tunnel, to be cut
	out, in           atomic.Int64
	nearEnds, farEnds relay.Ends
}

func newMesh(t *testing.T) *mesh {
	t.Helper()
	leak.Check(t)
	m := &mesh{near: make(chan error, 1), far: make(chan error, 1)}
	var nearApp, farApp *net.TCPConn
	m.client, nearApp = pair(t)
	farApp, m.server = pair(t)
	nearEnd, farEnd := pair(t)
	m.wire = farEnd

	served := make(chan struct{})
	go func() {
		defer close(served)
		hbone.ServeConn(context.Background(), farEnd, nil, hbone.ServerConfig{Handler: func(r *hbone.Connect) {
			s, err := r.Accept(nil)
			if err != nil {
				t.Error(err)
				return
			}
			m.far <- relay.Hastily(context.Background(), s, relay.TCP(farApp), relay.Counts{Ends: &m.farEnds})
		}})
	}()
	pool := hbone.NewPool(hbone.PoolConfig{
		Dial: func(context.Context, hbone.Key) (net.Conn, error) { return nearEnd, nil },
		TLS:  func(context.Context, hbone.Key) (hbone.Handshake, error) { return hbone.Handshake{}, nil },
	})
	s, _, err := pool.Open(t.Context(), hbone.Key{}, hbone.Request{Authority: "a:1"})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancelCause(context.Background())
	m.cancel = cancel
	go func() {
		m.near <- relay.Hastily(ctx, relay.TCP(nearApp), s, relay.Counts{
			Sent: func(n int) { m.out.Add(int64(n)) }, Received: func(n int) { m.in.Add(int64(n)) },
			Ends: &m.nearEnds,
		})
	}()
	t.Cleanup(func() {
		cancel(errors.New("test is over"))
		pool.Close()
		<-served
	})
	for _, c := range []*net.TCPConn{m.client, m.server} {
		c.SetDeadline(time.Now().Add(20 * time.Second))
	}
	return m
}

// ended waits for both relays.
func (m *mesh) ended(t *testing.T) (near, far error) {
	t.Helper()
	for _, side := range []struct {
		c   chan error
		err *error
	}{{m.near, &near}, {m.far, &far}} {
		select {
		case *side.err = <-side.c:
		case <-time.After(15 * time.Second):
			t.Fatal("a relay did not end")
		}
	}
	return near, far
}

// ends are the two applications, in both roles.
func (m *mesh) ends() map[string][2]*net.TCPConn {
	return map[string][2]*net.TCPConn{"client": {m.client, m.server}, "server": {m.server, m.client}}
}

func eachEnd(t *testing.T, f func(t *testing.T, m *mesh, from, to *net.TCPConn)) {
	for _, name := range []string{"client", "server"} {
		t.Run(name, func(t *testing.T) {
			m := newMesh(t)
			e := m.ends()[name]
			f(t, m, e[0], e[1])
		})
	}
}

func TestAnEndPassesThroughATunnel(t *testing.T) {
	eachEnd(t, func(t *testing.T, m *mesh, from, to *net.TCPConn) {
		write(t, from, "one")
		from.CloseWrite()
		expect(t, to, "one")
		expectEnd(t, to)
		write(t, to, "two")
		expect(t, from, "two")
		to.CloseWrite()
		expectEnd(t, from)
		near, far := m.ended(t)
		if near != nil || far != nil {
			t.Errorf("ended with %v and %v", near, far)
		}
		if m.out.Load()+m.in.Load() != 6 {
			t.Errorf("counted %d and %d", m.out.Load(), m.in.Load())
		}
	})
}

func TestAResetPassesThroughATunnel(t *testing.T) {
	eachEnd(t, func(t *testing.T, m *mesh, from, to *net.TCPConn) {
		write(t, from, "before")
		expect(t, to, "before")
		reset(from)
		expectReset(t, to)
		near, far := m.ended(t)
		for _, err := range []error{near, far} {
			var e *relay.Error
			if !errors.As(err, &e) || !relay.Quiet(err) {
				t.Errorf("ended with %v", err)
			}
		}
	})
}

func TestAResetAfterTheEndPassesThroughATunnel(t *testing.T) {
	eachEnd(t, func(t *testing.T, m *mesh, from, to *net.TCPConn) {
		from.CloseWrite()
		expectEnd(t, to)
		reset(from)
		eventuallyBroken(t, to)
		m.ended(t)
	})
}

func TestAResetAfterTheOthersEndPassesThroughATunnel(t *testing.T) {
	eachEnd(t, func(t *testing.T, m *mesh, from, to *net.TCPConn) {
		to.CloseWrite()
		expectEnd(t, from)
		reset(from)
		expectReset(t, to)
		m.ended(t)
	})
}

func TestTheAnswerBeforeAResetPassesThroughATunnel(t *testing.T) {
	eachEnd(t, func(t *testing.T, m *mesh, from, to *net.TCPConn) {
		write(t, to, "the other direction is busy")
		expect(t, from, "the other direction is busy")
		write(t, from, "goodbye")
		expect(t, to, "goodbye")
		write(t, from, "and this")
		for m.out.Load() < 15 && m.in.Load() < 15 {
			time.Sleep(time.Millisecond)
		}
		reset(from)
		got := make([]byte, 8)
		if n, err := io.ReadFull(to, got); err != nil && !errors.Is(err, syscall.ECONNRESET) || n > 0 && string(got[:n]) != "and this"[:n] {
			t.Errorf("%q, %v", got[:n], err)
		}
		m.ended(t)
	})
}

func TestTheLossOfATunnelIsAReset(t *testing.T) {
	m := newMesh(t)
	write(t, m.client, "x")
	expect(t, m.server, "x")
	m.wire.Close()
	expectReset(t, m.client)
	expectReset(t, m.server)
	near, far := m.ended(t)
	for _, err := range []error{near, far} {
		var lost *hbone.ResetError
		if !errors.As(err, &lost) || lost.Cause == nil || !relay.Quiet(err) {
			t.Errorf("ended with %v", err)
		}
	}
}

func TestTheLossOfATunnelAfterAnEndIsAReset(t *testing.T) {
	m := newMesh(t)
	m.server.CloseWrite()
	expectEnd(t, m.client)
	m.wire.Close()
	eventuallyBroken(t, m.client)
	m.ended(t)
}

func TestAPolicyCutPassesThroughATunnel(t *testing.T) {
	m := newMesh(t)
	write(t, m.client, "x")
	expect(t, m.server, "x")
	cause := errors.New("connection closed due to policy change")
	m.cancel(cause)
	expectReset(t, m.client)
	expectReset(t, m.server)
	if near, _ := m.ended(t); !errors.Is(near, cause) {
		t.Errorf("ended with %v", near)
	}
}

// An application that neither reads nor leaves must not keep a connection that
// its peer has reset.
func TestAStalledApplicationIsNotWaitedForLong(t *testing.T) {
	m := newMesh(t)
	go func() {
		b := make([]byte, 1<<20)
		for {
			if _, err := m.client.Write(b); err != nil {
				return
			}
		}
	}()
	for last := int64(-1); last != m.out.Load(); time.Sleep(50 * time.Millisecond) {
		last = m.out.Load()
	}
	reset(m.client)
	m.ended(t)
}

func TestBulkBothWaysThroughATunnel(t *testing.T) {
	m := newMesh(t)
	const size = 24 << 20
	data := make([]byte, size)
	rand.NewChaCha8([32]byte{7}).Read(data)
	errs := make(chan error, 2)
	for _, c := range []*net.TCPConn{m.client, m.server} {
		go func() {
			_, err := c.Write(data)
			c.CloseWrite()
			errs <- err
		}()
	}
	got := make(chan []byte, 2)
	for _, c := range []*net.TCPConn{m.client, m.server} {
		go func() {
			b, err := io.ReadAll(c)
			if err != nil {
				t.Error(err)
			}
			got <- b
		}()
	}
	for range 2 {
		if !bytes.Equal(<-got, data) {
			t.Error("the bytes differ")
		}
		if err := <-errs; err != nil {
			t.Error(err)
		}
	}
	near, far := m.ended(t)
	if near != nil || far != nil || m.out.Load() != size || m.in.Load() != size {
		t.Errorf("%v, %v, counted %d and %d", near, far, m.out.Load(), m.in.Load())
	}
}
