// SPDX-License-Identifier: Apache-2.0

package ca

import (
	"strings"
	"testing"

	"github.com/ztunnel-go/ztunnel/internal/identity"
)

func TestNamesThatNoRequestCanHold(t *testing.T) {
	umlaut, err := identity.Parse("spiffe://cluster.local/ns/münchen/sa/default")
	if err != nil {
		t.Fatal(err)
	}
	for _, id := range []identity.ID{{}, umlaut} {
		if _, csr, err := newRequest(id); err == nil {
			t.Errorf("a request for %q: %s", id, csr)
		}
	}
	// What net/url would have changed goes in as it is.
	odd, err := identity.Parse("spiffe://Cluster.Local/ns/a b/sa/c%zz")
	if err != nil {
		t.Fatal(err)
	}
	if san, err := uriSAN(odd); err != nil || !strings.HasSuffix(string(san.Value), odd.String()) {
		t.Errorf("%q, %v", san.Value, err)
	}
}

func TestEveryProperPrefixOfAnAnswerIsRefused(t *testing.T) {
	_, root := newPair(t)
	text := string(root)
	for n := range text {
		if a, err := parseAnswer([]string{text[:n], text}); err == nil {
			t.Errorf("%d bytes of a leaf of %d: %d certificates", n, len(text), len(a.chain))
		}
		if a, err := parseAnswer([]string{text, text[:n], text}); err == nil {
			t.Errorf("%d bytes of an intermediate of %d: %d certificates", n, len(text), len(a.chain))
		}
		if a, _ := parseAnswer([]string{text, text[:n]}); len(a.roots) != 0 {
			t.Errorf("%d bytes of a root of %d: %d roots", n, len(text), len(a.roots))
		}
	}
	a, err := parseAnswer([]string{text, text, text + "\n" + text})
	if err != nil || len(a.chain) != 2 || len(a.roots) != 2 || len(a.skipped) != 0 {
		t.Errorf("%d in the chain, %d roots, %v", len(a.chain), len(a.roots), err)
	}
}

// The texts of one answer are apart by NUL.
func FuzzParseAnswer(f *testing.F) {
	_, root := newPair(f)
	text := string(root)
	f.Add("")
	f.Add(text)
	f.Add(text + "\x00" + text)
	f.Add(text + "\x00" + text + "\n" + text + "\x00\x00" + text)
	f.Add("-----BEGIN CERTIFICATE-----\nMAA=\n-----END CERTIFICATE-----\n\x00-----BEGIN CERTIFICATE-----\nMAA=\n-----END CERTIFICATE-----\n")
	f.Fuzz(func(t *testing.T, joined string) {
		texts := strings.Split(joined, "\x00")
		a, err := parseAnswer(texts)
		if err != nil {
			if a.chain != nil || a.roots != nil {
				t.Error("certificates and an error")
			}
			return
		}
		if want := max(len(texts)-1, 1); len(a.chain) != want {
			t.Errorf("a chain of %d of %d texts", len(a.chain), len(texts))
		}
		for _, c := range append(a.chain, a.roots...) {
			if c == nil {
				t.Error("a certificate that is none")
			}
		}
	})
}
