// SPDX-License-Identifier: Apache-2.0

package mtls_test

import (
	"crypto/ecdh"
	"crypto/rand"
	"crypto/tls"
	"slices"
	"testing"
	"time"

	"github.com/ztunnel-go/ztunnel/internal/certs/certstest"
	"github.com/ztunnel-go/ztunnel/internal/mtls"
	"github.com/ztunnel-go/ztunnel/test/leak"
)

// clientHello is the first flight of a client of ours, off the wire.
func clientHello(t *testing.T, opts mtls.Options) *hello {
	t.Helper()
	ca := certstest.Issuer(t, time.Hour)
	a, b := pair(t)
	done := make(chan struct{})
	go func() {
		defer close(done)
		// It fails: nobody answers.
		_ = tls.Client(a, mtls.Client(ca.Bundle(clientURI), expect(t, serverURI), opts)).Handshake()
	}()
	h := readHello(t, b)
	b.Close()
	<-done
	return h
}

func same(t *testing.T, what string, got, want []uint16) {
	t.Helper()
	if !slices.Equal(got, want) {
		t.Errorf("%s: %04x, want %04x", what, got, want)
	}
}

func groupsOf(shares []share) []uint16 {
	var groups []uint16
	for _, s := range shares {
		groups = append(groups, s.group)
	}
	return groups
}

func TestOurClientHello(t *testing.T) {
	leak.Check(t)
	h := clientHello(t, mtls.Options{})
	same(t, "suites", h.suites, []uint16{suiteAES128, suiteAES256})
	same(t, "versions", h.versions, []uint16{tls.VersionTLS13})
	same(t, "groups", h.groups, []uint16{groupX25519MLKEM, groupP256, groupP384})
	same(t, "key shares", groupsOf(h.shares), []uint16{groupX25519MLKEM})
	if !slices.Equal(h.alpn, []string{"h2"}) {
		t.Errorf("ALPN %q", h.alpn)
	}
	for _, ext := range []uint16{extServerName, extPreSharedKey, extEarlyData, extPSKModes, extSessionTicket} {
		if slices.Contains(h.extensions, ext) {
			t.Errorf("extension %d is sent: no server name, no resumption, no early data", ext)
		}
	}
}

func TestOurClientHelloWhenAsked(t *testing.T) {
	leak.Check(t)
	h := clientHello(t, mtls.Options{PQC: true})
	same(t, "suites with PQC", h.suites, []uint16{suiteAES128, suiteAES256})
	same(t, "groups with PQC", h.groups, []uint16{groupX25519MLKEM})
	same(t, "key shares with PQC", groupsOf(h.shares), []uint16{groupX25519MLKEM})

	h = clientHello(t, mtls.Options{TLS12: true})
	same(t, "versions with 1.2", h.versions, []uint16{tls.VersionTLS13, tls.VersionTLS12})
	slices.Sort(h.suites)
	same(t, "suites with 1.2", h.suites, []uint16{suiteAES128, suiteAES256, 0xc02b, 0xc02c, 0xc02f, 0xc030})
}

// answerTo is what a server of ours says to the given flight.
func answerTo(t *testing.T, opts mtls.Options, h *hello) answer {
	t.Helper()
	ca := certstest.Issuer(t, time.Hour)
	a, b := pair(t)
	done := make(chan struct{})
	go func() {
		defer close(done)
		// It fails: the client is not heard of again.
		_ = tls.Server(b, mtls.Server(ca.Bundle(serverURI), opts)).Handshake()
		b.Close()
	}()
	got := ask(t, a, h.bytes())
	a.Close()
	<-done
	return got
}

func TestOurServersAnswer(t *testing.T) {
	leak.Check(t)
	x25519, err := ecdh.X25519().GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	// with changes one thing of a hello that would be accepted.
	with := func(change func(*hello), suites ...uint16) *hello {
		h := tls13(t, suites...)
		change(h)
		return h
	}
	tls12 := func(h *hello) { h.versions, h.shares = nil, nil }
	onlyX25519 := func(h *hello) {
		h.groups, h.shares = []uint16{groupX25519}, []share{{groupX25519, x25519.PublicKey().Bytes()}}
	}
	// The groups and the only key share of a ztunnel of today (contract 4.1).
	likeTheReference := func(h *hello) {
		onlyX25519(h)
		h.groups = []uint16{groupX25519, groupP256, groupP384, groupX25519MLKEM}
	}
	withoutMLKEM := func(h *hello) {
		onlyX25519(h)
		h.groups = []uint16{groupX25519, groupP256, groupP384}
	}
	protocols := func(names ...string) func(*hello) { return func(h *hello) { h.alpn = names } }
	nothing := func(*hello) {}

	for _, tc := range []struct {
		name string
		opts mtls.Options
		send *hello
		want answer
	}{
		{"AES-128 alone", mtls.Options{}, with(nothing, suiteAES128), answer{suite: suiteAES128, group: groupP256}},
		{"AES-256 alone", mtls.Options{}, with(nothing, suiteAES256), answer{suite: suiteAES256, group: groupP256}},
		{"ChaCha20 alone", mtls.Options{}, with(nothing, suiteChaCha20), answer{alert: alertHandshakeFailure}},
		{"ChaCha20 first", mtls.Options{}, with(nothing, suiteChaCha20, suiteAES256), answer{suite: suiteAES256, group: groupP256}},
		{"both, in the reference's order", mtls.Options{}, with(nothing, suiteAES256, suiteAES128), answer{suite: suiteAES128, group: groupP256}},
		{"TLS 1.2", mtls.Options{}, with(tls12, 0xc02b), answer{alert: alertProtocolVersion}},
		{"TLS 1.2, allowed", mtls.Options{TLS12: true}, with(tls12, 0xc02b), answer{suite: 0xc02b}},
		{"TLS 1.2, allowed, ChaCha20 alone", mtls.Options{TLS12: true}, with(tls12, 0xcca9), answer{alert: alertHandshakeFailure}},
		{"TLS 1.2, allowed, CBC alone", mtls.Options{TLS12: true}, with(tls12, 0xc023), answer{alert: alertHandshakeFailure}},

		{"groups of the reference", mtls.Options{}, with(likeTheReference, suiteAES256), answer{suite: suiteAES256, retry: true, group: groupX25519MLKEM}},
		{"no post-quantum group", mtls.Options{}, with(withoutMLKEM, suiteAES256), answer{suite: suiteAES256, retry: true, group: groupP256}},
		{"X25519 alone", mtls.Options{}, with(onlyX25519, suiteAES256), answer{alert: alertHandshakeFailure}},
		{"post-quantum only, groups of the reference", mtls.Options{PQC: true}, with(likeTheReference, suiteAES256),
			answer{suite: suiteAES256, retry: true, group: groupX25519MLKEM}},
		{"post-quantum only, P-256", mtls.Options{PQC: true}, with(nothing, suiteAES256), answer{alert: alertHandshakeFailure}},

		{"no protocol offered", mtls.Options{}, with(protocols(), suiteAES128), answer{suite: suiteAES128, group: groupP256}},
		{"http/1.1 offered", mtls.Options{}, with(protocols("http/1.1"), suiteAES128), answer{alert: alertNoApplicationProtocol}},
		{"spdy offered", mtls.Options{}, with(protocols("spdy/3"), suiteAES128), answer{alert: alertNoApplicationProtocol}},
		{"h2 among others", mtls.Options{}, with(protocols("http/1.1", "h2"), suiteAES128), answer{suite: suiteAES128, group: groupP256}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if got := answerTo(t, tc.opts, tc.send); got != tc.want {
				t.Errorf("answered %+v, want %+v", got, tc.want)
			}
		})
	}
}
