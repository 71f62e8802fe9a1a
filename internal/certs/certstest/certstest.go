// SPDX-License-Identifier: Apache-2.0

// Package certstest is an authority in memory, for the tests of whatever needs
// certificates: it signs at once, and can be told to fail, to wait, or to sign
// something that is wrong in one chosen way.
//
// Only tests import it. It imports internal/certs, internal/identity and the
// standard library.
package certstest

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net"
	"net/url"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/ztunnel-go/ztunnel/internal/certs"
	"github.com/ztunnel-go/ztunnel/internal/identity"
)

var _ certs.Issuer = (*Authority)(nil)

// An Authority signs certificates with a root of its own. It may be used by
// several goroutines.
type Authority struct {
	tb   testing.TB
	root *x509.Certificate
	key  *ecdsa.PrivateKey
	ttl  time.Duration

	mu     sync.Mutex
	calls  []identity.ID                                   // guarded by mu
	before func(ctx context.Context, id identity.ID) error // guarded by mu
	change func(*x509.Certificate)                         // guarded by mu
	also   []*x509.Certificate                             // guarded by mu
}

// Issuer returns a new authority with a new root, whose certificates live for
// ttl from the moment they are asked for. Two authorities do not know each
// other.
func Issuer(tb testing.TB, ttl time.Duration) *Authority {
	tb.Helper()
	key := newKey(tb)
	root := &x509.Certificate{
		SerialNumber:          serial(tb),
		Subject:               pkix.Name{Organization: []string{"certstest"}},
		NotBefore:             time.Now().Add(-24 * time.Hour),
		NotAfter:              time.Now().Add(10 * 365 * 24 * time.Hour),
		IsCA:                  true,
		BasicConstraintsValid: true,
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
	}
	return &Authority{tb: tb, root: sign(tb, root, root, key.Public(), key), key: key, ttl: ttl}
}

// ID parses a SPIFFE URI, or ends the test.
func ID(tb testing.TB, uri string) identity.ID {
	tb.Helper()
	id, err := identity.Parse(uri)
	if err != nil {
		tb.Fatal(err)
	}
	return id
}

// Root is the authority's own certificate.
func (a *Authority) Root() *x509.Certificate { return a.root }

// Calls lists the identities that certificates were asked for, in the order of
// asking, failures included.
func (a *Authority) Calls() []identity.ID {
	a.mu.Lock()
	defer a.mu.Unlock()
	return slices.Clone(a.calls)
}

// Before has f run at the start of each request from now on: what it returns
// is the answer if it is an error, and it may wait. nil takes it away.
func (a *Authority) Before(f func(ctx context.Context, id identity.ID) error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.before = f
}

// Change has f edit each certificate from now on before it is signed: its
// dates, its names, its purposes. nil takes it away.
func (a *Authority) Change(f func(*x509.Certificate)) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.change = f
}

// AlsoTrust adds roots to every bundle issued from now on.
func (a *Authority) AlsoTrust(roots ...*x509.Certificate) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.also = append(a.also, roots...)
}

// Roots are what bundles trust: the authority's own certificate, then those
// of [Authority.AlsoTrust].
func (a *Authority) Roots() []*x509.Certificate {
	a.mu.Lock()
	defer a.mu.Unlock()
	return append([]*x509.Certificate{a.root}, a.also...)
}

// Issue implements [certs.Issuer].
func (a *Authority) Issue(ctx context.Context, id identity.ID) (*certs.Bundle, error) {
	key := newKey(a.tb)
	cert, err := a.Certify(ctx, id, key.Public(), a.ttl)
	if err != nil {
		return nil, err
	}
	return certs.NewBundle(key, []*x509.Certificate{cert}, a.Roots())
}

// Certify is Issue for a key that somebody else keeps. The certificate lives
// for ttl.
func (a *Authority) Certify(ctx context.Context, id identity.ID, pub crypto.PublicKey, ttl time.Duration) (*x509.Certificate, error) {
	a.mu.Lock()
	a.calls = append(a.calls, id)
	before, change := a.before, a.change
	a.mu.Unlock()
	if before != nil {
		if err := before(ctx, id); err != nil {
			return nil, err
		}
	}
	tmpl := leaf(a.tb, id, ttl)
	if change != nil {
		change(tmpl)
	}
	return sign(a.tb, tmpl, a.root, pub, a.key), nil
}

// Server returns the certificate of a server of the control plane that goes
// by names, each a DNS name or an IP address.
func (a *Authority) Server(names ...string) tls.Certificate {
	a.tb.Helper()
	key := newKey(a.tb)
	tmpl := &x509.Certificate{
		SerialNumber: serial(a.tb),
		NotBefore:    time.Now().Add(-time.Minute),
		NotAfter:     time.Now().Add(a.ttl),
		KeyUsage:     x509.KeyUsageDigitalSignature,
		ExtKeyUsage:  []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	for _, name := range names {
		if ip := net.ParseIP(name); ip != nil {
			tmpl.IPAddresses = append(tmpl.IPAddresses, ip)
		} else {
			tmpl.DNSNames = append(tmpl.DNSNames, name)
		}
	}
	cert := sign(a.tb, tmpl, a.root, key.Public(), a.key)
	return tls.Certificate{Certificate: [][]byte{cert.Raw}, PrivateKey: key, Leaf: cert}
}

// Bundle is Issue for a test that only wants a certificate.
func (a *Authority) Bundle(uri string) *certs.Bundle {
	a.tb.Helper()
	b, err := a.Issue(context.Background(), ID(a.tb, uri))
	if err != nil {
		a.tb.Fatal(err)
	}
	return b
}

// CRL is a's revocation list, in PEM, of these certificates.
func (a *Authority) CRL(revoked ...*x509.Certificate) []byte {
	a.tb.Helper()
	tmpl := &x509.RevocationList{
		Number:     serial(a.tb),
		ThisUpdate: time.Now().Add(-time.Minute),
		NextUpdate: time.Now().Add(time.Hour),
	}
	for _, c := range revoked {
		tmpl.RevokedCertificateEntries = append(tmpl.RevokedCertificateEntries,
			x509.RevocationListEntry{SerialNumber: c.SerialNumber, RevocationTime: time.Now().Add(-time.Minute)})
	}
	der, err := x509.CreateRevocationList(rand.Reader, tmpl, a.root, a.key)
	if err != nil {
		a.tb.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "X509 CRL", Bytes: der})
}

// Intermediate is Bundle with an authority between: the chain has two
// certificates and ends below a's root.
func (a *Authority) Intermediate(uri string) *certs.Bundle {
	a.tb.Helper()
	key, mid := newKey(a.tb), newKey(a.tb)
	ca := sign(a.tb, &x509.Certificate{
		SerialNumber:          serial(a.tb),
		Subject:               pkix.Name{Organization: []string{"certstest intermediate"}},
		NotBefore:             time.Now().Add(-time.Hour),
		NotAfter:              time.Now().Add(24 * time.Hour),
		IsCA:                  true,
		BasicConstraintsValid: true,
		KeyUsage:              x509.KeyUsageCertSign,
	}, a.root, mid.Public(), a.key)
	cert := sign(a.tb, leaf(a.tb, ID(a.tb, uri), a.ttl), ca, key.Public(), mid)
	b, err := certs.NewBundle(key, []*x509.Certificate{cert, ca}, []*x509.Certificate{a.root})
	if err != nil {
		a.tb.Fatal(err)
	}
	return b
}

func leaf(tb testing.TB, id identity.ID, ttl time.Duration) *x509.Certificate {
	tb.Helper()
	uri, err := url.Parse(id.String())
	if err != nil {
		tb.Errorf("certstest: %v", err)
	}
	return &x509.Certificate{
		SerialNumber:          serial(tb),
		NotBefore:             time.Now(),
		NotAfter:              time.Now().Add(ttl),
		URIs:                  []*url.URL{uri},
		KeyUsage:              x509.KeyUsageDigitalSignature | x509.KeyUsageKeyEncipherment,
		ExtKeyUsage:           []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
		BasicConstraintsValid: true,
	}
}

func newKey(tb testing.TB) *ecdsa.PrivateKey {
	tb.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		tb.Errorf("certstest: %v", err)
	}
	return key
}

func serial(tb testing.TB) *big.Int {
	tb.Helper()
	n, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120))
	if err != nil {
		tb.Errorf("certstest: %v", err)
	}
	return n
}

// sign may run on a goroutine that is not the test's, so it does not end the
// test: the certificate it cannot make is a nil one, and NewBundle's panic or
// error follows.
func sign(tb testing.TB, tmpl, parent *x509.Certificate, pub crypto.PublicKey, by *ecdsa.PrivateKey) *x509.Certificate {
	tb.Helper()
	der, err := x509.CreateCertificate(rand.Reader, tmpl, parent, pub, by)
	if err != nil {
		tb.Errorf("certstest: sign: %v", err)
		return nil
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		tb.Errorf("certstest: parse what was signed: %v", err)
	}
	return cert
}
