// SPDX-License-Identifier: Apache-2.0

package hbone

import (
	"context"
	"io"
	"net"
	"sync"
	"testing"
	"time"

	"github.com/ztunnel-go/ztunnel/dataplane/engine"
	"github.com/ztunnel-go/ztunnel/dataplane/reactor"
	"github.com/ztunnel-go/ztunnel/dataplane/relay"
	"github.com/ztunnel-go/ztunnel/internal/certs/certstest"
	"github.com/ztunnel-go/ztunnel/internal/identity"
	"github.com/ztunnel-go/ztunnel/internal/mtls"
)

// A road is two applications with both sides of a tunnel between them, all in
// this process: what costs here is what our code costs twice.
type road struct {
	tb   testing.TB
	pool *Pool
	addr net.Addr
	key  Key
	wg   sync.WaitGroup
}

func newRoad(tb testing.TB, e *engine.Engine, app func(*net.TCPConn)) *road {
	ca := certstest.Issuer(tb, time.Hour)
	client, server := ca.Bundle("spiffe://cluster.local/ns/a/sa/client"), ca.Bundle("spiffe://cluster.local/ns/b/sa/server")
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		tb.Fatal(err)
	}
	r := &road{tb: tb, addr: l.Addr()}
	handler := func(q *Connect) {
		s, err := q.Accept(nil)
		if err != nil {
			return
		}
		a, b := benchPair(tb)
		r.wg.Go(func() { app(b) })
		done := make(chan error, 1)
		relay.Carry(context.Background(), s, relay.TCP(a), relay.Counts{}, func(err error) { done <- err })
		<-done
	}
	r.wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			r.wg.Go(func() {
				ServeConn(context.Background(), c, mtls.Server(server, mtls.Options{}), ServerConfig{Handler: handler, Engine: e})
			})
		}
	})
	r.key = Key{Dst: l.Addr().(*net.TCPAddr).AddrPort()}
	r.pool = NewPool(PoolConfig{
		Dial: func(ctx context.Context, k Key) (net.Conn, error) { return net.Dial("tcp", l.Addr().String()) },
		TLS: func(context.Context, Key) (Handshake, error) {
			return Handshake{Config: mtls.Client(client, []identity.ID{server.Identity()}, mtls.Options{})}, nil
		},
		Engine: e,
	})
	tb.Cleanup(func() {
		r.pool.Close()
		l.Close()
		r.wg.Wait()
	})
	return r
}

func benchPair(tb testing.TB) (a, b *net.TCPConn) {
	x, y := tcpPair(tb)
	return x.(*net.TCPConn), y.(*net.TCPConn)
}

// dial is an application's connection over the road.
func (r *road) dial() *net.TCPConn {
	a, b := benchPair(r.tb)
	s, _, err := r.pool.Open(context.Background(), r.key, Request{Authority: "10.0.0.1:80"})
	if err != nil {
		r.tb.Fatal(err)
	}
	r.wg.Go(func() {
		done := make(chan error, 1)
		relay.Carry(context.Background(), relay.TCP(a), s, relay.Counts{}, func(err error) { done <- err })
		<-done
	})
	return b
}

func echoApp(c *net.TCPConn) {
	defer c.Close()
	b := make([]byte, 64<<10)
	for {
		n, err := c.Read(b)
		if err != nil {
			return
		}
		c.Write(b[:n])
	}
}

func engines(b *testing.B, f func(b *testing.B, e *engine.Engine)) {
	b.Run("std", func(b *testing.B) { f(b, nil) })
	b.Run("reactor", func(b *testing.B) {
		group, err := reactor.Start(2)
		if err != nil {
			b.Fatal(err)
		}
		b.Cleanup(group.Close)
		f(b, engine.New(group))
	})
}

func BenchmarkThroughput(b *testing.B) {
	engines(b, func(b *testing.B, e *engine.Engine) {
		got := make(chan int64, 1)
		r := newRoad(b, e, func(c *net.TCPConn) {
			n, _ := io.CopyBuffer(struct{ io.Writer }{io.Discard}, struct{ io.Reader }{c}, make([]byte, 256<<10))
			got <- n
			c.Close()
		})
		c := r.dial()
		chunk := make([]byte, 256<<10)
		b.SetBytes(int64(len(chunk)))
		b.ResetTimer()
		for range b.N {
			if _, err := c.Write(chunk); err != nil {
				b.Fatal(err)
			}
		}
		c.CloseWrite()
		if n := <-got; n != int64(b.N*len(chunk)) {
			b.Fatalf("%d bytes", n)
		}
		b.StopTimer()
		c.Close()
	})
}

func BenchmarkRoundTrips(b *testing.B) {
	for _, conns := range []int{1, 32} {
		for _, size := range []int{64, 16 << 10} {
			b.Run(map[int]string{1: "1", 32: "32"}[conns]+map[int]string{64: "x64B", 16 << 10: "x16KiB"}[size], func(b *testing.B) {
				engines(b, func(b *testing.B, e *engine.Engine) {
					r := newRoad(b, e, echoApp)
					var wg sync.WaitGroup
					list := make([]*net.TCPConn, conns)
					for i := range list {
						list[i] = r.dial()
					}
					b.ResetTimer()
					for i, c := range list {
						n := b.N / conns
						if i == 0 {
							n += b.N % conns
						}
						wg.Go(func() {
							p := make([]byte, size)
							for range n {
								c.Write(p)
								if _, err := io.ReadFull(c, p); err != nil {
									b.Error(err)
									return
								}
							}
						})
					}
					wg.Wait()
					b.StopTimer()
					for _, c := range list {
						c.Close()
					}
				})
			})
		}
	}
}

func BenchmarkConnections(b *testing.B) {
	engines(b, func(b *testing.B, e *engine.Engine) {
		r := newRoad(b, e, echoApp)
		p := make([]byte, 64)
		b.ResetTimer()
		for range b.N {
			c := r.dial()
			c.Write(p)
			if _, err := io.ReadFull(c, p); err != nil {
				b.Fatal(err)
			}
			c.Close()
		}
	})
}
