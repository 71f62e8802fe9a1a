// SPDX-License-Identifier: Apache-2.0

package engine

import (
	"bytes"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"sync"
	"sync/atomic"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/ztunnel-go/ztunnel/dataplane/hbone/wire"
)

// An ending is a connection through a tunnel, from one application to another.
type ending struct {
	near, far         *net.TCPConn
	nearDone, farDone chan error
	nearSent, nearGot *int64
	farSent, farGot   *int64
	client, server    *Tunnel
}

func through(r *rig, set wire.Settings) *ending {
	e := &ending{}
	ready := make(chan struct{})
	var first atomic.Bool
	e.client, e.server = r.tunnels(set, func(q *Request) {
		if first.Swap(true) {
			q.Reject(503)
			return
		}
		s := q.Accept(nil)
		e.far, e.farDone, e.farSent, e.farGot = r.joined(s, false)
		close(ready)
	})
	s, _, err := e.client.Open(within(r), wire.Request{Authority: "10.0.0.1:80"})
	if err != nil {
		r.Fatal(err)
	}
	e.near, e.nearDone, e.nearSent, e.nearGot = r.joined(s, true)
	await(r, ready)
	return e
}

func noise(seed uint64, n int) []byte {
	b := make([]byte, n)
	rng := rand.NewChaCha8([32]byte{byte(seed)})
	rng.Read(b)
	return b
}

func TestBytesPassBothWaysAndEndsToo(t *testing.T) {
	for _, n := range []int{0, 1, 100, 16375, 16376, 1 << 20, 20 << 20} {
		r := newRig(t)
		e := through(r, wire.Settings{})
		up, down := noise(1, n), noise(2, n/2)
		var wg sync.WaitGroup
		send := func(c *net.TCPConn, b []byte) {
			wg.Go(func() {
				if _, err := c.Write(b); err != nil {
					t.Error(err)
				}
				c.CloseWrite()
			})
		}
		recv := func(c *net.TCPConn, b []byte) {
			wg.Go(func() {
				got, err := io.ReadAll(c)
				if err != nil || !bytes.Equal(got, b) {
					t.Errorf("%d bytes of %d, %v", len(got), len(b), err)
				}
			})
		}
		send(e.near, up)
		recv(e.far, up)
		send(e.far, down)
		recv(e.near, down)
		wg.Wait()
		if err := await(t, e.nearDone); err != nil {
			t.Errorf("near: %v", err)
		}
		if err := await(t, e.farDone); err != nil {
			t.Errorf("far: %v", err)
		}
		if int(*e.nearSent) != n || int(*e.farSent) != n || int(*e.nearGot) != n/2 || int(*e.farGot) != n/2 {
			t.Errorf("counted %d %d %d %d of %d", *e.nearSent, *e.farSent, *e.nearGot, *e.farGot, n)
		}
	}
}

func TestHalfAConnectionGoesOn(t *testing.T) {
	r := newRig(t)
	e := through(r, wire.Settings{})
	e.near.CloseWrite()
	if b, err := io.ReadAll(e.far); len(b) > 0 || err != nil {
		t.Fatalf("%q %v", b, err)
	}
	for range 10 {
		b := noise(3, 1000)
		if _, err := e.far.Write(b); err != nil {
			t.Fatal(err)
		}
		got := make([]byte, len(b))
		if _, err := io.ReadFull(e.near, got); err != nil || !bytes.Equal(got, b) {
			t.Fatal(err)
		}
	}
	e.far.CloseWrite()
	if b, err := io.ReadAll(e.near); len(b) > 0 || err != nil {
		t.Fatalf("%q %v", b, err)
	}
	if err := errors.Join(await(t, e.nearDone), await(t, e.farDone)); err != nil {
		t.Error(err)
	}
}

func TestAResetComesAfterWhatWasSaid(t *testing.T) {
	for _, half := range []bool{false, true} {
		r := newRig(t)
		e := through(r, wire.Settings{})
		if half { // the other direction has ended, so nobody writes there any more
			e.far.CloseWrite()
			if _, err := io.ReadAll(e.near); err != nil {
				t.Fatal(err)
			}
		}
		b := noise(4, 100000)
		e.near.Write(b)
		got := make([]byte, len(b))
		if _, err := io.ReadFull(e.far, got); err != nil || !bytes.Equal(got, b) {
			t.Fatal(err)
		}
		e.near.SetLinger(0)
		e.near.Close()
		n, err := e.far.Read(got)
		if n > 0 || !errors.Is(err, unix.ECONNRESET) {
			t.Errorf("half %v: %d bytes, %v", half, n, err)
		}
		var reset *wire.ResetError
		if err := await(t, e.farDone); !errors.As(err, &reset) || reset.Code != wire.ConnectError || !reset.Quiet() {
			t.Errorf("far: %v", err)
		}
		if err := await(t, e.nearDone); !errors.Is(err, unix.ECONNRESET) {
			t.Errorf("near: %v", err)
		}
	}
}

func TestAResetIsNoticedBehindAFIN(t *testing.T) {
	r := newRig(t)
	e := through(r, wire.Settings{})
	e.near.CloseWrite()
	if _, err := io.ReadAll(e.far); err != nil {
		t.Fatal(err)
	}
	e.near.SetLinger(0)
	e.near.Close()
	if err := await(t, e.nearDone); !errors.Is(err, unix.ECONNRESET) {
		t.Errorf("near: %v", err)
	}
	await(t, e.farDone)
	b := make([]byte, 1)
	if _, err := e.far.Read(b); !errors.Is(err, unix.ECONNRESET) && !errors.Is(err, unix.EPIPE) {
		// the FIN was read before; a write has to find out
		for err == nil || errors.Is(err, io.EOF) {
			_, err = e.far.Write(b)
		}
		if !errors.Is(err, unix.ECONNRESET) && !errors.Is(err, unix.EPIPE) {
			t.Error(err)
		}
	}
}

func TestTheLossOfATunnelIsAReset(t *testing.T) {
	r := newRig(t)
	e := through(r, wire.Settings{})
	e.client.End(errors.New("revoked"))
	for _, c := range []*net.TCPConn{e.near, e.far} {
		if n, err := c.Read(make([]byte, 1)); n > 0 || !errors.Is(err, unix.ECONNRESET) {
			t.Errorf("%d bytes, %v", n, err)
		}
	}
	var ended *wire.EndedError
	if err := await(t, e.nearDone); !errors.As(err, &ended) || err.Error() != "receive: tunnel lost: revoked" {
		t.Errorf("near: %v", err)
	}
	await(t, e.farDone)
	e.client.Wait()
	e.server.Wait()
}

// A receiver that stops reading holds its sender up and nobody else.
func TestBackPressureReachesTheSender(t *testing.T) {
	r := newRig(t)
	e := through(r, wire.Settings{StreamWindow: 1 << 20})
	var total int
	stopped := make(chan struct{})
	go func() {
		defer close(stopped)
		b := make([]byte, 64<<10)
		for {
			n, err := e.near.Write(b)
			if total += n; err != nil || total > 512<<20 {
				return
			}
		}
	}()
	var status *wire.StatusError
	if _, _, err := e.client.Open(within(t), wire.Request{Authority: "10.0.0.2:80"}); !errors.As(err, &status) {
		t.Errorf("a second stream while the first is stuck: %v", err)
	}
	e.near.SetLinger(0)
	e.near.Close()
	await(t, stopped)
	if total > 256<<20 {
		t.Errorf("%d bytes went somewhere", total)
	}
	await(t, e.nearDone)
}
