// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"context"
	"errors"
	"io"
	"net"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/ztunnel-go/ztunnel/dataplane/hbone"
	"github.com/ztunnel-go/ztunnel/internal/certs/certstest"
	"github.com/ztunnel-go/ztunnel/internal/identity"
	"github.com/ztunnel-go/ztunnel/internal/mesh"
	"github.com/ztunnel-go/ztunnel/internal/mtls"
)

// tunnel is one of our own to the server, from a host without a proxy.
func (n *lan) tunnel(account, host string) *hbone.Tunnel {
	n.t.Helper()
	cfg := mtls.Client(n.ca.Bundle("spiffe://cluster.local/ns/ns/sa/"+account),
		[]identity.ID{certstest.ID(n.t, "spiffe://cluster.local/ns/ns/sa/server")}, mtls.Options{})
	tunnel, err := hbone.NewTunnel(n.t.Context(), n.from(host, serverIP+":15008"), cfg, hbone.Settings{})
	if err != nil {
		n.t.Fatal(err)
	}
	n.t.Cleanup(func() { tunnel.Close() })
	return tunnel
}

func open(t *testing.T, tunnel *hbone.Tunnel, authority string) (hbone.Stream, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	s, _, err := tunnel.Open(ctx, hbone.Request{Authority: authority})
	return s, err
}

// sayIn is say on a stream.
func sayIn(t *testing.T, s hbone.Stream, text string) {
	t.Helper()
	if _, err := io.WriteString(s, text); err != nil {
		t.Fatal(err)
	}
	got := make([]byte, len(text))
	if _, err := io.ReadFull(s, got); err != nil || string(got) != text {
		t.Fatalf("said %q and heard %q, %v", text, got, err)
	}
}

// stopping calls Stop; the function that it returns waits for it and says how
// long it took.
func stopping(p *pod, grace time.Duration) (ended func() time.Duration) {
	begin, done := time.Now(), make(chan struct{})
	go func() {
		defer close(done)
		p.Stop(grace)
	}()
	return func() time.Duration {
		p.lan.t.Helper()
		select {
		case <-done:
		case <-time.After(patience):
			p.lan.t.Fatal("the proxy does not stop")
		}
		return time.Since(begin)
	}
}

const drainWarning = "drain duration expired with pending connections, forcefully shutting down"

func TestADrainLetsConnectionsEnd(t *testing.T) {
	n, client, server := pair(t)
	tunnel := n.tunnel("somebody", "10.0.0.8")
	stream, err := open(t, tunnel, "10.0.0.2:8080")
	if err != nil {
		t.Fatal(err)
	}
	plaintext, captured := n.from("10.0.0.9", "10.0.0.2:8080"), client.connect("10.0.0.2:8080")
	n.outside("10.9.9.9:80", echo)
	own := n.client(func(ctx context.Context) (*net.TCPConn, error) {
		return server.outboundListener.dial(ctx, server.ip, addrPort("10.9.9.9:80"))
	})
	sayIn(t, stream, "a")
	say(t, plaintext, "b")
	say(t, captured, "c")
	say(t, own, "d")

	ended := stopping(server, time.Minute)
	<-server.draining
	server.acceptors.Wait()
	for _, l := range []*acceptor{server.outboundListener, server.plaintext, server.hbone} {
		if _, err := l.dial(t.Context(), addr("10.0.0.8"), addrPort("10.0.0.2:8080")); !errors.Is(err, syscall.ECONNREFUSED) {
			t.Errorf("a new connection: %v", err)
		}
	}
	var refused error
	eventually(t, "the tunnel takes no more streams", func() bool {
		var s hbone.Stream
		if s, refused = open(t, tunnel, "10.0.0.2:8080"); refused == nil {
			s.Reset()
		}
		return refused != nil
	})
	if handshake := (*hbone.HandshakeError)(nil); !errors.Is(refused, hbone.ErrUnavailable) && !errors.As(refused, &handshake) {
		t.Errorf("a new stream: %v", refused)
	}
	eventually(t, "the client's tunnel takes no more either", func() bool {
		c := client.connect("10.0.0.2:8080")
		defer c.Close()
		io.WriteString(c, "x")
		_, err := c.Read(make([]byte, 1))
		return isReset(err)
	})

	sayIn(t, stream, "still a")
	say(t, plaintext, "still b")
	say(t, captured, "still c")
	say(t, own, "still d")
	finish(t, plaintext)
	finish(t, captured)
	finish(t, own)
	stream.CloseWrite()
	if rest, err := io.ReadAll(stream); len(rest) > 0 || err != nil {
		t.Errorf("%q, %v", rest, err)
	}
	ended()
	if warned := server.out.lines(drainWarning); len(warned) > 0 {
		t.Error(warned)
	}
	if got := server.out.lines("access", "error="); len(got) > 0 {
		t.Errorf("a graceful end is told as an error: %q", got)
	}
}

func TestADrainServesWhatWasAccepted(t *testing.T) {
	n := newLAN(t)
	n.put(serverWorkload(), web())
	server := n.start(serverWorkload())
	server.app(8080, echo)
	client := n.start(clientWorkload(), func(c *Config) { c.WorkloadWait = patience })
	c := client.connect("10.96.0.1:80")
	eventually(t, "it is accepted", func() bool { return client.count("istio_tcp_sockets_open") == 1 })
	ended := stopping(client, time.Minute)
	<-client.draining
	n.put(clientWorkload())
	say(t, c, "hello")
	finish(t, c)
	ended()
}

func TestADrainInsistsAtItsEnd(t *testing.T) {
	for _, grace := range []time.Duration{0, 50 * time.Millisecond} {
		n, client, server := pair(t)
		n.outside("10.9.9.9:80", echo)
		stream, err := open(t, n.tunnel("somebody", "10.0.0.8"), "10.0.0.2:8080")
		if err != nil {
			t.Fatal(err)
		}
		plaintext, direct, captured := n.from("10.0.0.9", "10.0.0.2:8080"), client.connect("10.9.9.9:80"), client.connect("10.0.0.2:8080")
		sayIn(t, stream, "a")
		say(t, plaintext, "b")
		say(t, direct, "c")
		say(t, captured, "d")

		stopping(client, grace)()
		stopping(server, grace)()
		wantReset(t, plaintext)
		wantReset(t, direct)
		wantReset(t, captured)
		var reset *hbone.ResetError
		if _, err := stream.Read(make([]byte, 1)); !errors.As(err, &reset) {
			t.Errorf("the stream ended with %v", err)
		}
		for _, p := range []*pod{client, server} {
			if warned := len(p.out.lines("warn", drainWarning)) > 0; warned != (grace > 0) {
				t.Errorf("grace %v: warned: %v", grace, warned)
			}
		}
		const line = `error="connection closed due to connection drain"`
		if got := client.out.lines("error\taccess\tconnection complete", line); len(got) != 2 {
			t.Errorf("client: %q", got)
		}
		// One of the server's three may have ended with the client.
		if got := server.out.lines("error\taccess\tconnection complete", line); len(got) < 2 {
			t.Errorf("server: %q", got)
		}
		if got := client.counts("-"); got != [3]float64{2, 2, 0} {
			t.Errorf("client: %v", got)
		}
		if got := server.counts("-"); got != [3]float64{3, 3, 0} {
			t.Errorf("server: %v", got)
		}
	}
}

func TestStopMayBeCalledByMany(t *testing.T) {
	_, client, _ := pair(t)
	c := client.connect("10.0.0.2:8080")
	say(t, c, "hello")
	var all sync.WaitGroup
	for range 5 {
		all.Go(func() { client.Stop(10 * time.Millisecond) })
	}
	all.Wait()
	client.Stop(0)
	wantReset(t, c)
}

// What a connection waits for ends with the proxy, and the log says why.
func TestStopEndsEveryWait(t *testing.T) {
	for _, tc := range []struct {
		name, dst string
		given     func(n *lan)
		early     bool
	}{
		{"the pod's workload", "10.9.9.9:80", func(n *lan) {
			n.store.Apply(func(u *mesh.Update) { u.RemoveWorkload(clientWorkload().UID) })
		}, true},
		{"a name", "10.96.0.2:80", func(n *lan) { n.put(named("slow.example", "10.96.0.2")...) }, true},
		{"a certificate", "10.0.0.2:8080", func(n *lan) {
			n.ca.Before(func(ctx context.Context, _ identity.ID) error { <-ctx.Done(); return ctx.Err() })
		}, false},
		{"a peer's handshake", "10.0.0.5:80", func(n *lan) {
			n.put(member("mute", "10.0.0.5"))
			n.outside("10.0.0.5:15008", func(c *net.TCPConn) { io.Copy(io.Discard, c) })
		}, false},
		{"a peer's answer", "10.0.0.2:8080", func(n *lan) { n.pods[addr(serverIP)].holdDeliveries() }, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			n := newLAN(t)
			n.put(clientWorkload(), serverWorkload())
			client, server := n.start(clientWorkload(), func(c *Config) { c.WorkloadWait = time.Hour }), n.start(serverWorkload())
			server.app(8080, echo)
			tc.given(n)
			c := client.connect(tc.dst)
			eventually(t, "it waits", func() bool {
				if tc.early {
					return client.count("istio_tcp_sockets_open") == 1
				}
				return client.count("istio_tcp_connections_opened_total") == 1
			})
			stopping(client, 0)()
			wantReset(t, c)
			line := client.out.await("access\tconnection ", `error="connection closed due to connection drain"`)
			if strings.Contains(line, "connection failed") != tc.early {
				t.Error(line)
			}
			if warned := client.out.lines("timed out waiting"); len(warned) > 0 {
				t.Error(warned)
			}
		})
	}
}

func TestStopEndsHandshakesOfPeers(t *testing.T) {
	n, _, server := pair(t)
	c := n.from("10.0.0.8", "10.0.0.2:15008")
	eventually(t, "it is accepted", func() bool { return server.count("istio_tcp_sockets_open") == 1 })
	stopping(server, 0)()
	if _, err := c.Read(make([]byte, 1)); err == nil {
		t.Error("it was answered")
	}
	server.out.await("connection failed\tsrc.addr=10.0.0.8:PORT", `error="connection closed due to connection drain"`)
}

func TestATunnelThatComesDuringADrainIsDrained(t *testing.T) {
	n, _, server := pair(t)
	hold := make(chan struct{})
	n.ca.Before(func(_ context.Context, id identity.ID) error {
		if id.ServiceAccount() == "server" {
			<-hold
		}
		return nil
	})
	keep := n.from("10.0.0.9", "10.0.0.2:8080") // the drain goes on for it
	say(t, keep, "hello")
	made := make(chan error, 1)
	raw := n.from("10.0.0.8", serverIP+":15008")
	cfg := mtls.Client(n.ca.Bundle("spiffe://cluster.local/ns/ns/sa/somebody"),
		[]identity.ID{certstest.ID(t, "spiffe://cluster.local/ns/ns/sa/server")}, mtls.Options{})
	go func() {
		tunnel, err := hbone.NewTunnel(context.Background(), raw, cfg, hbone.Settings{})
		if err == nil {
			defer tunnel.Close()
			eventually(t, "the tunnel takes no streams", func() bool {
				s, err := open(t, tunnel, "10.0.0.2:8080")
				if err == nil {
					s.Reset()
				}
				return err != nil
			})
		}
		made <- err
	}()
	eventually(t, "it is accepted", func() bool { return server.count("istio_tcp_sockets_open") == 2 })
	ended := stopping(server, time.Minute)
	<-server.draining
	close(hold)
	if err := <-made; err != nil {
		t.Error(err)
	}
	finish(t, keep)
	ended()
}

func TestListenersTellOfThemselvesAndSurviveErrors(t *testing.T) {
	n, client, _ := pair(t)
	n.outside("10.9.9.9:80", echo)
	for component, target := range map[string]string{
		"outbound": "proxy::outbound", "inbound": "proxy::inbound", "inbound plaintext": "proxy::inbound_passthrough",
	} {
		client.out.await("info\t" + target + ":proxy{wl=ns/client}\tlistener established\taddress=127.0.0.1:PORT component=\"" + component + `" transparent=true`)
	}
	client.outboundListener.fail(syscall.EMFILE, syscall.ECONNABORTED, &net.OpError{Op: "accept", Err: syscall.ENFILE})
	for range 3 {
		client.connect("10.9.9.9:80")
	}
	c := client.connect("10.9.9.9:80")
	say(t, c, "hello")
	if got := client.out.lines("error\tproxy::outbound", "Failed TCP handshake"); len(got) != 3 {
		t.Errorf("logged %q", got)
	}
	for range 9 { // now it pauses for more than a second
		client.outboundListener.fail(syscall.EMFILE)
		client.connect("10.9.9.9:80")
	}
	eventually(t, "it pauses", func() bool { return len(client.out.lines("Failed TCP handshake")) >= 8 })
	if took := stopping(client, 0)(); took > time.Second {
		t.Errorf("stopping took %v", took)
	}
}
