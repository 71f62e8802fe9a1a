// SPDX-License-Identifier: Apache-2.0

package engine

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"sync"
	"testing"
	"time"

	"golang.org/x/net/http2"

	"github.com/ztunnel-go/ztunnel/dataplane/hbone/record"
	"github.com/ztunnel-go/ztunnel/dataplane/hbone/wire"
	"github.com/ztunnel-go/ztunnel/dataplane/relay"
)

// An exchange is a random life of some connections in one tunnel, whose other
// side is this engine or x/net's HTTP/2. Whatever a connection says is said
// back to it, unless it is reset on the way.
type exchange struct {
	*rig
	rng  *rand.Rand // of the one who sets it up
	set  wire.Settings
	done sync.WaitGroup
}

// A plan is one connection's part.
type plan struct {
	seed  uint64
	bytes int
	reset bool // in the middle, by the client's application
}

func FuzzExchange(f *testing.F) {
	for seed := range uint64(9) {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, seed uint64) {
		rng := rand.New(rand.NewPCG(seed, 1))
		x := &exchange{rig: newRig(t), rng: rng, set: wire.Settings{
			StreamWindow: uint32(1<<10 + rng.IntN(1<<uint(11+rng.IntN(10)))),
			ConnWindow:   uint32(rng.IntN(1 << 20)),
			MaxFrameSize: uint32(rng.IntN(1 << 17)),
		}}
		x.Cleanup(x.done.Wait) // after all that is registered later
		var open func() *net.TCPConn
		switch seed % 3 {
		case 0:
			open = x.ourselves()
		case 1:
			open = x.stockServer()
		case 2:
			open = x.stockClient()
		}
		var talking sync.WaitGroup
		for range 1 + rng.IntN(5) {
			p := plan{seed: rng.Uint64(), bytes: rng.IntN(1 << uint(1+rng.IntN(19))), reset: rng.IntN(5) == 0}
			app := open()
			talking.Go(func() { p.talk(t, app) })
		}
		talking.Wait()
	})
}

// talk says what was planned, in pieces, and hears it all back.
func (p plan) talk(t *testing.T, app *net.TCPConn) {
	defer app.Close()
	rng := rand.New(rand.NewPCG(p.seed, 2))
	data := noise(p.seed, p.bytes)
	app.SetDeadline(time.Now().Add(patience))
	stop := len(data)
	if p.reset {
		stop = rng.IntN(len(data) + 1)
	}
	written := make(chan error, 1)
	go func() {
		for rest := data[:stop]; len(rest) > 0; {
			n := min(len(rest), 1+rng.IntN(1<<uint(1+rng.IntN(16))))
			if _, err := app.Write(rest[:n]); err != nil {
				written <- err
				return
			}
			if rest = rest[n:]; rng.IntN(20) == 0 {
				time.Sleep(time.Duration(rng.IntN(1000)) * time.Microsecond)
			}
		}
		if p.reset {
			app.SetLinger(0)
			app.Close()
		} else {
			app.CloseWrite()
		}
		written <- nil
	}()
	got, err := io.ReadAll(app)
	werr := <-written
	if p.reset {
		return
	}
	if err != nil || werr != nil || !bytes.Equal(got, data) {
		t.Errorf("%+v: %d bytes came back, read %v, write %v", p, len(got), err, werr)
	}
}

// echoes is an application that a stream is joined with.
func (x *exchange) echoes(s *Stream) {
	app, inner := loosePair(x)
	x.done.Add(2)
	s.Join(relay.Join{FD: take(x, inner), Done: func(error) { x.done.Done() }})
	go func() {
		defer x.done.Done()
		defer app.Close()
		if _, err := io.CopyBuffer(struct{ io.Writer }{app}, struct{ io.Reader }{app}, make([]byte, 5000)); err == nil {
			app.CloseWrite()
		} else {
			app.SetLinger(0)
		}
	}()
}

// opener opens streams of a client's tunnel of ours.
func (x *exchange) opener(client *Tunnel) func() *net.TCPConn {
	return func() *net.TCPConn {
		s, _, err := client.Open(within(x), wire.Request{Authority: "10.0.0.1:80"})
		if err != nil {
			x.Fatal(err)
		}
		app, inner := pair(x)
		x.done.Add(1)
		s.Join(relay.Join{FD: take(x, inner), Client: true, Done: func(error) { x.done.Done() }})
		return app
	}
}

func (x *exchange) ourselves() func() *net.TCPConn {
	client, _ := x.tunnels(x.set, func(q *Request) { x.echoes(q.Accept(nil)) })
	return x.opener(client)
}

// stockServer is our client and x/net's server.
func (x *exchange) stockServer() func() *net.TCPConn {
	near, far := pair(x)
	srv := &http2.Server{MaxUploadBufferPerStream: int32(x.set.StreamWindow), MaxReadFrameSize: max(x.set.MaxFrameSize, 1<<14)}
	handler := http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
		w.WriteHeader(200)
		flush := w.(http.Flusher)
		flush.Flush()
		b := make([]byte, 3000)
		for {
			n, err := q.Body.Read(b)
			w.Write(b[:n])
			flush.Flush()
			if errors.Is(err, io.EOF) {
				return
			}
			if err != nil {
				panic(http.ErrAbortHandler)
			}
		}
	})
	served := make(chan struct{})
	go func() {
		defer close(served)
		tc := tls.Server(far, x.serverTLS())
		defer tc.Close()
		if err := tc.Handshake(); err != nil {
			x.Error(err)
		}
		srv.ServeConn(tc, &http2.ServeConnOpts{Handler: handler})
	}()
	session, err := record.Client(within(x), near, x.clientTLS())
	if err != nil {
		x.Fatal(err)
	}
	x.Cleanup(func() { await(x, served) })
	client := x.engine.Client(take(x, near), session, Config{Settings: x.set})
	x.Cleanup(client.Close)
	return x.opener(client)
}

// stockClient is x/net's client and our server. Its streams are given a socket
// by the test itself.
func (x *exchange) stockClient() func() *net.TCPConn {
	near, far := pair(x)
	shaken := make(chan *tls.Conn, 1)
	go func() {
		tc := tls.Client(near, x.clientTLS())
		if err := tc.Handshake(); err != nil {
			x.Error(err)
		}
		shaken <- tc
	}()
	session, err := record.Server(within(x), far, x.serverTLS())
	if err != nil {
		x.Fatal(err)
	}
	server := x.engine.Server(take(x, far), session, Config{
		Settings: x.set, Request: x.serve(func(q *Request) { x.echoes(q.Accept(nil)) })})
	x.Cleanup(server.Close)
	cc, err := (&http2.Transport{}).NewClientConn(await(x, shaken))
	if err != nil {
		x.Fatal(err)
	}
	x.Cleanup(func() { cc.Close() })
	return func() *net.TCPConn {
		app, inner := pair(x)
		x.done.Go(func() { carry(x, cc, inner) })
		return app
	}
}

// carry is a connection over x/net's client.
func carry(t testing.TB, cc *http2.ClientConn, c *net.TCPConn) {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	pr, pw := io.Pipe()
	var up sync.WaitGroup
	up.Go(func() {
		_, err := io.Copy(struct{ io.Writer }{pw}, struct{ io.Reader }{c})
		if err != nil {
			cancel()
		}
		pw.CloseWithError(err)
	})
	defer up.Wait()
	defer c.Close()
	defer pr.Close()
	q, err := http.NewRequestWithContext(ctx, http.MethodConnect, "https://10.0.0.1:80", pr)
	if err != nil {
		t.Error(err)
		return
	}
	resp, err := cc.RoundTrip(q)
	if err != nil {
		c.SetLinger(0)
		return
	}
	defer resp.Body.Close()
	if _, err := io.Copy(struct{ io.Writer }{c}, resp.Body); err != nil {
		c.SetLinger(0)
	}
}
