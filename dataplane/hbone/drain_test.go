// SPDX-License-Identifier: Apache-2.0

package hbone

import (
	"errors"
	"io"
	"testing"

	"golang.org/x/net/http2"

	"github.com/ztunnel-go/ztunnel/dataplane/hbone/wire"
)

func TestGracefulDrain(t *testing.T) {
	release := make(chan struct{})
	p, s, done := rawServer(t, Settings{}, func(c *Connect) {
		s, err := c.Accept(nil)
		if err != nil {
			t.Error(err)
			return
		}
		<-release
		s.CloseWrite()
		io.Copy(io.Discard, s)
	})
	p.connect(1)
	want[*http2.MetaHeadersFrame](p)
	s.Drain()
	s.Drain()
	if g := want[*http2.GoAwayFrame](p); g.LastStreamID != wire.MaxStreamID || g.ErrCode != http2.ErrCodeNo {
		t.Fatalf("got %v", g)
	}
	ping := want[*http2.PingFrame](p)
	p.connect(3) // on its way before the peer knew
	want[*http2.MetaHeadersFrame](p)
	p.ok(p.fr.WritePing(true, ping.Data))
	if g := want[*http2.GoAwayFrame](p); g.LastStreamID != 3 || g.ErrCode != http2.ErrCodeNo {
		t.Fatalf("got %v", g)
	}
	p.connect(5)
	p.wantReset(5, RefusedStream)
	close(release)
	for range 2 {
		if f := want[*http2.DataFrame](p); !f.StreamEnded() {
			t.Fatalf("got %v", f)
		}
	}
	p.ok(p.fr.WriteData(1, true, nil))
	p.ok(p.fr.WriteData(3, true, nil))
	p.wantEnd()
	if err := <-done; err != nil {
		t.Errorf("Serve: %v", err)
	}
}

func TestDrainOfAnIdleTunnelEndsIt(t *testing.T) {
	p, s, done := rawServer(t, Settings{}, func(*Connect) {})
	s.Drain()
	want[*http2.GoAwayFrame](p)
	p.ok(p.fr.WritePing(true, want[*http2.PingFrame](p).Data))
	p.wantEnd()
	if err := <-done; err != nil {
		t.Errorf("Serve: %v", err)
	}
}

func TestThePeersGoAway(t *testing.T) {
	p, tunnel := rawClient(t, Settings{})
	p.settings()
	first := goOpen(t, tunnel, Request{Authority: "a:1"})
	want[*http2.MetaHeadersFrame](p)
	p.headers(1, false, ":status", "200")
	s := (<-first).s
	second := goOpen(t, tunnel, Request{Authority: "a:1"})
	want[*http2.MetaHeadersFrame](p)
	p.ok(p.fr.WriteGoAway(1, http2.ErrCodeNo, nil))
	var reset *ResetError
	if o := <-second; !errors.As(o.err, &reset) || !reset.Unseen {
		t.Errorf("got %v", o.err)
	}
	if _, _, err := tunnel.Open(within(t), Request{}); !errors.Is(err, ErrUnavailable) {
		t.Errorf("got %v", err)
	}
	io.WriteString(s, "still")
	if f := want[*http2.DataFrame](p); string(f.Data()) != "still" {
		t.Errorf("got %v", f)
	}
	s.CloseWrite()
	p.ok(p.fr.WriteData(1, true, nil))
	p.wantEnd() // it was the last
}
