// SPDX-License-Identifier: Apache-2.0

package revocation

import (
	"bytes"
	"crypto/x509"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/ztunnel-go/ztunnel/test/leak"
)

// A bench is an enforcer in a synctest bubble, with its file, what it counted
// and what it logged.
type bench struct {
	*Enforcer
	t    *testing.T
	path string

	mu        sync.Mutex
	rejected  []Reporter   // guarded by mu
	untracked []Reporter   // guarded by mu
	text      bytes.Buffer // guarded by mu
}

func (b *bench) Rejected(r Reporter) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.rejected = append(b.rejected, r)
}

func (b *bench) Untracked(r Reporter) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.untracked = append(b.untracked, r)
}

func (b *bench) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.text.Write(p)
}

// counted wants so many rejections, and resets the count.
func (b *bench) counted(want ...Reporter) {
	b.t.Helper()
	b.mu.Lock()
	defer b.mu.Unlock()
	slices.Sort(b.rejected)
	if !slices.Equal(b.rejected, want) {
		b.t.Errorf("rejections counted for %v, want %v", b.rejected, want)
	}
	b.rejected = nil
}

// said wants text in the log n times.
func (b *bench) said(text string, n int) {
	b.t.Helper()
	b.mu.Lock()
	defer b.mu.Unlock()
	if got := strings.Count(b.text.String(), text); got != n {
		b.t.Errorf("%q is in the log %d times, want %d:\n%s", text, got, n, b.text.String())
	}
}

// write puts a new file in the place of the old one.
func (b *bench) write(data []byte) {
	b.t.Helper()
	next := b.path + ".next"
	if err := errors.Join(os.WriteFile(next, data, 0o600), os.Rename(next, b.path)); err != nil {
		b.t.Fatal(err)
	}
}

// settled waits until the watcher has seen the file and read it.
func (b *bench) settled() {
	time.Sleep(defaultSettle + 2*defaultPoll)
	synctest.Wait()
}

// passes and refuses are handshakes.
func (b *bench) passes(chains [][]*x509.Certificate) {
	b.t.Helper()
	if err := b.Check(Source, chains); err != nil {
		b.t.Errorf("refused: %v", err)
	}
}

func (b *bench) refuses(chains [][]*x509.Certificate, text string) {
	b.t.Helper()
	if err := b.Check(Source, chains); err == nil || !strings.Contains(err.Error(), text) {
		b.t.Errorf("%v, want %q", err, text)
	}
	b.counted(Source)
}

// inBubble runs f with an enforcer whose file holds data; nil means that there
// is no file. The bubble fails the test if a goroutine is left when f is done.
func inBubble(t *testing.T, data []byte, f func(t *testing.T, b *bench)) {
	t.Helper()
	leak.Check(t)
	path := filepath.Join(t.TempDir(), "crl.pem")
	synctest.Test(t, func(t *testing.T) {
		b := &bench{t: t, path: path}
		if data != nil {
			b.write(data)
		}
		var err error
		if b.Enforcer, err = Open(Config{Path: path, Recorder: b, Logger: slog.New(slog.NewTextHandler(b, nil))}); err != nil {
			t.Fatal(err)
		}
		defer b.Close()
		f(t, b)
	})
}
