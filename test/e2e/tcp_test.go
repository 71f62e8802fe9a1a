// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/ztunnel-go/ztunnel/test/netlab"
	"github.com/ztunnel-go/ztunnel/test/rig"
)

// TestTCP holds that applications see of each other what they would without a
// proxy between: ends, resets, refusals.
func TestTCP(t *testing.T) {
	w := newWorld(t)
	const appPort = 6000
	peers := map[string]struct {
		from *netlab.Host
		to   netip.AddrPort
		app  *server
	}{
		"same node":        {w.a.Host, w.c.Addr(appPort), listen(t, w.c.Host, port(appPort))},
		"across nodes":     {w.a.Host, w.b.Addr6(appPort), listen(t, w.b.Host, port(appPort))},
		"out of the mesh":  {w.a.Host, at(w.outside.IPv4, appPort), listen(t, w.outside.Host, port(appPort))},
		"from a stranger":  {w.stranger.Host, w.b.Addr(appPort + 1), listen(t, w.b.Host, port(appPort+1))},
		"in other network": {w.outside.Host, w.b.Addr6(appPort + 2), listen(t, w.b.Host, port(appPort+2))},
	}
	for name, p := range peers {
		pair := func(t *testing.T) (client, server *net.TCPConn) {
			client = w.dial(t, p.from, p.to)
			_, err := client.Write([]byte("hello"))
			must(t, err)
			server = p.app.accept(t)
			_, err = io.ReadFull(server, make([]byte, len("hello")))
			must(t, err)
			return client, server
		}
		t.Run("half-close "+name, func(t *testing.T) {
			client, server := pair(t)
			halfClose(t, client, server)
			server, client = pair(t) // and the other way round
			halfClose(t, client, server)
		})
		t.Run("reset "+name, func(t *testing.T) {
			client, server := pair(t)
			reset(t, client, server)
			server, client = pair(t)
			reset(t, client, server)
		})
		t.Run("reset after half-close "+name, func(t *testing.T) {
			client, server := pair(t)
			must(t, server.CloseWrite())
			if err := ended(client); !errors.Is(err, io.EOF) {
				t.Fatalf("the client saw %v", err)
			}
			reset(t, client, server)
		})
	}
	t.Run("closed port", func(t *testing.T) { w.closedPort(t) })
}

// halfClose ends one side, and wants the other to go on.
func halfClose(t *testing.T, ending, going *net.TCPConn) {
	t.Helper()
	must(t, ending.CloseWrite())
	if err := ended(going); !errors.Is(err, io.EOF) {
		t.Fatalf("the other side saw %v", err)
	}
	const late = "still here"
	_, err := going.Write([]byte(late))
	must(t, err)
	must(t, going.CloseWrite())
	if got, err := io.ReadAll(ending); err != nil || string(got) != late {
		t.Errorf("after the end of one direction the other brought %q, %v", got, err)
	}
}

// reset aborts one side, and wants the other to see exactly that.
func reset(t *testing.T, aborting, other *net.TCPConn) {
	t.Helper()
	must(t, aborting.SetLinger(0))
	must(t, aborting.Close())
	if err := ended(other); !wasReset(err) {
		t.Errorf("the other side saw %v, want a reset", err)
	}
}

// closedPort is refused at the source, and soon: not after a timeout.
func (w *world) closedPort(t *testing.T) {
	const limit = 100 * time.Millisecond
	for _, tc := range []struct {
		from *netlab.Host
		to   netip.AddrPort
	}{
		{w.a.Host, w.b.Addr(portClosed)}, {w.a.Host, w.b.Addr6(portClosed)}, {w.a.Host, w.c.Addr(portClosed)},
		{w.a.Host, at(w.outside.IPv4, portClosed)}, {w.stranger.Host, w.b.Addr(portClosed)}, {w.n2.Host, w.b.Addr6(portClosed)},
	} {
		best := patience
		// The first makes a tunnel; the machine may be busy in some.
		for range 10 {
			began := time.Now()
			c, err := tc.from.Dial(t.Context(), "tcp", tc.to.String())
			if err == nil {
				err = ended(c)
				c.Close()
			}
			best = min(best, time.Since(began))
			if !wasReset(err) && !strings.Contains(err.Error(), "refused") {
				t.Errorf("%s to %v: %v", tc.from.Name(), tc.to, err)
			}
		}
		if best > limit {
			t.Errorf("%s to %v: refused after %v at best, want %v", tc.from.Name(), tc.to, best, limit)
		}
	}
	w.logged(t, w.p2, 0, `direction="inbound"`, "dst.hbone_addr="+w.b.Addr(portClosed).String(),
		`error="connection failed: Connection refused (os error 111)"`)
	w.logged(t, w.p1, 0, `direction="outbound"`, "dst.hbone_addr="+w.b.Addr(portClosed).String(),
		`error="http status: 503 Service Unavailable"`)
}

// TestAnApplicationOnOurPorts binds the proxy's ports before its pod is
// enrolled: it gets nothing that is not its own, and the mesh works.
func TestAnApplicationOnOurPorts(t *testing.T) {
	w := plan(t)
	d := w.pod(w.n2, "d")
	echoServer := listen(t, d.Host, port(portEcho))
	go echoForever(echoServer)
	var squatters []*server
	for _, p := range []int{15001, 15006, 15008} {
		squatters = append(squatters, listen(t, d.Host, port(p)))
	}
	w.state.Workloads = append(w.state.Workloads, rig.WorkloadOf(d, "default"))
	must(t, w.mesh.SetState(w.state))
	w.p1, w.p2 = w.start(w.n1, rig.Options{}), w.start(w.n2, rig.Options{})
	w.enrol(w.p1, w.a)
	w.enrol(w.p2, w.b, d)
	w.ready(w.p1, w.p2)
	secret := w.watch(t, w.a, d)
	for _, to := range []netip.AddrPort{d.Addr(portEcho), d.Addr6(portEcho), w.b.Addr(portEcho)} {
		since := w.p1.Output.Mark()
		c := w.dial(t, w.a.Host, to)
		echo(t, c, secret.marker)
		must(t, c.Close())
		w.logged(t, w.p1, since, "\taccess\tconnection complete", "dst.hbone_addr="+to.String())
	}
	// What a stranger brings goes the proxy's way, too.
	must(t, refused(w.stranger.Host, d.Addr(portEcho), []byte("plain")))
	if err := refused(w.stranger.Host, d.Addr(15008), []byte("GET / HTTP/1.1\r\n\r\n")); err == nil {
		t.Error("a stranger was answered on 15008")
	}
	for _, s := range squatters {
		s.untouched(t)
	}
	// On loopback the ports are the application's.
	c := w.dial(t, d.Host, at(netip.MustParseAddr("127.0.0.1"), 15008))
	if got := squatters[2].accept(t); got.RemoteAddr().String() != c.LocalAddr().String() {
		t.Errorf("the application was reached by %v", got.RemoteAddr())
	}
	secret.kept(t)
}

// echoForever serves until the listener is closed.
func echoForever(s *server) {
	for c := range s.conns {
		go func() {
			defer c.Close()
			_, _ = io.Copy(c, c)
		}()
	}
}

// TestPodVanishes takes a pod's network away while it is captured and talking.
// The proxy lives, and after Del nothing of the pod is left.
func TestPodVanishes(t *testing.T) {
	w := newWorld(t)
	d := w.pod(w.n2, "d")
	w.state.Workloads = append(w.state.Workloads, rig.WorkloadOf(d, "default"))
	must(t, w.mesh.Apply(w.patience(), w.state))
	w.enrol(w.p2, d)
	app := listen(t, w.a.Host, port(portEcho))
	c := w.dial(t, d.Host, w.a.Addr(portEcho))
	_, err := c.Write([]byte("hello"))
	must(t, err)
	other := app.accept(t)
	if n := len(podPins(t, w.p2)); n != 2 {
		t.Errorf("%d pods are pinned, want 2", n)
	}

	must(t, d.Delete())
	must(t, c.Close()) // the last that held the namespace, but for the proxy
	if saw := get(t, w.a.Host, w.b.Addr(portHTTP)); saw.Server != "b" {
		t.Errorf("after the end of another pod: %+v", saw)
	}
	must(t, w.p2.Agent.Del("d"))
	w.eventually(t, func() error {
		if _, still := w.pods(t, w.p2)["d"]; still {
			return errors.New("d is still there")
		}
		if pins := podPins(t, w.p2); len(pins) != 1 {
			return fmt.Errorf("pins of pods are %v, want b's alone", pins)
		}
		return nil
	})
	w.ready(w.p2)
	must(t, other.Close())
}

// podPins are the directories that the proxy keeps for pods.
func podPins(t *testing.T, p *rig.Proxy) []string {
	t.Helper()
	pins, err := filepath.Glob(filepath.Join(p.PinDir(), "v*", "pods", "*"))
	must(t, err)
	return pins
}

// A podState is a line of /debug/pods.
type podState struct {
	UID, State, Capture, Error string
	Checks                     []struct{ Check, Result, Age string }
}

// pods are those that a proxy knows, by uid.
func (w *world) pods(t *testing.T, p *rig.Proxy) map[string]podState {
	t.Helper()
	_, body, err := p.Get(t.Context(), "15000/debug/pods")
	must(t, err)
	var lines []podState
	must(t, json.Unmarshal([]byte(body), &lines))
	pods := map[string]podState{}
	for _, line := range lines {
		pods[line.UID] = line
	}
	return pods
}
