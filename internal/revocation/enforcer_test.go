// SPDX-License-Identifier: Apache-2.0

package revocation

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/ztunnel-go/ztunnel/test/leak"
)

func TestAFileThatComesLater(t *testing.T) {
	root := newRoot(t, "root")
	leaf := root.leaf()
	inBubble(t, nil, func(_ *testing.T, b *bench) {
		b.said("level=WARN msg=\"crl file not found, will retry on first validation\"", 1)
		b.passes(chain(leaf, root))
		b.write(inPEM(root.crl(leaf)))
		b.refuses(chain(leaf, root), "certificate revoked") // at once, not after the watcher's pause
		b.said("serial="+leaf.SerialNumber.String(), 1)
	})
}

func TestAFileWithNothingInIt(t *testing.T) {
	root := newRoot(t, "root")
	leaf := root.leaf()
	inBubble(t, []byte("\n"), func(_ *testing.T, b *bench) { b.passes(chain(leaf, root)) })
}

func TestAGoodFile(t *testing.T) {
	root := newRoot(t, "root")
	leaf := root.leaf()
	for name, data := range map[string][]byte{"PEM": inPEM(root.crl(leaf)), "DER": root.crl(leaf)} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, data, func(t *testing.T, b *bench) {
				b.refuses(chain(leaf, root), "certificate revoked")
				b.passes(chain(root.leaf(), root))
				if err := b.Check(Destination, chain(leaf, root)); err == nil {
					t.Error("our side of the tunnel matters")
				}
				b.counted(Destination)
			})
		})
	}
}

// The reference starts without enforcement then, which nobody asked for.
func TestNoStartWithAFileThatCannotBeUsed(t *testing.T) {
	leak.Check(t)
	dir := t.TempDir()
	path := filepath.Join(dir, "crl.pem")
	if err := os.WriteFile(path, []byte("-----BEGIN X509 CRL-----\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{path, dir, filepath.Join(path, "below")} {
		e, err := Open(Config{Path: path})
		if err == nil {
			e.Close()
		}
		if err == nil || !strings.HasPrefix(err.Error(), "certificate revocation list "+path+": ") {
			t.Errorf("%s: %v", path, err)
		}
	}
}

func TestAFileThatComesBrokenTrustsNobodyUntilItIsMended(t *testing.T) {
	root := newRoot(t, "root")
	leaf := root.leaf()
	inBubble(t, nil, func(t *testing.T, b *bench) {
		b.write([]byte("-----BEGIN X509 CRL-----\n"))
		for range 3 {
			b.refuses(chain(leaf, root), "certificate revocation list "+b.path)
		}
		b.settled()
		b.said("level=ERROR msg=\"crl unusable, all handshakes are refused\"", 1)
		b.write(inPEM(root.crl()))
		b.passes(chain(leaf, root))

		b.write([]byte("nonsense")) // no longer the first
		b.settled()
		b.passes(chain(leaf, root))
	})
}

func TestABrokenFileThatGoesAwayIsNoFile(t *testing.T) {
	root := newRoot(t, "root")
	leaf := root.leaf()
	inBubble(t, nil, func(t *testing.T, b *bench) {
		b.write([]byte("nonsense"))
		b.refuses(chain(leaf, root), "neither PEM nor DER")
		if err := os.Remove(b.path); err != nil {
			t.Fatal(err)
		}
		b.passes(chain(leaf, root))
	})
}

func TestAChangedFileIsReadWhenItHasSettled(t *testing.T) {
	root := newRoot(t, "root")
	leaf := root.leaf()
	chains := chain(leaf, root)
	inBubble(t, inPEM(root.crl()), func(_ *testing.T, b *bench) {
		b.settled()
		b.said("crl loaded", 1) // it did not change
		b.write(inPEM(root.crl(leaf)))
		time.Sleep(defaultSettle - time.Millisecond)
		b.passes(chains)
		b.write(inPEM(root.crl(root.leaf(), leaf))) // written again: the pause begins anew
		time.Sleep(defaultSettle - time.Millisecond)
		b.passes(chains)
		b.settled()
		b.refuses(chains, "certificate revoked")
		b.said("crl loaded", 2)
		b.write(inPEM(root.crl())) // taken back
		b.settled()
		b.passes(chains)
	})
}

func TestTheLastGoodListsStay(t *testing.T) {
	root := newRoot(t, "root")
	leaf := root.leaf()
	inBubble(t, inPEM(root.crl(leaf)), func(t *testing.T, b *bench) {
		for range 2 {
			b.write([]byte("nonsense"))
			b.settled()
			b.refuses(chain(leaf, root), "certificate revoked")
		}
		b.settled()
		b.said("level=WARN msg=\"crl reload failed, the previous lists stay in force\"", 1)
		if err := os.Remove(b.path); err != nil {
			t.Fatal(err)
		}
		b.settled()
		b.refuses(chain(leaf, root), "certificate revoked")
		b.write(inPEM(root.crl()))
		b.settled()
		b.passes(chain(leaf, root))
	})
}

// What the kubelet does: a link to a directory is moved to another one.
func TestAConfigMapIsSwapped(t *testing.T) {
	leak.Check(t)
	root := newRoot(t, "root")
	leaf := root.leaf()
	dir := t.TempDir()
	put := func(name string, data []byte) {
		t.Helper()
		target := filepath.Join(dir, name)
		if err := os.Mkdir(target, 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(target, "crl.pem"), data, 0o600); err != nil {
			t.Fatal(err)
		}
		next := filepath.Join(dir, "..next")
		if err := os.Symlink(name, next); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(next, filepath.Join(dir, "..data")); err != nil {
			t.Fatal(err)
		}
	}
	// Two lists of one size, in case size is all that is looked at.
	put("..1", inPEM(root.crl(root.leaf())))
	if err := os.Symlink("..data/crl.pem", filepath.Join(dir, "crl.pem")); err != nil {
		t.Fatal(err)
	}
	inBubble(t, nil, func(t *testing.T, b *bench) {
		b.Close()
		e, err := Open(Config{Path: filepath.Join(dir, "crl.pem"), Recorder: b})
		if err != nil {
			t.Fatal(err)
		}
		defer e.Close()
		b.Enforcer = e
		b.passes(chain(leaf, root))
		put("..2", inPEM(root.crl(leaf)))
		b.settled()
		b.refuses(chain(leaf, root), "certificate revoked")
	})
}

func TestNoFileIsConfigured(t *testing.T) {
	var e *Enforcer
	if err := e.Check(Source, nil); err != nil {
		t.Errorf("refused: %v", err)
	}
	release, err := e.Register(Source, nil, func(error) { t.Error("ended") })
	if err != nil {
		t.Errorf("refused: %v", err)
	}
	release()
	e.Close()
}

func TestAFileThatIsTooLarge(t *testing.T) {
	leak.Check(t)
	path := filepath.Join(t.TempDir(), "crl.pem")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := f.Truncate(maxFile + 1); err != nil { // a hole: it takes no room
		t.Fatal(err)
	}
	if _, err := Open(Config{Path: path}); err == nil || !strings.Contains(err.Error(), "larger than") {
		t.Errorf("%v", err)
	}
}

func TestMetrics(t *testing.T) {
	reg := prometheus.NewRegistry()
	m := NewMetrics(reg)
	m.Rejected(Source)
	m.Rejected(Destination)
	m.Rejected(Destination)
	m.Untracked(Source)
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	var got bytes.Buffer
	for _, f := range families {
		for _, s := range f.GetMetric() {
			got.WriteString(f.GetName() + " " + s.GetLabel()[0].GetName() + "=" + s.GetLabel()[0].GetValue())
			got.WriteString(strings.Repeat(" +1", int(s.GetCounter().GetValue())) + "\n")
		}
	}
	want := `istio_crl_policy_rejections_total reporter=destination +1 +1
istio_crl_policy_rejections_total reporter=source +1
istio_crl_untracked_connections_total reporter=source +1
`
	if got.String() != want {
		t.Errorf("metrics:\n%swant:\n%s", got.String(), want)
	}
}
