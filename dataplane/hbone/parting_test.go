// SPDX-License-Identifier: Apache-2.0

package hbone

import (
	"errors"
	"io"
	"net"
	"testing"
	"time"

	"golang.org/x/net/http2"
)

// TestTheEndOfTheLastStreamArrives has a tunnel end with its last stream while
// the peer is slow to read it and goes on to send, as one does that gives
// credit: a socket that is closed then is reset, and forgets what it has to send.
func TestTheEndOfTheLastStreamArrives(t *testing.T) {
	const size = 1 << 20
	p, tunnel := rawClient(t, Settings{})
	_ = p.nc.(*net.TCPConn).SetReadBuffer(32 << 10)
	p.settings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 2 * size})
	p.ok(p.fr.WriteWindowUpdate(0, 2*size))
	opening := goOpen(t, tunnel, Request{Authority: "a:1"})
	want[*http2.MetaHeadersFrame](p)
	p.headers(1, false, ":status", "200")
	o := <-opening
	if o.err != nil {
		t.Fatal(o.err)
	}
	p.ok(p.fr.WriteGoAway(1, http2.ErrCodeNo, nil))
	p.ok(p.fr.WriteData(1, true, nil))
	if _, err := io.Copy(io.Discard, o.s); err != nil {
		t.Fatal(err)
	}
	if _, err := o.s.Write(make([]byte, size)); err != nil {
		t.Fatal(err)
	}
	if err := o.s.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	for end := time.Now().Add(300 * time.Millisecond); time.Now().Before(end); time.Sleep(time.Millisecond) {
		if p.fr.WriteWindowUpdate(0, 1<<10) != nil {
			break // it was reset: what is lost is seen below
		}
	}
	got, ended := 0, false
	for {
		f, err := p.fr.ReadFrame()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatalf("after %d of %d bytes: %v", got, size, err)
		}
		if d, ok := f.(*http2.DataFrame); ok {
			got += len(d.Data())
			ended = d.StreamEnded()
		}
	}
	if got != size || !ended {
		t.Errorf("%d of %d bytes arrived, ended %t", got, size, ended)
	}
	p.nc.Close()
	tunnel.Wait()
}

// TestAPeerThatDoesNotCloseIsNotWaitedForLong has one that keeps its side open.
func TestAPeerThatDoesNotCloseIsNotWaitedForLong(t *testing.T) {
	p, tunnel := rawClient(t, Settings{})
	p.settings()
	tunnel.Drain()
	p.wantGoAway(NoError)
	p.wantEnd()
	ended := make(chan struct{})
	go func() {
		tunnel.Wait()
		close(ended)
	}()
	select {
	case <-ended:
	case <-time.After(partingTimeout + patience):
		t.Error("the tunnel does not end")
	}
}
