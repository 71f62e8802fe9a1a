// SPDX-License-Identifier: Apache-2.0

package revocation

import (
	"bytes"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"slices"
	"strings"
	"sync"
)

// A list is one authority's list of revoked certificates, as it claims to be:
// whether the authority signed it shows only beside its certificate.
type list struct {
	crl     *x509.RevocationList // without its entries
	issuer  string               // by nameKey
	revoked map[string]struct{}  // by serialKey

	// verdicts remembers for each certificate of an authority, by its hash,
	// whether it signed this. Only authorities that a verified chain led to are
	// asked about, so there are few.
	verdicts sync.Map
}

// parse reads a file of revocation lists: any number of X509 CRL blocks in PEM
// among other blocks, or one list in DER. A file with nothing in it but blanks
// revokes nothing (contract 7.8).
//
// What cannot be understood whole is refused whole, a block that is cut short
// too: to pass over it would be to trust what it revokes.
func parse(data []byte) ([]*list, error) {
	const sequence = 0x30 // what every list in DER begins with
	switch {
	case len(bytes.TrimSpace(data)) == 0:
		return nil, nil
	case data[0] == sequence:
		l, err := parseList(data)
		if err != nil {
			return nil, err
		}
		return []*list{l}, nil
	case bytes.Contains(data, []byte("-----BEGIN")):
		return parsePEM(data)
	}
	return nil, errors.New("neither PEM nor DER")
}

func parsePEM(text []byte) ([]*list, error) {
	// pem.Decode passes over blocks that are damaged; counting finds them.
	begun := bytes.Count(text, []byte("-----BEGIN"))
	var all []*list
	for n := 1; ; n++ {
		block, rest := pem.Decode(text)
		if block == nil {
			if n <= begun {
				return nil, errors.New("a PEM block is damaged or cut short")
			}
			return all, nil
		}
		text = rest
		if block.Type != "X509 CRL" {
			continue
		}
		l, err := parseList(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("PEM block %d: %v", n, err)
		}
		all = append(all, l)
	}
}

// parseList reads one list (RFC 5280, section 5).
func parseList(der []byte) (*list, error) {
	crl, err := x509.ParseRevocationList(der)
	if err != nil {
		return nil, err
	}
	if len(crl.Raw) != len(der) {
		return nil, errors.New("bytes after the list")
	}
	if err := checkExtensions(crl.Extensions); err != nil {
		return nil, err
	}
	l := &list{
		crl: &x509.RevocationList{
			RawTBSRevocationList: crl.RawTBSRevocationList,
			SignatureAlgorithm:   crl.SignatureAlgorithm,
			Signature:            crl.Signature,
			AuthorityKeyId:       crl.AuthorityKeyId,
			Issuer:               crl.Issuer,
		},
		issuer:  nameKey(crl.RawIssuer),
		revoked: make(map[string]struct{}, len(crl.RevokedCertificateEntries)),
	}
	for _, e := range crl.RevokedCertificateEntries {
		if err := checkEntry(e.Extensions); err != nil {
			return nil, fmt.Errorf("entry for serial number %v: %v", e.SerialNumber, err)
		}
		l.revoked[serialKey(e.SerialNumber)] = struct{}{}
	}
	return l, nil
}

// The extensions of RFC 5280, sections 5.2 and 5.3, by the last number of
// their identifiers, 2.5.29.x.
const (
	extCRLNumber         = 20
	extReasonCode        = 21
	extInvalidityDate    = 24
	extDeltaCRL          = 27
	extDistributionPoint = 28
	extCertificateIssuer = 29
	extAuthorityKeyID    = 35
)

// checkExtensions refuses lists that mean something else than that this
// authority revoked these serial numbers.
//
// A distribution point that narrows a list to some certificates is no reason:
// an authority gives a serial number once, so what it lists it has revoked.
func checkExtensions(exts []pkix.Extension) error {
	for _, e := range exts {
		switch n := extensionNumber(e); n {
		case extDeltaCRL:
			return errors.New("a delta list is not supported; give the complete one")
		case extDistributionPoint:
			indirect, err := isIndirect(e.Value)
			if err != nil {
				return fmt.Errorf("distribution point: %v", err)
			}
			if indirect {
				return errors.New("an indirect list, of several authorities' certificates, is not supported")
			}
		case extCRLNumber, extAuthorityKeyID:
		default:
			if e.Critical {
				return fmt.Errorf("unknown critical extension %v", e.Id)
			}
		}
	}
	return nil
}

// checkEntry refuses entries that may speak of another authority's
// certificate, or of which we cannot know what they say.
func checkEntry(exts []pkix.Extension) error {
	for _, e := range exts {
		switch n := extensionNumber(e); n {
		case extReasonCode, extInvalidityDate:
		case extCertificateIssuer:
			return errors.New("it is another authority's certificate, which is not supported")
		default:
			if e.Critical {
				return fmt.Errorf("unknown critical extension %v", e.Id)
			}
		}
	}
	return nil
}

// extensionNumber is x of an identifier 2.5.29.x, and -1 for others.
func extensionNumber(e pkix.Extension) int {
	if len(e.Id) == 4 && slices.Equal(e.Id[:3], asn1.ObjectIdentifier{2, 5, 29}) {
		return e.Id[3]
	}
	return -1
}

// isIndirect reads indirectCRL, [4], of an IssuingDistributionPoint (RFC 5280,
// 5.2.5).
func isIndirect(der []byte) (bool, error) {
	var point asn1.RawValue
	rest, err := asn1.Unmarshal(der, &point)
	if err != nil {
		return false, err
	}
	if len(rest) != 0 || !point.IsCompound || point.Tag != asn1.TagSequence || point.Class != asn1.ClassUniversal {
		return false, errors.New("not one sequence")
	}
	for rest = point.Bytes; len(rest) > 0; {
		var field asn1.RawValue
		if rest, err = asn1.Unmarshal(rest, &field); err != nil {
			return false, err
		}
		if field.Class == asn1.ClassContextSpecific && field.Tag == 4 && !bytes.Equal(field.Bytes, []byte{0}) {
			return true, nil
		}
	}
	return false, nil
}

// nameKey is equal for names that are equal but for case and for the kind of
// string they are written in, as RFC 5280, 7.1 compares them. A tool that
// makes lists need not write its name as the one that made the certificate.
func nameKey(raw []byte) string {
	var name pkix.RDNSequence
	if rest, err := asn1.Unmarshal(raw, &name); err != nil || len(rest) != 0 {
		return string(raw)
	}
	return strings.ToLower(name.String())
}

func serialKey(n *big.Int) string {
	if n.Sign() < 0 { // illegal, and distinct from its positive twin
		return "-" + string(n.Bytes())
	}
	return string(n.Bytes())
}

// signedBy reports whether authority signed l, and may sign lists at all.
func (l *list) signedBy(authority *x509.Certificate) bool {
	key := sha256.Sum256(authority.Raw)
	if v, ok := l.verdicts.Load(key); ok {
		return v.(bool)
	}
	ok := l.crl.CheckSignatureFrom(authority) == nil
	l.verdicts.Store(key, ok)
	return ok
}

// claimsKey reports whether l may have been signed with authority's key, by
// what it says itself. A list that does not say may have been.
func (l *list) claimsKey(authority *x509.Certificate) bool {
	return len(l.crl.AuthorityKeyId) == 0 || len(authority.SubjectKeyId) == 0 ||
		bytes.Equal(l.crl.AuthorityKeyId, authority.SubjectKeyId)
}
