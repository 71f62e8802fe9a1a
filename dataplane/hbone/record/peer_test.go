// SPDX-License-Identifier: Apache-2.0

package record_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"testing"

	"github.com/ztunnel-go/ztunnel/dataplane/hbone/record"
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
func (s side) against(t *testing.T, suites tlsChange, peer func(*testing.T, *tls.Conn), ours func(*end)) {
	t.Helper()
	ccfg, scfg := configs(t)
	if suites != nil {
		suites(ccfg, scfg)
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
		if err := std.Handshake(); err != nil {
			t.Errorf("the peer: %v", err)
			b.Close()
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
