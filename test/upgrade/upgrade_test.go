// SPDX-License-Identifier: Apache-2.0

package upgrade

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/miekg/dns"
)

// A pattern is 8-byte numbers in order, so that a byte too many, too few or in
// another place is seen where it is.
type pattern struct{ next uint64 }

func (p *pattern) fill(b []byte) {
	for i := 0; i < len(b); i += 8 {
		binary.BigEndian.PutUint64(b[i:], p.next)
		p.next++
	}
}

func (p *pattern) check(b []byte) error {
	for i := 0; i < len(b); i += 8 {
		if got := binary.BigEndian.Uint64(b[i:]); got != p.next {
			return fmt.Errorf("number %d is %d", p.next, got)
		}
		p.next++
	}
	return nil
}

// A load is connections that stay, or come, while proxies are replaced.
type load struct {
	w       *world
	stop    context.Context
	running sync.WaitGroup
	counts  [5]atomic.Int64
	longest atomic.Int64 // of a round trip
}

// What is counted.
const (
	streamed = iota // bytes there and back
	turns           // round trips
	fresh           // connections that came and went
	slow            // bytes that a slow reader took
	names           // DNS answers
)

func (l *load) fail(what string, err error) { l.w.t.Errorf("%s: %v", what, err) }

// each runs f until the load stops, or f fails.
func (l *load) each(what string, f func() error) {
	l.running.Go(func() {
		for l.stop.Err() == nil {
			if err := f(); err != nil {
				l.fail(what, err)
				return
			}
		}
	})
}

// stream sends numbers and wants them back, in one connection until the end.
func (l *load) stream(size int, pause time.Duration) {
	conn, err := l.w.dial()
	if err != nil {
		l.fail("stream", err)
		return
	}
	var sent atomic.Int64
	l.running.Go(func() {
		var p pattern
		b := make([]byte, size)
		for l.stop.Err() == nil {
			p.fill(b)
			if _, err := conn.Write(b); err != nil {
				l.fail("stream", err)
				break
			}
			sent.Add(int64(size))
			time.Sleep(pause)
		}
		conn.(*net.TCPConn).CloseWrite()
	})
	l.running.Go(func() {
		defer conn.Close()
		var p pattern
		b := make([]byte, size)
		for {
			n, err := io.ReadFull(conn, b)
			if n > 0 && n%8 == 0 {
				err = errors.Join(p.check(b[:n]), err)
			}
			l.counts[streamed].Add(int64(n))
			if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
				break
			}
			if err != nil {
				l.fail("stream back", err)
				return
			}
		}
		if got := int64(p.next) * 8; got != sent.Load() {
			l.fail("stream", fmt.Errorf("%d of %d bytes came back", got, sent.Load()))
		}
	})
}

// trips makes round trips in one connection.
func (l *load) trips(size int) {
	conn, err := l.w.dial()
	if err != nil {
		l.fail("trips", err)
		return
	}
	out, in := make([]byte, size), make([]byte, size)
	var p, q pattern
	l.each("round trip", func() error {
		conn.SetDeadline(time.Now().Add(patience))
		began := time.Now()
		p.fill(out)
		if _, err := conn.Write(out); err != nil {
			return err
		}
		if _, err := io.ReadFull(conn, in); err != nil {
			return err
		}
		took := int64(time.Since(began))
		for old := l.longest.Load(); took > old && !l.longest.CompareAndSwap(old, took); old = l.longest.Load() {
			continue
		}
		l.counts[turns].Add(1)
		time.Sleep(time.Millisecond)
		return q.check(in)
	})
}

// converse is a new connection, from its beginning to its end.
func (l *load) converse() error {
	conn, err := l.w.dial()
	if err != nil {
		return err
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(patience))
	if err := echoed(conn, "a new connection"); err != nil {
		return err
	}
	conn.(*net.TCPConn).CloseWrite()
	if n, err := conn.Read(make([]byte, 1)); n > 0 || !errors.Is(err, io.EOF) {
		return fmt.Errorf("at the end: %d bytes, %w", n, err)
	}
	return nil
}

func echoed(conn net.Conn, text string) error {
	if _, err := io.WriteString(conn, text); err != nil {
		return err
	}
	got := make([]byte, len(text))
	if _, err := io.ReadFull(conn, got); err != nil {
		return err
	}
	if string(got) != text {
		return fmt.Errorf("%q came back as %q", text, got)
	}
	return nil
}

// arrivals are new connections at a rate, whatever becomes of those before.
func (l *load) arrivals(every time.Duration) {
	l.running.Go(func() {
		var open sync.WaitGroup
		defer open.Wait()
		for next := time.Now(); l.stop.Err() == nil; next = next.Add(every) {
			time.Sleep(time.Until(next))
			open.Go(func() {
				if err := l.converse(); err != nil {
					l.fail("a new connection", err)
				}
				l.counts[fresh].Add(1)
			})
		}
	})
}

// sips has said all it had to say, and reads the answer slowly.
func (l *load) sips() {
	conn, err := l.w.dial()
	if err != nil {
		l.fail("slow reader", err)
		return
	}
	const size = 24 << 20
	l.running.Go(func() {
		var p pattern
		b := make([]byte, size)
		p.fill(b)
		conn.Write(b) // what is lost is missed below
		conn.(*net.TCPConn).CloseWrite()
	})
	l.running.Go(func() {
		defer conn.Close()
		var p pattern
		b := make([]byte, 32<<10)
		for got := 0; got < size; got += len(b) {
			if _, err := io.ReadFull(conn, b); err != nil {
				l.fail("slow reader", fmt.Errorf("after %d bytes: %w", got, err))
				return
			}
			if err := p.check(b); err != nil {
				l.fail("slow reader", err)
				return
			}
			l.counts[slow].Add(int64(len(b)))
			if l.stop.Err() == nil {
				time.Sleep(20 * time.Millisecond)
			}
		}
		if n, err := conn.Read(b); n > 0 || !errors.Is(err, io.EOF) {
			l.fail("slow reader", fmt.Errorf("at the end: %d bytes, %w", n, err))
		}
	})
}

// asks makes DNS queries.
func (l *load) asks() {
	l.each("DNS", func() error {
		time.Sleep(20 * time.Millisecond)
		conn, err := l.w.a.Dial(context.Background(), "udp", "10.96.0.10:53")
		if err != nil {
			return err
		}
		defer conn.Close()
		client := dns.Client{Timeout: patience}
		reply, _, err := client.ExchangeWithConn(new(dns.Msg).SetQuestion(dns.Fqdn(serviceName), dns.TypeA), &dns.Conn{Conn: conn})
		if err != nil {
			return err
		}
		if len(reply.Answer) != 1 {
			return fmt.Errorf("the answer is %v", reply)
		}
		l.counts[names].Add(1)
		return nil
	})
}

// TestUpgrade replaces both nodes' proxies in turn under everything at once.
func TestUpgrade(t *testing.T) {
	w := newWorld(t)
	rounds, every := 3, 10*time.Millisecond
	if long() {
		rounds, every = 20, 2*time.Millisecond
	}
	ctx, stop := context.WithCancel(t.Context())
	l := &load{w: w, stop: ctx}
	idle := make([]net.Conn, 50)
	for i := range idle {
		conn, err := w.dial()
		must(t, err)
		defer conn.Close()
		must(t, echoed(conn, "before"))
		idle[i] = conn
	}
	half := make([]net.Conn, 5) // whose peer waits for more, with an answer under way to nobody
	for i := range half {
		conn, err := w.dial()
		must(t, err)
		defer conn.Close()
		_, err = io.WriteString(conn, "all that there is")
		must(t, err)
		half[i] = conn
	}
	l.stream(64<<10, time.Millisecond)
	l.stream(1000, 0)
	for range 4 {
		l.trips(64)
	}
	l.trips(20_000)
	l.arrivals(every)
	l.sips()
	l.asks()
	moved := 0
	for round := 0; round < rounds && !t.Failed(); round++ {
		for node := range w.proxies {
			moved += w.replace(node)
			for _, conn := range idle {
				if err := echoed(conn, "between"); err != nil {
					t.Fatalf("an idle connection, round %d: %v", round, err)
				}
			}
		}
	}
	stop()
	l.running.Wait()
	for _, conn := range half {
		conn.(*net.TCPConn).CloseWrite()
		conn.SetDeadline(time.Now().Add(patience))
		if got, err := io.ReadAll(conn); err != nil || !bytes.Equal(got, []byte("all that there is")) {
			t.Errorf("a connection that waited got %q, %v", got, err)
		}
	}
	t.Logf("%d replacements, %d connections moved, %d bytes streamed, %d round trips (longest %v), %d new connections, %d bytes read slowly, %d names, stops %v",
		2*rounds, moved, l.counts[streamed].Load(), l.counts[turns].Load(), time.Duration(l.longest.Load()).Round(time.Millisecond/10),
		l.counts[fresh].Load(), l.counts[slow].Load(), l.counts[names].Load(), w.stops)
	if moved < 2*rounds*len(idle) {
		t.Errorf("only %d connections have moved", moved)
	}
	for kind, n := range map[string]int64{"bytes": l.counts[streamed].Load(), "trips": l.counts[turns].Load(), "arrivals": l.counts[fresh].Load(), "names": l.counts[names].Load()} {
		if n == 0 {
			t.Errorf("no %s", kind)
		}
	}
}

const echoes = 1000

// isOpen says something, and finds no end.
func isOpen(conn net.Conn) error {
	if _, err := conn.Write([]byte("after")); err != nil {
		return err
	}
	conn.SetReadDeadline(time.Now().Add(time.Microsecond))
	if _, err := conn.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
		return fmt.Errorf("it has ended: %w", err)
	}
	return nil
}

// TestHowLongConnectionsStandStill tells the longest stop of any connection, by
// how many there are. It bounds nothing: the machine may be busy.
func TestHowLongConnectionsStandStill(t *testing.T) {
	numbers := []int{1, 200}
	if long() {
		numbers = []int{1, 1000, 10_000}
	}
	for _, number := range numbers {
		t.Run(fmt.Sprint(number), func(t *testing.T) {
			w := newWorld(t)
			conns := make([]net.Conn, number)
			for i := range conns {
				port := uint16(portEcho)
				if i >= echoes { // of which one costs its server three descriptors
					port = portSink
				}
				conn, err := w.dialTo(port)
				must(t, err)
				defer conn.Close()
				if conns[i] = conn; i < echoes {
					must(t, echoed(conn, "before"))
				}
			}
			for node := range w.proxies {
				if moved := w.replace(node); moved != number {
					t.Errorf("%d of %d connections have moved", moved, number)
				}
			}
			for i, conn := range conns {
				if i < echoes {
					must(t, echoed(conn, "after"))
				} else {
					must(t, isOpen(conn))
				}
			}
			slices.Sort(w.stops)
			t.Logf("%d connections: longest stop %v", number, w.stops)
		})
	}
}
