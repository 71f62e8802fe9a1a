// SPDX-License-Identifier: Apache-2.0

package ca_test

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"
)

func encode(kind string, der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der})
}

func certificate(c *x509.Certificate) []byte { return encode("CERTIFICATE", c.Raw) }

// write puts the files into dir; nil means none.
func write(t *testing.T, dir string, key, root []byte) {
	t.Helper()
	for name, text := range map[string][]byte{"ca-key.pem": key, "root-cert.pem": root} {
		if text == nil {
			continue
		}
		if err := os.WriteFile(filepath.Join(dir, name), text, 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

func must[T any](t *testing.T) func(T, error) T {
	return func(v T, err error) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

func ecKey(t *testing.T, curve elliptic.Curve) *ecdsa.PrivateKey {
	t.Helper()
	return must[*ecdsa.PrivateKey](t)(ecdsa.GenerateKey(curve, rand.Reader))
}

func sec1(t *testing.T, key *ecdsa.PrivateKey) []byte {
	t.Helper()
	return encode("EC PRIVATE KEY", must[[]byte](t)(x509.MarshalECPrivateKey(key)))
}

func pkcs8(t *testing.T, key crypto.Signer) []byte {
	t.Helper()
	return encode("PRIVATE KEY", must[[]byte](t)(x509.MarshalPKCS8PrivateKey(key)))
}

func rsaKey(t *testing.T) *rsa.PrivateKey {
	t.Helper()
	return must[*rsa.PrivateKey](t)(rsa.GenerateKey(rand.Reader, 2048))
}

func ed25519Key(t *testing.T) []byte {
	t.Helper()
	return pkcs8(t, ed25519.NewKeyFromSeed(make([]byte, ed25519.SeedSize)))
}

// keyForms makes a key in each form that is accepted.
func keyForms(t *testing.T) map[string]func() (crypto.Signer, []byte) {
	return map[string]func() (crypto.Signer, []byte){
		"EC, SEC 1": func() (crypto.Signer, []byte) {
			key := ecKey(t, elliptic.P256())
			return key, sec1(t, key)
		},
		"EC, SEC 1 as openssl ecparam writes it": func() (crypto.Signer, []byte) {
			key := ecKey(t, elliptic.P256())
			// The object identifier of the curve, 1.2.840.10045.3.1.7.
			params := encode("EC PARAMETERS", []byte{0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07})
			return key, append(params, sec1(t, key)...)
		},
		"EC P-384, PKCS#8": func() (crypto.Signer, []byte) {
			key := ecKey(t, elliptic.P384())
			return key, pkcs8(t, key)
		},
		"RSA, PKCS#1": func() (crypto.Signer, []byte) {
			key := rsaKey(t)
			return key, encode("RSA PRIVATE KEY", x509.MarshalPKCS1PrivateKey(key))
		},
		"RSA, PKCS#8": func() (crypto.Signer, []byte) {
			key := rsaKey(t)
			return key, pkcs8(t, key)
		},
	}
}

// smallRSA returns a key that is too small to be used, which crypto/rsa makes
// only when asked to by a switch.
func smallRSA(t *testing.T) []byte {
	t.Helper()
	t.Setenv("GODEBUG", "rsa1024min=0")
	key := must[*rsa.PrivateKey](t)(rsa.GenerateKey(rand.Reader, 1024))
	return encode("RSA PRIVATE KEY", x509.MarshalPKCS1PrivateKey(key))
}

// selfSigned is a root for key, after change has had its way with it.
func selfSigned(t *testing.T, key crypto.Signer, change func(*x509.Certificate)) *x509.Certificate {
	t.Helper()
	tmpl := &x509.Certificate{
		SerialNumber:          big.NewInt(1),
		Subject:               pkix.Name{Organization: []string{"cluster.local"}},
		NotBefore:             time.Date(2019, 1, 1, 0, 0, 0, 0, time.UTC),
		NotAfter:              time.Now().Add(24 * 365 * time.Hour),
		IsCA:                  true,
		BasicConstraintsValid: true,
		KeyUsage:              x509.KeyUsageCertSign,
	}
	if change != nil {
		change(tmpl)
	}
	der := must[[]byte](t)(x509.CreateCertificate(rand.Reader, tmpl, tmpl, key.Public(), key))
	return must[*x509.Certificate](t)(x509.ParseCertificate(der))
}

func pipe(t *testing.T) (a, b net.Conn) {
	t.Helper()
	a, b = net.Pipe()
	t.Cleanup(func() { a.Close(); b.Close() })
	return a, b
}
