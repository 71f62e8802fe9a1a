// SPDX-License-Identifier: Apache-2.0

package ca

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"testing"
	"time"
)

// newPair is a key and its root as they stand in the files, without the line
// end of the last line.
func newPair(tb testing.TB) (key, root []byte) {
	tb.Helper()
	key, err := newKeyText()
	if err != nil {
		tb.Fatal(err)
	}
	signer, err := parseKey(key)
	if err != nil {
		tb.Fatal(err)
	}
	der, err := newRoot(signer, time.Now())
	if err != nil {
		tb.Fatal(err)
	}
	root = encode("CERTIFICATE", der)
	return key[:len(key)-1], root[:len(root)-1]
}

func TestEveryProperPrefixIsRefused(t *testing.T) {
	key, root := newPair(t)
	for n := range key {
		if _, err := parseKey(key[:n]); err == nil {
			t.Errorf("%d bytes of a key of %d were accepted", n, len(key))
		}
	}
	for n := range root {
		if _, err := parseCertificates(root[:n]); err == nil {
			t.Errorf("%d bytes of a certificate of %d were accepted", n, len(root))
		}
	}
	if _, err := parseKey(key); err != nil {
		t.Error(err)
	}
	if _, err := parseCertificates(root); err != nil {
		t.Error(err)
	}
}

func FuzzParseKey(f *testing.F) {
	key, root := newPair(f)
	f.Add(key)
	f.Add(root)
	f.Add(append([]byte("text before\n"), key...))
	f.Add([]byte("-----BEGIN EC PRIVATE KEY-----\nMAA=\n-----END EC PRIVATE KEY-----\n"))
	f.Add([]byte("-----BEGIN RSA PRIVATE KEY-----\nDEK-Info: x\n\nMAA=\n-----END RSA PRIVATE KEY-----\n"))
	f.Fuzz(func(t *testing.T, text []byte) {
		key, err := parseKey(text)
		if (key == nil) == (err == nil) {
			t.Fatalf("%v, %v", key, err)
		}
		if ec, ok := key.(*ecdsa.PrivateKey); ok && ec.Curve != elliptic.P224() {
			if _, err := ec.Sign(rand.Reader, make([]byte, 32), nil); err != nil {
				t.Errorf("a key that does not sign: %v", err)
			}
		}
	})
}

func FuzzParseCertificates(f *testing.F) {
	_, root := newPair(f)
	f.Add(root)
	f.Add(append(append([]byte{}, append(root, '\n')...), root...))
	f.Add([]byte("-----BEGIN CERTIFICATE-----\nMAA=\n-----END CERTIFICATE-----\n"))
	f.Fuzz(func(t *testing.T, text []byte) {
		all, err := parseCertificates(text)
		if (len(all) == 0) == (err == nil) {
			t.Fatalf("%d certificates, %v", len(all), err)
		}
		for _, c := range all {
			if _, err := x509.ParseCertificate(c.Raw); err != nil {
				t.Error(err)
			}
		}
	})
}
