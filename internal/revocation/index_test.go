// SPDX-License-Identifier: Apache-2.0

package revocation

import (
	"crypto/x509"
	"errors"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// A live tunnel counts how often it was ended.
type live struct {
	b       *bench
	ends    atomic.Int32
	release func()
}

func (b *bench) tunnel(r Reporter, chains [][]*x509.Certificate) *live {
	b.t.Helper()
	l := &live{b: b}
	var err error
	l.release, err = b.Register(r, chains, func(err error) {
		l.ends.Add(1)
		if !errors.Is(err, ErrPeerRevoked) {
			b.t.Errorf("ended with %v", err)
		}
		l.release() // as whoever serves the tunnel will
	})
	if err != nil {
		b.t.Fatal(err)
	}
	return l
}

func (l *live) ended(want bool) {
	l.b.t.Helper()
	synctest.Wait()
	if n := l.ends.Load(); n != 0 != want || n > 1 {
		l.b.t.Errorf("ended %d times, want an end: %v", n, want)
	}
}

// reload puts lists into force, as the watcher does after its pause.
func (b *bench) reload(ders ...[]byte) {
	b.t.Helper()
	b.write(inPEM(ders...))
	b.settled()
}

func TestARevokedLeafEndsItsTunnels(t *testing.T) {
	root := newRoot(t, "root")
	leaf, other := root.leaf(), root.leaf()
	inBubble(t, inPEM(root.crl()), func(t *testing.T, b *bench) {
		in, out := b.tunnel(Destination, chain(leaf, root)), b.tunnel(Source, chain(leaf, root))
		stays := b.tunnel(Source, chain(other, root))
		b.reload(root.crl(leaf))
		in.ended(true)
		out.ended(true)
		stays.ended(false)
		b.counted(Source, Destination) // one for each tunnel
		b.reload(root.crl(leaf, root.leaf()))
		b.counted()
		if got := ErrPeerRevoked.Error(); got != "connection closed: peer certificate revoked by CRL" {
			t.Errorf("text %q", got)
		}
	})
}

func TestARevokedIntermediateEndsTheTunnelsBelow(t *testing.T) {
	root := newRoot(t, "root")
	mid, sound := root.intermediate("mid"), root.intermediate("sound")
	inBubble(t, inPEM(root.crl()), func(_ *testing.T, b *bench) {
		one, two := b.tunnel(Source, chain(mid.leaf(), mid, root)), b.tunnel(Source, chain(mid.leaf(), mid, root))
		stays := b.tunnel(Source, chain(sound.leaf(), sound, root))
		b.reload(root.crl(mid.cert))
		one.ended(true)
		two.ended(true)
		stays.ended(false)
		b.counted(Source, Source)
	})
}

func TestEachLevelAboveATunnelCounts(t *testing.T) {
	root := newRoot(t, "root")
	upper := root.intermediate("upper")
	lower := upper.intermediate("lower")
	leaf := lower.leaf()
	for name, list := range map[string][]byte{
		"leaf": lower.crl(leaf), "lower": upper.crl(lower.cert), "upper": root.crl(upper.cert),
	} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, inPEM(root.crl()), func(_ *testing.T, b *bench) {
				tunnel := b.tunnel(Source, chain(leaf, lower, upper, root))
				b.reload(list)
				tunnel.ended(true)
			})
		})
	}
}

func TestWhatIsRevokedElsewhereEndsNothing(t *testing.T) {
	root, namesake := newRoot(t, "cluster.local"), newRoot(t, "cluster.local")
	mid, junk := root.intermediate("mid"), root.intermediate("junk")
	leaf := mid.leaf()
	inBubble(t, inPEM(root.crl()), func(_ *testing.T, b *bench) {
		// junk may have been presented too: it is in no chain.
		tunnel := b.tunnel(Source, chain(leaf, mid, root))
		b.reload(namesake.crl(leaf, mid.cert))         // the same name, and the same numbers
		b.reload(namesake.bareCRL(false, mid.cert))    // nor does it say whose it is
		b.reload(root.crl(junk.cert), junk.crl(leaf))  // none of the tunnel's
		b.reload(root.crl(root.cert), root.crl(leaf))  // the leaf's number, from who did not issue it
		b.reload(inverted(root.crl(mid.cert)))         // a bad signature
		b.reload(root.crl(root.intermediate("").cert)) // another one
		tunnel.ended(false)
		b.reload(root.crl(mid.cert))
		tunnel.ended(true)
	})
}

// inverted is a list whose signature is spoilt.
func inverted(der []byte) []byte {
	der[len(der)-1] ^= 1
	return der
}

func TestATunnelOutlivesItsCertificateButNotItsRevocation(t *testing.T) {
	root := newRoot(t, "root")
	leaf := root.leafUntil(time.Now().Add(-time.Minute))
	inBubble(t, inPEM(root.crl()), func(_ *testing.T, b *bench) {
		tunnel := b.tunnel(Source, chain(leaf, root))
		b.settled()
		tunnel.ended(false)
		b.reload(root.crl(leaf))
		tunnel.ended(true)
	})
}

func TestOneSoundChainKeepsATunnel(t *testing.T) {
	first, second := newRoot(t, "first"), newRoot(t, "second")
	mid := first.intermediate("mid")
	crossed := second.certify(mid)
	leaf := mid.leaf()
	inBubble(t, inPEM(first.crl()), func(_ *testing.T, b *bench) {
		tunnel := b.tunnel(Source, [][]*x509.Certificate{{leaf, mid.cert, first.cert}, {leaf, crossed, second.cert}})
		b.reload(first.crl(mid.cert))
		tunnel.ended(false)
		b.reload(first.crl(mid.cert), second.crl(crossed))
		tunnel.ended(true)
	})
}

func TestAListThatComesAfterTheTunnel(t *testing.T) {
	root := newRoot(t, "root")
	leaf := root.leaf()
	inBubble(t, nil, func(_ *testing.T, b *bench) {
		tunnel := b.tunnel(Source, chain(leaf, root))
		b.reload(root.crl(leaf)) // seen by the watcher: nobody shakes hands
		tunnel.ended(true)
	})
	inBubble(t, nil, func(_ *testing.T, b *bench) {
		tunnel := b.tunnel(Source, chain(leaf, root))
		b.write(inPEM(root.crl(leaf)))
		b.passes(chain(root.leaf(), root)) // seen by a handshake
		tunnel.ended(true)
	})
}

func TestARevocationBetweenHandshakeAndRegistration(t *testing.T) {
	root := newRoot(t, "root")
	leaf := root.leaf()
	inBubble(t, inPEM(root.crl()), func(t *testing.T, b *bench) {
		b.passes(chain(leaf, root))
		b.reload(root.crl(leaf))
		release, err := b.Register(Destination, chain(leaf, root), func(error) { t.Error("ended, though refused") })
		if !errors.Is(err, ErrPeerRevoked) || release != nil {
			t.Errorf("%v", err)
		}
		b.counted(Destination)
		if len(b.groups) != 0 {
			t.Error("it was entered")
		}
	})
}

// Each tunnel that is made while a list comes is either refused or ended, and
// once only.
func TestRegistrationsWhileAListComes(t *testing.T) {
	root := newRoot(t, "root")
	leaf := root.leaf()
	good, bad := force(t, root.crl()), force(t, root.crl(leaf))
	inBubble(t, nil, func(t *testing.T, b *bench) {
		var ended, refused, registered atomic.Int32
		for range 50 {
			b.state.Store(&state{lists: good})
			var all sync.WaitGroup
			for range 8 {
				all.Go(func() {
					registered.Add(1)
					if _, err := b.Register(Source, chain(leaf, root), func(error) { ended.Add(1) }); err != nil {
						refused.Add(1)
					}
				})
			}
			all.Go(func() {
				b.state.Store(&state{lists: bad})
				b.sweep(bad)
			})
			all.Wait()
		}
		synctest.Wait()
		if ended.Load()+refused.Load() != registered.Load() || len(b.groups) != 0 {
			t.Errorf("of %d tunnels %d were refused and %d ended", registered.Load(), refused.Load(), ended.Load())
		}
	})
}

func TestAnEndedTunnelIsForgotten(t *testing.T) {
	root := newRoot(t, "root")
	leaf := root.leaf()
	inBubble(t, inPEM(root.crl()), func(t *testing.T, b *bench) {
		one, two, three := b.tunnel(Source, chain(leaf, root)), b.tunnel(Destination, chain(leaf, root)), b.tunnel(Source, chain(root.leaf(), root))
		if len(b.groups) != 2 {
			t.Errorf("%d groups of tunnels, want 2", len(b.groups))
		}
		one.release()
		one.release()
		three.release()
		if len(b.groups) != 1 {
			t.Errorf("%d groups of tunnels, want 1", len(b.groups))
		}
		b.reload(root.crl(leaf))
		one.ended(false)
		two.ended(true)
		three.ended(false)
		b.counted(Destination)
		if len(b.groups) != 0 {
			t.Errorf("%d groups of tunnels are left", len(b.groups))
		}
	})
}

func TestATunnelThatCannotBeTracked(t *testing.T) {
	root := newRoot(t, "root")
	inBubble(t, inPEM(root.crl()), func(t *testing.T, b *bench) {
		for _, chains := range [][][]*x509.Certificate{nil, {}, {{}}} {
			b.tunnel(Destination, chains).release()
		}
		b.said("level=WARN msg=\"tunnel cannot be tracked for revocation\" reporter=destination", 3)
		if len(b.untracked) != 3 || b.untracked[0] != Destination || len(b.groups) != 0 {
			t.Errorf("untracked %v", b.untracked)
		}
		b.counted()
	})
}

func TestATunnelThatHangsHoldsUpNoOther(t *testing.T) {
	root := newRoot(t, "root")
	leaf := root.leaf()
	inBubble(t, inPEM(root.crl()), func(t *testing.T, b *bench) {
		pass := make(chan struct{})
		for range 3 {
			if _, err := b.Register(Source, chain(leaf, root), func(error) { <-pass }); err != nil {
				t.Fatal(err)
			}
		}
		other := b.tunnel(Source, chain(leaf, root))
		b.reload(root.crl(leaf))
		other.ended(true)
		b.reload(root.crl()) // nor the watcher
		b.passes(chain(leaf, root))
		b.counted(Source, Source, Source, Source)

		closed := make(chan struct{})
		go func() { b.Close(); close(closed) }()
		synctest.Wait()
		select {
		case <-closed:
			t.Error("closed while a tunnel is being ended")
		default:
		}
		close(pass)
		<-closed
		b.Close()
	})
}

func TestNothingEndsAfterClose(t *testing.T) {
	root := newRoot(t, "root")
	leaf := root.leaf()
	inBubble(t, nil, func(_ *testing.T, b *bench) {
		tunnel := b.tunnel(Source, chain(leaf, root))
		b.Close()
		b.write(inPEM(root.crl(leaf)))
		b.refuses(chain(leaf, root), "certificate revoked")
		tunnel.ended(false)
	})
}
