// SPDX-License-Identifier: Apache-2.0

package hbone

import (
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/ztunnel-go/ztunnel/internal/identity"
	"github.com/ztunnel-go/ztunnel/internal/mtls"
	"github.com/ztunnel-go/ztunnel/test/leak"
)

// hold accepts and waits for the peer's end.
func hold(c *Connect) {
	s, err := c.Accept(nil)
	if err != nil {
		return
	}
	io.Copy(io.Discard, s)
	s.CloseWrite()
}

// finish ends a stream on both sides.
func finish(t *testing.T, s Stream) {
	t.Helper()
	s.CloseWrite()
	mustEnd(t, s)
	s.Close()
}

func TestOneTunnelIsMadeForAllWhoAskAtOnce(t *testing.T) {
	r := newRig(t, hold)
	p := r.pool(nil)
	var wg sync.WaitGroup
	for range 100 {
		wg.Go(func() { r.open(p) })
	}
	wg.Wait()
	if n := len(r.accepted()); n != 1 {
		t.Errorf("%d tunnels", n)
	}
	r.open(p) // the hundred and first
	if n := len(r.accepted()); n != 2 {
		t.Errorf("%d tunnels", n)
	}
}

func TestDifferentKeysHaveDifferentTunnels(t *testing.T) {
	r := newRig(t, hold)
	p := r.pool(nil)
	other := r.key()
	other.Src = netip.MustParseAddr("10.0.0.7")
	expect := r.key()
	expect.Expect += ",spiffe://cluster.local/ns/c/sa/d"
	for _, k := range []Key{r.key(), other, expect, r.key()} {
		if _, _, err := p.Open(within(t), k, Request{Authority: "a:1"}); err != nil {
			t.Fatal(err)
		}
	}
	if n := len(r.accepted()); n != 3 {
		t.Errorf("%d tunnels", n)
	}
}

func TestATunnelThatWasFullLeavesThePool(t *testing.T) {
	r := newRig(t, hold)
	p := r.pool(func(c *PoolConfig) { c.MaxStreams = 2 })
	a, b := r.open(p), r.open(p)
	if carried(a) != carried(b) {
		t.Fatal("two streams are on two tunnels")
	}
	finish(t, a)
	c := r.open(p) // there is room, but it was full once
	if carried(c) == carried(b) {
		t.Error("a tunnel that was full came back")
	}
	finish(t, b)
	eventually(t, "it ends with its streams", func() bool {
		p.mu.Lock()
		defer p.mu.Unlock()
		return len(p.all) == 1
	})
	finish(t, c)
}

func TestOneStreamPerTunnel(t *testing.T) {
	r := newRig(t, hold)
	p := r.pool(func(c *PoolConfig) { c.MaxStreams = 1 })
	var wg sync.WaitGroup
	for range 5 {
		wg.Go(func() { r.open(p) })
	}
	wg.Wait()
	if n := len(r.accepted()); n != 5 {
		t.Errorf("%d tunnels", n)
	}
}

func TestThePeersLimitHolds(t *testing.T) {
	r := newRigWith(t, Settings{MaxStreams: 3}, hold)
	p := r.pool(nil)
	r.open(p)
	eventually(t, "the limit is known", func() bool {
		p.mu.Lock()
		defer p.mu.Unlock()
		for tunnel := range p.all {
			if tunnel.reserve(3) { // one stream is there
				tunnel.cede(3)
				return false
			}
		}
		return true
	})
	for range 5 {
		r.open(p)
	}
	if n := len(r.accepted()); n != 2 {
		t.Errorf("%d tunnels", n)
	}
}

func TestGoAwayReplacesATunnel(t *testing.T) {
	r := newRig(t, hold)
	p := r.pool(nil)
	a := r.open(p)
	r.accepted()[0].Drain()
	eventually(t, "the client knows", func() bool {
		return leaving(a)
	})
	b := r.open(p)
	if carried(a) == carried(b) {
		t.Error("a stream was opened on a tunnel that leaves")
	}
	finish(t, a)
	finish(t, b)
}

func TestATunnelThatDiedIsReplacedUnseen(t *testing.T) {
	r := newRig(t, hold)
	p := r.pool(nil)
	finish(t, r.open(p))
	for range 20 {
		r.cut(-1)
		finish(t, r.open(p)) // whether the pool has heard of it or not
	}
}

func TestAFailedTunnelIsToldToAllWhoWait(t *testing.T) {
	leak.Check(t)
	var dials atomic.Int32
	fail := make(chan struct{})
	p := NewPool(PoolConfig{
		Dial: func(ctx context.Context, _ Key) (net.Conn, error) {
			dials.Add(1)
			<-fail
			return nil, errors.New("no route")
		},
		TLS: func(context.Context, Key) (Handshake, error) { return Handshake{}, nil },
	})
	defer p.Close()
	errs := make(chan error, 20)
	for range 20 {
		go func() {
			_, _, err := p.Open(within(t), Key{}, Request{})
			errs <- err
		}()
	}
	eventually(t, "all wait", func() bool {
		p.mu.Lock()
		defer p.mu.Unlock()
		return len(p.attempts[Key{}]) == 1 && p.attempts[Key{}][0].waiters == 20
	})
	close(fail)
	for range 20 {
		var dial *DialError
		if err := <-errs; !errors.As(err, &dial) || dial.Timeout() || err.Error() != "io error: no route" {
			t.Errorf("got %v", err)
		}
	}
	if n := dials.Load(); n != 1 {
		t.Errorf("%d dials", n)
	}
}

func TestAWaiterMayGiveUpAlone(t *testing.T) {
	leak.Check(t)
	started, ended := make(chan struct{}, 9), make(chan struct{}, 9)
	p := NewPool(PoolConfig{
		Dial: func(ctx context.Context, _ Key) (net.Conn, error) {
			started <- struct{}{}
			<-ctx.Done()
			ended <- struct{}{}
			return nil, ctx.Err()
		},
		TLS: func(context.Context, Key) (Handshake, error) { return Handshake{}, nil },
	})
	defer p.Close()
	why := errors.New("the client left")
	ctx1, cancel1 := context.WithCancelCause(t.Context())
	ctx2, cancel2 := context.WithCancelCause(t.Context())
	errs := make(chan error, 2)
	for _, ctx := range []context.Context{ctx1, ctx2} {
		go func() {
			_, _, err := p.Open(ctx, Key{}, Request{})
			errs <- err
		}()
	}
	<-started
	eventually(t, "both wait", func() bool {
		p.mu.Lock()
		defer p.mu.Unlock()
		return len(p.attempts[Key{}]) == 1 && p.attempts[Key{}][0].waiters == 2
	})
	cancel1(why)
	if err := <-errs; !errors.Is(err, why) {
		t.Errorf("got %v", err)
	}
	select {
	case <-ended:
		t.Error("the attempt ended with its first waiter")
	default:
	}
	cancel2(why)
	<-errs
	<-ended
}

func TestTimeoutsReadAsTheContractSays(t *testing.T) {
	err := error(&DialError{Err: context.DeadlineExceeded})
	if got := err.Error(); got != "connection timed out, maybe a NetworkPolicy is blocking HBONE port 15008: deadline has elapsed" {
		t.Error(got)
	}
}

func TestTheWrongPeerIsNotSpokenTo(t *testing.T) {
	r := newRig(t, func(*Connect) { t.Error("a request came through") })
	stranger, err := identity.Parse("spiffe://cluster.local/ns/x/sa/y")
	if err != nil {
		t.Fatal(err)
	}
	p := r.pool(func(c *PoolConfig) {
		c.TLS = func(context.Context, Key) (Handshake, error) {
			return Handshake{Config: mtls.Client(r.client, []identity.ID{stranger}, mtls.Options{})}, nil
		}
	})
	_, _, err = p.Open(within(t), r.key(), Request{Authority: "a:1"})
	var te *TLSError
	var mismatch *mtls.SANMismatchError
	if !errors.As(err, &te) || !errors.As(err, &mismatch) {
		t.Errorf("got %v", err)
	}
}

func TestNoCertificateNoTunnel(t *testing.T) {
	r := newRig(t, echo)
	missing := errors.New("signing gRPC error")
	p := r.pool(func(c *PoolConfig) {
		c.TLS = func(context.Context, Key) (Handshake, error) { return Handshake{}, missing }
		c.Dial = func(context.Context, Key) (net.Conn, error) { t.Error("dialled"); return nil, missing }
	})
	if _, _, err := p.Open(within(t), r.key(), Request{}); !errors.Is(err, missing) {
		t.Errorf("got %v", err)
	}
}

func TestOpenHonoursItsContextWhileThePeerThinks(t *testing.T) {
	arrived := make(chan struct{})
	r := newRig(t, func(c *Connect) {
		close(arrived)
		<-c.Context().Done() // the client's reset
	})
	p := r.pool(nil)
	why := errors.New("enough")
	ctx, cancel := context.WithCancelCause(t.Context())
	go func() { <-arrived; cancel(why) }()
	if _, _, err := p.Open(ctx, r.key(), Request{Authority: "a:1"}); !errors.Is(err, why) {
		t.Errorf("got %v", err)
	}
}

func TestIdleTunnelsAreReleased(t *testing.T) {
	r := newRig(t, hold)
	p := r.pool(func(c *PoolConfig) { c.IdleTimeout = 30 * time.Millisecond })
	a := r.open(p)
	eventually(t, "the pool lets go", func() bool {
		p.mu.Lock()
		defer p.mu.Unlock()
		return p.lru.Len() == 0
	})
	io.WriteString(a, "still") // its stream lives
	b := r.open(p)
	if carried(a) == carried(b) {
		t.Error("a released tunnel was used")
	}
	finish(t, a)
	eventually(t, "the tunnel ends with its stream", func() bool {
		p.mu.Lock()
		defer p.mu.Unlock()
		return len(p.all) == 1
	})
	finish(t, b)
}

func TestThePoolKeepsTheLatest(t *testing.T) {
	r := newRig(t, hold)
	p := r.pool(nil)
	p.mu.Lock()
	for i := range maxPooled + 10 {
		nc, _ := net.Pipe()
		tunnel := &Tunnel{&goTunnel{c: newConn(nc, nc, true, Settings{}), max: 1}}
		p.poolLocked(Key{Src: netip.AddrFrom4([4]byte{10, 0, byte(i >> 8), byte(i)})}, tunnel)
	}
	if n := p.lru.Len(); n != maxPooled || len(p.pooled) != n {
		t.Errorf("%d pooled, %d keys", n, len(p.pooled))
	}
	if _, there := p.pooled[Key{Src: netip.AddrFrom4([4]byte{10, 0, 0, 9})}]; there {
		t.Error("the oldest are kept")
	}
	p.mu.Unlock()
}

func TestDrainLetsStreamsFinish(t *testing.T) {
	r := newRig(t, echo)
	p := r.pool(nil)
	s := r.open(p)
	p.Drain()
	if _, _, err := p.Open(within(t), r.key(), Request{}); !errors.Is(err, ErrDraining) || err.Error() != "pool draining" {
		t.Errorf("got %v", err)
	}
	io.WriteString(s, "still here")
	mustRead(t, s, "still here")
	finish(t, s)
	eventually(t, "no tunnel is left", func() bool {
		p.mu.Lock()
		defer p.mu.Unlock()
		return len(p.all) == 0
	})
}

func TestCloseEndsEverything(t *testing.T) {
	r := newRig(t, hold)
	p := r.pool(nil)
	s := r.open(p)
	p.Close()
	p.Close()
	var reset *ResetError
	if _, err := s.Read(make([]byte, 1)); !errors.As(err, &reset) || !errors.Is(err, ErrClosed) {
		t.Errorf("got %v", err)
	}
}
