// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"net"
	"net/netip"
	"testing"
	"time"
)

func TestAGateCounts(t *testing.T) {
	a, b := netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("10.0.0.2")
	g := &Gate{All: 3, PerSource: 2}
	for i, step := range []struct {
		src  netip.Addr
		want string
	}{{a, ""}, {a, ""}, {a, "source"}, {b, ""}, {b, "all"}, {a, "all"}} {
		if got := g.enter(step.src); got != step.want {
			t.Errorf("step %d: %q, want %q", i, got, step.want)
		}
	}
	for _, src := range []netip.Addr{a, a, b} {
		g.leave(src)
	}
	if g.inside != 0 || len(g.sources) != 0 {
		t.Errorf("left inside: %d, %v", g.inside, g.sources)
	}
	var none *Gate
	for range 100 {
		if none.enter(a) != "" || (&Gate{}).enter(a) != "" {
			t.Fatal("no limit, and refused")
		}
	}
	none.leave(a)
}

// Those who connect and say nothing are refused beyond the limit, at once and
// counted; whoever is elsewhere gets through, and so do they once they go.
func TestCrowdsWithoutHandshakesAreBounded(t *testing.T) {
	n := newLAN(t)
	n.gate = &Gate{All: 10, PerSource: 3}
	w := member("server", "10.0.0.2")
	n.put(w)
	server := n.start(w)
	server.app(8080, echo)
	idle := make([]net.Conn, 3)
	for i := range idle {
		idle[i] = n.from("10.0.0.8", serverIP+":15008")
	}
	inside := func(want int) {
		t.Helper()
		for deadline := time.Now().Add(patience); ; time.Sleep(time.Millisecond) {
			n.gate.mu.Lock()
			got := n.gate.inside
			n.gate.mu.Unlock()
			if got == want {
				return
			}
			if time.Now().After(deadline) {
				t.Fatalf("%d are inside, want %d", got, want)
			}
		}
	}
	inside(3)
	wantReset(t, n.from("10.0.0.8", serverIP+":15008"))
	if got := server.count("ztunnel_handshakes_refused_total", "limit=source"); got != 1 {
		t.Errorf("counted %v", got)
	}
	for _, host := range []string{"10.0.0.9", "10.0.0.8"} {
		stream, err := open(t, n.tunnel("somebody", host), "10.0.0.2:8080")
		if err != nil {
			t.Fatal(err)
		}
		sayIn(t, stream, "a")
		for _, c := range idle {
			c.Close()
		}
		inside(0) // whose handshake is done does not count
	}
}
