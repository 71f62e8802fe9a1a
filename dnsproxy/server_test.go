// SPDX-License-Identifier: Apache-2.0

package dnsproxy

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/miekg/dns"
	"github.com/ztunnel-go/ztunnel/test/leak"
)

func TestTCPAnswersInTheOrderOfQuestions(t *testing.T) {
	leak.Check(t)
	release := make(chan struct{})
	up := fakeUpstream(t, func(q *dns.Msg, tcp bool) *dns.Msg {
		<-release
		return world(q, tcp)
	})
	r := start(t, Config{View: lookupStore().View(), Upstream: up.config()})
	c, err := net.Dial("tcp", r.tcp.String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	names := []string{"www.example.org.", "productpage.", "details."}
	var all []byte
	for _, name := range names {
		var b bytes.Buffer
		packet, _ := question(name, dns.TypeA).Pack()
		writeFrame(&b, packet)
		all = append(all, b.Bytes()...)
	}
	for i := range all { // in as many segments as there are bytes
		c.Write(all[i : i+1])
	}
	poll(t, func() bool { return up.udp.Load() == 1 })
	close(release)
	for _, name := range names {
		b, err := readFrame(c)
		if err != nil {
			t.Fatal(err)
		}
		m := new(dns.Msg)
		if err := m.Unpack(b); err != nil || m.Question[0].Name != name || len(m.Answer) != 1 {
			t.Errorf("%s: %v %v", name, m, err)
		}
	}
}

// poll waits until a condition holds.
func poll(t *testing.T, holds func() bool) {
	t.Helper()
	for range 2000 {
		if holds() {
			return
		}
		time.Sleep(5 * time.Millisecond)
	}
	t.Fatal("it never came true")
}

// pipes is a listener of connections in memory, for virtual time.
type pipes struct {
	conns  chan net.Conn
	closed chan struct{}
}

func (p pipes) Accept() (net.Conn, error) {
	select {
	case c := <-p.conns:
		return c, nil
	case <-p.closed:
		return nil, net.ErrClosed
	}
}

func (p pipes) Close() error {
	select {
	case <-p.closed:
	default:
		close(p.closed)
	}
	return nil
}

func (p pipes) Addr() net.Addr { return &net.TCPAddr{} }

func TestTCPConnectionsMayBeIdleForFiveSeconds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := pipes{make(chan net.Conn), make(chan struct{})}
		s := New(Config{View: lookupStore().View(), Client: knownClient, Dial: dial})
		if err := s.Serve(nil, []net.Listener{l}); err != nil {
			t.Fatal(err)
		}
		defer s.Close()
		ours, theirs := net.Pipe()
		l.conns <- theirs
		packet, _ := question("productpage", dns.TypeA).Pack()
		for range 3 {
			time.Sleep(4 * time.Second)
			if err := writeFrame(ours, packet); err != nil {
				t.Fatal(err)
			}
			if _, err := readFrame(ours); err != nil {
				t.Fatal(err)
			}
		}
		begun := time.Now()
		ours.Write([]byte{0}) // half a length does not count as a sign of life
		if _, err := ours.Read(make([]byte, 1)); err != io.EOF {
			t.Error(err)
		}
		if idle := time.Since(begun); idle != 5*time.Second {
			t.Errorf("closed after %v", idle)
		}
	})
}

func TestConnectionsOfAPodAreLimited(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := pipes{make(chan net.Conn), make(chan struct{})}
		s := New(Config{View: oneName().View(), Client: knownClient, Dial: dial})
		if err := s.Serve(nil, []net.Listener{l}); err != nil {
			t.Fatal(err)
		}
		defer s.Close()
		for range maxConns {
			_, theirs := net.Pipe()
			l.conns <- theirs
		}
		ours, theirs := net.Pipe()
		l.conns <- theirs
		begun := time.Now()
		if _, err := ours.Read(make([]byte, 1)); err != io.EOF || time.Since(begun) != 0 {
			t.Errorf("%v after %v", err, time.Since(begun))
		}
		time.Sleep(6 * time.Second) // the idle ones are gone
		ours, theirs = net.Pipe()
		l.conns <- theirs
		packet, _ := question("localhost", dns.TypeA).Pack()
		if err := writeFrame(ours, packet); err != nil {
			t.Fatal(err)
		}
		if _, err := readFrame(ours); err != nil {
			t.Fatal(err)
		}
	})
}

func TestDrainFinishesWhatIsInHand(t *testing.T) {
	leak.Check(t)
	log, lines := records(slog.LevelInfo)
	release := make(chan struct{})
	up := fakeUpstream(t, func(q *dns.Msg, tcp bool) *dns.Msg {
		<-release
		return world(q, tcp)
	})
	r := start(t, Config{View: lookupStore().View(), Upstream: up.config(), Logger: log})
	answers := make(chan string, 2)
	for _, protocol := range []string{"udp", "tcp"} {
		go func() { answers <- show(r.ask(protocol, question("www.example.org", dns.TypeA))) }()
	}
	poll(t, func() bool { return r.server.forward.busy() == 2 })
	drained := make(chan error)
	go func() { drained <- r.server.Drain(context.Background()) }()
	poll(t, func() bool { return !r.server.serving() })
	if c, err := net.Dial("tcp", r.tcp.String()); err == nil {
		c.Close()
		t.Error("a connection was accepted while draining")
	}
	select {
	case err := <-drained:
		t.Fatalf("drained with queries in hand: %v", err)
	default:
	}
	close(release)
	for range 2 {
		if got := <-answers; got != "NOERROR ra www.example.org./A/192.0.2.1" {
			t.Error(got)
		}
	}
	if err := <-drained; err != nil {
		t.Error(err)
	}
	for _, want := range []string{
		`msg="starting local DNS server" address=` + r.udp.String() + " component=dns\n",
		`msg="shutting down the DNS server"`, `msg="dns server drained"`,
	} {
		if !strings.Contains(lines(), want) {
			t.Errorf("log lacks %s:\n%s", want, lines())
		}
	}
}

func (f *Forwarder) busy() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.waiting
}

func TestDrainEndsWithItsContextAndCloseAtOnce(t *testing.T) {
	leak.Check(t)
	for about, stop := range map[string]func(*Server) error{
		"drain": func(s *Server) error {
			ctx, cancel := context.WithTimeout(context.Background(), 20*time.Millisecond)
			defer cancel()
			if err := s.Drain(ctx); !errors.Is(err, context.DeadlineExceeded) {
				return fmt.Errorf("drain: %v", err)
			}
			return nil
		},
		"close": func(s *Server) error { s.Close(); s.Close(); return s.Drain(context.Background()) },
	} {
		silent := fakeUpstream(t, func(*dns.Msg, bool) *dns.Msg { return nil })
		r := start(t, Config{Upstream: Upstream{Nameservers: []netip.AddrPort{silent.addr}, Timeout: time.Minute}})
		c, err := net.Dial("tcp", r.tcp.String())
		if err != nil {
			t.Fatal(err)
		}
		packet, _ := question("x.example.org", dns.TypeA).Pack()
		writeFrame(c, packet)
		u, err := net.Dial("udp", r.udp.String())
		if err != nil {
			t.Fatal(err)
		}
		u.Write(packet)
		poll(t, func() bool { return r.server.forward.busy() == 2 })
		if err := stop(r.server); err != nil {
			t.Errorf("%s: %v", about, err)
		}
		if b, err := readFrame(c); err == nil {
			t.Errorf("%s: answered %q", about, b)
		}
		c.Close()
		u.Close()
		if err := r.server.Serve(nil, nil); err == nil {
			t.Errorf("%s: a closed server serves", about)
		}
	}
}

func TestSourcesThatCannotBeAnsweredAreIgnored(t *testing.T) {
	leak.Check(t)
	log, lines := records(slog.LevelWarn)
	s := New(Config{Dial: dial, Client: knownClient, Logger: log})
	defer s.Close()
	for a, want := range map[string]bool{
		"127.0.0.1:1": true, "[::1]:53": true, "10.0.0.1:0": false, "0.0.0.0:5": false, "[::]:5": false,
		"255.255.255.255:5": false, "[::ffff:0.0.0.0]:5": false, "[::ffff:10.0.0.1]:5": true,
	} {
		if got := s.answerable(net.UDPAddrFromAddrPort(netip.MustParseAddrPort(a))); got != want {
			t.Errorf("%s: %v", a, got)
		}
	}
	if s.answerable(&net.UnixAddr{}) {
		t.Error("a unix address can be answered")
	}
	if n := strings.Count(lines(), "\n"); n != 1 {
		t.Errorf("%d warnings in one instant: %s", n, lines())
	}
}
