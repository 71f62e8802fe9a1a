// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"testing"

	"golang.org/x/net/http2"

	"github.com/ztunnel-go/ztunnel/internal/certs/certstest"
	"github.com/ztunnel-go/ztunnel/internal/identity"
	"github.com/ztunnel-go/ztunnel/internal/mesh"
	"github.com/ztunnel-go/ztunnel/internal/mtls"
)

// A peer is somebody else's HTTP/2 client, at a host without a proxy.
type peer struct {
	t  *testing.T
	tr *http2.Transport
}

// peer makes tunnels to the server as account of namespace ns, from a host.
func (n *lan) peer(account, host string) *peer {
	n.t.Helper()
	bundle := n.ca.Bundle("spiffe://cluster.local/ns/ns/sa/" + account)
	cfg := mtls.Client(bundle, []identity.ID{certstest.ID(n.t, "spiffe://cluster.local/ns/ns/sa/server")}, mtls.Options{})
	tr := &http2.Transport{DialTLSContext: func(ctx context.Context, _, _ string, _ *tls.Config) (net.Conn, error) {
		c, err := n.dial(ctx, addr(host), addrPort(serverIP+":15008"))
		if err != nil {
			return nil, err
		}
		return tls.Client(c, cfg), nil
	}}
	n.t.Cleanup(tr.CloseIdleConnections)
	return &peer{n.t, tr}
}

// A tunnelConn is a user connection through a tunnel of a peer's.
type tunnelConn struct {
	io.Reader
	*io.PipeWriter
	answer *http.Response
	cancel context.CancelFunc
}

// ask sends a request; headers are name=value.
func (p *peer) ask(method, authority string, headers ...string) *tunnelConn {
	p.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	p.t.Cleanup(cancel)
	return p.askIn(ctx, cancel, method, authority, headers...)
}

func (p *peer) askIn(ctx context.Context, cancel context.CancelFunc, method, authority string, headers ...string) *tunnelConn {
	p.t.Helper()
	r, w := io.Pipe()
	p.t.Cleanup(func() { w.Close() })
	req, err := http.NewRequestWithContext(ctx, method, "https://"+serverIP+":15008", r)
	if err != nil {
		p.t.Fatal(err)
	}
	if method != http.MethodConnect {
		req.Body = nil
	}
	req.Host = authority
	for _, h := range headers {
		name, value, _ := strings.Cut(h, "=")
		req.Header.Set(name, value)
	}
	resp, err := p.tr.RoundTrip(req)
	if err != nil {
		if ctx.Err() == nil {
			p.t.Errorf("ask for %s: %v", authority, err)
		}
		return nil
	}
	p.t.Cleanup(func() { resp.Body.Close() })
	return &tunnelConn{resp.Body, w, resp, cancel}
}

func (c *tunnelConn) say(t *testing.T, text string) {
	t.Helper()
	go io.WriteString(c, text) // ends when it was read, or the request
	got := make([]byte, len(text))
	if _, err := io.ReadFull(c, got); err != nil || string(got) != text {
		t.Fatalf("said %q and heard %q, %v", text, got, err)
	}
}

func TestAnswersToRequests(t *testing.T) {
	named := &mesh.Service{Name: "named", Namespace: "ns", Hostname: "named.example", Ports: map[uint16]uint16{80: 0}}
	for _, tc := range []struct {
		name, method, authority string
		status                  int
		text                    string
		mesh                    []any
	}{
		{"method", "GET", "10.0.0.2:8080", 400, "expected method CONNECT, got GET", nil},
		{"no port", "CONNECT", "10.0.0.2", 400, "no valid authority pseudo header: 10.0.0.2", nil},
		{"another pod", "CONNECT", "10.0.0.9:8080", 400, "ip mismatch: 10.0.0.2 != 10.0.0.9", nil},
		{"unknown host", "CONNECT", "nobody.example:80", 503, "no service or workload for hostname: nobody.example", nil},
		{"unknown port", "CONNECT", webHost + ":81", 503, "requested service " + webHost + ":81 found, but cannot resolve port", nil},
		{"unnamed port", "CONNECT", "named.example:80", 503, "requested service named.example:80 found, but cannot resolve port", []any{named}},
		{"ourselves", "CONNECT", "10.0.0.2:15006", 503, "attempted recursive call to ourselves", nil},
	} {
		t.Run(tc.name, func(t *testing.T) {
			n, _, server := pair(t)
			n.put(tc.mesh...)
			got := n.peer("client", clientIP).ask(tc.method, tc.authority)
			if got.answer.StatusCode != tc.status || len(got.answer.Header) != 0 {
				t.Errorf("answered %d %v, want %d", got.answer.StatusCode, got.answer.Header, tc.status)
			}
			server.out.await("warn\taccess\tconnection failed\tsrc.addr=10.0.0.1:PORT dst.addr=10.0.0.2:15008" +
				` direction="inbound" error="` + tc.text + `"`)
			if got := server.counts("-"); got != [3]float64{} {
				t.Errorf("counted: %v", got)
			}
		})
	}
}

func TestAnApplicationTunnelIsToldWhoCalls(t *testing.T) {
	n, _, server := pair(t)
	n.put(serverWorkload(func(w *mesh.Workload) {
		w.ApplicationTunnel = &mesh.ApplicationTunnel{Kind: mesh.TunnelProxy, Port: 9000}
	}))
	server.app(9000, echo)
	c := n.peer("client", clientIP).ask("CONNECT", "10.0.0.7:8080")
	if c.answer.StatusCode != 200 {
		t.Fatalf("answered %d", c.answer.StatusCode)
	}
	head := make([]byte, 16)
	if _, err := io.ReadFull(c, head); err != nil || !strings.HasPrefix(string(head), "\r\n\r\n\x00\r\nQUIT\n\x21\x11") {
		t.Fatalf("the application heard %q, %v", head, err)
	}
	rest := make([]byte, int(head[14])<<8|int(head[15]))
	if _, err := io.ReadFull(c, rest); err != nil {
		t.Fatal(err)
	}
	src, dst, id := netip.AddrFrom4([4]byte(rest[:4])), netip.AddrFrom4([4]byte(rest[4:8])), string(rest[15:])
	if src != addr(clientIP) || dst != addr("10.0.0.7") || string(rest[10:13]) != "\x1f\x90\xd0" || id != "spiffe://cluster.local/ns/ns/sa/client" {
		t.Errorf("told of %v to %v, %x, %q", src, dst, rest[10:13], id)
	}
	c.say(t, "hello")
}

func TestARequestForAHostnameIsDelivered(t *testing.T) {
	n, _, server := pair(t)
	c := n.peer("client", clientIP).ask("CONNECT", webHost+":80")
	if got, want := c.answer.Header.Get("baggage"), "k8s.cluster.name=c1,k8s.namespace.name=ns,k8s.deployment.name=server-dep,service.name=server,service.version=v1"; got != want || len(c.answer.Header) != 1 {
		t.Errorf("answered with %v", c.answer.Header)
	}
	c.say(t, "hello")
	c.Close()
	if rest, err := io.ReadAll(c); len(rest) > 0 || err != nil {
		t.Errorf("at the end: %q, %v", rest, err)
	}
	server.out.await("info\taccess\tconnection complete\t" + srcFields + ` dst.addr=10.0.0.2:15008 dst.hbone_addr=` + webHost +
		`:80 dst.service="` + webHost + `" ` + dstFields + ` direction="inbound" bytes_sent=5 bytes_recv=5`)
}

func TestWhoTheLabelsNameAsTheSource(t *testing.T) {
	const baggage = "baggage=k8s.cluster.name=c9,k8s.namespace.name=far,k8s.deployment.name=caller,service.name=calls,service.version=v7"
	for _, tc := range []struct {
		name, host string
		headers    []string
		off        bool // ENABLE_RESPONSE_BAGGAGE
		labels     []string
		log        string
	}{
		{"a known address", clientIP, []string{baggage}, false,
			[]string{"source_workload=client-dep", "source_app=client", "source_cluster=c1"},
			`src.workload="client" src.namespace="ns" src.identity="spiffe://cluster.local/ns/ns/sa/somebody" src.cluster="c1"`},
		{"an unknown one with baggage", "10.0.0.8", []string{baggage}, false,
			[]string{"source_workload=caller", "source_canonical_service=calls", "source_app=caller", "source_version=v7", "source_workload_namespace=far"},
			`src.workload="calls" src.namespace="far" src.identity="spiffe://cluster.local/ns/ns/sa/somebody" src.cluster="c9"`},
		{"without", "10.0.0.8", nil, false,
			[]string{"source_workload=unknown", "source_app=unknown", "source_principal=spiffe://cluster.local/ns/ns/sa/somebody"},
			`src.addr=10.0.0.8:PORT src.identity="spiffe://cluster.local/ns/ns/sa/somebody" dst.addr`},
		{"baggage that is not wanted", "10.0.0.8", []string{baggage}, true, []string{"source_workload=unknown"}, "src.addr=10.0.0.8"},
		{"behind a gateway", clientIP, []string{baggage, "x-forwarded-network=other"}, false,
			[]string{"source_workload=caller", "source_app=caller"}, `src.workload="calls" src.namespace="far"`},
		{"of our own network", clientIP, []string{baggage, "x-forwarded-network=NET"}, false, []string{"source_workload=client-dep"}, `src.workload="client"`},
	} {
		t.Run(tc.name, func(t *testing.T) {
			n := newLAN(t)
			here := func(w *mesh.Workload) { w.Network = "net" }
			n.put(clientWorkload(here), serverWorkload(here))
			server := n.start(serverWorkload(), func(c *Config) { c.Network, c.ResponseBaggage = "net", !tc.off })
			server.app(8080, echo)
			c := n.peer("somebody", tc.host).ask("CONNECT", "10.0.0.2:8080", tc.headers...)
			c.Close()
			io.ReadAll(c)
			server.out.await("info\taccess\tconnection complete", tc.log)
			if got := server.count("istio_tcp_connections_closed_total", tc.labels...); got != 1 {
				t.Errorf("%v connections with %q", got, tc.labels)
			}
			if _, there := c.answer.Header["Baggage"]; there == tc.off {
				t.Errorf("answered with %v", c.answer.Header)
			}
		})
	}
}

func TestAPodWhoseWorkloadHasGone(t *testing.T) {
	n, _, server := pair(t)
	p := n.peer("client", clientIP)
	p.ask("CONNECT", "10.0.0.2:8080").say(t, "hello")
	n.store.Apply(func(u *mesh.Update) { u.RemoveWorkload(serverWorkload().UID) })
	if got := p.ask("CONNECT", "10.0.0.2:8080").answer.StatusCode; got != 503 {
		t.Errorf("answered %d", got)
	}
	server.out.await("connection failed", `error="failed to fetch information about local workload: server.ns (server)"`)
	server.out.await(`warn	proxy::inbound:proxy{wl=ns/server}:inbound{id=TRACE peer=10.0.0.1:PORT}	timed out waiting for workload 'server.ns (server)' from xds`)
}

// denyPort refuses a port of all pods of namespace ns.
func denyPort(port uint16) *mesh.Policy {
	return &mesh.Policy{
		Name: "deny", Namespace: "ns", Scope: mesh.ScopeNamespace, Action: mesh.Deny,
		Rules: []mesh.Rule{{{{DestinationPorts: []uint16{port}}}}},
	}
}

func TestAPolicyChangeCutsWhatItForbids(t *testing.T) {
	n, client, server := pair(t)
	server.app(8081, echo)
	p := n.peer("somebody", "10.0.0.8")
	forbidden, allowed := p.ask("CONNECT", "10.0.0.2:8080"), p.ask("CONNECT", "10.0.0.2:8081")
	captured, plaintext := client.connect("10.0.0.2:8080"), n.from("10.0.0.9", "10.0.0.2:8080")
	forbidden.say(t, "a")
	allowed.say(t, "b")
	say(t, captured, "c")
	say(t, plaintext, "d")

	n.put(denyPort(8080))
	_, err := forbidden.Read(make([]byte, 1))
	if se := (http2.StreamError{}); !errors.As(err, &se) || se.Code != http2.ErrCodeCancel {
		t.Errorf("the stream ended with %v, want CANCEL", err)
	}
	wantReset(t, captured)
	wantReset(t, plaintext)
	allowed.say(t, "still")
	if got := p.ask("CONNECT", "10.0.0.2:8080").answer.StatusCode; got != 401 {
		t.Errorf("answered %d", got)
	}
	eventually(t, "three are cut and one refused", func() bool { return server.counts("DENY") == [3]float64{5, 4, 4} })
	if got := server.out.lines("error\taccess\tconnection complete", `error="connection closed due to policy change"`); len(got) != 3 {
		t.Errorf("logged %q", got)
	}
	if got := len(server.out.lines("closed because it's no longer allowed after a policy update")); got != 3 {
		t.Errorf("%d lines tell of it", got)
	}
	if got := server.count("istio_tcp_sockets_open"); got != 2 { // two tunnels
		t.Errorf("%v sockets are open", got)
	}
}

// holdDeliveries has them wait for the function that it returns.
func (p *pod) holdDeliveries() (release func()) {
	hold := make(chan struct{})
	p.mu.Lock()
	defer p.mu.Unlock()
	p.hold = hold
	return func() { close(hold) }
}

func TestAPolicyChangeWhileTheApplicationIsDialled(t *testing.T) {
	n, _, server := pair(t)
	server.holdDeliveries()
	p := n.peer("client", clientIP)
	status := make(chan int, 1)
	go func() {
		if c := p.ask("CONNECT", "10.0.0.2:8080"); c != nil {
			status <- c.answer.StatusCode
		}
	}()
	eventually(t, "it is admitted", func() bool { return len(server.Live().Inbound) == 1 })
	n.put(denyPort(8080))
	if got := <-status; got != 401 {
		t.Errorf("answered %d", got)
	}
	server.out.await("error\taccess\tconnection complete", `error="connection closed due to policy change"`)
	if got := server.counts("DENY"); got != [3]float64{1, 1, 1} {
		t.Errorf("counts %v", got)
	}
}

func TestAClientThatDoesNotWaitForTheAnswer(t *testing.T) {
	n, _, server := pair(t)
	server.holdDeliveries()
	p := n.peer("client", clientIP)
	ctx, cancel := context.WithCancel(context.Background())
	gone := make(chan struct{})
	go func() {
		p.askIn(ctx, cancel, "CONNECT", "10.0.0.2:8080")
		close(gone)
	}()
	eventually(t, "it is admitted", func() bool { return len(server.Live().Inbound) == 1 })
	cancel()
	<-gone
	line := server.out.await("info\taccess\tconnection complete")
	if strings.Contains(line, "error=") {
		t.Error(line)
	}
	if got := server.counts("-"); got != [3]float64{1, 1, 0} {
		t.Errorf("counts %v", got)
	}
}

func TestPlaintext(t *testing.T) {
	n, _, server := pair(t)
	from := make(chan netip.Addr, 1)
	server.app(8080, func(c *net.TCPConn) {
		from <- shown(c.RemoteAddr()).Addr()
		echo(c)
	})
	c := n.from("10.0.0.8", "10.0.0.2:8080")
	say(t, c, "hello")
	finish(t, c)
	if got := <-from; got != addr("10.0.0.8") {
		t.Errorf("the application sees %v", got)
	}
	server.out.await("info\taccess\tconnection complete\t" +
		`src.addr=10.0.0.8:PORT dst.addr=10.0.0.2:8080 dst.service="` + webHost + `" dst.workload="server" dst.namespace="ns" dst.cluster="c1" ` +
		`direction="inbound" bytes_sent=5 bytes_recv=5 duration="Nms"`)
	if got := server.count("istio_tcp_connections_closed_total", "connection_security_policy=unknown", "source_principal=unknown",
		"destination_principal=spiffe://cluster.local/ns/ns/sa/server"); got != 1 {
		t.Errorf("%v connections", got)
	}
}

func TestPlaintextRefusals(t *testing.T) {
	strict := &mesh.Policy{
		Name: "strict", Namespace: "ns", Scope: mesh.ScopeNamespace, Action: mesh.Deny,
		Rules: []mesh.Rule{{{{NotPrincipals: []mesh.StringMatch{{Kind: mesh.Presence}}}}}},
	}
	n, client, server := pair(t)
	wantReset(t, n.from("10.0.0.8", "10.0.0.2:15001"))
	server.out.await("warn\taccess\tconnection failed\tsrc.addr=10.0.0.8:PORT dst.addr=10.0.0.2:15001 " +
		`direction="inbound" error="attempted recursive call to ourselves"`)
	wantReset(t, n.from("10.0.0.8", "10.0.0.2:4444"))
	server.out.await("error\taccess\tconnection complete", `error="connection failed: Connection refused (os error 111)"`)
	n.put(strict)
	wantReset(t, n.from("10.0.0.8", "10.0.0.2:8080"))
	server.out.await("error\taccess\tconnection complete", `error="connection closed due to policy rejection: explicitly denied by: ns/strict"`)
	if connect, deny := server.counts("CONNECT"), server.counts("DENY"); connect != [3]float64{2, 1, 1} || deny != [3]float64{2, 1, 1} {
		t.Errorf("connect %v, deny %v", connect, deny)
	}
	c := client.connect("10.0.0.2:8080") // with an identity
	say(t, c, "hello")
}

func TestATunnelFromAnotherTrustDomainIsRefused(t *testing.T) {
	n, _, server := pair(t)
	cfg := mtls.Client(n.ca.Bundle("spiffe://elsewhere/ns/ns/sa/client"),
		[]identity.ID{certstest.ID(t, "spiffe://cluster.local/ns/ns/sa/server")}, mtls.Options{})
	c := tls.Client(n.from("10.0.0.8", "10.0.0.2:15008"), cfg)
	c.Write([]byte("x"))
	if _, err := c.Read(make([]byte, 1)); err == nil {
		t.Error("the tunnel was taken")
	}
	server.out.await("connection failed\tsrc.addr=10.0.0.8:PORT dst.addr=10.0.0.2:15008", `error="tls handshake error: `,
		"peer did not present the expected trustdomain (cluster.local)")
}

func TestBytesOfALargeTransferAreCountedExactly(t *testing.T) {
	_, client, server := pair(t)
	data := bytes.Repeat([]byte("0123456789abcdef"), 1<<17) // 2 MiB
	c := client.connect("10.96.0.1:80")
	go func() {
		c.Write(data)
		c.CloseWrite()
	}()
	got, err := io.ReadAll(c)
	if err != nil || !bytes.Equal(got, data) {
		t.Fatalf("%d bytes came back, %v", len(got), err)
	}
	for _, p := range []*pod{client, server} {
		eventually(t, "it is closed", func() bool { return p.counts("-")[1] == 1 })
		for _, m := range []string{"istio_tcp_received_bytes_total", "istio_tcp_sent_bytes_total"} {
			if n := p.count(m); n != float64(len(data)) {
				t.Errorf("%s is %v, want %d", m, n, len(data))
			}
		}
	}
}
