// SPDX-License-Identifier: Apache-2.0

//go:debug fips140=on

package ca_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/ztunnel-go/ztunnel/internal/ca"
	"github.com/ztunnel-go/ztunnel/internal/certs"
	"github.com/ztunnel-go/ztunnel/internal/certs/certstest"
	"github.com/ztunnel-go/ztunnel/internal/identity"
	"github.com/ztunnel-go/ztunnel/internal/mtls"
	"github.com/ztunnel-go/ztunnel/test/leak"
)

const uri = "spiffe://cluster.local/ns/default/sa/web"

func open(t *testing.T, dir string) *ca.Embedded {
	t.Helper()
	e, err := ca.OpenEmbedded(dir, 0)
	if err != nil {
		t.Fatal(err)
	}
	return e
}

func issue(t *testing.T, e *ca.Embedded, uri string) *certs.Bundle {
	t.Helper()
	b, err := e.Issue(t.Context(), certstest.ID(t, uri))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestMakesAnAuthorityAndFindsItAgain(t *testing.T) {
	leak.Check(t)
	dir := filepath.Join(t.TempDir(), "var", "ca")
	first := open(t, dir)
	for name, want := range map[string]os.FileMode{"": 0o700, "ca-key.pem": 0o600, "root-cert.pem": 0o600} {
		info, err := os.Stat(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		if info.Mode().Perm() != want {
			t.Errorf("%q has mode %04o, want %04o", name, info.Mode().Perm(), want)
		}
	}
	files, err := os.ReadDir(dir)
	if err != nil || len(files) != 2 {
		t.Errorf("the directory holds %v (%v)", files, err)
	}
	if w := first.Warnings(); len(w) > 0 {
		t.Errorf("warnings about our own files: %q", w)
	}
	if !open(t, dir).Root().Equal(first.Root()) {
		t.Error("another root the second time")
	}
	root := first.Root()
	if life := time.Until(root.NotAfter); life < 9*365*24*time.Hour {
		t.Errorf("the root lives for %v", life)
	}
	if err := root.CheckSignatureFrom(root); err != nil {
		t.Error(err)
	}
}

func TestTheFormOfACertificate(t *testing.T) {
	b := issue(t, open(t, t.TempDir()), uri)
	leaf := b.Leaf
	if len(b.Chain) != 1 || b.Chain[0] != leaf {
		t.Errorf("the chain has %d certificates: the root does not belong in it", len(b.Chain))
	}
	if len(leaf.Subject.Names) != 0 {
		t.Errorf("subject %v", leaf.Subject)
	}
	if got := certs.URIs(leaf); len(got) != 1 || got[0] != uri || b.Identity().String() != uri {
		t.Errorf("names %q", got)
	}
	if n := len(leaf.DNSNames) + len(leaf.IPAddresses) + len(leaf.EmailAddresses); n != 0 {
		t.Errorf("%d other names", n)
	}
	for _, ext := range leaf.Extensions {
		if ext.Id.String() == "2.5.29.17" && !ext.Critical {
			t.Error("the name is not critical though the subject is empty")
		}
	}
	if fmt.Sprint(leaf.ExtKeyUsage) != fmt.Sprint([]x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}) {
		t.Errorf("extended key usage %v", leaf.ExtKeyUsage)
	}
	if leaf.KeyUsage != x509.KeyUsageDigitalSignature|x509.KeyUsageKeyEncipherment || leaf.IsCA || !leaf.BasicConstraintsValid {
		t.Errorf("key usage %b, CA %v", leaf.KeyUsage, leaf.IsCA)
	}
	if key, ok := leaf.PublicKey.(*ecdsa.PublicKey); !ok || key.Curve != elliptic.P256() {
		t.Errorf("public key %T", leaf.PublicKey)
	}
	if leaf.SerialNumber.Sign() <= 0 || leaf.SerialNumber.BitLen() > 159 {
		t.Errorf("serial number %v", leaf.SerialNumber)
	}
	back, ahead := time.Since(leaf.NotBefore), time.Until(leaf.NotAfter)
	if back < 4*time.Minute || back > 6*time.Minute || ahead < 24*time.Hour-time.Minute || ahead > 24*time.Hour {
		t.Errorf("valid since %v and for %v", back, ahead)
	}
}

func TestACertificateDoesNotOutliveTheRoot(t *testing.T) {
	dir := t.TempDir()
	key := ecKey(t, elliptic.P256())
	root := selfSigned(t, key, func(c *x509.Certificate) { c.NotAfter = time.Now().Add(time.Hour) })
	write(t, dir, sec1(t, key), certificate(root))
	if b := issue(t, open(t, dir), uri); b.Leaf.NotAfter.After(root.NotAfter) {
		t.Errorf("valid until %v, the root until %v", b.Leaf.NotAfter, root.NotAfter)
	}
}

func TestShortLivesAreDatedBackLess(t *testing.T) {
	e, err := ca.OpenEmbedded(t.TempDir(), 10*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	if back := time.Since(issue(t, e, uri).Leaf.NotBefore); back > 7*time.Second {
		t.Errorf("dated back %v: half of its life would be past", back)
	}
	if _, err := ca.OpenEmbedded(t.TempDir(), -time.Second); err == nil {
		t.Error("a negative life was accepted")
	}
}

func TestRefusesNamesThatAreNoURI(t *testing.T) {
	e := open(t, t.TempDir())
	for _, name := range []string{"spiffe://td/ns/a b/sa/c", "spiffe://td/ns/%zz/sa/c", "spiffe://td/ns/a/sa/b#"} {
		if _, err := e.Issue(t.Context(), certstest.ID(t, name)); err == nil {
			t.Errorf("%q was certified", name)
		}
	}
	if _, err := e.Issue(t.Context(), identity.ID{}); err == nil {
		t.Error("nobody was certified")
	}
}

// A whole handshake with certificates from each form of key that can be given.
func TestCertificatesFromEveryFormOfKeyAreAccepted(t *testing.T) {
	leak.Check(t)
	for name, text := range keyForms(t) {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			key, pem := text()
			write(t, dir, pem, certificate(selfSigned(t, key, nil)))
			e := open(t, dir)
			server, client := issue(t, e, uri), issue(t, e, "spiffe://cluster.local/ns/default/sa/client")
			handshake(t, mtls.Client(client, []identity.ID{server.Identity()}, mtls.Options{}), mtls.Server(server, mtls.Options{}))
		})
	}
}

// handshake runs over a pipe; the client's last flight is the only thing that
// nobody may be waiting for, so the server runs beside it.
func handshake(t *testing.T, client, server *tls.Config) {
	t.Helper()
	a, b := pipe(t)
	done := make(chan error, 1)
	go func() { done <- tls.Server(b, server).HandshakeContext(t.Context()) }()
	if err := tls.Client(a, client).HandshakeContext(t.Context()); err != nil {
		t.Errorf("client: %v", err)
		a.Close()
	}
	if err := <-done; err != nil {
		t.Errorf("server: %v", err)
	}
}

func TestErrorsNameTheFile(t *testing.T) {
	key, stranger := ecKey(t, elliptic.P256()), ecKey(t, elliptic.P256())
	root := certificate(selfSigned(t, key, nil))
	small := smallRSA(t)
	changed := func(change func(*x509.Certificate)) []byte { return certificate(selfSigned(t, key, change)) }
	for _, tc := range []struct {
		name      string
		key, root []byte
		want      string // DIR/ is the directory
	}{
		{"key missing", nil, root, "DIR/ca-key.pem: missing, while DIR/root-cert.pem is there"},
		{"key of another", sec1(t, stranger), root, "DIR/ca-key.pem: not the key of a certificate in DIR/root-cert.pem"},
		{"key is no PEM", []byte("hello"), root, "DIR/ca-key.pem: no private key in PEM form"},
		{"key is empty", []byte{}, root, "DIR/ca-key.pem: no private key in PEM form"},
		{"key is empty and alone", []byte{}, nil, "DIR/ca-key.pem: no private key in PEM form"},
		{"key is a certificate", root, root, "DIR/ca-key.pem: no private key in PEM form"},
		{"key is cut short", encode("EC PRIVATE KEY", []byte{0x30, 0x10}), root, "DIR/ca-key.pem: EC PRIVATE KEY: "},
		{"key is encrypted", encode("ENCRYPTED PRIVATE KEY", []byte{1}), root, "DIR/ca-key.pem: the private key is encrypted"},
		{"key is too small", small, root, "DIR/ca-key.pem: an RSA key of 1024 bits is too small"},
		{"key is of another kind", ed25519Key(t), root, "DIR/ca-key.pem: a key of type ed25519.PrivateKey is not supported"},
		{"root is no PEM", sec1(t, key), []byte("hello"), "DIR/root-cert.pem: no certificate in PEM form"},
		{"root is cut short", sec1(t, key), encode("CERTIFICATE", []byte{0x30}), "DIR/root-cert.pem: certificate 1: "},
		{"root expired", sec1(t, key), changed(func(c *x509.Certificate) { c.NotAfter = time.Date(2020, 1, 2, 3, 4, 5, 0, time.UTC) }),
			"DIR/root-cert.pem: expired on 2020-01-02T03:04:05Z"},
		{"root not yet valid", sec1(t, key), changed(func(c *x509.Certificate) { c.NotBefore = time.Now().Add(time.Hour) }),
			"DIR/root-cert.pem: not valid before "},
		{"root is no authority", sec1(t, key), changed(func(c *x509.Certificate) { c.IsCA = false }), "DIR/root-cert.pem: not the certificate of an authority"},
		{"root may not sign", sec1(t, key), changed(func(c *x509.Certificate) { c.KeyUsage = x509.KeyUsageDigitalSignature }),
			"DIR/root-cert.pem: its key usage does not allow"},
		{"root is too large", sec1(t, key), make([]byte, 2<<20), "DIR/root-cert.pem: 2097152 bytes is too large"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			leak.Check(t)
			dir := t.TempDir()
			write(t, dir, tc.key, tc.root)
			_, err := ca.OpenEmbedded(dir, 0)
			want := "embedded CA: " + strings.ReplaceAll(tc.want, "DIR", dir)
			if err == nil || !strings.HasPrefix(err.Error(), want) {
				t.Errorf("error %v, want %q", err, want)
			}
		})
	}
}

func TestRootsMayBeSeveral(t *testing.T) {
	dir := t.TempDir()
	key, old := ecKey(t, elliptic.P256()), ecKey(t, elliptic.P384())
	both := append(certificate(selfSigned(t, old, nil)), certificate(selfSigned(t, key, nil))...)
	write(t, dir, sec1(t, key), both)
	b := issue(t, open(t, dir), uri)
	if len(b.Roots) != 2 || b.Leaf.CheckSignatureFrom(b.Roots[1]) != nil {
		t.Errorf("%d roots, signed by the wrong one or not by the second", len(b.Roots))
	}
}

func TestWarnsOfFilesThatOthersMayUse(t *testing.T) {
	dir := t.TempDir()
	open(t, dir)
	for path, mode := range map[string]os.FileMode{"": 0o777, "ca-key.pem": 0o640, "root-cert.pem": 0o644} {
		if err := os.Chmod(filepath.Join(dir, path), mode); err != nil {
			t.Fatal(err)
		}
	}
	w := open(t, dir).Warnings()
	if len(w) != 2 || !strings.Contains(w[0], "ca-key.pem: ") || !strings.Contains(w[0], "0640") || !strings.HasPrefix(w[1], dir+": ") {
		t.Errorf("warnings %q", w)
	}
}
