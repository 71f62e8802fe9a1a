// SPDX-License-Identifier: Apache-2.0

package record_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/ztunnel-go/ztunnel/dataplane/hbone/record"
	"github.com/ztunnel-go/ztunnel/internal/certs/certstest"
	"github.com/ztunnel-go/ztunnel/internal/identity"
	"github.com/ztunnel-go/ztunnel/internal/mtls"
	"github.com/ztunnel-go/ztunnel/test/leak"
)

func noise(n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(i*7 + i>>8)
	}
	return b
}

// A side is a role of ours, with crypto/tls in the other.
type side struct {
	name   string
	client bool
}

var bothSides = []side{{"we are the client", true}, {"we are the server", false}}

// against starts crypto/tls as the peer, which does what peer says and then
// returns; ours is run meanwhile.
func (s side) against(t *testing.T, change tlsChange, peer func(*testing.T, *tls.Conn), ours func(*end)) {
	t.Helper()
	ccfg, scfg := configs(t)
	if change != nil {
		change(ccfg, scfg)
	}
	a, b := pair(t)
	var std *tls.Conn
	if s.client {
		std = tls.Server(b, scfg)
	} else {
		std = tls.Client(b, ccfg)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		defer b.Close()
		if err := std.Handshake(); err != nil {
			t.Errorf("the peer: %v", err)
			return
		}
		peer(t, std)
	}()
	session, err := s.shake(a, ccfg, scfg)
	if err != nil {
		t.Fatal(err)
	}
	e := newEnd(t, a, session)
	ours(e)
	<-done
	session.Wipe()
}

func (s side) shake(nc net.Conn, ccfg, scfg *tls.Config) (*record.Session, error) {
	if s.client {
		return record.Client(context.Background(), nc, ccfg)
	}
	return record.Server(context.Background(), nc, scfg)
}

type tlsChange func(client, server *tls.Config)

func TestCarriesBytesBothWaysWithCryptoTLS(t *testing.T) {
	leak.Check(t)
	up, down := noise(1<<20), noise(300_001)
	for _, s := range bothSides {
		t.Run(s.name, func(t *testing.T) {
			s.against(t, nil, func(t *testing.T, c *tls.Conn) {
				if b, err := readN(c, len(up)); err != nil || !bytes.Equal(b, up) {
					t.Errorf("the peer read: %v", err)
				}
				if _, err := c.Write(down); err != nil {
					t.Error(err)
				}
				if err := c.CloseWrite(); err != nil {
					t.Error(err)
				}
				if _, err := c.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
					t.Errorf("the peer read %v, want EOF from close_notify", err)
				}
			}, func(e *end) {
				e.send(up)
				e.expect(down)
				e.closed()
				e.alert(record.CloseNotify)
			})
		})
	}
}

// crypto/tls takes KeyUpdates and answers those that ask, but sends none of its
// own; ours against ours is TestChangesKeysWithItself.
func TestChangesKeysUnderCryptoTLS(t *testing.T) {
	leak.Check(t)
	piece := noise(20_000)
	for _, s := range bothSides {
		t.Run(s.name, func(t *testing.T) {
			s.against(t, nil, func(t *testing.T, c *tls.Conn) {
				for range 6 {
					b, err := readN(c, len(piece))
					if err != nil || !bytes.Equal(b, piece) {
						t.Errorf("the peer read: %v", err)
						return
					}
					if _, err := c.Write(piece); err != nil {
						t.Error(err)
					}
				}
			}, func(e *end) {
				for i := range 6 {
					before, in := e.s.Out.State(), e.s.In.State()
					if i > 0 {
						e.update(i%2 == 1)
						if now := e.s.Out.State(); now.Secret == before.Secret || now.Seq != 0 {
							t.Error("the key did not change")
						}
					}
					e.send(piece)
					e.expect(piece)
					if asked := i%2 == 1; (e.s.In.State().Secret != in.Secret) != asked {
						t.Errorf("round %d: the peer's key changed: %v, asked: %v", i, !asked, asked)
					}
				}
			})
		})
	}
}

func TestChangesKeysWithItself(t *testing.T) {
	leak.Check(t)
	a, b := shaken(t)
	piece := noise(30_000)
	for i := range 8 {
		if i%3 != 0 {
			a.update(i%2 == 0)
		}
		if i%4 == 1 {
			b.update(true) // both at once
		}
		a.send(piece)
		b.expect(piece)
		b.send(piece)
		a.expect(piece)
		if a.s.Out.State() != b.s.In.State().State || b.s.Out.State() != a.s.In.State().State {
			t.Fatalf("round %d: the ends disagree", i)
		}
	}
	for range 3 { // three requests may have one answer
		a.update(true)
	}
	a.send(piece)
	b.expect(piece)
	before := b.s.Out.State().Secret
	b.send(piece)
	a.expect(piece)
	if now := b.s.Out.State(); now.Secret == before || now.Seq != 2 {
		t.Errorf("after the answer sequence number %d is next, want a new key and two records under it", now.Seq)
	}
}

func TestDropsTheTicketsOfCryptoTLS(t *testing.T) {
	leak.Check(t)
	var chosen bool
	allow := func(client, server *tls.Config) {
		client.ClientSessionCache = tls.NewLRUClientSessionCache(1) // crypto/tls sends none to others
		server.SessionTicketsDisabled = false
		server.WrapSession = func(tls.ConnectionState, *tls.SessionState) ([]byte, error) {
			chosen = true
			return noise(60_000), nil // over four records
		}
	}
	side{client: true}.against(t, allow, func(t *testing.T, c *tls.Conn) {
		if _, err := c.Write([]byte("after the ticket")); err != nil {
			t.Error(err)
		}
	}, func(e *end) {
		e.expect([]byte("after the ticket"))
		if seq := e.s.In.State().Seq; seq < 5 {
			t.Errorf("%d records came, want a ticket of four or more", seq)
		}
	})
	if !chosen {
		t.Error("the peer sent no ticket")
	}
}

// Whoever chooses a configuration per client must not get around us.
func TestSendsNoTicketWhateverIsChosen(t *testing.T) {
	leak.Check(t)
	choose := func(_, server *tls.Config) {
		other := server.Clone()
		other.SessionTicketsDisabled = false
		server.GetConfigForClient = func(*tls.ClientHelloInfo) (*tls.Config, error) { return other, nil }
	}
	side{}.against(t, choose, func(t *testing.T, c *tls.Conn) {
		if b, err := readN(c, 5); err != nil || string(b) != "hello" {
			t.Errorf("the peer read %q, %v", b, err)
		}
	}, func(e *end) {
		if e.s.Out.State().Seq != 0 {
			t.Error("something was sent")
		}
		e.send([]byte("hello"))
	})
}

func TestTellsThePeerWhatItDidWrong(t *testing.T) {
	leak.Check(t)
	for _, s := range bothSides {
		t.Run(s.name, func(t *testing.T) {
			s.against(t, nil, func(t *testing.T, c *tls.Conn) {
				_, err := c.Read(make([]byte, 1))
				if err == nil || err.Error() != "remote error: tls: error decoding message" {
					t.Errorf("the peer read %v", err)
				}
			}, func(e *end) { e.alert(record.DecodeError) })
		})
	}
}

// An alertOf is what a client without the right certificate hears, with its
// records owned by us and by crypto/tls: the same text.
func TestHearsThatItsCertificateIsRefused(t *testing.T) {
	leak.Check(t)
	_, scfg := configs(t)
	stranger := certstest.Issuer(t, time.Hour).Bundle(uri)
	texts := map[bool]string{}
	for _, ours := range []bool{true, false} {
		a, b := pair(t)
		done := make(chan struct{})
		go func() {
			defer close(done)
			if err := tls.Server(b, scfg).Handshake(); err == nil {
				t.Error("the server takes a stranger")
			}
			b.Close()
		}()
		ccfg := mtls.Client(stranger, []identity.ID{certstest.ID(t, uri)}, mtls.Options{})
		ccfg.VerifyConnection = nil // we take the server, it does not take us
		var err error
		if ours {
			session, shakeErr := record.Client(context.Background(), a, ccfg)
			if shakeErr != nil {
				t.Fatal(shakeErr)
			}
			_, _, err = newEnd(t, a, session).next()
			var alert *record.AlertError
			if !errors.As(err, &alert) || !alert.Remote || alert.Alert.String() != "unknown_ca" {
				t.Errorf("we hear %v", err)
			}
		} else {
			_, err = tls.Client(a, ccfg).Read(make([]byte, 1))
		}
		<-done
		texts[ours] = err.Error()
	}
	if texts[true] != texts[false] {
		t.Errorf("ours %q, crypto/tls's %q", texts[true], texts[false])
	}
}

func TestHandsTLS12Back(t *testing.T) {
	leak.Check(t)
	old := func(client, server *tls.Config) {
		client.MaxVersion = tls.VersionTLS12
		for _, c := range []*tls.Config{client, server} {
			c.MinVersion = tls.VersionTLS12
		}
	}
	piece := noise(100_000)
	for _, s := range bothSides {
		t.Run(s.name, func(t *testing.T) {
			s.against(t, old, func(t *testing.T, c *tls.Conn) {
				if _, err := c.Write(piece); err != nil {
					t.Error(err)
				}
				if b, err := readN(c, len(piece)); err != nil || !bytes.Equal(b, piece) {
					t.Errorf("the peer read: %v", err)
				}
			}, func(e *end) {
				if e.s.Std == nil || e.s.In != nil || e.s.Out != nil || e.s.TLS.Version != tls.VersionTLS12 {
					t.Fatalf("the session is %+v", e.s)
				}
				if b, err := readN(e.s.Std, len(piece)); err != nil || !bytes.Equal(b, piece) {
					t.Errorf("we read: %v", err)
				}
				if _, err := e.s.Std.Write(piece); err != nil {
					t.Error(err)
				}
			})
		})
	}
}

// A corked connection writes what it was given when it is read from, and so
// puts the end of a handshake and the first data into one segment.
type corked struct {
	net.Conn
	buf []byte
}

func (c *corked) Write(p []byte) (int, error) { c.buf = append(c.buf, p...); return len(p), nil }

func (c *corked) Read(p []byte) (int, error) {
	if len(c.buf) > 0 {
		if _, err := c.Conn.Write(c.buf); err != nil {
			return 0, err
		}
		c.buf = nil
	}
	return c.Conn.Read(p)
}

func TestLosesNothingThatCameWithTheHandshake(t *testing.T) {
	leak.Check(t)
	for _, n := range []int{1, 500, 100_000} {
		ccfg, scfg := configs(t)
		a, b := pair(t)
		early := noise(n)
		done := make(chan struct{})
		go func() {
			defer close(done)
			c := tls.Client(&corked{Conn: a}, ccfg)
			if _, err := c.Write(early); err != nil {
				t.Error(err)
			}
			if b, err := readN(c, 2); err != nil || string(b) != "ok" {
				t.Errorf("the client reads %q, %v", b, err)
			}
		}()
		session, err := record.Server(context.Background(), b, scfg)
		if err != nil {
			t.Fatal(err)
		}
		if len(session.Unread) == 0 {
			t.Error("nothing came early: the test shows nothing")
		}
		e := newEnd(t, b, session)
		e.expect(early)
		e.send([]byte("ok"))
		<-done
	}
}

func TestEndsWithItsContext(t *testing.T) {
	leak.Check(t)
	ccfg, _ := configs(t)
	a, _ := pair(t)
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Millisecond)
	defer cancel()
	if _, err := record.Client(ctx, a, ccfg); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a peer that says nothing: %v", err)
	}
}

// What is wrong in a handshake reads as without us in between.
func TestHandshakeErrorsAreThoseOfCryptoTLS(t *testing.T) {
	leak.Check(t)
	for _, tc := range []struct{ name, send string }{
		{"nothing", ""},
		{"part of a header", "\x16\x03\x01"},
		{"part of a record", "\x16\x03\x01\x00\x50abc"},
		{"HTTP", "GET / HTTP/1.1\r\n\r\n"},
		{"a hello that is none", "\x16\x03\x01\x00\x05\x01\x00\x00\x01x"},
	} {
		_, scfg := configs(t)
		texts := map[bool]string{}
		for _, ours := range []bool{true, false} {
			a, b := pair(t)
			if _, err := io.WriteString(a, tc.send); err != nil {
				t.Fatal(err)
			}
			if err := a.(*net.TCPConn).CloseWrite(); err != nil {
				t.Fatal(err)
			}
			var err error
			if ours {
				_, err = record.Server(context.Background(), b, scfg)
			} else {
				err = tls.Server(b, scfg).Handshake()
			}
			if err == nil {
				t.Fatalf("%s is a handshake", tc.name)
			}
			texts[ours] = strings.ReplaceAll(strings.ReplaceAll(err.Error(), a.LocalAddr().String(), "A"), b.LocalAddr().String(), "B")
		}
		if texts[true] != texts[false] {
			t.Errorf("%s: ours %q, crypto/tls's %q", tc.name, texts[true], texts[false])
		}
	}
}
