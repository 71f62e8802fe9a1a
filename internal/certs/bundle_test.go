// SPDX-License-Identifier: Apache-2.0

package certs

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"math/big"
	"slices"
	"testing"
	"time"
)

// sanOf builds the value of a SubjectAltName extension.
func sanOf(t testing.TB, names ...asn1.RawValue) []byte {
	t.Helper()
	der, err := asn1.Marshal(names)
	if err != nil {
		t.Fatal(err)
	}
	return der
}

func uriName(s string) asn1.RawValue {
	return asn1.RawValue{Class: asn1.ClassContextSpecific, Tag: tagURI, Bytes: []byte(s)}
}

func dnsName(s string) asn1.RawValue {
	return asn1.RawValue{Class: asn1.ClassContextSpecific, Tag: 2, Bytes: []byte(s)}
}

// selfSigned returns a certificate whose names are the given extension value.
func selfSigned(t *testing.T, san []byte) (*ecdsa.PrivateKey, *x509.Certificate) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(1), NotBefore: time.Now(), NotAfter: time.Now().Add(time.Hour)}
	if san != nil {
		tmpl.ExtraExtensions = []pkix.Extension{{Id: asn1.ObjectIdentifier{2, 5, 29, 17}, Critical: true, Value: san}}
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return key, cert
}

func TestNamesAreTheBytesThatWereSigned(t *testing.T) {
	want := []string{
		"SPIFFE://td/ns/a/sa/b", // another scheme than spiffe, to us and to the reference
		"https://example.org/",
		"spiffe://td/ns/a/sa/b#",
		"spiffe://td/ns/a%2Fb/sa/c",
	}
	names := []asn1.RawValue{dnsName("a.example.org")}
	for _, s := range want {
		names = append(names, uriName(s))
	}
	_, cert := selfSigned(t, sanOf(t, names...))
	if got := URIs(cert); !slices.Equal(got, want) {
		t.Errorf("URIs = %q, want %q", got, want)
	}
	var ids []string
	for _, id := range IDs(cert) {
		ids = append(ids, id.String())
	}
	if want := []string{"spiffe://td/ns/a/sa/b#", "spiffe://td/ns/a%2Fb/sa/c"}; !slices.Equal(ids, want) {
		t.Errorf("IDs = %q, want %q", ids, want)
	}
}

func TestABundlesIdentityIsItsFirstURI(t *testing.T) {
	for _, tc := range []struct {
		san  []byte
		want string
	}{
		{nil, ""},
		{sanOf(t, dnsName("a")), ""},
		{sanOf(t, uriName("spiffe://td/ns/a/sa/b"), uriName("spiffe://td/ns/c/sa/d")), "spiffe://td/ns/a/sa/b"},
		{sanOf(t, uriName("https://example.org"), uriName("spiffe://td/ns/c/sa/d")), ""},
	} {
		key, cert := selfSigned(t, tc.san)
		b, err := NewBundle(key, []*x509.Certificate{cert}, []*x509.Certificate{cert})
		if err != nil {
			t.Fatal(err)
		}
		if b.Identity().String() != tc.want {
			t.Errorf("identity %q, want %q", b.Identity(), tc.want)
		}
	}
}

func TestABundleMustFitTogether(t *testing.T) {
	key, cert := selfSigned(t, nil)
	stranger, _ := selfSigned(t, nil)
	one := []*x509.Certificate{cert}
	if _, err := NewBundle(key, nil, one); err == nil {
		t.Error("a bundle without a leaf")
	}
	if _, err := NewBundle(key, one, nil); err == nil {
		t.Error("a bundle without a root")
	}
	if _, err := NewBundle(stranger, one, one); err == nil {
		t.Error("a bundle with another's key")
	}
	if _, err := NewBundle(nil, one, one); err == nil {
		t.Error("a bundle without a key")
	}
	if (&Bundle{}).RootPool() == nil {
		t.Error("an empty bundle trusts the machine's roots")
	}
}

func TestEveryProperPrefixOfNamesIsRefused(t *testing.T) {
	full := sanOf(t, dnsName("a"), uriName("spiffe://td/ns/a/sa/b"))
	if uris, err := parseURIs(full); err != nil || len(uris) != 1 {
		t.Fatalf("%q, %v", uris, err)
	}
	for n := range full {
		if _, err := parseURIs(full[:n]); err == nil {
			t.Errorf("%d bytes of %d were accepted", n, len(full))
		}
	}
	if _, err := parseURIs(append(full, 0)); err == nil {
		t.Error("a byte too many was accepted")
	}
}

func FuzzParseURIs(f *testing.F) {
	f.Add(sanOf(f, uriName("spiffe://td/ns/a/sa/b")))
	f.Add(sanOf(f, dnsName("a"), uriName(""), uriName("x")))
	f.Add([]byte{0x30, 0x80, 0x86, 0x00, 0x00, 0x00})
	f.Add([]byte{0x30, 0x84, 0xff, 0xff, 0xff, 0xff})
	f.Fuzz(func(t *testing.T, der []byte) {
		uris, err := parseURIs(der)
		if err != nil && uris != nil {
			t.Error("names and an error")
		}
		size := 0
		for _, s := range uris {
			size += len(s)
		}
		if size > len(der) {
			t.Error("more bytes of names than there were")
		}
	})
}
