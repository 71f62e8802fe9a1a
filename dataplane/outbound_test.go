// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"context"
	"crypto/x509"
	"errors"
	"io"
	"net"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/ztunnel-go/ztunnel/internal/identity"
	"github.com/ztunnel-go/ztunnel/internal/mesh"
)

const (
	clientIP, serverIP = "10.0.0.1", "10.0.0.2"
	webHost            = "web.ns.svc.cluster.local"
)

// web is a service of the server: port 80 is its 8080.
func web() *mesh.Service {
	return &mesh.Service{
		Name: "web", Namespace: "ns", Hostname: webHost,
		VIPs: []mesh.NetworkAddr{{Addr: addr("10.96.0.1")}}, Ports: map[uint16]uint16{80: 8080},
	}
}

func inWeb(w *mesh.Workload) {
	w.Services = map[mesh.NamespacedHostname]map[uint16]uint16{web().Key(): {80: 8080}}
}

func clientWorkload(change ...func(*mesh.Workload)) *mesh.Workload {
	return member("client", clientIP, change...)
}

func serverWorkload(change ...func(*mesh.Workload)) *mesh.Workload {
	return member("server", serverIP, append(change, inWeb)...)
}

// pair is a client and a server of the mesh, whose port 8080 echoes.
func pair(t *testing.T, change ...func(*Config)) (n *lan, client, server *pod) {
	t.Helper()
	n = newLAN(t)
	n.put(clientWorkload(), serverWorkload(), web())
	client, server = n.start(clientWorkload(), change...), n.start(serverWorkload(), change...)
	server.app(8080, echo)
	return n, client, server
}

const (
	srcFields = `src.addr=10.0.0.1:PORT src.workload="client" src.namespace="ns" src.identity="spiffe://cluster.local/ns/ns/sa/client" src.cluster="c1"`
	dstFields = `dst.workload="server" dst.namespace="ns" dst.identity="spiffe://cluster.local/ns/ns/sa/server" dst.cluster="c1"`
)

func TestAServiceIsReachedThroughATunnel(t *testing.T) {
	_, client, server := pair(t)
	c := client.connect("10.96.0.1:80")
	say(t, c, "hello")
	say(t, c, "again")
	finish(t, c)

	client.out.await("info\taccess\tconnection complete\t" + srcFields +
		` dst.addr=10.0.0.2:15008 dst.hbone_addr=10.0.0.2:8080 dst.service="web.ns.svc.cluster.local" ` + dstFields +
		` direction="outbound" bytes_sent=10 bytes_recv=10 duration="Nms"`)
	server.out.await("info\taccess\tconnection complete\t" + srcFields +
		` dst.addr=10.0.0.2:15008 dst.hbone_addr=10.0.0.2:8080 dst.service="web.ns.svc.cluster.local" ` + dstFields +
		` direction="inbound" bytes_sent=10 bytes_recv=10 duration="Nms"`)
	client.out.await("debug\taccess\tconnection opened\t" + srcFields)

	for reporter, p := range map[string]*pod{"source": client, "destination": server} {
		labels := []string{
			"reporter=" + reporter, "source_workload=client-dep", "source_principal=spiffe://cluster.local/ns/ns/sa/client",
			"destination_service=" + webHost, "destination_workload=server-dep", "connection_security_policy=mutual_tls",
			"destination_principal=spiffe://cluster.local/ns/ns/sa/server",
		}
		for metric, want := range map[string]float64{
			"istio_tcp_connections_opened_total": 1, "istio_tcp_connections_closed_total": 1, "istio_tcp_connections_failed_total": 0,
			"istio_tcp_received_bytes_total": 10, "istio_tcp_sent_bytes_total": 10,
		} {
			if got := p.count(metric, labels...); got != want {
				t.Errorf("%s at the %s is %v, want %v", metric, reporter, got, want)
			}
		}
	}
	if got := client.count("istio_tcp_sockets_open", "reporter=source"); got != 0 {
		t.Errorf("%v sockets are open", got)
	}
	if got := server.count("istio_tcp_sockets_open", "reporter=destination"); got != 1 {
		t.Errorf("%v sockets are open, want the tunnel", got)
	}
}

func TestConnectionsOfAPodShareATunnel(t *testing.T) {
	_, client, server := pair(t)
	var all []*net.TCPConn
	for range 20 {
		c := client.connect("10.0.0.2:8080")
		say(t, c, "x")
		all = append(all, c)
	}
	if got := server.count("istio_tcp_sockets_open"); got != 1 {
		t.Errorf("%v tunnels", got)
	}
	if s := client.Live(); len(s.Outbound) != 20 || s.Outbound[0].OriginalDst != addrPort("10.0.0.2:8080") ||
		s.Outbound[0].ActualDst != addrPort("10.0.0.2:15008") || s.Outbound[0].Protocol != "HBONE" {
		t.Errorf("live: %+v", s.Outbound)
	}
	if s := server.Live(); len(s.Inbound) != 20 || s.Inbound[0].ActualDst != addrPort("10.0.0.2:8080") {
		t.Errorf("live: %+v", s.Inbound)
	}
	for _, c := range all {
		finish(t, c)
	}
	eventually(t, "nothing is live", func() bool { return len(client.Live().Outbound)+len(server.Live().Inbound) == 0 })
}

func TestWhatIsNotOfTheMeshIsPassedThrough(t *testing.T) {
	n, client, _ := pair(t)
	n.outside("10.9.9.9:443", func(c *net.TCPConn) {
		if shown(c.RemoteAddr()).Addr() != addr(clientIP) {
			t.Errorf("the server sees %v", c.RemoteAddr())
		}
		echo(c)
	})
	c := client.connect("10.9.9.9:443")
	say(t, c, "hello")
	finish(t, c)
	client.out.await("info\taccess\tconnection complete\t" +
		`src.addr=10.0.0.1:PORT src.workload="client" src.namespace="ns" src.cluster="c1" dst.addr=10.9.9.9:443 direction="outbound" bytes_sent=5 bytes_recv=5 duration="Nms"`)
	if got := client.count("istio_tcp_connections_closed_total", "connection_security_policy=unknown", "destination_workload=unknown"); got != 1 {
		t.Errorf("%v connections", got)
	}
}

func TestAWorkloadWithoutHBONEIsDialledItself(t *testing.T) {
	n, client, _ := pair(t)
	n.put(member("plain", "10.0.0.3", func(w *mesh.Workload) { w.Protocol = mesh.TCP }))
	n.outside("10.0.0.3:80", echo)
	c := client.connect("10.0.0.3:80")
	say(t, c, "hello")
	finish(t, c)
	client.out.await("info\taccess\tconnection complete\t" +
		`src.addr=10.0.0.1:PORT src.workload="client" src.namespace="ns" src.cluster="c1" dst.addr=10.0.0.3:80 ` +
		`dst.workload="plain" dst.namespace="ns" dst.cluster="c1" direction="outbound"`)
}

// named is a service of a workload that has no address, only a name.
func named(hostname, vip string) []any {
	svc := &mesh.Service{
		Name: hostname, Namespace: "ns", Hostname: hostname,
		VIPs: []mesh.NetworkAddr{{Addr: addr(vip)}}, Ports: map[uint16]uint16{80: 8000},
	}
	w := member("at-"+hostname, "10.0.0.99", func(w *mesh.Workload) {
		w.IPs, w.Hostname, w.Protocol = nil, hostname, mesh.TCP
		w.Services = map[mesh.NamespacedHostname]map[uint16]uint16{svc.Key(): {80: 8000}}
	})
	return []any{svc, w}
}

func TestAWorkloadWithANameIsLookedUp(t *testing.T) {
	n, client, _ := pair(t)
	n.put(named("outside.example", "10.96.0.2")...)
	n.outside("10.9.9.9:8000", echo)
	c := client.connect("10.96.0.2:80")
	say(t, c, "hello")
	finish(t, c)
	for _, family := range []string{"istio_on_demand_dns_total", "istio_on_demand_dns_cache_misses_total"} {
		if got := client.count(family, "hostname=outside.example"); got != 1 {
			t.Errorf("%s is %v", family, got)
		}
	}
}

func TestEarlyDenialsOfOutboundConnections(t *testing.T) {
	for _, tc := range []struct {
		name, dst, text string
		mesh            []any
	}{
		{"ourselves", "127.0.0.1:15001", "attempted recursive call to ourselves", nil},
		{"no such port", "10.96.0.1:81", "no healthy upstream: 10.96.0.1:81", nil},
		{"no such name", "10.96.0.2:80", "no ip addresses were resolved for workload: c1//Pod/ns/at-nowhere.example", named("nowhere.example", "10.96.0.2")},
	} {
		t.Run(tc.name, func(t *testing.T) {
			n, client, _ := pair(t)
			n.put(tc.mesh...)
			wantReset(t, client.connect(tc.dst))
			client.out.await("warn\taccess\tconnection failed\tsrc.addr=10.0.0.1:PORT dst.addr=" + tc.dst +
				` direction="outbound" error="` + tc.text + `"`)
			if got := client.counts("-"); got != [3]float64{} {
				t.Errorf("counted: %v", got)
			}
		})
	}
}

func TestAPodThatTheControlPlaneDoesNotKnow(t *testing.T) {
	n := newLAN(t)
	client := n.start(clientWorkload())
	wantReset(t, client.connect("10.9.9.9:80"))
	client.out.await(`warn	proxy::outbound:proxy{wl=ns/client}:outbound{id=TRACE}	timed out waiting for workload 'client.ns (client)' from xds	`)
	client.out.await(`connection failed	src.addr=10.0.0.1:PORT dst.addr=10.9.9.9:80 direction="outbound" error="failed to fetch information about local workload: client.ns (client)"`)
	wantReset(t, n.from("10.0.0.8", clientIP+":80"))
	client.out.await(`connection failed	src.addr=10.0.0.8:PORT dst.addr=10.0.0.1:80 direction="inbound" error="failed to fetch information about local workload: client.ns (client)"`)
	c := n.from("10.0.0.8", clientIP+":15008")
	if _, err := c.Read(make([]byte, 1)); err == nil {
		t.Error("a tunnel was answered")
	}
	client.out.await(`connection failed	src.addr=10.0.0.8:PORT dst.addr=10.0.0.1:15008 direction="inbound" error="signing error: workload is unknown: client.ns (client)"`)
}

func TestAConnectionWaitsForItsWorkload(t *testing.T) {
	n := newLAN(t)
	client := n.start(clientWorkload(), func(c *Config) { c.WorkloadWait = patience })
	n.outside("10.9.9.9:80", echo)
	c := client.connect("10.9.9.9:80")
	eventually(t, "the connection is there", func() bool { return client.count("istio_tcp_sockets_open") == 1 })
	n.put(serverWorkload()) // of no concern
	n.put(clientWorkload())
	say(t, c, "hello")
}

func TestUpstreamsThatCannotBeHad(t *testing.T) {
	refused := `io error: Connection refused (os error 111)`
	for _, tc := range []struct {
		name, dst, flag, text string
		given                 func(n *lan)
	}{
		{"direct, refused", "10.9.9.9:80", "CONNECT", refused, nil},
		{"direct, timeout", "10.9.9.9:80", "CONNECT", `io error: deadline has elapsed`,
			func(n *lan) { n.unreachable("10.9.9.9:80", errTimeout) }},
		{"tunnel, refused", "10.0.0.5:80", "CONNECT", refused, nil},
		{"tunnel, timeout", "10.0.0.5:80", "NETWORK_POLICY",
			`connection timed out, maybe a NetworkPolicy is blocking HBONE port 15008: deadline has elapsed`,
			func(n *lan) { n.unreachable("10.0.0.5:15008", errTimeout) }},
		{"certificate", "10.0.0.5:80", "IDENTITY_ERROR", `identity error: no certificates today`, func(n *lan) {
			n.ca.Before(func(context.Context, identity.ID) error { return errors.New("no certificates today") })
		}},
		{"not TLS", "10.0.0.5:80", "CONNECT", `io error: `, func(n *lan) {
			n.outside("10.0.0.5:15008", func(c *net.TCPConn) { io.WriteString(c, "HTTP/1.1 200 OK\r\n\r\n"); io.Copy(io.Discard, c) })
		}},
		{"hangs up", "10.0.0.5:80", "CONNECT", `io error: `, func(n *lan) {
			n.outside("10.0.0.5:15008", func(c *net.TCPConn) { c.Read(make([]byte, 1)) })
		}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			n, client, _ := pair(t)
			n.put(member("gone", "10.0.0.5"))
			if tc.given != nil {
				tc.given(n)
			}
			wantReset(t, client.connect(tc.dst))
			client.out.await("error\taccess\tconnection complete", `bytes_sent=0 bytes_recv=0 duration="Nms" error="`+tc.text)
			if got := client.counts(tc.flag); got != [3]float64{1, 1, 1} {
				t.Errorf("opened, closed and failed with %s: %v", tc.flag, got)
			}
		})
	}
}

func TestAPeerThatIsSomebodyElse(t *testing.T) {
	n, client, server := pair(t)
	n.ca.Change(func(c *x509.Certificate) {
		if strings.HasSuffix(c.URIs[0].String(), "/sa/server") {
			c.URIs = []*url.URL{{Scheme: "spiffe", Host: "cluster.local", Path: "/ns/ns/sa/mallory"}}
		}
	})
	wantReset(t, client.connect("10.96.0.1:80"))
	client.out.await("error\taccess\tconnection complete", `error="io error: `, "identity verification error: peer did not present the expected SAN "+
		"(spiffe://cluster.local/ns/ns/sa/server), got spiffe://cluster.local/ns/ns/sa/mallory")
	if got := client.counts("CONNECT"); got != [3]float64{1, 1, 1} {
		t.Errorf("counts %v", got)
	}
	server.out.await("warn\taccess\tconnection failed\tsrc.addr=10.0.0.1:PORT dst.addr=10.0.0.2:15008", `direction="inbound" error="tls handshake error: `)
	if got := server.counts("-"); got != [3]float64{} {
		t.Errorf("a failed handshake was counted: %v", got)
	}
}

func TestRefusalsOfThePeer(t *testing.T) {
	deny := &mesh.Policy{Name: "deny", Namespace: "ns", Scope: mesh.ScopeNamespace, Action: mesh.Deny, Rules: []mesh.Rule{{}}}
	n, client, server := pair(t)
	wantReset(t, client.connect("10.0.0.2:4444"))
	client.out.await("connection complete", `error="http status: 503 Service Unavailable"`)
	server.out.await("error\taccess\tconnection complete", `error="connection failed: Connection refused (os error 111)"`)
	n.put(deny)
	wantReset(t, client.connect("10.0.0.2:8080"))
	client.out.await("connection complete", `error="http status: 401 Unauthorized"`)
	server.out.await("error\taccess\tconnection complete", `error="connection closed due to policy rejection: explicitly denied by: ns/deny"`)
	if got := client.counts("CONNECT"); got != [3]float64{2, 2, 2} {
		t.Errorf("client: %v", got)
	}
	if got := server.counts("CONNECT"); got != [3]float64{2, 1, 1} {
		t.Errorf("server, connect: %v", got)
	}
	if got := server.counts("DENY"); got != [3]float64{2, 1, 1} {
		t.Errorf("server, deny: %v", got)
	}
}

func TestResetsAndHalfClosesPassThroughATunnel(t *testing.T) {
	_, client, server := pair(t)
	heard := make(chan error, 1)
	server.app(1000, func(c *net.TCPConn) { // waits for the client's reset
		_, err := io.ReadAll(c)
		heard <- err
	})
	server.app(1001, func(c *net.TCPConn) { // resets
		c.Read(make([]byte, 1))
		c.SetLinger(0)
	})
	server.app(1002, func(c *net.TCPConn) { // speaks after the client's end
		got, _ := io.ReadAll(c)
		c.Write(append(got, " back"...))
	})

	c := client.connect("10.0.0.2:1000")
	eventually(t, "the application has it", func() bool { return len(server.Live().Inbound) == 1 })
	c.SetLinger(0)
	c.Close()
	select {
	case err := <-heard:
		if !isReset(err) {
			t.Errorf("the application heard %v", err)
		}
	case <-time.After(patience):
		t.Error("the application did not hear of the reset")
	}

	c = client.connect("10.0.0.2:1001")
	io.WriteString(c, "x")
	wantReset(t, c)

	c = client.connect("10.0.0.2:1002")
	io.WriteString(c, "there and")
	c.CloseWrite()
	if got, err := io.ReadAll(c); string(got) != "there and back" || err != nil {
		t.Errorf("%q, %v", got, err)
	}
	eventually(t, "all have been counted", func() bool { return client.counts("-")[1] == 3 && server.counts("-")[1] == 3 })
	for _, p := range []*pod{client, server} {
		if failed := p.count("istio_tcp_connections_failed_total"); failed != 0 {
			t.Errorf("%v resets count as failures", failed)
		}
	}
}

func isReset(err error) bool {
	return err != nil && strings.Contains(err.Error(), "connection reset by peer")
}

func TestIdentitiesThatWouldReadAsOthersAreLeftOut(t *testing.T) {
	id := func(account string) identity.ID {
		id, err := identity.New("td", "ns", account)
		if err != nil {
			t.Fatal(err)
		}
		return id
	}
	a, b, sly := id("a"), id("b"), id("b\nspiffe:")
	for _, tc := range []struct{ in, want []identity.ID }{
		{nil, nil},
		{[]identity.ID{a}, []identity.ID{a}},
		{[]identity.ID{b, a}, []identity.ID{b, a}},
		{[]identity.ID{sly}, nil},
		{[]identity.ID{sly, a}, []identity.ID{a}},
	} {
		got := splitIDs(joinIDs(tc.in))
		if len(got) != len(tc.want) {
			t.Errorf("%q became %q", tc.in, got)
			continue
		}
		for i := range got {
			if got[i] != tc.want[i] {
				t.Errorf("%q became %q", tc.in, got)
			}
		}
	}
}

func TestTraceIDs(t *testing.T) {
	const id = "0af7651916cd43dd8448eb211c80319c"
	trace := newTrace()
	if got := traceID([]string{trace.parent()}); got != trace.id || len(trace.parent()) != 55 {
		t.Errorf("%q has the id %q", trace.parent(), got)
	}
	for header, want := range map[string]bool{
		"00-" + id + "-b7ad6b7169203331-01":                  true,
		"00-" + strings.ToUpper(id) + "-b7ad6b7169203331-01": true,
		"":                                       false,
		"00-" + id + "-b7ad6b7169203331":         false,
		"00-" + id + "-b7ad6b7169203331-1":       false,
		"00-" + id + "-b7ad6b716920333-011":      false,
		"0x-" + id + "-b7ad6b7169203331-01":      false,
		"00-" + id[1:] + "-b7ad6b7169203331-010": false,
		"00-" + id[1:] + "g-b7ad6b7169203331-01": false,
	} {
		got := traceID([]string{header})
		if (got == id) != want || len(got) != 32 {
			t.Errorf("%q gives %q", header, got)
		}
	}
	if got := traceID([]string{trace.parent(), trace.parent()}); got == trace.id {
		t.Error("one of two headers was believed")
	}
}
