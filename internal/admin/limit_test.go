// SPDX-License-Identifier: Apache-2.0

package admin

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/ztunnel-go/ztunnel/test/leak"
)

// dialFrom connects from an address of loopback.
func dialFrom(t *testing.T, from string, to netip.AddrPort) net.Conn {
	t.Helper()
	c, err := tryFrom(t, from, to)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func tryFrom(t *testing.T, from string, to netip.AddrPort) (net.Conn, error) {
	d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(from)}, Timeout: 10 * time.Second}
	c, err := d.Dial("tcp", to.String())
	if err != nil {
		return nil, err
	}
	t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(20 * time.Second))
	return c, nil
}

// answered asks once and reports whether the page came.
func answered(c net.Conn) bool {
	if _, err := io.WriteString(c, "GET /hello HTTP/1.1\r\nHost: x\r\n\r\n"); err != nil {
		return false
	}
	line, _ := bufio.NewReader(c).ReadString('\n')
	return strings.HasPrefix(line, "HTTP/1.1 200 ")
}

func TestAFloodFromOneAddressDoesNotKeepOthersOut(t *testing.T) {
	leak.Check(t)
	s, err := Listen("admin", []netip.AddrPort{netip.MustParseAddrPort("127.0.0.1:0")}, quietLogger())
	if err != nil {
		t.Fatal(err)
	}
	hold := make(chan struct{})
	s.Serve(paths{
		"/hello": func(w http.ResponseWriter, _ *http.Request) { text(w, http.StatusOK, "hello\n") },
		"/slow":  func(http.ResponseWriter, *http.Request) { <-hold },
	})
	defer func() {
		close(hold)
		if err := s.Shutdown(context.Background()); err != nil {
			t.Error(err)
		}
	}()
	for range maxConnsOfAddress {
		c := dialFrom(t, "127.0.0.2", s.Addrs()[0])
		if _, err := io.WriteString(c, "GET /slow HTTP/1.1\r\nHost: x\r\n\r\n"); err != nil {
			t.Fatal(err)
		}
	}
	// Accepted in their order: when this one is refused, all are in.
	beyond, err := tryFrom(t, "127.0.0.2", s.Addrs()[0])
	if err == nil && answered(beyond) { // it may be reset before Dial has returned
		t.Error("a connection beyond the limit was answered")
	}
	if s.Refused() != 1 {
		t.Errorf("%d were refused", s.Refused())
	}
	if !answered(dialFrom(t, "127.0.0.3", s.Addrs()[0])) {
		t.Error("another address was kept out")
	}
}

func TestTheGateIsBoundedAndForgets(t *testing.T) {
	g := newGate()
	addr := func(i int) netip.Addr { return netip.AddrFrom4([4]byte{10, 0, byte(i >> 8), byte(i)}) }
	for i := range maxConns {
		if !g.enter(addr(i)) {
			t.Fatalf("%d found no room", i)
		}
	}
	if g.enter(addr(maxConns)) {
		t.Error("there was room for one more")
	}
	for i := range maxConns {
		g.leave(addr(i))
	}
	if g.all != 0 || len(g.of) != 0 {
		t.Errorf("%d left, %d addresses", g.all, len(g.of))
	}
}

func TestAReaderThatTakesNothingIsCut(t *testing.T) {
	leak.Check(t)
	s, err := Listen("stats", []netip.AddrPort{netip.MustParseAddrPort("127.0.0.1:0")}, quietLogger())
	if err != nil {
		t.Fatal(err)
	}
	s.gate.take = 50 * time.Millisecond
	ended := make(chan error, 1)
	s.Serve(paths{"/": func(w http.ResponseWriter, _ *http.Request) {
		for {
			if _, err := w.Write(make([]byte, piece)); err != nil {
				ended <- err
				return
			}
		}
	}})
	defer s.Shutdown(context.Background())
	c := dialFrom(t, "127.0.0.1", s.Addrs()[0])
	if _, err := io.WriteString(c, "GET / HTTP/1.1\r\nHost: x\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	select {
	case <-ended:
	case <-time.After(20 * time.Second):
		t.Fatal("the handler is writing still")
	}
}

func TestABodyThatNeverComesIsNotWaitedFor(t *testing.T) {
	addr := serve(t, hello())
	start := time.Now()
	got := exchange(t, addr, "POST /hello HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\nabc", false)
	if !strings.HasSuffix(got, "hello\n") || time.Since(start) > 8*quiet {
		t.Errorf("%q after %v", got, time.Since(start))
	}
}

func TestFewRunAtATime(t *testing.T) {
	var now, most atomic.Int32
	h := few(2, func(w http.ResponseWriter, _ *http.Request) {
		n := now.Add(1)
		for m := most.Load(); n > m && !most.CompareAndSwap(m, n); m = most.Load() {
		}
		time.Sleep(time.Millisecond)
		now.Add(-1)
		fmt.Fprint(w, "x")
	})
	var all sync.WaitGroup
	for range 20 {
		all.Go(func() {
			if got := get(h, http.MethodGet, "/"); got.Body.String() != "x" {
				t.Errorf("%q", got.Body)
			}
		})
	}
	all.Wait()
	if most.Load() > 2 {
		t.Errorf("%d at a time", most.Load())
	}
}
