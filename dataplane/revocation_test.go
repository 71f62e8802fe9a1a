// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/ztunnel-go/ztunnel/internal/certs"
	"github.com/ztunnel-go/ztunnel/internal/certs/certstest"
	"github.com/ztunnel-go/ztunnel/internal/revocation"
)

const revokedText = "connection closed: peer certificate revoked by CRL"

// lists makes an enforcer that follows a file soon after it has changed.
func lists(t *testing.T, path string) *revocation.Enforcer {
	t.Helper()
	e, err := revocation.Open(revocation.Config{Path: path, Poll: 5 * time.Millisecond, Settle: 20 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(e.Close)
	return e
}

// revoke puts the certificate that a pod has now on the list.
func revoke(t *testing.T, p *pod, account, path string) {
	t.Helper()
	b, err := p.certs.Certificate(t.Context(), certstest.ID(t, "spiffe://cluster.local/ns/ns/sa/"+account), certs.RealTime)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path+".new", p.lan.ca.CRL(b.Leaf), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(path+".new", path); err != nil {
		t.Fatal(err)
	}
}

func TestARevokedPeerLosesItsConnections(t *testing.T) {
	for _, tc := range []struct {
		name    string
		revoked func(client, server *pod) (*pod, string)
		told    func(client, server *pod) *pod
	}{
		{"the client, at the server", func(c, _ *pod) (*pod, string) { return c, "client" }, func(_, s *pod) *pod { return s }},
		{"the server, at the client", func(_, s *pod) (*pod, string) { return s, "server" }, func(c, _ *pod) *pod { return c }},
	} {
		t.Run(tc.name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "crl.pem")
			n := newLAN(t)
			n.put(clientWorkload(), serverWorkload(), web())
			client := n.start(clientWorkload(), func(c *Config) { c.TLS.Revocation = lists(t, path) })
			server := n.start(serverWorkload(), func(c *Config) { c.TLS.Revocation = lists(t, path) })
			server.app(8080, echo)
			c := client.connect("10.96.0.1:80")
			say(t, c, "hello")
			who, account := tc.revoked(client, server)
			revoke(t, who, account, path)
			wantReset(t, c)
			teller := tc.told(client, server)
			teller.out.await("error\taccess\tconnection complete", `error="`+revokedText+`"`)
			if got := teller.counts("CERT_REVOKED"); got != [3]float64{1, 1, 1} {
				t.Errorf("counted %v", got)
			}
			wantReset(t, client.connect("10.96.0.1:80"))
		})
	}
}
