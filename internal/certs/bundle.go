// SPDX-License-Identifier: Apache-2.0

// Package certs keeps the certificates of the workloads that a proxy speaks
// for: the first issue, the renewal at half of life, the order in which a busy
// authority is asked, and the end when a workload is gone (contract 7.4-7.6).
//
// It defines what an authority must do ([Issuer]) and what it hands out
// ([Bundle]), and contains no authority, no TLS handshake and no file. It
// imports internal/identity and the standard library. Package certstest beside
// it is an authority in memory for other packages' tests.
package certs

import (
	"crypto"
	"crypto/tls"
	"crypto/x509"
	"encoding/asn1"
	"errors"
	"fmt"

	"github.com/ztunnel-go/ztunnel/internal/identity"
)

// A Bundle is one workload's certificate with its key and the roots that its
// peers are checked against. [NewBundle] makes it; it is never changed after,
// so it may be shared by any number of connections. What a handshake needs is
// worked out once, here, and not per connection.
type Bundle struct {
	// Leaf is the workload's own certificate.
	Leaf *x509.Certificate
	// Chain is the leaf, then the intermediates, and never the root: it is what
	// goes on the wire (contract 4.1).
	Chain []*x509.Certificate
	// Roots are the anchors for peers. A mesh whose root is being changed has
	// several.
	Roots []*x509.Certificate
	// Key belongs to Leaf.
	Key crypto.Signer

	id   identity.ID
	cert tls.Certificate
	pool *x509.CertPool
}

// NewBundle joins a key, its chain (leaf first, without the root) and the
// roots. It fails if there is no leaf or no root, or if the key is not the
// leaf's: found here, that is an error of the authority; found later, it would
// be a handshake that fails for a reason nobody sees.
func NewBundle(key crypto.Signer, chain, roots []*x509.Certificate) (*Bundle, error) {
	if len(chain) == 0 {
		return nil, errors.New("certificate bundle: no leaf certificate")
	}
	if len(roots) == 0 {
		return nil, errors.New("certificate bundle: no root certificate present")
	}
	leaf := chain[0]
	if pub, ok := leaf.PublicKey.(interface{ Equal(crypto.PublicKey) bool }); !ok || key == nil || !pub.Equal(key.Public()) {
		return nil, errors.New("certificate bundle: the key is not the one in the certificate")
	}
	b := &Bundle{Leaf: leaf, Chain: chain, Roots: roots, Key: key, pool: x509.NewCertPool()}
	for _, c := range chain {
		b.cert.Certificate = append(b.cert.Certificate, c.Raw)
	}
	b.cert.PrivateKey, b.cert.Leaf = key, leaf
	for _, c := range roots {
		b.pool.AddCert(c)
	}
	b.id = firstID(leaf)
	return b, nil
}

// TLS is the certificate in the form crypto/tls presents. It is shared: the
// caller must not change it.
func (b *Bundle) TLS() *tls.Certificate { return &b.cert }

// RootPool holds Roots. It is shared: the caller must not change it. It is
// never nil, since crypto/x509 takes a nil pool for the machine's own roots.
func (b *Bundle) RootPool() *x509.CertPool {
	if b.pool == nil {
		return x509.NewCertPool()
	}
	return b.pool
}

// Identity is the first URI name of the leaf, or the zero ID if there is none
// or it is no SPIFFE identity (contract 4.3, 7.1).
func (b *Bundle) Identity() identity.ID { return b.id }

func firstID(c *x509.Certificate) identity.ID {
	uris := URIs(c)
	if len(uris) == 0 {
		return identity.ID{}
	}
	id, err := identity.Parse(uris[0])
	if err != nil {
		return identity.ID{}
	}
	return id
}

// IDs returns those URI names of c that are SPIFFE identities, in their order
// (contract 4.2, 4.3). It says nothing about whether c can be trusted.
func IDs(c *x509.Certificate) []identity.ID {
	var ids []identity.ID
	for _, uri := range URIs(c) {
		if id, err := identity.Parse(uri); err == nil {
			ids = append(ids, id)
		}
	}
	return ids
}

// isSubjectAltName knows the object identifier of RFC 5280, 4.2.1.6.
func isSubjectAltName(id asn1.ObjectIdentifier) bool {
	return id.Equal(asn1.ObjectIdentifier{2, 5, 29, 17})
}

// tagURI is uniformResourceIdentifier among GeneralName's tags (RFC 5280,
// 4.2.1.6).
const tagURI = 6

// URIs returns the URI names of c as the bytes that were signed. The URIs
// field of x509.Certificate has gone through net/url, which lowers the
// scheme's case and drops an empty fragment: two different names would become
// one.
func URIs(c *x509.Certificate) []string {
	for _, ext := range c.Extensions {
		if !isSubjectAltName(ext.Id) {
			continue
		}
		uris, err := parseURIs(ext.Value)
		if err != nil {
			return nil // crypto/x509 has parsed it before: unreachable for a parsed certificate
		}
		return uris
	}
	return nil
}

// parseURIs reads the value of a SubjectAltName extension: a sequence of
// GeneralName. Names of other kinds are passed over.
func parseURIs(der []byte) ([]string, error) {
	var seq asn1.RawValue
	rest, err := asn1.Unmarshal(der, &seq)
	if err != nil {
		return nil, fmt.Errorf("subject alternative name: %v", err)
	}
	if len(rest) != 0 || !seq.IsCompound || seq.Tag != asn1.TagSequence || seq.Class != asn1.ClassUniversal {
		return nil, errors.New("subject alternative name: not one sequence")
	}
	var uris []string
	for rest = seq.Bytes; len(rest) > 0; {
		var name asn1.RawValue
		if rest, err = asn1.Unmarshal(rest, &name); err != nil {
			return nil, fmt.Errorf("subject alternative name: %v", err)
		}
		if name.Class == asn1.ClassContextSpecific && name.Tag == tagURI && !name.IsCompound {
			uris = append(uris, string(name.Bytes))
		}
	}
	return uris, nil
}
