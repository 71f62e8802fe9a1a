// SPDX-License-Identifier: Apache-2.0

// As the binary: without it a machine that has no AES instructions would choose
// a suite that we do not have.
//
//go:debug fips140=on

package record_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"testing"
	"time"

	"github.com/ztunnel-go/ztunnel/dataplane/hbone/record"
	"github.com/ztunnel-go/ztunnel/internal/certs/certstest"
	"github.com/ztunnel-go/ztunnel/internal/identity"
	"github.com/ztunnel-go/ztunnel/internal/mtls"
)

const uri = "spiffe://cluster.local/ns/default/sa/both"

// configs are the two sides of a tunnel between workloads of one identity.
func configs(t testing.TB) (client, server *tls.Config) {
	t.Helper()
	b := certstest.Issuer(t, time.Hour).Bundle(uri)
	return mtls.Client(b, []identity.ID{certstest.ID(t, uri)}, mtls.Options{}), mtls.Server(b, mtls.Options{})
}

// pair returns the two ends of a loopback TCP connection with a deadline.
func pair(t testing.TB) (client, server net.Conn) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if client, err = net.Dial("tcp", l.Addr().String()); err != nil {
		t.Fatal(err)
	}
	if server, err = l.Accept(); err != nil {
		t.Fatal(err)
	}
	for _, c := range []net.Conn{client, server} {
		t.Cleanup(func() { c.Close() })
		c.SetDeadline(time.Now().Add(30 * time.Second))
	}
	return client, server
}

// An end is a connection whose records are ours, for tests: blocking, and with
// a copy or two.
type end struct {
	net.Conn
	t   testing.TB
	s   *record.Session
	in  []byte // read, and not opened
	due bool   // the peer wants a KeyUpdate
}

func newEnd(t testing.TB, nc net.Conn, s *record.Session) *end {
	return &end{Conn: nc, t: t, s: s, in: s.Unread}
}

// send seals b in as many records as it takes, answering a KeyUpdate before.
func (e *end) send(b []byte) {
	e.t.Helper()
	if e.due {
		e.due = false
		e.update(false)
	}
	for len(b) > 0 {
		n := min(len(b), record.MaxContent)
		slot := make([]byte, n+record.Overhead)
		copy(slot[record.HeaderLen:], b[:n])
		b = b[n:]
		m, err := e.s.Out.Seal(slot, n)
		e.write(slot, m, err)
	}
}

func (e *end) write(slot []byte, n int, err error) {
	e.t.Helper()
	if err == nil {
		_, err = e.Write(slot[:n])
	}
	if err != nil {
		e.t.Error(err)
	}
}

func (e *end) update(ask bool) {
	e.t.Helper()
	slot := make([]byte, record.ControlLen)
	n, err := e.s.Out.KeyUpdate(slot, ask)
	e.write(slot, n, err)
}

func (e *end) alert(a record.Alert) {
	e.t.Helper()
	slot := make([]byte, record.ControlLen)
	n, err := e.s.Out.Alert(slot, a)
	e.write(slot, n, err)
}

// record returns the next record that comes, unopened.
func (e *end) record() ([]byte, error) {
	buf := make([]byte, 32<<10)
	for {
		n, err := record.Length(e.in)
		if err != nil {
			return nil, err
		}
		if n > 0 && len(e.in) >= n {
			b := e.in[:n]
			e.in = e.in[n:]
			return b, nil
		}
		n, err = e.Read(buf)
		if err != nil {
			return nil, err
		}
		e.in = append(e.in[:len(e.in):len(e.in)], buf[:n]...)
	}
}

// next opens records until one is more than nothing.
func (e *end) next() ([]byte, record.Event, error) {
	for {
		b, err := e.record()
		if err != nil {
			return nil, record.Nothing, err
		}
		content, event, err := e.s.In.Receive(b)
		switch {
		case err != nil || event == record.Data || event == record.Closed:
			return content, event, err
		case event == record.Answer:
			e.due = true
		}
	}
}

// expect reads until want has come.
func (e *end) expect(want []byte) {
	e.t.Helper()
	var got []byte
	for len(got) < len(want) {
		b, event, err := e.next()
		if err != nil || event != record.Data {
			e.t.Errorf("%d of %d bytes, then event %d, %v", len(got), len(want), event, err)
			return
		}
		got = append(got, b...)
	}
	if !bytes.Equal(got, want) {
		e.t.Errorf("%d bytes differ from the %d that were sent", len(got), len(want))
	}
}

// closed wants close_notify and nothing before.
func (e *end) closed() {
	e.t.Helper()
	if b, event, err := e.next(); err != nil || event != record.Closed {
		e.t.Errorf("%d bytes, event %d, %v; want close_notify", len(b), event, err)
	}
}

// shaken does both sides of a handshake, ours on both.
func shaken(t testing.TB) (client, server *end) {
	t.Helper()
	ccfg, scfg := configs(t)
	c, s := pair(t)
	type result struct {
		s   *record.Session
		err error
	}
	done := make(chan result)
	go func() {
		session, err := record.Server(context.Background(), s, scfg)
		done <- result{session, err}
	}()
	cs, err := record.Client(context.Background(), c, ccfg)
	r := <-done
	if err = errors.Join(err, r.err); err != nil {
		t.Fatal(err)
	}
	return newEnd(t, c, cs), newEnd(t, s, r.s)
}

// readN reads n bytes.
func readN(r io.Reader, n int) ([]byte, error) {
	b := make([]byte, n)
	_, err := io.ReadFull(r, b)
	return b, err
}
