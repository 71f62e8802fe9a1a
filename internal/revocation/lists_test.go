// SPDX-License-Identifier: Apache-2.0

package revocation

import (
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"testing"
	"time"
)

// force is the lists in force after reading these, each in DER.
func force(t *testing.T, ders ...[]byte) *lists {
	t.Helper()
	all, err := parse(inPEM(ders...))
	if err != nil {
		t.Fatal(err)
	}
	return newLists(all)
}

// revokes wants c to be what is revoked; nil wants nothing to be.
func revokes(t *testing.T, s *lists, chains [][]*x509.Certificate, c *x509.Certificate) {
	t.Helper()
	var revoked *RevokedError
	switch err := s.check(chains); {
	case c == nil && err != nil:
		t.Errorf("refused: %v", err)
	case c != nil && (!errors.As(err, &revoked) || revoked.Certificate != c):
		t.Errorf("%v, want serial number %v to be revoked", err, c.SerialNumber)
	case c != nil && err.Error() != "certificate revoked":
		t.Errorf("text %q", err)
	}
}

func doubts(t *testing.T, s *lists, chains [][]*x509.Certificate) {
	t.Helper()
	var unverified *UnverifiedError
	if err := s.check(chains); !errors.As(err, &unverified) {
		t.Errorf("%v, want that the list is not verified", err)
	}
}

func TestEachLevelOfAChainIsAsked(t *testing.T) {
	root := newRoot(t, "root")
	upper := root.intermediate("upper")
	lower := upper.intermediate("lower")
	leaf := lower.leaf()
	chains := chain(leaf, lower, upper, root)
	revokes(t, force(t), chains, nil)
	revokes(t, force(t, root.crl(), upper.crl(), lower.crl()), chains, nil)
	revokes(t, force(t, lower.crl(leaf)), chains, leaf)
	revokes(t, force(t, upper.crl(lower.cert)), chains, lower.cert)
	revokes(t, force(t, root.crl(upper.cert)), chains, upper.cert)
	revokes(t, force(t, root.crl(root.cert)), chains, nil) // nobody revokes a root
	revokes(t, force(t, lower.crl(leaf)), chain(lower.leaf(), lower, upper, root), nil)
	revokes(t, force(t, lower.crl(leaf)), [][]*x509.Certificate{{leaf}}, nil) // the leaf itself is trusted
	revokes(t, force(t, lower.crl(), lower.crl(leaf)), chains, leaf)          // any of several lists
}

func TestAnAuthorityWithoutAListPasses(t *testing.T) {
	root, other := newRoot(t, "root"), newRoot(t, "other")
	leaf := root.leaf()
	// The same serial number, of another authority.
	revokes(t, force(t, other.crl(leaf)), chain(leaf, root), nil)
}

func TestAListThatHasRunOutStillRevokes(t *testing.T) {
	root := newRoot(t, "root")
	leaf := root.leaf()
	old := root.crlWith(func(l *x509.RevocationList) {
		l.ThisUpdate, l.NextUpdate = time.Now().Add(-48*time.Hour), time.Now().Add(-24*time.Hour)
	}, leaf)
	revokes(t, force(t, old), chain(leaf, root), leaf)
	revokes(t, force(t, root.bareCRL(false, leaf)), chain(leaf, root), leaf) // and one that names no end
}

func TestAnExpiredCertificateIsStillRevoked(t *testing.T) {
	root := newRoot(t, "root")
	leaf := root.leafUntil(time.Now().Add(-time.Hour))
	revokes(t, force(t, root.crl(leaf)), chain(leaf, root), leaf)
}

// Every root that Istio makes itself is called O=cluster.local.
func TestTwoAuthoritiesOfOneName(t *testing.T) {
	ours, theirs := newRoot(t, "cluster.local"), newRoot(t, "cluster.local")
	leaf := ours.leaf()
	revokes(t, force(t, theirs.crl(leaf)), chain(leaf, ours), nil)
	revokes(t, force(t, theirs.crl(leaf), ours.crl()), chain(leaf, ours), nil)
	revokes(t, force(t, theirs.crl(), ours.crl(leaf)), chain(leaf, ours), leaf)
	// Theirs does not say whose key signed it: beside one of ours it is theirs,
	// alone it might be a forged one of ours.
	revokes(t, force(t, theirs.bareCRL(false, leaf), ours.crl()), chain(leaf, ours), nil)
	doubts(t, force(t, theirs.bareCRL(false, leaf)), chain(leaf, ours))
}

func TestAListThatItsAuthorityDidNotSign(t *testing.T) {
	root, forger := newRoot(t, "root"), newRoot(t, "root")
	leaf := root.leaf()
	forger.cert = root.cert
	forged := forger.bareCRL(false, leaf)
	doubts(t, force(t, forged), chain(leaf, root))
	doubts(t, force(t, forged), chain(root.leaf(), root))

	damaged := root.crl(leaf)
	damaged[len(damaged)-1] ^= 1
	doubts(t, force(t, damaged), chain(leaf, root))
	revokes(t, force(t, damaged, root.crl(leaf)), chain(leaf, root), leaf)
}

func TestAnAuthorityThatMayNotSignLists(t *testing.T) {
	root := newRoot(t, "root")
	leaf := root.leaf()
	list := force(t, root.crl(leaf))
	tmpl := caTemplate(root.cert.Subject, 2)
	tmpl.KeyUsage = x509.KeyUsageCertSign
	root.cert = root.sign(tmpl, nil, root.key)
	doubts(t, list, chain(leaf, root))
}

func TestANameThatIsWrittenOtherwise(t *testing.T) {
	root := newRoot(t, "Root")
	leaf := root.leaf()
	chains := chain(leaf, root)
	shouting := *root
	shouting.cert = root.sign(caTemplate(pkix.Name{Organization: []string{"ROOT"}}, 2), nil, root.key)
	revokes(t, force(t, shouting.crl(leaf)), chains, leaf)
}

// What one authority takes back still stands by another.
func TestOneCleanChainWillDo(t *testing.T) {
	first, second := newRoot(t, "first"), newRoot(t, "second")
	mid := first.intermediate("mid")
	crossed := second.certify(mid)
	leaf := mid.leaf()
	chains := [][]*x509.Certificate{{leaf, mid.cert, first.cert}, {leaf, crossed, second.cert}}
	revokes(t, force(t, first.crl(mid.cert)), chains, nil)
	revokes(t, force(t, second.crl(crossed)), chains, nil)
	revokes(t, force(t, first.crl(mid.cert), second.crl(crossed)), chains, crossed) // either would do
	revokes(t, force(t, mid.crl(leaf)), chains, leaf)
	// Of a doubt and a fact the fact is told.
	bad := first.crl()
	bad[len(bad)-1] ^= 1
	s := force(t, bad, second.crl(crossed))
	revokes(t, s, chains, crossed)
	if force(t).check(nil) == nil {
		t.Error("a peer without a chain is trusted")
	}
}
