// SPDX-License-Identifier: Apache-2.0

package dnsproxy

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/miekg/dns"

	"github.com/ztunnel-go/ztunnel/test/leak"
)

// truncating is a server that truncates by UDP, and does what it is told with
// each TCP connection, after reading the query.
func truncating(t *testing.T, serve func(c net.Conn, query []byte)) netip.AddrPort {
	t.Helper()
	var at netip.AddrPort
	var l net.Listener
	for range 20 { // the port of UDP may be taken for TCP
		at = rawUpstream(t, func(q []byte) [][]byte {
			return [][]byte{forge(q, func(m *dns.Msg) { m.Answer, m.Truncated = nil, true })}
		})
		if serve == nil {
			return at
		}
		var err error
		if l, err = net.Listen("tcp", at.String()); err == nil {
			break
		}
	}
	if l == nil {
		t.Fatal("no port is free for both UDP and TCP")
	}
	var work sync.WaitGroup
	work.Go(func() { // ends when l is closed
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			work.Go(func() { // ends with serve
				defer c.Close()
				if q, err := readFrame(c); err == nil {
					serve(c, q)
				}
			})
		}
	})
	t.Cleanup(func() { l.Close(); work.Wait() })
	return at
}

// TestBadUpstreams asks one bad server, and then a bad and a good one: the bad
// one fails with a reason, and never spoils the answer of the good one.
func TestBadUpstreams(t *testing.T) {
	leak.Check(t)
	fine := fakeUpstream(t, world).addr
	framed := func(b []byte) []byte { return append(binary.BigEndian.AppendUint16(nil, uint16(len(b))), b...) }
	for about, c := range map[string]struct {
		server func(t *testing.T) netip.AddrPort
		want   string // how the error ends
	}{
		"truncated, and no TCP": {func(t *testing.T) netip.AddrPort { return truncating(t, nil) }, "connection refused"},
		"TCP that ends within the length": {func(t *testing.T) netip.AddrPort {
			return truncating(t, func(c net.Conn, _ []byte) { c.Write([]byte{0}) })
		}, io.ErrUnexpectedEOF.Error()},
		"TCP that ends within the message": {func(t *testing.T) netip.AddrPort {
			return truncating(t, func(c net.Conn, q []byte) { b := framed(forge(q, right)); c.Write(b[:len(b)-1]) })
		}, io.ErrUnexpectedEOF.Error()},
		"TCP that ends before": {func(t *testing.T) netip.AddrPort {
			return truncating(t, func(net.Conn, []byte) {})
		}, io.EOF.Error()},
		"TCP that is reset": {func(t *testing.T) netip.AddrPort {
			return truncating(t, func(c net.Conn, _ []byte) { c.(*net.TCPConn).SetLinger(0) })
		}, "connection reset by peer"},
		"TCP that is silent": {func(t *testing.T) netip.AddrPort {
			return truncating(t, func(c net.Conn, _ []byte) { io.Copy(io.Discard, c) })
		}, context.DeadlineExceeded.Error()},
		"TCP with another question": {func(t *testing.T) netip.AddrPort {
			return truncating(t, func(c net.Conn, q []byte) {
				c.Write(framed(forge(q, func(m *dns.Msg) { m.Question[0].Name = "liar.example." })))
			})
		}, errMismatch.Error()},
		"TCP with another id": {func(t *testing.T) netip.AddrPort {
			return truncating(t, func(c net.Conn, q []byte) { c.Write(framed(forge(q, func(m *dns.Msg) { m.Id++ }))) })
		}, errMismatch.Error()},
		"TCP with garbage": {func(t *testing.T) netip.AddrPort {
			return truncating(t, func(c net.Conn, _ []byte) { c.Write(framed([]byte(strings.Repeat("garbage", 9000)))) })
		}, errMismatch.Error()},
		"UDP with garbage": {func(t *testing.T) netip.AddrPort {
			return rawUpstream(t, func(q []byte) [][]byte { return [][]byte{[]byte(strings.Repeat("garbage", 100)), q[:3], nil} })
		}, context.DeadlineExceeded.Error()},
		"UDP, and larger than any buffer": {func(t *testing.T) netip.AddrPort {
			return rawUpstream(t, func(q []byte) [][]byte {
				return [][]byte{append(forge(q, right), make([]byte, 2*udpBuffer)...)}
			})
		}, "connection refused"}, // it counts as truncated, and there is no TCP
		"an answer with a loop of pointers": {func(t *testing.T) netip.AddrPort {
			return rawUpstream(t, func(q []byte) [][]byte {
				b := append([]byte(nil), q...)
				b[2] |= 0x80
				b[7] = 1 // one answer, which is a pointer to itself
				at := len(b)
				return [][]byte{append(b, 0xc0, byte(at), 0, 1, 0, 1, 0, 0, 0, 9, 0, 4, 1, 2, 3, 4)}
			})
		}, context.DeadlineExceeded.Error()},
	} {
		t.Run(about, func(t *testing.T) {
			bad := c.server(t)
			conf := Upstream{Nameservers: []netip.AddrPort{bad}, Timeout: 300 * time.Millisecond, Attempts: 1}
			if got := told(forwarder(t, ForwarderConfig{Upstream: conf}).Ask(t.Context(), askFor("www.example.org."))); !strings.HasSuffix(got, c.want) {
				t.Errorf("alone: %s, want %s", got, c.want)
			}
			conf.Nameservers, conf.Timeout = []netip.AddrPort{bad, fine}, 10*time.Second
			if got := told(forwarder(t, ForwarderConfig{Upstream: conf}).Ask(t.Context(), askFor("www.example.org."))); got != good {
				t.Errorf("beside a good one: %s", got)
			}
		})
	}
}

// TestALateAnswerIsNobodys has the first query answered when the second is on
// its way: that has a socket of its own.
func TestALateAnswerIsNobodys(t *testing.T) {
	leak.Check(t)
	var first atomic.Pointer[[]byte]
	var late sync.WaitGroup
	asked := make(chan struct{}, 8)
	pc, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	late.Go(func() { // ends when pc is closed
		buf := make([]byte, 4096)
		var client net.Addr
		for {
			n, from, err := pc.ReadFrom(buf)
			if err != nil {
				return
			}
			q := append([]byte(nil), buf[:n]...)
			if first.CompareAndSwap(nil, &q) {
				client = from
				continue
			}
			pc.WriteTo(forge(*first.Load(), func(*dns.Msg) {}), client) // a lie, and late
			pc.WriteTo(forge(q, right), from)
			asked <- struct{}{}
		}
	})
	defer func() { pc.Close(); late.Wait() }()
	up := Upstream{Nameservers: []netip.AddrPort{pc.LocalAddr().(*net.UDPAddr).AddrPort()}, Timeout: 200 * time.Millisecond, Attempts: 20}
	if got := told(forwarder(t, ForwarderConfig{Upstream: up}).Ask(t.Context(), askFor("www.example.org."))); got != good {
		t.Error(got)
	}
	<-asked
}

func TestTheLargestAnswersArriveWhole(t *testing.T) {
	leak.Check(t)
	var lines []string
	for i := range 4000 { // 16 bytes each, and 33 for the rest: 64,033
		lines = append(lines, fmt.Sprintf("big.example.org. 300 IN A 10.1.%d.%d", i/256, i%256))
	}
	up := fakeUpstream(t, func(q *dns.Msg, tcp bool) *dns.Msg {
		m := answerWith(q, dns.RcodeSuccess, lines...)
		m.Compress = true
		if !tcp {
			m.Truncate(512)
		}
		return m
	})
	r := start(t, Config{View: oneName().View(), Upstream: Upstream{Nameservers: []netip.AddrPort{up.addr}}})
	if got := r.ask("tcp", question("big.example.org", dns.TypeA)); len(got.Answer) != 4000 || got.Truncated {
		t.Errorf("TCP: %d answers, truncated %v", len(got.Answer), got.Truncated)
	}
	if got := r.ask("udp", question("big.example.org", dns.TypeA)); len(got.Answer) == 0 || len(got.Answer) > 255 || !got.Truncated {
		t.Errorf("UDP: %d answers, truncated %v", len(got.Answer), got.Truncated)
	}
}

// TestAFloodOfOnePodIsItsOwn has one pod ask for a thousand names that nobody
// answers, without pause, while another is served.
func TestAFloodOfOnePodIsItsOwn(t *testing.T) {
	leak.Check(t)
	silent := fakeUpstream(t, func(*dns.Msg, bool) *dns.Msg { return nil })
	bad := start(t, Config{View: oneName().View(), Upstream: Upstream{Nameservers: []netip.AddrPort{silent.addr}, Timeout: time.Minute}})
	other := start(t, Config{View: oneName().View(), Upstream: fakeUpstream(t, world).config()})
	c, err := net.Dial("udp", bad.udp.String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	stop := make(chan struct{})
	var flood sync.WaitGroup
	flood.Go(func() { // ends with stop
		for i := 0; ; i++ {
			select {
			case <-stop:
				return
			default:
			}
			b, _ := question(fmt.Sprintf("n%d.example.org", i), dns.TypeA).Pack()
			if _, err := c.Write(b); err != nil && !errors.Is(err, net.ErrClosed) {
				t.Error(err)
				return
			}
			if i%64 == 0 {
				time.Sleep(time.Millisecond) // two cores are not many
			}
		}
	})
	poll(t, func() bool { return bad.ours()["ztunnel_dns_dropped_total upstream"] > 0 })
	for i := range 50 {
		if got := show(other.ask("udp", question("www.example.org", dns.TypeA))); got != "NOERROR ra www.example.org./A/192.0.2.1" {
			t.Errorf("query %d of the other pod: %s", i, got)
		}
		if got := show(other.ask("tcp", question("a", dns.TypeA))); got != "NOERROR aa ra a./A/1.1.1.1" {
			t.Errorf("query %d of the other pod: %s", i, got)
		}
	}
	// Names of the mesh are answered to the pod itself, too.
	if got := show(bad.ask("tcp", question("a", dns.TypeA))); got != "NOERROR aa ra a./A/1.1.1.1" {
		t.Errorf("the pod itself: %s", got)
	}
	close(stop)
	flood.Wait()
	if n := bad.server.forward.busy(); n > maxForwarded {
		t.Errorf("%d wait for upstream", n)
	}
	if len(other.ours()) == 0 || other.ours()["ztunnel_dns_dropped_total upstream"] != 0 {
		t.Errorf("the other pod's: %v", other.ours())
	}
	bad.server.Close()
}

// TestQueriesThatAreInTheSocketWhenADrainBeginsAreAnswered drains at once after
// sending.
func TestQueriesThatAreInTheSocketWhenADrainBeginsAreAnswered(t *testing.T) {
	leak.Check(t)
	r := start(t, Config{View: oneName().View()})
	c, err := net.Dial("udp", r.udp.String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	b, _ := question("a", dns.TypeA).Pack()
	const queries = 100
	for range queries {
		if _, err := c.Write(b); err != nil {
			t.Fatal(err)
		}
	}
	if err := r.server.Drain(t.Context()); err != nil {
		t.Fatal(err)
	}
	c.SetReadDeadline(time.Now().Add(20 * time.Second))
	buf := make([]byte, 512)
	for i := range queries {
		if _, err := c.Read(buf); err != nil {
			t.Fatalf("answer %d: %v", i, err)
		}
	}
	if _, err := c.Write(b); err == nil { // told of by the write, or by the read after it
		if n, err := c.Read(buf); err == nil {
			t.Errorf("%d bytes from a drained server", n)
		}
	}
}
