// SPDX-License-Identifier: Apache-2.0

package revocation

import (
	"bytes"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/pem"
	"strings"
	"testing"
)

func TestFilesOfLists(t *testing.T) {
	a, b := newRoot(t, "a"), newRoot(t, "b")
	one, two := a.crl(a.leaf()), b.crl(b.leaf(), b.leaf())
	cert := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: a.cert.Raw})
	for name, tc := range map[string]struct {
		data           []byte
		lists, entries int
	}{
		"nothing":              {nil, 0, 0},
		"blanks":               {[]byte(" \n\t\n"), 0, 0},
		"other blocks alone":   {cert, 0, 0},
		"DER":                  {two, 1, 2},
		"PEM":                  {inPEM(one), 1, 1},
		"several":              {inPEM(one, two), 2, 3},
		"among others":         {bytes.Join([][]byte{cert, inPEM(one), cert, inPEM(two), cert}, nil), 2, 3},
		"after a description":  {append([]byte("Certificate Revocation List (CRL):\n  Version 2\n"), inPEM(one)...), 1, 1},
		"with the other ends":  {bytes.ReplaceAll(inPEM(one), []byte("\n"), []byte("\r\n")), 1, 1},
		"without any entry":    {inPEM(a.crl()), 1, 0},
		"without an extension": {a.bareCRL(false, a.leaf()), 1, 1},
	} {
		all, err := parse(tc.data)
		if got := newLists(all); err != nil || got.lists != tc.lists || got.entries != tc.entries {
			t.Errorf("%s: %d lists with %d entries, %v; want %d with %d", name, got.lists, got.entries, err, tc.lists, tc.entries)
		}
	}
}

func extension(last int, critical bool, value []byte) pkix.Extension {
	return pkix.Extension{Id: asn1.ObjectIdentifier{2, 5, 29, last}, Critical: critical, Value: value}
}

func TestFilesThatAreRefusedWhole(t *testing.T) {
	a := newRoot(t, "a")
	good := inPEM(a.crl())
	with := func(e pkix.Extension) []byte {
		return a.crlWith(func(l *x509.RevocationList) { l.ExtraExtensions = append(l.ExtraExtensions, e) })
	}
	entryWith := func(e pkix.Extension) []byte {
		return a.crlWith(func(l *x509.RevocationList) { l.RevokedCertificateEntries[0].ExtraExtensions = []pkix.Extension{e} }, a.leaf())
	}
	integer, indirect, onlyUsers := []byte{2, 1, 1}, []byte{0x30, 3, 0x84, 1, 0xff}, []byte{0x30, 3, 0x81, 1, 0xff}
	for name, tc := range map[string]struct {
		data []byte
		want string
	}{
		"another text":                {[]byte("no such list"), "neither PEM nor DER"},
		"a block that has no end":     {append(bytes.Clone(good), good[:len(good)-10]...), "damaged"},
		"a block that has no middle":  {append([]byte("-----BEGIN X509 CRL-----\n"), good...), "damaged"},
		"a block that is no base64":   {append([]byte("-----BEGIN X509 CRL-----\n*\n-----END X509 CRL-----\n"), good...), "damaged"},
		"a block that is no list":     {append(bytes.Clone(good), inPEM([]byte{0x30, 0})...), "PEM block 2"},
		"a list and something":        {append(a.crl(), 0), "bytes after"},
		"version 1":                   {a.bareCRL(true), "version"},
		"a delta":                     {with(extension(extDeltaCRL, true, integer)), "delta"},
		"an indirect list":            {with(extension(extDistributionPoint, true, indirect)), "indirect"},
		"a point that is none":        {with(extension(extDistributionPoint, true, integer)), "distribution point"},
		"something critical":          {with(extension(99, true, integer)), "unknown critical extension 2.5.29.99"},
		"another's certificate":       {entryWith(extension(extCertificateIssuer, true, integer)), "another authority"},
		"something critical of entry": {entryWith(extension(99, true, integer)), "unknown critical extension 2.5.29.99"},
	} {
		if all, err := parse(tc.data); err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: %d lists, %v; want %q", name, len(all), err, tc.want)
		}
	}
	for name, data := range map[string][]byte{
		"a narrower list":            with(extension(extDistributionPoint, true, onlyUsers)),
		"something else":             with(extension(99, false, integer)),
		"something else of an entry": entryWith(extension(99, false, integer)),
		"a reason for an entry": a.crlWith(func(l *x509.RevocationList) {
			l.RevokedCertificateEntries[0].ReasonCode = 1 // key compromise
		}, a.leaf()),
		"a date of an entry's reason": entryWith(extension(extInvalidityDate, false, integer)),
	} {
		if _, err := parse(data); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestEveryProperPrefixIsRefused(t *testing.T) {
	a := newRoot(t, "a")
	der := a.crlWith(func(l *x509.RevocationList) {
		l.ExtraExtensions = []pkix.Extension{extension(extDistributionPoint, true, []byte{0x30, 3, 0x81, 1, 0xff})}
	}, a.leaf(), a.leaf())
	for name, full := range map[string][]byte{"DER": der, "PEM": bytes.TrimSpace(inPEM(der))} {
		if _, err := parse(full); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		for n := 1; n < len(full); n++ { // of nothing at all there is nothing to refuse
			if all, err := parse(full[:n]); err == nil {
				t.Errorf("%s: %d bytes of %d were accepted as %d lists", name, n, len(full), len(all))
			}
		}
	}
}

func TestNamesAreComparedAsNames(t *testing.T) {
	name := func(kind int, value string) []byte {
		der, err := asn1.Marshal([][]struct {
			Type  asn1.ObjectIdentifier
			Value asn1.RawValue
		}{{{asn1.ObjectIdentifier{2, 5, 4, 10}, asn1.RawValue{Tag: kind, Bytes: []byte(value)}}}})
		if err != nil {
			t.Fatal(err)
		}
		// The inner sequence is a SET OF in a name.
		return bytes.Replace(der, []byte{0x30, der[3], 0x30}, []byte{0x31, der[3], 0x30}, 1)
	}
	printable, utf8 := name(asn1.TagPrintableString, "cluster.local"), name(asn1.TagUTF8String, "Cluster.Local")
	if nameKey(printable) != nameKey(utf8) || nameKey(printable) != "o=cluster.local" {
		t.Errorf("%q and %q", nameKey(printable), nameKey(utf8))
	}
	if other := name(asn1.TagPrintableString, "cluster.locale"); nameKey(other) == nameKey(printable) {
		t.Error("two names are one")
	}
	if nameKey([]byte("nonsense")) != "nonsense" {
		t.Error("what is no name is not itself")
	}
}

func FuzzParse(f *testing.F) {
	a := newRoot(f, "a")
	der := a.crlWith(func(l *x509.RevocationList) {
		l.ExtraExtensions = []pkix.Extension{extension(extDistributionPoint, true, []byte{0x30, 3, 0x81, 1, 0xff})}
	}, a.leaf())
	f.Add([]byte{})
	f.Add(der)
	f.Add(inPEM(der, a.crl()))
	f.Add(a.bareCRL(false, a.leaf()))
	f.Add(a.bareCRL(true))
	f.Add([]byte("-----BEGIN X509 CRL-----\nMAA=\n-----END X509 CRL-----\n"))
	f.Add([]byte("-----BEGIN CERTIFICATE-----\nMAA=\n-----END CERTIFICATE-----\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		all, err := parse(data)
		if err != nil {
			if all != nil {
				t.Error("lists and an error")
			}
			return
		}
		s := newLists(all)
		// Whatever was read, it does not panic when asked, and revokes nothing of
		// an authority that did not sign it.
		_ = s.check([][]*x509.Certificate{{a.cert, a.cert}})
		for _, l := range all {
			if l.signedBy(a.cert) && !bytes.Contains(data, l.crl.Signature) && !bytes.Contains(data, []byte("-----BEGIN")) {
				t.Error("a signature out of nowhere")
			}
		}
	})
}

func FuzzIsIndirect(f *testing.F) {
	f.Add([]byte{0x30, 3, 0x84, 1, 0xff})
	f.Add([]byte{0x30, 3, 0x84, 1, 0})
	f.Add([]byte{0x30, 0})
	f.Fuzz(func(t *testing.T, der []byte) {
		if indirect, err := isIndirect(der); err != nil && indirect {
			t.Error("an answer and an error")
		}
	})
}
