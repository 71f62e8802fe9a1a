// SPDX-License-Identifier: Apache-2.0

// Package ca holds the authorities that certify workloads: each is a
// certs.Issuer.
//
// [Istiod] asks Istio's certificate service over gRPC (contract 7.1). It says
// what is asked and judges what comes back; how the server is reached, whom
// to trust there and how we authenticate is internal/control's, and when to
// ask again is internal/certs'. internal/ca/capb has the messages, and catest
// a server for tests.
//
// [Embedded] keeps a root and its key in two files and signs in this process,
// for running without Istio's control plane. Whoever can read the key can be
// any workload of the mesh, so it is for one machine, for labs and for tests;
// the caller decides whether it may be used and says so loudly. It logs
// nothing.
//
// The package reads no environment.
//
// # The files
//
//	root-cert.pem   one or more certificates; the one that belongs to the key
//	                signs, all of them are handed out as roots
//	ca-key.pem      its private key, EC or RSA: PKCS#8, SEC 1 or PKCS#1
//
// If neither exists they are made. Several processes may do so at the same
// moment and all end up with one root, without a lock that a crash could leave
// behind: each writes a temporary file (O_EXCL, 0600) and publishes it with
// link(2), which unlike rename(2) fails if the name is taken. The key comes
// first and decides; a certificate for it follows; each process then reads
// back what won. A process that dies in between leaves a key without a
// certificate, and the next one makes the certificate.
package ca

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"errors"
	"fmt"
	"math/big"
	"net/url"
	"path/filepath"
	"slices"
	"time"

	"github.com/ztunnel-go/ztunnel/internal/certs"
	"github.com/ztunnel-go/ztunnel/internal/identity"
)

const (
	rootFile = "root-cert.pem"
	keyFile  = "ca-key.pem"

	// DefaultTTL is the life of a certificate when none is asked for: the
	// reference's SECRET_TTL (contract 16).
	DefaultTTL = 24 * time.Hour

	// clockSkew is how far a certificate is dated back, for peers whose clocks
	// are behind ours: minutes and not hours, since half of life counts from
	// there.
	clockSkew = 5 * time.Minute

	// serialBits is the size of random serial numbers. RFC 5280, 4.1.2.2 allows
	// 159 bits; 64 random ones are what is called unguessable.
	serialBits = 127
)

var _ certs.Issuer = (*Embedded)(nil)

// Embedded is an authority inside this process. It may be used by several
// goroutines.
type Embedded struct {
	dir      string
	ttl      time.Duration
	root     *x509.Certificate   // belongs to key
	roots    []*x509.Certificate // all of root-cert.pem
	key      crypto.Signer
	warnings []string
}

// OpenEmbedded reads the authority kept in dir, or makes one there if dir holds
// none. Its certificates live for ttl, zero meaning [DefaultTTL]. Errors name
// the file and say what is wrong with it.
func OpenEmbedded(dir string, ttl time.Duration) (*Embedded, error) {
	if ttl == 0 {
		ttl = DefaultTTL
	}
	if ttl < 0 {
		return nil, fmt.Errorf("embedded CA: certificates cannot live for %v", ttl)
	}
	if err := establish(dir, time.Now()); err != nil {
		return nil, fmt.Errorf("embedded CA: %w", err) // callers may ask for fs.ErrPermission
	}
	e, err := load(dir)
	if err != nil {
		return nil, fmt.Errorf("embedded CA: %w", err)
	}
	e.ttl = ttl
	if err := e.checkRoot(time.Now()); err != nil {
		return nil, fmt.Errorf("embedded CA: %v", err)
	}
	return e, nil
}

// Warnings says what an operator should change although it works: files that
// others may read or write. Each names its file.
func (e *Embedded) Warnings() []string { return slices.Clone(e.warnings) }

// Root is the certificate that signs.
func (e *Embedded) Root() *x509.Certificate { return e.root }

// Issue implements certs.Issuer: a new P-256 key and a certificate for id that
// is good for both ends of a tunnel. It asks nobody, and fails only if the root
// is no longer valid or id cannot be written as a URI.
func (e *Embedded) Issue(ctx context.Context, id identity.ID) (*certs.Bundle, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	now := time.Now()
	if err := e.checkRoot(now); err != nil {
		return nil, fmt.Errorf("embedded CA: certificate for %v: %v", id, err)
	}
	b, err := e.sign(id, now)
	if err != nil {
		return nil, fmt.Errorf("embedded CA: certificate for %v: %v", id, err)
	}
	return b, nil
}

func (e *Embedded) sign(id identity.ID, now time.Time) (*certs.Bundle, error) {
	tmpl, err := e.template(id, now)
	if err != nil {
		return nil, err
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, e.root, key.Public(), e.key)
	if err != nil {
		return nil, err
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, err
	}
	return certs.NewBundle(key, []*x509.Certificate{leaf}, e.roots)
}

// template is the form that Istio's authority gives a workload's certificate:
// no subject, and for that reason a critical name (RFC 5280, 4.1.2.6). A
// certificate never outlives the root: no peer would take it then.
func (e *Embedded) template(id identity.ID, now time.Time) (*x509.Certificate, error) {
	uri, err := url.Parse(id.String())
	if err != nil || id.IsZero() || uri.String() != id.String() {
		return nil, errors.New("the identity cannot be written as a URI")
	}
	serial, err := newSerial()
	if err != nil {
		return nil, err
	}
	notAfter := now.Add(e.ttl)
	if notAfter.After(e.root.NotAfter) {
		notAfter = e.root.NotAfter
	}
	return &x509.Certificate{
		SerialNumber: serial,
		NotBefore:    now.Add(-min(clockSkew, e.ttl/2)),
		NotAfter:     notAfter,
		URIs:         []*url.URL{uri},
		// keyEncipherment means nothing for an EC key, and is what Istio sets.
		KeyUsage:              x509.KeyUsageDigitalSignature | x509.KeyUsageKeyEncipherment,
		ExtKeyUsage:           []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
		BasicConstraintsValid: true,
	}, nil
}

// checkRoot says whether peers would accept what the root signs.
func (e *Embedded) checkRoot(now time.Time) error {
	path := filepath.Join(e.dir, rootFile)
	switch {
	case !e.root.BasicConstraintsValid || !e.root.IsCA:
		return fmt.Errorf("%s: not the certificate of an authority (CA is false)", path)
	case e.root.KeyUsage != 0 && e.root.KeyUsage&x509.KeyUsageCertSign == 0:
		return fmt.Errorf("%s: its key usage does not allow it to sign certificates", path)
	case now.Before(e.root.NotBefore):
		return fmt.Errorf("%s: not valid before %s", path, e.root.NotBefore.UTC().Format(time.RFC3339))
	case now.After(e.root.NotAfter):
		return fmt.Errorf("%s: expired on %s", path, e.root.NotAfter.UTC().Format(time.RFC3339))
	}
	return nil
}

func newSerial() (*big.Int, error) {
	return rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), serialBits))
}
