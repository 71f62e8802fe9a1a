// SPDX-License-Identifier: Apache-2.0

package hbone

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"sync"
	"testing"
	"time"

	"golang.org/x/net/http2"
)

func junk(size int, seed uint64) []byte {
	b := make([]byte, size)
	src := rand.NewChaCha8([32]byte{byte(seed), byte(seed >> 8)})
	src.Read(b)
	return b
}

func TestManyStreamsCarryWhatTheyAreGiven(t *testing.T) {
	r := newRig(t, echo)
	p := r.pool(nil)
	var wg sync.WaitGroup
	for i := range 64 {
		wg.Go(func() {
			data := junk(1<<20, uint64(i))
			s, _, err := p.Open(within(t), r.key(), Request{Authority: "10.0.0.1:80"})
			if err != nil {
				t.Error(err)
				return
			}
			defer s.Close()
			wg.Go(func() {
				for rest := data; len(rest) > 0; {
					n := min(len(rest), 700+i*997)
					if _, err := s.Write(rest[:n]); err != nil {
						t.Error(err)
						return
					}
					rest = rest[n:]
				}
				s.CloseWrite()
			})
			h := sha256.New()
			if i%2 == 0 {
				_, err = io.Copy(h, s)
			} else {
				_, err = io.Copy(h, struct{ io.Reader }{s})
			}
			if want := sha256.Sum256(data); err != nil || !bytes.Equal(h.Sum(nil), want[:]) {
				t.Errorf("stream %d: %v", i, err)
			}
		})
	}
	wg.Wait()
	if n := len(r.accepted()); n != 1 {
		t.Errorf("%d tunnels", n)
	}
}

// both is a stream with its two ends, and frees the handler at the end.
func both(t *testing.T, set Settings) (r *rig, near, far Stream) {
	t.Helper()
	got := make(chan Stream, 1)
	done := make(chan struct{})
	r = newRigWith(t, set, func(c *Connect) {
		s, err := c.Accept(nil)
		if err != nil {
			t.Error(err)
			return
		}
		got <- s
		<-done
	})
	t.Cleanup(func() { close(done) })
	p := r.pool(func(c *PoolConfig) { c.Settings = set })
	near = r.open(p)
	return r, near, <-got
}

func mustRead(t *testing.T, r io.Reader, want string) {
	t.Helper()
	got := make([]byte, len(want))
	if _, err := io.ReadFull(r, got); err != nil || string(got) != want {
		t.Fatalf("read %q, %v; want %q", got, err, want)
	}
}

func mustEnd(t *testing.T, r io.Reader) {
	t.Helper()
	if n, err := r.Read(make([]byte, 1)); n != 0 || !errors.Is(err, io.EOF) {
		t.Fatalf("read %d, %v; want the end", n, err)
	}
}

func mustReset(t *testing.T, r io.Reader, code Code) {
	t.Helper()
	var reset *ResetError
	if n, err := r.Read(make([]byte, 1)); n != 0 || !errors.As(err, &reset) || reset.Code != code || !reset.Remote {
		t.Fatalf("read %d, %v; want RST_STREAM(%v)", n, err, code)
	}
}

func TestHalvesCloseInAnyOrder(t *testing.T) {
	for name, swap := range map[string]bool{"client first": false, "server first": true} {
		t.Run(name, func(t *testing.T) {
			_, a, b := both(t, Settings{})
			if swap {
				a, b = b, a
			}
			io.WriteString(a, "one")
			if err := a.CloseWrite(); err != nil {
				t.Fatal(err)
			}
			mustRead(t, b, "one")
			mustEnd(t, b)
			mustEnd(t, b)
			if _, err := a.Write([]byte("x")); err == nil {
				t.Error("wrote after CloseWrite")
			}
			io.WriteString(b, "two")
			mustRead(t, a, "two")
			if err := b.CloseWrite(); err != nil {
				t.Fatal(err)
			}
			mustEnd(t, a)
			for _, s := range []Stream{a, b} {
				if err := s.Close(); err != nil {
					t.Error(err)
				}
			}
		})
	}
}

func TestAResetReachesTheOtherSide(t *testing.T) {
	for name, swap := range map[string]bool{"of the client": false, "of the server": true} {
		t.Run(name, func(t *testing.T) {
			_, a, b := both(t, Settings{})
			if swap {
				a, b = b, a
			}
			told := make(chan error, 2)
			b.OnBroken(func(err error) { told <- err })
			io.WriteString(a, "before")
			a.Reset()
			a.Reset()
			mustRead(t, b, "before")
			mustReset(t, b, ConnectError)
			if _, err := b.Write([]byte("x")); err == nil {
				t.Error("wrote to a stream that was reset")
			}
			err := <-told
			var reset *ResetError
			if !errors.As(err, &reset) || !reset.Quiet() || reset.Clean() {
				t.Errorf("told %v", err)
			}
			b.OnBroken(func(err error) { told <- err })
			if again := <-told; again.Error() != err.Error() {
				t.Errorf("told %v", again)
			}
			if _, err := a.Read(make([]byte, 1)); !errors.Is(err, net.ErrClosed) {
				t.Errorf("own read: %v", err)
			}
		})
		t.Run(name+" after its end", func(t *testing.T) {
			_, a, b := both(t, Settings{})
			if swap {
				a, b = b, a
			}
			a.CloseWrite()
			mustEnd(t, b)
			told := make(chan error, 1)
			b.OnBroken(func(err error) { told <- err })
			a.Reset()
			<-told
			mustEnd(t, b) // what was an end stays one
			if _, err := b.Write([]byte("x")); err == nil {
				t.Error("wrote to a stream that was reset")
			}
		})
	}
}

func TestResetWithNoErrorIsAnEnd(t *testing.T) {
	p, tunnel := rawClient(t, Settings{})
	p.settings()
	done := goOpen(t, tunnel, Request{Authority: "a:1"})
	want[*http2.MetaHeadersFrame](p)
	p.headers(1, false, ":status", "200")
	s := (<-done).s
	s.OnBroken(func(err error) { t.Errorf("broken: %v", err) })
	p.ok(p.fr.WriteData(1, false, []byte("all")))
	p.ok(p.fr.WriteRSTStream(1, http2.ErrCodeNo))
	mustRead(t, s, "all")
	mustEnd(t, s)
	var reset *ResetError
	if _, err := s.Write([]byte("x")); !errors.As(err, &reset) || !reset.Clean() {
		t.Errorf("write: %v", err)
	}
}

func TestTheLossOfATunnelResetsItsStreams(t *testing.T) {
	r, near, far := both(t, Settings{})
	io.WriteString(near, "x")
	mustRead(t, far, "x")
	r.cut(0) // as a peer that dies
	var reset *ResetError
	if _, err := near.Read(make([]byte, 1)); !errors.As(err, &reset) || reset.Cause == nil || !reset.Quiet() || reset.Clean() {
		t.Errorf("near: %v", err)
	}
	if _, err := far.Read(make([]byte, 1)); !errors.As(err, &reset) || reset.Cause == nil {
		t.Errorf("far: %v", err)
	}
}

func TestStreamConnCarriesATunnel(t *testing.T) {
	inner := newRig(t, echo)
	r, near, far := both(t, Settings{})
	served := make(chan error, 1)
	go func() {
		served <- ServeConn(t.Context(), far.Conn(), inner.serverTLS(), ServerConfig{Handler: echo})
	}()
	tunnel, err := NewTunnel(within(t), near.Conn(), inner.clientTLS(), Settings{})
	if err != nil {
		t.Fatal(err)
	}
	s, _, err := tunnel.Open(within(t), Request{Authority: "svc.example:80"})
	if err != nil {
		t.Fatal(err)
	}
	data := junk(1<<20, 3)
	go func() { s.Write(data); s.CloseWrite() }()
	if got, err := io.ReadAll(s); err != nil || !bytes.Equal(got, data) {
		t.Errorf("%d bytes, %v", len(got), err)
	}
	s.Close()
	tunnel.Close()
	if err := <-served; err != nil {
		t.Errorf("inner server: %v", err)
	}
	_ = r
}

func TestHandshakesThatNeverComeAreEnded(t *testing.T) {
	r := newRig(t, echo)
	for name, cfg := range map[string]bool{"TLS": true, "SETTINGS": false} {
		t.Run(name, func(t *testing.T) {
			near, far := tcpPair(t)
			defer near.Close()
			tlsCfg := r.serverTLS()
			if !cfg {
				tlsCfg = nil
			}
			start := time.Now()
			err := ServeConn(t.Context(), far, tlsCfg, ServerConfig{
				Handler: echo, Settings: Settings{HandshakeTimeout: 50 * time.Millisecond},
			})
			if err == nil || time.Since(start) > patience {
				t.Errorf("ended with %v after %v", err, time.Since(start))
			}
		})
	}
}
