// SPDX-License-Identifier: Apache-2.0

// Package mtls builds the tls.Config of either end of an HBONE tunnel, and what
// a channel to the control plane begins with, and holds the checks that make a
// peer a peer (contract 4.1-4.3).
//
// The checks sit in VerifyConnection, which crypto/tls also runs for resumed
// sessions. The package opens no connection, fetches no certificate, reads no
// revocation list and logs nothing. It imports internal/certs,
// internal/identity and internal/revocation.
//
// # Cipher suites and groups
//
// crypto/tls has no setting for the suites of TLS 1.3. The binary is built with
//
//	//go:debug fips140=on
//
// which leaves TLS_AES_128_GCM_SHA256 and TLS_AES_256_GCM_SHA384 (contract
// 4.1 wants these two). The same switch takes away plain X25519, which is not
// an approved exchange, and keeps X25519MLKEM768, P-256 and P-384. So:
//
//   - as a client we send one key share, X25519MLKEM768, which a ztunnel of
//     today accepts without another round trip;
//   - as a server we answer a client whose only key share is X25519 (a ztunnel
//     of today) with one HelloRetryRequest, for X25519MLKEM768 if the client
//     lists it and else for P-256, one round trip per new tunnel;
//   - a peer that lists X25519 alone is refused with handshake_failure.
//
// Of the two suites a Go server takes TLS_AES_128_GCM_SHA256 whenever the
// client lists it, in whatever order; the reference follows the client.
package mtls

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"slices"

	"github.com/ztunnel-go/ztunnel/internal/certs"
	"github.com/ztunnel-go/ztunnel/internal/identity"
	"github.com/ztunnel-go/ztunnel/internal/revocation"
)

// protoH2 is the only protocol inside a tunnel (contract 4.1).
const protoH2 = "h2"

// Options are the operator's choices. The zero value is TLS 1.3 alone with the
// usual groups.
type Options struct {
	// TLS12 also allows TLS 1.2, with the four ECDHE suites of AES-GCM
	// (TLS12_ENABLED, contract 4.1).
	TLS12 bool
	// PQC leaves X25519MLKEM768 as the only key exchange, on both sides
	// (COMPLIANCE_POLICY=pqc, contract 4.1).
	PQC bool
	// Revocation is asked about the peer's chains once they are verified; nil:
	// nothing is revoked (CRL_PATH, contract 7.8).
	Revocation *revocation.Enforcer
	// Verified is told the chains, leaf first and root last, of a peer that has
	// passed every check: what a tunnel is entered with in Revocation. It is
	// called during the handshake, and belongs to one connection; nil: nobody
	// is told.
	Verified func(chains [][]*x509.Certificate)
}

// admit is the end of both sides' checks.
func (o Options) admit(chains [][]*x509.Certificate) {
	if o.Verified != nil {
		o.Verified(chains)
	}
}

// Client is the configuration of the side that opens a tunnel as b, to a peer
// that must prove to be one of expect. It sends no server name, offers no
// resumption and checks no DNS name (contract 4.2). It costs little: make one
// for each connection, so that each has the certificate of its moment.
//
// The handshake fails with a [*SANMismatchError] if the peer's certificate is
// good but another's (an empty expect matches nobody), and with a
// [*revocation.RevokedError] if it is revoked.
func Client(b *certs.Bundle, expect []identity.ID, opts Options) *tls.Config {
	c := Base(opts)
	// Presented whatever roots the server hints at: its hints are names, and
	// while a root is being changed a name may be missing.
	c.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return b.TLS(), nil }
	// No name is checked, so crypto/tls cannot do the verification: VerifyConnection does all of it.
	c.InsecureSkipVerify = true
	c.VerifyConnection = func(cs tls.ConnectionState) error {
		chains, err := verifyChain(c, cs, b.RootPool(), x509.ExtKeyUsageServerAuth)
		if err != nil {
			return err
		}
		if err := opts.Revocation.Check(revocation.Source, chains); err != nil {
			return err
		}
		got := certs.IDs(cs.PeerCertificates[0])
		if !slices.ContainsFunc(got, func(id identity.ID) bool { return slices.Contains(expect, id) }) {
			return &SANMismatchError{Want: expect, Got: got}
		}
		opts.admit(chains)
		return nil
	}
	return c
}

// Server is the configuration of the side that accepts a tunnel as b. The
// client must have a certificate from our roots, and if b has a SPIFFE
// identity, one of the same trust domain (contract 4.3), else the handshake
// fails with a [*TrustDomainMismatchError]; with a [*revocation.RevokedError]
// if it is revoked. Make one for each connection, with
// the certificate of its moment.
//
// There are no session tickets: with a configuration for each connection no
// ticket could ever be redeemed.
func Server(b *certs.Bundle, opts Options) *tls.Config {
	c := Base(opts)
	c.GetCertificate = func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return b.TLS(), nil }
	c.SessionTicketsDisabled = true
	// crypto/tls verifies a full handshake itself, since it then knows the
	// right alert (unknown_ca, certificate_expired) and sends the roots' names.
	c.ClientAuth = tls.RequireAndVerifyClientCert
	c.ClientCAs = b.RootPool()
	c.GetConfigForClient = func(hello *tls.ClientHelloInfo) (*tls.Config, error) { return refuseProtocols(c, hello), nil }
	c.VerifyConnection = func(cs tls.ConnectionState) error {
		chains := cs.VerifiedChains
		if cs.DidResume || len(chains) == 0 {
			var err error
			if chains, err = verifyChain(c, cs, b.RootPool(), x509.ExtKeyUsageClientAuth); err != nil {
				return err
			}
		}
		if err := opts.Revocation.Check(revocation.Destination, chains); err != nil {
			return err
		}
		if err := checkTrustDomain(b.Identity(), cs); err != nil {
			return err
		}
		opts.admit(chains)
		return nil
	}
	return c
}

// Base is what every TLS connection of ours has in common, to peers and to the
// control plane (contract 4.1, 7.2): versions, suites, groups and h2. The order
// of groups and suites is crypto/tls's own.
func Base(opts Options) *tls.Config {
	c := &tls.Config{
		MinVersion:       tls.VersionTLS13,
		NextProtos:       []string{protoH2},
		CurvePreferences: []tls.CurveID{tls.X25519MLKEM768, tls.X25519, tls.CurveP256, tls.CurveP384},
	}
	if opts.TLS12 {
		c.MinVersion = tls.VersionTLS12
		c.CipherSuites = []uint16{
			tls.TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384,
			tls.TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256,
			tls.TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384,
			tls.TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256,
		}
	}
	if opts.PQC {
		c.CurvePreferences = []tls.CurveID{tls.X25519MLKEM768}
	}
	return c
}

// refuseProtocols closes a gap: crypto/tls treats a client that offers only
// http/1.1 to an h2 server as if it had offered nothing, where contract 4.3
// wants no_application_protocol. With a protocol that nobody offers, it says so.
func refuseProtocols(c *tls.Config, hello *tls.ClientHelloInfo) *tls.Config {
	if len(hello.SupportedProtos) == 0 || slices.Contains(hello.SupportedProtos, protoH2) {
		return nil // the configuration in use
	}
	no := c.Clone()
	no.NextProtos = []string{"\x00"}
	return no
}

// verifyChain checks that the peer's chain ends at one of roots, that each
// certificate of it is valid now, and that it may be used for what usage says.
// It returns every chain of which that is so.
func verifyChain(c *tls.Config, cs tls.ConnectionState, roots *x509.CertPool, usage x509.ExtKeyUsage) ([][]*x509.Certificate, error) {
	if len(cs.PeerCertificates) == 0 {
		return nil, errors.New("verify peer: it presented no certificate")
	}
	opts := x509.VerifyOptions{Roots: roots, KeyUsages: []x509.ExtKeyUsage{usage}}
	if c.Time != nil {
		opts.CurrentTime = c.Time()
	}
	if len(cs.PeerCertificates) > 1 {
		opts.Intermediates = x509.NewCertPool()
		for _, mid := range cs.PeerCertificates[1:] {
			opts.Intermediates.AddCert(mid)
		}
	}
	chains, err := cs.PeerCertificates[0].Verify(opts)
	if err != nil {
		return nil, fmt.Errorf("verify peer: %w", err) // callers tell x509's errors apart
	}
	return chains, nil
}

// checkTrustDomain wants one identity of the peer to be of our own trust
// domain. Without an identity of our own there is nothing to compare with
// (contract 4.3).
func checkTrustDomain(ours identity.ID, cs tls.ConnectionState) error {
	if ours.IsZero() {
		return nil
	}
	got := certs.IDs(cs.PeerCertificates[0])
	for _, id := range got {
		if id.TrustDomain() == ours.TrustDomain() {
			return nil
		}
	}
	return &TrustDomainMismatchError{Want: ours.TrustDomain(), Got: got}
}

// PeerIdentity is who the peer of a finished handshake is: the first SPIFFE
// identity among its certificate's names (contract 4.3). It is false if the
// certificate has none, which a server without an identity of its own allows.
func PeerIdentity(cs tls.ConnectionState) (identity.ID, bool) {
	if !cs.HandshakeComplete || len(cs.PeerCertificates) == 0 {
		return identity.ID{}, false
	}
	ids := certs.IDs(cs.PeerCertificates[0])
	if len(ids) == 0 {
		return identity.ID{}, false
	}
	return ids[0], true
}
