// SPDX-License-Identifier: Apache-2.0

package hbone

import (
	"bytes"
	"errors"
	"io"
	"testing"

	"golang.org/x/net/http2"

	"github.com/ztunnel-go/ztunnel/dataplane/engine"
)

func TestASlowReaderStopsItsOwnStreamOnly(t *testing.T) {
	const window = 1 << 20
	block := make(chan struct{})
	r := newRigWith(t, Settings{StreamWindow: window}, func(c *Connect) {
		if c.Authority == "slow:1" {
			s, err := c.Accept(nil)
			if err != nil {
				return
			}
			<-block
			n, err := io.Copy(io.Discard, s)
			if n != 3*window || err != nil {
				t.Errorf("read %d, %v", n, err)
			}
			s.CloseWrite()
			return
		}
		echo(c)
	})
	p := r.pool(nil)
	slow, _, err := p.Open(within(t), r.key(), Request{Authority: "slow:1"})
	if err != nil {
		t.Fatal(err)
	}
	wrote := make(chan error, 1)
	go func() {
		_, err := slow.Write(make([]byte, 3*window))
		slow.CloseWrite()
		wrote <- err
	}()
	eventually(t, "the window is used up", func() bool {
		return exhausted(slow)
	})
	s := r.open(p)
	data := junk(4*window, 9)
	go func() { s.Write(data); s.CloseWrite() }()
	if got, err := io.ReadAll(s); err != nil || !bytes.Equal(got, data) {
		t.Errorf("%d bytes, %v", len(got), err)
	}
	s.Close()
	select {
	case err := <-wrote:
		t.Fatalf("a write of three windows went into one: %v", err)
	default:
	}
	if conn := r.accepted()[0].c; conn != nil {
		conn.mu.Lock()
		for _, s := range conn.streams {
			if s.in.size > window {
				t.Errorf("%d bytes are kept for a window of %d", s.in.size, window)
			}
		}
		conn.mu.Unlock()
	}
	close(block)
	if err := <-wrote; err != nil {
		t.Error(err)
	}
	mustEnd(t, slow)
	slow.Close()
	if n := len(r.accepted()); n != 1 {
		t.Errorf("%d tunnels", n)
	}
}

// exhausted reports whether the window of s is used up.
func exhausted(s Stream) bool {
	if s, ok := s.(*stream); ok {
		s.c.mu.Lock()
		defer s.c.mu.Unlock()
		return s.sendWindow == 0
	}
	return s.(*engine.Stream).Window() == 0
}

func TestAStalledWriteEndsWithItsStream(t *testing.T) {
	_, near, far := both(t, Settings{StreamWindow: 100 << 10})
	wrote := make(chan error, 1)
	go func() {
		_, err := near.Write(make([]byte, 1<<20))
		wrote <- err
	}()
	eventually(t, "the window is used up", func() bool {
		return exhausted(near)
	})
	far.ResetWith(Cancel)
	var reset *ResetError
	if err := <-wrote; !errors.As(err, &reset) || reset.Code != Cancel {
		t.Errorf("got %v", err)
	}
}

// A window of one stream full of bytes in frames of one byte must not hold
// more than twice its size, and dropping it must return the tunnel's window.
func TestTinyFramesHoldLittle(t *testing.T) {
	if ofGoroutines() {
		return
	}
	accepted := make(chan Stream, 1)
	done := make(chan struct{})
	p, conn, _ := rawServer(t, Settings{}, func(c *Connect) {
		s, _ := c.Accept(nil)
		accepted <- s
		<-done
	})
	p.connect(1)
	s := (<-accepted).(*stream)
	const frames = 40000
	go func() {
		for range frames {
			p.fr.WriteData(1, false, []byte("x"))
		}
	}()
	eventually(t, "all arrived", func() bool {
		conn.c.mu.Lock()
		defer conn.c.mu.Unlock()
		return s.in.size == frames
	})
	conn.c.mu.Lock()
	if n := len(s.in.list); n > frames/chunkSize+1 {
		t.Errorf("%d chunks for %d bytes", n, frames)
	}
	conn.c.mu.Unlock()
	s.Reset()
	conn.c.mu.Lock()
	if in := conn.c.recvWindow + conn.c.uncredited; in != 16<<20 {
		t.Errorf("the tunnel's window is %d", in)
	}
	conn.c.mu.Unlock()
	close(done)
}

func TestAnIdleTunnelHoldsNoBuffer(t *testing.T) {
	if ofGoroutines() {
		return
	}
	r, near, far := both(t, Settings{})
	data := junk(3<<20, 1)
	go near.Write(data)
	if _, err := io.CopyN(io.Discard, far, 3<<20); err != nil {
		t.Fatal(err)
	}
	for _, c := range []*conn{near.(*stream).c, r.accepted()[0].c} {
		eventually(t, "nothing is kept", func() bool {
			c.mu.Lock()
			defer c.mu.Unlock()
			for _, s := range c.streams {
				if s.in.list != nil || s.pending != nil {
					return false
				}
			}
			return c.control.Cap() <= keepControl && c.sendQueue == nil
		})
	}
}

func TestPeersWindowsMayShrink(t *testing.T) {
	p, tunnel := rawClient(t, Settings{})
	p.settings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 10})
	done := goOpen(t, tunnel, Request{Authority: "a:1"})
	want[*http2.MetaHeadersFrame](p)
	p.headers(1, false, ":status", "200")
	s := (<-done).s
	go s.Write([]byte("0123456789abcdefghij"))
	if f := want[*http2.DataFrame](p); string(f.Data()) != "0123456789" {
		t.Fatalf("got %q", f.Data())
	}
	p.settings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 4}) // six below zero
	p.ok(p.fr.WriteWindowUpdate(1, 8))
	if f := want[*http2.DataFrame](p); string(f.Data()) != "ab" {
		t.Fatalf("got %q", f.Data())
	}
	p.settings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 1 << 20})
	if f := want[*http2.DataFrame](p); string(f.Data()) != "cdefghij" {
		t.Fatalf("got %q", f.Data())
	}
}

func TestCreditFollowsDelivery(t *testing.T) {
	accepted := make(chan Stream, 1)
	done := make(chan struct{})
	p, _, _ := rawServer(t, Settings{StreamWindow: 100000}, func(c *Connect) {
		s, _ := c.Accept(nil)
		accepted <- s
		<-done
	})
	defer close(done)
	p.connect(1)
	want[*http2.MetaHeadersFrame](p)
	s := <-accepted
	for range 6 {
		p.ok(p.fr.WriteData(1, false, make([]byte, 10000)))
	}
	p.ok(p.fr.WritePing(false, [8]byte{7}))
	want[*http2.PingFrame](p) // no credit came before it
	if _, err := io.CopyN(io.Discard, struct{ io.Reader }{s}, 60000); err != nil {
		t.Fatal(err)
	}
	if f := want[*http2.WindowUpdateFrame](p); f.StreamID != 1 || f.Increment < 50000 || f.Increment > 60000 {
		t.Errorf("got %v", f)
	}
}
