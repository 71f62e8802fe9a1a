// SPDX-License-Identifier: Apache-2.0

package revocation

import (
	"crypto/x509"
	"errors"
	"fmt"
)

// A RevokedError says that a peer's certificate, or one of an authority
// between it and the root, is on the authority's list. Its text is contract
// 7.8's.
type RevokedError struct {
	Certificate *x509.Certificate
}

func (e *RevokedError) Error() string { return "certificate revoked" }

// An UnverifiedError says that whether a certificate is revoked cannot be
// known: the list that goes by its authority's name was not signed by it.
type UnverifiedError struct {
	Authority *x509.Certificate
}

func (e *UnverifiedError) Error() string {
	return fmt.Sprintf("certificate revocation list of %q: not signed by that authority", e.Authority.Subject)
}

// lists is all that one file says. It is not changed after it was made.
type lists struct {
	byIssuer map[string][]*list
	lists    int
	entries  int
}

func newLists(all []*list) *lists {
	s := &lists{byIssuer: map[string][]*list{}, lists: len(all)}
	for _, l := range all {
		s.byIssuer[l.issuer] = append(s.byIssuer[l.issuer], l)
		s.entries += len(l.revoked)
	}
	return s
}

// check returns nil if one of the verified chains holds nothing that is
// revoked: where an authority has been certified by two others, what one of
// them takes back still stands by the other. A chain is leaf first, root last.
// The errors are [*RevokedError] and [*UnverifiedError].
func (s *lists) check(chains [][]*x509.Certificate) error {
	if len(chains) == 0 {
		return errors.New("certificate revocation: no verified chain")
	}
	var refused error
	for _, chain := range chains {
		err := s.checkChain(chain)
		if err == nil {
			return nil
		}
		var revoked *RevokedError
		if refused == nil || errors.As(err, &revoked) {
			refused = err
		}
	}
	return refused
}

// checkChain asks about every certificate but the root, which nobody can
// revoke: whoever trusts it takes it out.
func (s *lists) checkChain(chain []*x509.Certificate) error {
	for i := range len(chain) - 1 {
		if err := s.checkOne(chain[i], chain[i+1]); err != nil {
			return err
		}
	}
	return nil
}

// checkOne asks whether authority has revoked c. Without a list of that
// authority the answer is no (contract 7.8: unknown status is allowed).
//
// Lists are found by name, and a name may be two authorities': every root that
// Istio makes itself has the same. So the signature decides whose a list is.
// If none by that name was signed by authority, it has no list, or a forged or
// damaged one; a list whose key identifier names another key is no reason for
// doubt, and any other is.
func (s *lists) checkOne(c, authority *x509.Certificate) error {
	var genuine, doubtful bool
	for _, l := range s.byIssuer[nameKey(authority.RawSubject)] {
		if !l.signedBy(authority) {
			doubtful = doubtful || l.claimsKey(authority)
			continue
		}
		genuine = true
		if _, revoked := l.revoked[serialKey(c.SerialNumber)]; revoked {
			return &RevokedError{c}
		}
	}
	if doubtful && !genuine {
		return &UnverifiedError{authority}
	}
	return nil
}
