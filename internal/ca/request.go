// SPDX-License-Identifier: Apache-2.0

package ca

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/pem"
	"errors"
	"fmt"

	"github.com/ztunnel-go/ztunnel/internal/identity"
)

// newRequest makes a key and the request to have it certified for id: no
// subject, and the identity as the one name, critical for that reason (RFC
// 5280, 4.1.2.6; contract 7.1).
func newRequest(id identity.ID) (key *ecdsa.PrivateKey, csr []byte, err error) {
	san, err := uriSAN(id)
	if err != nil {
		return nil, nil, err
	}
	if key, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader); err != nil {
		return nil, nil, err
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{
		SignatureAlgorithm: x509.ECDSAWithSHA256,
		ExtraExtensions:    []pkix.Extension{san},
	}, key)
	if err != nil {
		return nil, nil, err
	}
	return key, encode("CERTIFICATE REQUEST", der), nil
}

// uriSAN is the extension that names id. It is built here because the URIs of
// a template go through net/url, which would write some names otherwise than
// they are.
func uriSAN(id identity.ID) (pkix.Extension, error) {
	name := id.String()
	if id.IsZero() {
		return pkix.Extension{}, errors.New("the identity is empty")
	}
	for i := range len(name) {
		if name[i] >= 0x80 {
			return pkix.Extension{}, fmt.Errorf("identity %q: a URI in a certificate is ASCII", name)
		}
	}
	const tagURI = 6 // uniformResourceIdentifier of GeneralName, RFC 5280, 4.2.1.6
	value, err := asn1.Marshal([]asn1.RawValue{{Class: asn1.ClassContextSpecific, Tag: tagURI, Bytes: []byte(name)}})
	return pkix.Extension{Id: asn1.ObjectIdentifier{2, 5, 29, 17}, Critical: true, Value: value}, err
}

// An answer is what an authority's list of PEM texts holds.
type answer struct {
	chain   []*x509.Certificate // the leaf, then the intermediates
	roots   []*x509.Certificate
	skipped []error // roots that cannot be read
}

// parseAnswer reads a list of PEM texts: the leaf, any number of
// intermediates, and last all the roots in one text. Of the leaf's and each
// intermediate's text the first certificate counts (contract 7.1). A list of
// one is a leaf without roots. Roots that cannot be read are left out, since
// a mesh may trust an authority whose kind of key we do not know.
func parseAnswer(texts []string) (answer, error) {
	var a answer
	if len(texts) == 0 {
		return a, errors.New("no certificate")
	}
	last := len(texts) - 1
	for i, text := range texts[:max(last, 1)] {
		c, err := firstCertificate([]byte(text))
		if err != nil {
			return answer{}, fmt.Errorf("certificate %d of the chain: %v", i+1, err)
		}
		a.chain = append(a.chain, c)
	}
	if last > 0 {
		a.roots, a.skipped = readRoots([]byte(texts[last]))
	}
	return a, nil
}

func firstCertificate(text []byte) (*x509.Certificate, error) {
	block := nextCertificate(&text)
	if block == nil {
		return nil, errors.New("no certificate in PEM form")
	}
	return x509.ParseCertificate(block.Bytes)
}

func readRoots(text []byte) (roots []*x509.Certificate, skipped []error) {
	for block := nextCertificate(&text); block != nil; block = nextCertificate(&text) {
		c, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			skipped = append(skipped, err)
			continue
		}
		roots = append(roots, c)
	}
	return roots, skipped
}

// nextCertificate takes the next certificate out of text; nil if there is none.
func nextCertificate(text *[]byte) *pem.Block {
	for {
		block, rest := pem.Decode(*text)
		*text = rest
		if block == nil || block.Type == "CERTIFICATE" {
			return block
		}
	}
}
