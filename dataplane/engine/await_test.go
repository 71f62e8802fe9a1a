// SPDX-License-Identifier: Apache-2.0

package engine

import (
	"context"
	"errors"
	"net/netip"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ztunnel-go/ztunnel/dataplane/hbone/wire"
	"github.com/ztunnel-go/ztunnel/internal/sock"
)

// An opened is what Begin came to.
type opened struct {
	s   *Stream
	err error
}

func (r *rig) begin(ctx context.Context, t *Tunnel) chan opened {
	got := make(chan opened, 2) // one too many would be seen
	if !t.Reserve(1) {
		r.Fatal("no room")
	}
	t.Begin(ctx, wire.Request{Authority: "10.0.0.1:80"}, func(s *Stream, _ wire.Response, err error) { got <- opened{s, err} })
	return got
}

func TestBeginTellsOfTheAnswer(t *testing.T) {
	r := newRig(t)
	client, _ := r.tunnels(wire.Settings{}, func(q *Request) { q.Accept(nil).Join(discard(r)) })
	o := await(t, r.begin(within(t), client))
	if o.err != nil {
		t.Fatal(o.err)
	}
	o.s.Reset()

	refusing, _ := r.tunnels(wire.Settings{}, func(q *Request) { q.Reject(503) })
	var status *wire.StatusError
	if o := await(t, r.begin(within(t), refusing)); !errors.As(o.err, &status) || status.Code != 503 || o.s != nil {
		t.Errorf("refused: %+v", o)
	}
}

func TestBeginEndsWithItsContextOrItsTunnel(t *testing.T) {
	r := newRig(t)
	hold := make(chan struct{})
	client, _ := r.tunnels(wire.Settings{}, func(*Request) { <-hold })
	t.Cleanup(func() { close(hold) })
	enough := errors.New("enough")
	ctx, cancel := context.WithCancelCause(t.Context())
	got := r.begin(ctx, client)
	cancel(enough)
	if o := await(t, got); !errors.Is(o.err, enough) {
		t.Errorf("given up: %+v", o)
	}
	got = r.begin(within(t), client)
	client.End(enough)
	var handshake *wire.HandshakeError
	if o := await(t, got); !errors.As(o.err, &handshake) {
		t.Errorf("lost: %+v", o)
	}
	<-client.gone
	client.Promise(1)
	late := make(chan error, 1)
	client.Begin(within(t), wire.Request{}, func(_ *Stream, _ wire.Response, err error) { late <- err })
	if err := await(t, late); !errors.As(err, &handshake) {
		t.Errorf("after its end: %v", err)
	}
	if len(got) != 0 {
		t.Error("told twice")
	}
}

// awaited has the requests of a tunnel wait for d.
func (r *rig) awaited(ctx context.Context, d *sock.Dialing, patience time.Duration) error {
	near, far := pair(r)
	cs, ss := r.sessions(near, far)
	client := r.engine.Client(take(r, near), cs, Config{})
	told := make(chan error, 2)
	server := r.engine.Server(take(r, far), ss, Config{Request: func(q *Request) {
		q.Await(ctx, d, patience, func(err error) {
			told <- err
			q.Reject(503)
			q.Release()
		})
	}})
	r.Cleanup(client.Close)
	r.Cleanup(server.Close)
	_ = await(r, r.begin(within(r), client)) // refused in any case
	if len(told) != 1 {
		r.Errorf("told %d times", len(told))
	}
	return await(r, told)
}

func dialing(t *testing.T, to netip.AddrPort) *sock.Dialing {
	t.Helper()
	d, err := (&sock.Factory{}).DialNow(sock.Dial{Dst: to})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(d.Close)
	return d
}

func TestAwaitTellsWhatBecameOfAConnection(t *testing.T) {
	r := newRig(t)
	l, err := (&sock.Factory{}).ListenTCP(sock.Listen{Addr: netip.MustParseAddrPort("127.0.0.1:0")})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	at := netip.MustParseAddrPort(l.Addr().String())
	if err := r.awaited(within(t), dialing(t, at), patience); err != nil {
		t.Errorf("connected: %v", err)
	}
	// A queue that is full lets a connection wait.
	full, err := (&sock.Factory{}).ListenTCP(sock.Listen{Addr: netip.MustParseAddrPort("127.0.0.1:0"), Backlog: 1})
	if err != nil {
		t.Fatal(err)
	}
	defer full.Close()
	at = netip.MustParseAddrPort(full.Addr().String())
	stuck := func() *sock.Dialing {
		for range 8 {
			if d := dialing(t, at); !d.Done {
				return d
			}
		}
		t.Fatal("every connection is made")
		return nil
	}
	if err := r.awaited(within(t), stuck(), 50*time.Millisecond); err == nil || err.(interface{ Timeout() bool }).Timeout() != true {
		t.Errorf("late: %v", err)
	}
	ctx, cancel := context.WithCancelCause(t.Context())
	time.AfterFunc(20*time.Millisecond, func() { cancel(unix.EINTR) })
	if err := r.awaited(ctx, stuck(), patience); !errors.Is(err, unix.EINTR) {
		t.Errorf("given up: %v", err)
	}
}

func TestAListenerIsLeftAloneForAWhile(t *testing.T) {
	r := newRig(t)
	l, err := (&sock.Factory{}).ListenTCP(sock.Listen{Addr: netip.MustParseAddrPort("127.0.0.1:0")})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	fd, err := sock.DupFD(l)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	called := make(chan time.Time, 1024)
	const pause = 100 * time.Millisecond
	a, err := r.engine.Listen(fd, func() time.Duration {
		called <- time.Now()
		return pause
	})
	if err != nil {
		t.Fatal(err)
	}
	dialing(t, netip.MustParseAddrPort(l.Addr().String()))
	first, second := await(t, called), await(t, called) // it was not accepted
	if second.Sub(first) < pause/2 {
		t.Errorf("called again after %v", second.Sub(first))
	}
	a.Close()
	if a.src.Watching() || a.timer.At != 0 {
		t.Error("it goes on after Close")
	}
}
