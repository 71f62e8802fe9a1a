// SPDX-License-Identifier: Apache-2.0

package hbone

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// pipes is a pool and a server of ours over net.Pipe, for virtual time.
func pipes(handler func(*Connect), cut func(net.Conn) net.Conn, log *slog.Logger) (*Pool, chan error) {
	served := make(chan error, 9)
	p := NewPool(PoolConfig{
		Dial: func(ctx context.Context, _ Key) (net.Conn, error) {
			a, b := net.Pipe()
			go func() { served <- ServeConn(context.Background(), b, nil, ServerConfig{Handler: handler}) }()
			return cut(a), nil
		},
		TLS:    func(context.Context, Key) (Handshake, error) { return Handshake{}, nil },
		Logger: log,
	})
	return p, served
}

// mute swallows what is written once it is told to.
type mute struct {
	net.Conn
	on atomic.Bool
}

func (m *mute) Write(b []byte) (int, error) {
	if m.on.Load() {
		return len(b), nil
	}
	return m.Conn.Write(b)
}

func TestPingsKeepATunnelAndTheirAbsenceEndsIt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var line *mute
		var log bytes.Buffer
		p, served := pipes(hold, func(c net.Conn) net.Conn { line = &mute{Conn: c}; return line },
			slog.New(slog.NewTextHandler(&log, nil)))
		s, _, err := p.Open(t.Context(), Key{}, Request{Authority: "a:1"})
		if err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Hour) // far beyond any timeout
		if _, err := s.Write([]byte("x")); err != nil {
			t.Fatalf("after an hour: %v", err)
		}
		line.on.Store(true)
		start := time.Now()
		_, err = s.Read(make([]byte, 1))
		if after := time.Since(start); after > 30*time.Second {
			t.Errorf("noticed after %v", after)
		}
		var reset *ResetError
		if !errors.As(err, &reset) {
			t.Errorf("got %v", err)
		}
		p.Close()
		if err := <-served; err != nil && !errors.Is(err, ErrPingTimeout) {
			t.Errorf("server: %v", err)
		}
		t.Log(err, strings.TrimSpace(log.String()))
	})
}

func TestAPeerThatNeverAnswersPings(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := net.Pipe()
		go io.Copy(io.Discard, b)
		start := time.Now()
		var log bytes.Buffer
		p := NewPool(PoolConfig{
			Dial:     func(context.Context, Key) (net.Conn, error) { return a, nil },
			TLS:      func(context.Context, Key) (Handshake, error) { return Handshake{}, nil },
			Settings: Settings{HandshakeTimeout: time.Hour},
			Logger:   slog.New(slog.NewTextHandler(&log, nil)),
		})
		_, _, err := p.Open(t.Context(), Key{}, Request{Authority: "a:1"})
		var h *HandshakeError
		if !errors.As(err, &h) || !errors.Is(err, ErrPingTimeout) {
			t.Errorf("got %v", err)
		}
		if after := time.Since(start); after != 30*time.Second {
			t.Errorf("after %v", after)
		}
		p.Close()
		if !strings.Contains(log.String(), "HBONE ping timeout/error") {
			t.Errorf("log %q", log.String())
		}
	})
}
