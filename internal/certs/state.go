// SPDX-License-Identifier: Apache-2.0

package certs

import (
	"cmp"
	"crypto/x509"
	"encoding/base64"
	"slices"
	"strings"
	"time"

	"github.com/ztunnel-go/ztunnel/internal/identity"
)

// A State is what an operator may see of one identity (contract 13.4,
// certificates). It holds no key.
type State struct {
	Identity identity.ID
	// State is "Available", "Initializing" or "Unavailable: <error>".
	State string
	// Chain is the leaf, then the intermediates; Roots are the anchors. Both are
	// empty unless Available.
	Chain, Roots []Info
}

// Info describes one certificate.
type Info struct {
	// PEM is wrapped at 60 columns, as the reference prints it (contract 13.4).
	PEM string
	// SerialNumber is decimal.
	SerialNumber              string
	ValidFrom, ExpirationTime time.Time // UTC
}

// Describe returns what an operator may see of c.
func Describe(c *x509.Certificate) Info {
	return Info{
		PEM:            encodePEM(c.Raw),
		SerialNumber:   c.SerialNumber.String(),
		ValidFrom:      c.NotBefore.UTC(),
		ExpirationTime: c.NotAfter.UTC(),
	}
}

// States lists all identities, by name.
func (m *Manager) States() []State {
	type found struct {
		state  State
		bundle *Bundle
	}
	m.mu.RLock()
	all := make([]found, 0, len(m.entries))
	for _, e := range m.entries {
		f := found{state: State{Identity: e.id, State: "Initializing"}}
		switch {
		case e.bundle != nil:
			f.state.State, f.bundle = "Available", e.bundle
		case e.err != nil:
			f.state.State = "Unavailable: " + e.err.Error()
		}
		all = append(all, f)
	}
	m.mu.RUnlock()

	states := make([]State, len(all))
	for i, f := range all {
		states[i] = f.state
		if f.bundle != nil {
			states[i].Chain, states[i].Roots = describeAll(f.bundle.Chain), describeAll(f.bundle.Roots)
		}
	}
	slices.SortFunc(states, func(a, b State) int { return cmp.Compare(a.Identity.String(), b.Identity.String()) })
	return states
}

func describeAll(cs []*x509.Certificate) []Info {
	infos := make([]Info, len(cs))
	for i, c := range cs {
		infos[i] = Describe(c)
	}
	return infos
}

// encodePEM is encoding/pem with lines of 60 characters in place of 64.
func encodePEM(der []byte) string {
	const columns = 60
	var b strings.Builder
	b.WriteString("-----BEGIN CERTIFICATE-----\n")
	for text := base64.StdEncoding.EncodeToString(der); text != ""; {
		n := min(columns, len(text))
		b.WriteString(text[:n])
		b.WriteByte('\n')
		text = text[n:]
	}
	b.WriteString("-----END CERTIFICATE-----\n")
	return b.String()
}
