// SPDX-License-Identifier: Apache-2.0

package xds

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"runtime/debug"
	"strings"
	"sync"
	"time"

	"github.com/ztunnel-go/ztunnel/internal/mesh"
)

// LocalConfig says where the local state document is.
type LocalConfig struct {
	Path   string // a file (LOCAL_XDS_PATH), followed as it changes
	Inline string // the document itself (LOCAL_XDS); at most one of the two
	// Interval is how often the file is looked at; 0 means a second. Looking
	// means stat: it works for files that are replaced by rename and for the
	// link swaps of mounted ConfigMaps, where notification by inode does not.
	Interval time.Duration
}

const defaultInterval = time.Second

// settle is how long a changed file must stay the same before it is read, so
// that a version that is still being written is not taken for a new one. It
// is also longer than the granularity of file times (a tick, 10 ms at most),
// so that a later write cannot hide behind the same time.
const settle = 100 * time.Millisecond

// largeDocument is the size in bytes from which the memory that reading took,
// three times the document or so, is given back to the system at once. The
// collector by itself would keep it for minutes, which an operator takes for
// the size of the mesh, and a container's limit may not allow. Going over the
// heap for it takes about a millisecond per megabyte that stays.
//
// This is the one place where we meddle with the collector: its pace while a
// document is read is the process's own (GOGC, GOMEMLIMIT), and measured with
// the defaults in docs/performance.md.
const largeDocument = 4 << 20

// maxGuess bounds what is asked for by the word of a file system.
const maxGuess = 1 << 30

// LocalStats count what became of the versions of a document.
type LocalStats struct {
	Applied uint64 // versions that took effect, the first included
	Refused uint64 // versions that were bad or could not be read
}

// A Local keeps a store in step with a local state document.
type Local struct {
	cfg    LocalConfig
	store  *mesh.Store
	logger *slog.Logger

	stop    context.CancelFunc
	watcher sync.WaitGroup // ends by stop

	mu     sync.Mutex
	static *Static // guarded by mu; never nil
	stats  LocalStats

	sum [sha256.Size]byte // of the version in force; the watcher's after OpenLocal
}

// OpenLocal reads the document, applies it to the store and follows it until
// Close or the end of ctx; with neither Path nor Inline it does nothing. A document that
// cannot be read at the start is an error, with file and line; one that is bad
// later is logged and counted, and the last good one stays in force.
func OpenLocal(ctx context.Context, cfg LocalConfig, store *mesh.Store, logger *slog.Logger) (*Local, error) {
	if cfg.Path != "" && cfg.Inline != "" {
		return nil, errors.New("invalid configuration: only one of LOCAL_XDS_PATH or LOCAL_XDS may be set")
	}
	if cfg.Interval <= 0 {
		cfg.Interval = defaultInterval
	}
	ctx, stop := context.WithCancel(ctx)
	l := &Local{cfg: cfg, store: store, logger: logger, stop: stop, static: &Static{}}
	mark, err := l.load()
	if err != nil {
		stop()
		return nil, err
	}
	if mark != nil && mark.Mode().IsRegular() { // a pipe can be read but once
		l.watcher.Go(func() { l.watch(ctx, mark) })
	}
	return l, nil
}

// Static is the version in force. It is never nil.
func (l *Local) Static() *Static {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.static
}

// Stats counts the versions so far.
func (l *Local) Stats() LocalStats {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.stats
}

// Close stops following the file and waits until it has stopped. What was
// applied stays in the store. It may be called again.
func (l *Local) Close() error {
	l.stop()
	l.watcher.Wait()
	return nil
}

// load reads the first version.
func (l *Local) load() (os.FileInfo, error) {
	var mark os.FileInfo
	name, doc := "LOCAL_XDS", document{text: l.cfg.Inline}
	switch {
	case l.cfg.Path != "":
		var err error
		if doc, err = readFile(l.cfg.Path); err != nil {
			return nil, fmt.Errorf("read local config: %w", err)
		}
		name, mark = l.cfg.Path, doc.before
	case l.cfg.Inline == "":
		return nil, nil
	}
	if err := l.take(name, doc); err != nil {
		return nil, err
	}
	l.told("local config initialized")
	return mark, nil
}

// take makes a version the one in force.
func (l *Local) take(name string, doc document) error {
	next, err := parseText(name, doc.text)
	if err != nil {
		return err
	}
	next.Apply(l.store, l.Static())
	l.sum = doc.sum
	if len(doc.text) >= largeDocument {
		defer debug.FreeOSMemory() // once l lets go of the old version
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.static = next
	l.stats.Applied++
	return nil
}

func (l *Local) told(message string) {
	s := l.Static()
	for _, warning := range s.Warnings {
		l.logger.Warn("local config: " + warning)
	}
	l.logger.Info(message, "num_workloads", len(s.Workloads), "num_policies", len(s.Policies))
}

func (l *Local) refused(err error) {
	l.mu.Lock()
	l.stats.Refused++
	l.mu.Unlock()
	l.logger.Error("local config refused, the last good one stays in force", "error", err.Error())
}

// watch follows the file. A version is read once it has stayed the same from
// one look to the next, and each version is told of once, good or bad.
//
//	known --changed--> settling --same--> read, known
//	                     |   ^
//	                     +---+ changed again
func (l *Local) watch(ctx context.Context, known os.FileInfo) {
	var settling os.FileInfo
	missing := false
	wait := l.cfg.Interval
	for {
		select {
		case <-ctx.Done():
			return
		case <-time.After(wait):
		}
		wait = l.cfg.Interval
		now, err := os.Stat(l.cfg.Path)
		switch {
		case err != nil:
			if !missing {
				l.refused(fmt.Errorf("read local config: %w", err))
			}
			missing, known, settling = true, nil, nil
		case same(now, known):
			missing, settling = false, nil
		case !same(now, settling):
			missing, settling, wait = false, now, min(settle, l.cfg.Interval)
		case l.reread(now):
			known, settling = now, nil
		default: // written to while it was read
			settling, wait = nil, min(settle, l.cfg.Interval)
		}
	}
}

// reread reads the file and returns whether what it read is the version that
// was looked at, good or bad.
func (l *Local) reread(expected os.FileInfo) bool {
	doc, err := readFile(l.cfg.Path)
	switch {
	case err != nil:
		l.refused(fmt.Errorf("read local config: %w", err))
		return true
	case !same(doc.before, expected) || !same(doc.after, expected):
		return false
	case doc.sum == l.sum: // touched, or back to what it was
		return true
	}
	if err := l.take(l.cfg.Path, doc); err != nil {
		l.refused(err)
		return true
	}
	l.told("local config reloaded")
	return true
}

// A document is a file as it was read, with what stat said of it before and
// after.
type document struct {
	before, after os.FileInfo
	text          string
	sum           [sha256.Size]byte
}

// readFile reads a file whole. Its memory is asked for once: a buffer that
// grows would leave several times the file behind.
func readFile(path string) (doc document, err error) {
	f, err := os.Open(path)
	if err != nil {
		return doc, err
	}
	defer f.Close()
	if doc.before, err = f.Stat(); err != nil {
		return doc, err
	}
	var text strings.Builder
	text.Grow(int(min(doc.before.Size(), maxGuess)))
	sum := sha256.New()
	if _, err = io.Copy(io.MultiWriter(&text, sum), f); err != nil {
		return doc, err
	}
	doc.text = text.String()
	sum.Sum(doc.sum[:0])
	doc.after, err = f.Stat()
	return doc, err
}

// same reports whether two looks saw one version: the same file (device and
// inode), size and time of change.
func same(a, b os.FileInfo) bool {
	return a != nil && b != nil && os.SameFile(a, b) && a.Size() == b.Size() && a.ModTime().Equal(b.ModTime())
}
