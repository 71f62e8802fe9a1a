// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"bufio"
	"io"
	"net/http"
	"net/netip"
	"strings"
	"testing"

	"golang.org/x/net/http2"

	"github.com/ztunnel-go/ztunnel/test/rig"
)

// TestSelfProxy reads a proxy's metrics through the mesh: it knows who it is
// and takes tunnels to its own pod, whose place its node takes here.
func TestSelfProxy(t *testing.T) {
	w := plan(t)
	self := &rig.Workload{
		UID: rig.UID("ztunnel-2"), Name: "ztunnel-2", Namespace: "istio-system", ServiceAccount: "ztunnel", TrustDomain: rig.TrustDomain,
		Protocol: "HBONE", Node: w.n2.Name(), WorkloadName: "ztunnel", WorkloadType: "pod",
		Services: map[string]map[uint16]uint16{}, IPs: []netip.Addr{w.n2.IPv4, w.n2.IPv6},
	}
	w.state.Workloads = append(w.state.Workloads, self)
	must(t, w.mesh.SetState(w.state))
	w.up(rig.Options{Env: map[string]string{
		"POD_NAME": "ztunnel-2", "POD_NAMESPACE": "istio-system", "SERVICE_ACCOUNT": "ztunnel",
	}})

	bundle := w.certificate(t, rig.DefaultCA, "spiffe://cluster.local/ns/monitoring/sa/prometheus", 0)
	conn, err := handshake(t, w.stranger.Host, at(w.n2.IPv4, 15008), stock(bundle))
	must(t, err)
	if id := conn.ConnectionState().PeerCertificates[0].URIs[0].String(); id != "spiffe://cluster.local/ns/istio-system/sa/ztunnel" {
		t.Errorf("the proxy is certified as %s", id)
	}
	client, err := new(http2.Transport).NewClientConn(conn)
	must(t, err)
	defer client.Close()
	since := w.p2.Output.Mark()
	s, resp := connect(t, client, at(w.n2.IPv4, 15020).String())
	if resp.StatusCode != http.StatusOK {
		t.Fatalf("CONNECT: %s", resp.Status)
	}
	go io.WriteString(s, "GET /metrics HTTP/1.1\r\nHost: ztunnel\r\nConnection: close\r\n\r\n") // ends when it was read, or with s
	answer, err := http.ReadResponse(bufio.NewReader(s), nil)
	must(t, err)
	page, err := io.ReadAll(answer.Body)
	if err != nil || !strings.Contains(string(page), "istio_build") || !strings.HasSuffix(string(page), "# EOF\n") {
		t.Errorf("read %d bytes, %v:\n%.300s", len(page), err, page)
	}
	must(t, answer.Body.Close())
	must(t, s.w.Close())
	w.logged(t, w.p2, since, "\tinfo\taccess\tconnection complete", `direction="inbound"`, `dst.workload="ztunnel-2"`,
		`src.identity="spiffe://cluster.local/ns/monitoring/sa/prometheus"`)
}
