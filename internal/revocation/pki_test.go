// SPDX-License-Identifier: Apache-2.0

package revocation

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/pem"
	"math/big"
	"testing"
	"time"
)

// An authority signs certificates and lists, right ones and wrong ones.
type authority struct {
	t    testing.TB
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	next int64 // serial number
}

func newKey(t testing.TB) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func caTemplate(name pkix.Name, serial int64) *x509.Certificate {
	return &x509.Certificate{
		SerialNumber: big.NewInt(serial), Subject: name,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
	}
}

func organization(name string) pkix.Name { return pkix.Name{Organization: []string{name}} }

func newRoot(t testing.TB, name string) *authority {
	t.Helper()
	a := &authority{t: t, key: newKey(t), next: 100}
	a.cert = a.sign(caTemplate(organization(name), 1), nil, a.key)
	return a
}

// sign certifies key; a nil parent is the template itself.
func (a *authority) sign(tmpl, parent *x509.Certificate, key *ecdsa.PrivateKey) *x509.Certificate {
	a.t.Helper()
	if parent == nil {
		parent = tmpl
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, parent, &key.PublicKey, a.key)
	if err != nil {
		a.t.Fatal(err)
	}
	c, err := x509.ParseCertificate(der)
	if err != nil {
		a.t.Fatal(err)
	}
	return c
}

func (a *authority) serial() int64 { a.next++; return a.next }

// intermediate is an authority below a.
func (a *authority) intermediate(name string) *authority {
	a.t.Helper()
	b := &authority{t: a.t, key: newKey(a.t), next: 100 * a.serial()} // a's numbers and b's are apart
	b.cert = a.sign(caTemplate(organization(name), a.next), a.cert, b.key)
	return b
}

// certify signs the key of b as well: another certificate for one authority.
func (a *authority) certify(b *authority) *x509.Certificate {
	a.t.Helper()
	tmpl := caTemplate(b.cert.Subject, a.serial())
	tmpl.SubjectKeyId = b.cert.SubjectKeyId
	return a.sign(tmpl, a.cert, b.key)
}

func (a *authority) leaf() *x509.Certificate {
	a.t.Helper()
	return a.leafUntil(time.Now().Add(time.Hour))
}

func (a *authority) leafUntil(end time.Time) *x509.Certificate {
	a.t.Helper()
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(a.serial()), NotBefore: time.Now().Add(-2 * time.Hour), NotAfter: end}
	return a.sign(tmpl, a.cert, newKey(a.t))
}

// crl is a's list, in DER.
func (a *authority) crl(revoked ...*x509.Certificate) []byte {
	a.t.Helper()
	return a.crlWith(nil, revoked...)
}

// crlWith is crl after change has had its way with it.
func (a *authority) crlWith(change func(*x509.RevocationList), revoked ...*x509.Certificate) []byte {
	a.t.Helper()
	tmpl := &x509.RevocationList{Number: big.NewInt(1), ThisUpdate: time.Now().Add(-time.Hour), NextUpdate: time.Now().Add(time.Hour)}
	for _, c := range revoked {
		tmpl.RevokedCertificateEntries = append(tmpl.RevokedCertificateEntries,
			x509.RevocationListEntry{SerialNumber: c.SerialNumber, RevocationTime: time.Now().Add(-time.Hour)})
	}
	if change != nil {
		change(tmpl)
	}
	der, err := x509.CreateRevocationList(rand.Reader, tmpl, a.cert, a.key)
	if err != nil {
		a.t.Fatal(err)
	}
	return der
}

// bareCRL is a's list as a simple tool writes it: without extensions, so
// without a key identifier, and in the version that has none if v1 is set.
func (a *authority) bareCRL(v1 bool, revoked ...*x509.Certificate) []byte {
	a.t.Helper()
	ecdsaWithSHA256 := pkix.AlgorithmIdentifier{Algorithm: asn1.ObjectIdentifier{1, 2, 840, 10045, 4, 3, 2}}
	tbs := struct {
		Version    int `asn1:"optional,default:0"`
		Signature  pkix.AlgorithmIdentifier
		Issuer     asn1.RawValue
		ThisUpdate time.Time
		Revoked    []pkix.RevokedCertificate `asn1:"optional"`
	}{1, ecdsaWithSHA256, asn1.RawValue{FullBytes: a.cert.RawSubject}, time.Now().UTC(), nil}
	if v1 {
		tbs.Version = 0
	}
	for _, c := range revoked {
		tbs.Revoked = append(tbs.Revoked, pkix.RevokedCertificate{SerialNumber: c.SerialNumber, RevocationTime: time.Now().UTC()})
	}
	body := a.marshal(tbs)
	hash := sha256.Sum256(body)
	signature, err := a.key.Sign(rand.Reader, hash[:], nil)
	if err != nil {
		a.t.Fatal(err)
	}
	return a.marshal(struct {
		TBS       asn1.RawValue
		Algorithm pkix.AlgorithmIdentifier
		Signature asn1.BitString
	}{asn1.RawValue{FullBytes: body}, ecdsaWithSHA256, asn1.BitString{Bytes: signature, BitLength: 8 * len(signature)}})
}

func (a *authority) marshal(v any) []byte {
	a.t.Helper()
	der, err := asn1.Marshal(v)
	if err != nil {
		a.t.Fatal(err)
	}
	return der
}

// inPEM writes lists one after the other.
func inPEM(ders ...[]byte) []byte {
	var text []byte
	for _, der := range ders {
		text = append(text, pem.EncodeToMemory(&pem.Block{Type: "X509 CRL", Bytes: der})...)
	}
	return text
}

// chain is one verified chain: the leaf, then its authorities.
func chain(leaf *x509.Certificate, authorities ...*authority) [][]*x509.Certificate {
	c := []*x509.Certificate{leaf}
	for _, a := range authorities {
		c = append(c, a.cert)
	}
	return [][]*x509.Certificate{c}
}
