// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"crypto/x509"

	"github.com/ztunnel-go/ztunnel/internal/certs"
	"github.com/ztunnel-go/ztunnel/internal/identity"
	"github.com/ztunnel-go/ztunnel/internal/mtls"
	"github.com/ztunnel-go/ztunnel/internal/revocation"
)

// A witness remembers what one handshake verified. It belongs to one
// connection; crypto/tls has written it when the handshake returns.
type witness struct{ chains [][]*x509.Certificate }

// witnessed are the TLS options for one connection and who saw it.
func (p *Proxy) witnessed() (mtls.Options, *witness) {
	w := &witness{}
	opts := p.cfg.TLS
	opts.Verified = func(chains [][]*x509.Certificate) { w.chains = chains }
	return opts, w
}

// enter has a tunnel ended once its peer is revoked (contract 7.8). release is
// to be called when it has ended by itself.
func (p *Proxy) enter(side revocation.Reporter, w *witness, end func(error)) (release func(), err error) {
	return p.cfg.TLS.Revocation.Register(side, w.chains, end)
}

// peer is whom the handshake proved; zero if the certificate names nobody.
func (w *witness) peer() identity.ID {
	if len(w.chains) == 0 || len(w.chains[0]) == 0 {
		return identity.ID{}
	}
	if ids := certs.IDs(w.chains[0][0]); len(ids) > 0 {
		return ids[0]
	}
	return identity.ID{}
}
