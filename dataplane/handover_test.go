// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"errors"
	"io"
	"log/slog"
	"maps"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/ztunnel-go/ztunnel/dataplane/handover"
	"github.com/ztunnel-go/ztunnel/internal/mesh"
)

// A handing is a conversation of two proxies of one pod.
type handing struct {
	old, new *pod
	giver    *handover.Old
	taker    *handover.New
	sum      handover.Summary
}

// end hangs up.
func (h *handing) end() {
	h.taker.Close()
	h.giver.Close()
}

// succeed starts another proxy of old's pod, as the process does that follows,
// and has it take over.
func (n *lan) succeed(old *pod, check func(*handover.Tunnel) error) *handing {
	t := n.t
	t.Helper()
	dir, err := os.MkdirTemp("", "h") // sockets' names are short
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	h := &handing{old: old}
	log := slog.New(slog.NewTextHandler(io.Discard, nil))
	h.giver, err = handover.Listen(handover.OldConfig{
		Path: filepath.Join(dir, "s"), Logger: log, Descriptors: old.Descriptors,
		Pod: func(netns uint64) handover.Pod {
			if netns != 7 {
				return nil
			}
			return old.Handover()
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	old.lan.mu.Lock()
	w := *n.store.View().WorkloadAt(mesh.NetworkAddr{Addr: old.ip})
	old.lan.mu.Unlock()
	h.new = n.start(&w)
	old.mu.Lock()
	h.new.apps = maps.Clone(old.apps)
	old.mu.Unlock()
	h.taker, err = handover.Dial(t.Context(), handover.NewConfig{
		Path: filepath.Join(dir, "s"), Logger: log,
		Check: func(_ uint64, tunnel *handover.Tunnel) error {
			if check != nil {
				if err := check(tunnel); err != nil {
					return err
				}
			}
			return h.new.Adoptable(tunnel)
		},
		Begin: func(_ uint64, lot []*handover.Tunnel) {
			for _, tunnel := range lot {
				if err := h.new.Adopt(tunnel); err != nil {
					t.Errorf("adopt: %v", err)
				}
			}
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	if h.sum, err = h.taker.Take(t.Context(), 7); err != nil {
		t.Fatal(err)
	}
	return h
}

// passes has one of the pods replaced.
func (n *lan) passes(old *pod) *pod {
	n.t.Helper()
	h := n.succeed(old, nil)
	h.end()
	if h.sum.Left > 0 || h.sum.Tunnels == 0 {
		n.t.Errorf("passed %+v", h.sum)
	}
	old.Stop(patience)
	return h.new
}

// TestConnectionsGoOnInTheNextProxy replaces the proxies of both ends in turn
// while bytes pass, others rest, and others have one direction closed.
func TestConnectionsGoOnInTheNextProxy(t *testing.T) {
	if theEngine == nil {
		return // see TestTunnelsThatGoroutinesCarryStay
	}
	n, client, server := pair(t)
	server.app(8080, echo)
	clients, servers := []*pod{client}, []*pod{server}
	const to, replacements = "10.0.0.2:8080", 6

	idle, half, reading := client.connect(to), client.connect(to), client.connect(to)
	say(t, idle, "before")
	say(t, half, "before")
	server.mu.Lock()
	server.apps[9090] = n.serve(server.ip, func(c *net.TCPConn) { // answers after the end
		all, _ := io.ReadAll(c)
		c.Write(all)
	})
	server.mu.Unlock()
	late := client.connect("10.0.0.2:9090")
	io.WriteString(late, "all that I had to say")
	late.CloseWrite()

	const size = 24 << 20
	data := make([]byte, size)
	for i := range data {
		data[i] = byte(i >> 8 * 7)
	}
	var moving sync.WaitGroup
	moving.Go(func() {
		for at := 0; at < size; at += size / 64 { // so that it lasts
			reading.Write(data[at : at+size/64])
			time.Sleep(5 * time.Millisecond)
		}
		reading.CloseWrite()
	})
	got := make(chan []byte, 1)
	moving.Go(func() {
		all, err := io.ReadAll(reading)
		if err != nil {
			t.Error(err)
		}
		got <- all
	})
	for range replacements {
		clients = append(clients, n.passes(clients[len(clients)-1]))
		say(t, idle, "between")
		servers = append(servers, n.passes(servers[len(servers)-1]))
		say(t, idle, "after")
		fresh := clients[len(clients)-1].connect(to)
		say(t, fresh, "new")
		finish(t, fresh)
	}
	moving.Wait()
	if all := <-got; !slices.Equal(all, data) {
		t.Errorf("%d of %d bytes came back as they were", len(all), size)
	}
	finish(t, idle)
	finish(t, half)
	if all, err := io.ReadAll(late); err != nil || !strings.HasPrefix(string(all), "all that I had") {
		t.Errorf("the late answer is %q, %v", all, err)
	}

	const connections = 4 + replacements
	for _, generations := range [][]*pod{clients, servers} {
		eventually(t, "all are closed", func() bool { return total(generations, "istio_tcp_connections_closed_total") == connections })
		if opened := total(generations, "istio_tcp_connections_opened_total"); opened != connections {
			t.Errorf("%v connections were opened, not %d", opened, connections)
		}
		want := float64(size + len("all that I had to say") + 2*len("before") + replacements*len("betweenafternew"))
		if sent := total(generations, "istio_tcp_sent_bytes_total"); sent != want {
			t.Errorf("%v bytes were counted, not %v", sent, want)
		}
		if sockets := total(generations, "istio_tcp_sockets_open"); sockets > 1 { // a tunnel rests
			t.Errorf("%v sockets are open", sockets)
		}
		lines := 0
		for _, p := range generations {
			lines += len(p.out.lines("connection complete"))
		}
		if lines != connections {
			t.Errorf("%d lines were written for %d connections", lines, connections)
		}
	}
}

func total(generations []*pod, metric string) (sum float64) {
	for _, p := range generations {
		sum += p.count(metric)
	}
	return sum
}

// TestPolicyIsAskedAgainBeforeAConnectionGoesOn has the next proxy know a policy
// that the old one does not.
func TestPolicyIsAskedAgainBeforeAConnectionGoesOn(t *testing.T) {
	if theEngine == nil {
		return // see TestTunnelsThatGoroutinesCarryStay
	}
	n, client, server := pair(t)
	server.app(8080, echo)
	c := client.connect("10.0.0.2:8080")
	say(t, c, "allowed")
	known := n.store
	n.store = mesh.NewStore()
	n.put(known.View().WorkloadAt(mesh.NetworkAddr{Addr: server.ip}), known.View().WorkloadAt(mesh.NetworkAddr{Addr: client.ip}))
	n.put(&mesh.Policy{Name: "deny", Namespace: "ns", Scope: mesh.ScopeNamespace, Action: mesh.Deny, Rules: []mesh.Rule{{}}})
	next := n.passes(server)
	c.SetDeadline(time.Now().Add(patience))
	if _, err := c.Read(make([]byte, 1)); err == nil || errors.Is(err, io.EOF) || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("the connection goes on: %v", err)
	}
	next.out.await("connection complete", "policy change")
}

// TestATunnelThatIsRefusedStays has the next proxy refuse it.
func TestATunnelThatIsRefusedStays(t *testing.T) {
	n, client, server := pair(t)
	server.app(8080, echo)
	c := client.connect("10.0.0.2:8080")
	say(t, c, "before")
	h := n.succeed(server, func(*handover.Tunnel) error { return errors.New("not here") })
	defer h.end()
	if h.sum.Tunnels != 0 {
		t.Errorf("%d tunnels have moved", h.sum.Tunnels)
	}
	say(t, c, "after")
	finish(t, c)
	eventually(t, "the old one counts the end", func() bool { return server.count("istio_tcp_connections_closed_total") == 1 })
	if n := h.new.count("istio_tcp_connections_opened_total"); n != 0 {
		t.Errorf("the new one counts %v", n)
	}
}

// TestATunnelMadeMeanwhileFollows is one whose handshake ends in the old proxy
// after the first pass.
func TestATunnelMadeMeanwhileFollows(t *testing.T) {
	if theEngine == nil {
		return // see TestTunnelsThatGoroutinesCarryStay
	}
	n, _, server := pair(t)
	server.app(8080, echo)
	h := n.succeed(server, nil)
	n.mu.Lock()
	n.pods[server.ip] = server // it had been accepted by the old one
	n.mu.Unlock()
	tunnel := n.tunnel("somebody", "10.0.0.8")
	s, err := open(t, tunnel, "10.0.0.2:8080")
	if err != nil {
		t.Fatal(err)
	}
	sayIn(t, s, "late")
	eventually(t, "the tunnel has followed", func() bool {
		return len(h.new.Live().Inbound) == 1 && len(server.Live().Inbound) == 0
	})
	sayIn(t, s, "later")
	s.Close()
	h.end()
}

func TestTunnelsThatGoroutinesCarryStay(t *testing.T) {
	if theEngine != nil {
		return // see the other tests
	}
	n, client, server := pair(t)
	c := client.connect("10.0.0.2:8080")
	say(t, c, "before")
	h := n.succeed(server, nil)
	defer h.end()
	if h.sum != (handover.Summary{}) {
		t.Errorf("passed %+v", h.sum)
	}
	say(t, c, "after")
	finish(t, c)
}
