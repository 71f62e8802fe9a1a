// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"net"
	"net/netip"
	"strings"
	"testing"

	"github.com/ztunnel-go/ztunnel/dataplane/hbone"
	"github.com/ztunnel-go/ztunnel/dataplane/relay"
	"github.com/ztunnel-go/ztunnel/internal/mesh"
	"github.com/ztunnel-go/ztunnel/internal/mtls"
)

const gatewayIP = "10.0.0.5"

// farService is in front of the server, which is in another network. Whoever
// shows one of sans may answer for it there.
func farService(sans ...string) *mesh.Service {
	return &mesh.Service{
		Name: "far", Namespace: "ns", Hostname: "far.example", SubjectAltNames: sans,
		VIPs: []mesh.NetworkAddr{{Addr: addr("10.96.0.9")}}, Ports: map[uint16]uint16{80: 8080},
	}
}

// farServer is the server's workload as the client's side knows it.
func farServer(w *mesh.Workload) {
	w.Network = "other"
	w.NetworkGateway = &mesh.GatewayAddress{Address: mesh.NetworkAddr{Addr: addr(gatewayIP)}, HBONEMTLSPort: 15008}
	w.Services = map[mesh.NamespacedHostname]map[uint16]uint16{farService().Key(): {80: 8080}}
}

// gateway is an east-west gateway: it takes tunnels and carries what is in
// them to the server, whatever is asked for. It notes what was asked.
func (n *lan) gateway(asked chan<- string) {
	n.outside(gatewayIP+":15008", func(c *net.TCPConn) {
		bundle := n.ca.Bundle("spiffe://cluster.local/ns/ns/sa/gateway")
		hbone.ServeConn(n.t.Context(), c, mtls.Server(bundle, mtls.Options{}), hbone.ServerConfig{Handler: func(r *hbone.Connect) {
			asked <- r.Authority + " network=" + strings.Join(r.Header("x-forwarded-network"), "|")
			far, err := n.dial(r.Context(), addr(gatewayIP), netip.AddrPortFrom(addr(serverIP), 15008))
			if err != nil {
				r.Reject(503)
				return
			}
			s, err := r.Accept(nil)
			if err != nil {
				far.Close()
				return
			}
			relay.Copy(r.Context(), s, relay.TCP(far), relay.Counts{})
		}})
	})
}

// twoNetworks is a client here, a server in the other network, and the
// gateway between them.
func twoNetworks(t *testing.T, sans ...string) (client, server *pod, asked chan string) {
	t.Helper()
	n := newLAN(t)
	w := member("server", serverIP, farServer)
	n.put(clientWorkload(), w, member("gateway", gatewayIP), farService(sans...))
	asked = make(chan string, 8)
	n.gateway(asked)
	client = n.start(clientWorkload())
	server = n.start(w, func(c *Config) { c.Network = "other" })
	server.app(8080, echo)
	return client, server, asked
}

const serverID = "spiffe://cluster.local/ns/ns/sa/server"

func TestAnotherNetworkIsReachedByATunnelInATunnel(t *testing.T) {
	client, server, asked := twoNetworks(t, serverID)
	for range 2 {
		c := client.connect("10.96.0.9:80")
		say(t, c, "hello")
		finish(t, c)
		if got := <-asked; got != "far.example:80 network=" {
			t.Errorf("the gateway was asked for %q", got)
		}
	}
	client.out.await("info\taccess\tconnection complete\t"+srcFields,
		`dst.addr=10.0.0.5:15008 dst.hbone_addr=far.example:80 dst.service="far.example" dst.workload="server-dep" dst.namespace="ns" dst.identity="`+serverID+`"`,
		"bytes_sent=5 bytes_recv=5")
	if got := client.counts("-"); got != [3]float64{2, 2, 0} {
		t.Errorf("the client's side counted %v", got)
	}
	if got := client.count("istio_tcp_connections_opened_total", "destination_workload=server-dep", "destination_principal="+serverID); got != 2 {
		t.Errorf("%v connections name the far workload", got)
	}
	// The request came through a gateway: its address says nothing of the
	// client, whose own word counts.
	server.out.await("info\taccess\tconnection complete", `src.workload="client"`, `dst.hbone_addr=far.example:80`)
}

func TestWhoAnswersFromAnotherNetworkMustBeTheService(t *testing.T) {
	client, _, asked := twoNetworks(t) // the service names nobody
	wantReset(t, client.connect("10.96.0.9:80"))
	<-asked
	client.out.await("error\taccess\tconnection complete", `dst.addr=10.0.0.5:15008`, "peer did not present the expected SAN")
	if got := client.counts("CONNECT"); got != [3]float64{1, 1, 1} {
		t.Errorf("counted %v", got)
	}
}

func TestAResetCrossesNetworks(t *testing.T) {
	client, server, _ := twoNetworks(t, serverID)
	server.app(8080, func(c *net.TCPConn) {
		b := make([]byte, 1)
		c.Read(b)
		c.SetLinger(0)
	})
	c := client.connect("10.96.0.9:80")
	if _, err := c.Write([]byte("x")); err != nil {
		t.Fatal(err)
	}
	wantReset(t, c)
}
