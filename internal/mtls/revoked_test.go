// SPDX-License-Identifier: Apache-2.0

package mtls_test

import (
	"crypto/x509"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/ztunnel-go/ztunnel/internal/certs"
	"github.com/ztunnel-go/ztunnel/internal/certs/certstest"
	"github.com/ztunnel-go/ztunnel/internal/mtls"
	"github.com/ztunnel-go/ztunnel/internal/revocation"
	"github.com/ztunnel-go/ztunnel/test/leak"
)

// A tally counts what an enforcer reports.
type tally struct {
	mu       sync.Mutex
	rejected []revocation.Reporter // guarded by mu
}

func (c *tally) Rejected(r revocation.Reporter) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.rejected = append(c.rejected, r)
}

func (c *tally) Untracked(revocation.Reporter) {}

// revoking is what enforces the list that ca makes of these certificates.
func revoking(t *testing.T, ca *certstest.Authority, revoked ...*x509.Certificate) (*revocation.Enforcer, *tally) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "crl.pem")
	if err := os.WriteFile(path, ca.CRL(revoked...), 0o600); err != nil {
		t.Fatal(err)
	}
	counts := new(tally)
	e, err := revocation.Open(revocation.Config{Path: path, Recorder: counts})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(e.Close)
	return e, counts
}

func isRevoked(err error) bool {
	var revoked *revocation.RevokedError
	return errors.As(err, &revoked) && err.Error() == "certificate revoked"
}

func TestARevokedPeerIsRefused(t *testing.T) {
	leak.Check(t)
	ca := certstest.Issuer(t, time.Hour)
	ours := ca.Bundle("spiffe://cluster.local/ns/default/sa/ours")
	for name, peer := range map[string]*certs.Bundle{
		"leaf":         ca.Bundle(serverURI),
		"intermediate": ca.Intermediate(serverURI),
	} {
		for version, tls12 := range map[string]bool{"1.3": false, "1.2": true} {
			t.Run(name+" "+version, func(t *testing.T) {
				e, counts := revoking(t, ca, peer.Chain[len(peer.Chain)-1])
				strict, open := mtls.Options{TLS12: tls12, Revocation: e}, mtls.Options{TLS12: tls12}
				strict.Verified = func([][]*x509.Certificate) { t.Error("verified, though revoked") }

				o := shake(t, mtls.Client(ours, expect(t, serverURI), strict), mtls.Server(peer, open))
				if !isRevoked(o.clientErr) || o.serverErr == nil {
					t.Errorf("as the client: %v; the peer: %v", o.clientErr, o.serverErr)
				}
				o = shake(t, mtls.Client(peer, expect(t, ours.Identity().String()), open), mtls.Server(ours, strict))
				if !isRevoked(o.serverErr) || o.clientErr == nil {
					t.Errorf("as the server: %v; the peer: %v", o.serverErr, o.clientErr)
				}
				if want := []revocation.Reporter{revocation.Source, revocation.Destination}; !slices.Equal(counts.rejected, want) {
					t.Errorf("counted for %v, want %v", counts.rejected, want)
				}
			})
		}
	}
}

// What a peer presents without need is no part of what it rests on.
func TestTheVerifiedChainsAreTold(t *testing.T) {
	leak.Check(t)
	ca := certstest.Issuer(t, time.Hour)
	junk := ca.Intermediate(serverURI).Chain[1]
	laden := func(uri string) *certs.Bundle {
		b := ca.Intermediate(uri)
		b, err := certs.NewBundle(b.Key, append(slices.Clone(b.Chain), junk), b.Roots)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	client, server := laden(clientURI), laden(serverURI)
	e, _ := revoking(t, ca, junk)
	var clients, servers [][][]*x509.Certificate
	var mu sync.Mutex
	note := func(to *[][][]*x509.Certificate) mtls.Options {
		return mtls.Options{Revocation: e, Verified: func(chains [][]*x509.Certificate) {
			mu.Lock()
			defer mu.Unlock()
			*to = append(*to, chains)
		}}
	}
	o := shake(t, mtls.Client(client, expect(t, serverURI), note(&clients)), mtls.Server(server, note(&servers)))
	if o.clientErr != nil || o.serverErr != nil {
		t.Fatalf("client: %v; server: %v", o.clientErr, o.serverErr)
	}
	for _, side := range []struct {
		told [][][]*x509.Certificate
		peer *certs.Bundle
	}{{clients, server}, {servers, client}} {
		want := []*x509.Certificate{side.peer.Chain[0], side.peer.Chain[1], ca.Root()}
		if len(side.told) != 1 || len(side.told[0]) != 1 || !slices.EqualFunc(side.told[0][0], want, (*x509.Certificate).Equal) {
			t.Errorf("told %v, want one chain of three", side.told)
		}
	}
}

func TestAPeerThatIsRefusedIsNotTold(t *testing.T) {
	leak.Check(t)
	ca := certstest.Issuer(t, time.Hour)
	told := mtls.Options{Verified: func([][]*x509.Certificate) { t.Error("told") }}
	stranger := ca.Bundle("spiffe://other.domain/ns/default/sa/stranger")
	shake(t, mtls.Client(ca.Bundle(clientURI), expect(t, serverURI), told), mtls.Server(stranger, mtls.Options{}))
	shake(t, mtls.Client(stranger, expect(t, serverURI), mtls.Options{}), mtls.Server(ca.Bundle(serverURI), told))
}
