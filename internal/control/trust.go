// SPDX-License-Identifier: Apache-2.0

package control

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"strings"
)

// Roots are where root certificates come from. Which of the three is decided
// once, at start (contract 1.4); what is in the file is read at each use.
type Roots struct {
	File   string // a path
	System bool   // the system's store
	Inline string // PEM; used where neither of the others is set
}

// Pool reads the certificates. It is an error if there are none: a pool
// without any would say so only in a handshake, as if the server were at
// fault.
func (r Roots) Pool() (*x509.CertPool, error) {
	if r.System && r.File == "" {
		pool, err := x509.SystemCertPool()
		if err != nil {
			return nil, fmt.Errorf("root certificates of the system: %w", err)
		}
		return pool, nil
	}
	pem, from := []byte(r.Inline), "the given text"
	if r.File != "" {
		var err error
		if pem, err = os.ReadFile(r.File); err != nil {
			return nil, fmt.Errorf("root certificates: %w", err)
		}
		from = r.File
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("root certificates: no certificate in %s%s", from, r.hint())
	}
	return pool, nil
}

// hint speaks to whoever gave a path that did not exist when we started.
func (r Roots) hint() string {
	if r.File == "" && !strings.Contains(r.Inline, "-----BEGIN") && strings.Contains(r.Inline, "/") {
		return fmt.Sprintf(" (%q was no file when the process started)", r.Inline)
	}
	return ""
}

// eitherName verifies the chain, then that the certificate is for one of two
// names (contract 7.2). It also runs for resumed sessions.
func eitherName(pool *x509.CertPool, host, alt string) func(tls.ConnectionState) error {
	return func(cs tls.ConnectionState) error {
		if len(cs.PeerCertificates) == 0 {
			return errors.New("the server sent no certificate")
		}
		leaf := cs.PeerCertificates[0]
		opts := x509.VerifyOptions{Roots: pool, Intermediates: x509.NewCertPool()}
		for _, c := range cs.PeerCertificates[1:] {
			opts.Intermediates.AddCert(c)
		}
		if _, err := leaf.Verify(opts); err != nil {
			return err
		}
		err := leaf.VerifyHostname(host)
		if err == nil || leaf.VerifyHostname(alt) == nil {
			return nil
		}
		return fmt.Errorf("%w, nor for the alternate name %s", err, alt)
	}
}

// isDNSName accepts what a certificate may hold as a name: labels of letters,
// digits, hyphens and underscores (RFC 5280 4.2.1.6, with the underscore that
// is seen in practice). Addresses are none.
func isDNSName(s string) bool {
	if _, err := netip.ParseAddr(s); err == nil || len(s) > 253 {
		return false
	}
	for label := range strings.SplitSeq(strings.TrimSuffix(s, "."), ".") {
		legal := func(r rune) bool {
			return r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || r == '-' || r == '_'
		}
		if label == "" || len(label) > 63 || label[0] == '-' || label[len(label)-1] == '-' ||
			strings.ContainsFunc(label, func(r rune) bool { return !legal(r) }) {
			return false
		}
	}
	return true
}
