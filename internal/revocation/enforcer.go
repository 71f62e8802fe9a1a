// SPDX-License-Identifier: Apache-2.0

// Package revocation enforces lists of revoked certificates, kept in a file
// that may come and change at any time (contract 7.8).
//
// Handshakes ask [Enforcer.Check] about the peer's verified chains.
// Established tunnels are entered with [Enforcer.Register] and ended when a
// changed list takes back what they rest on: a chain was verified when the
// tunnel was made, so that an expiry since then changes nothing.
//
// The package verifies no chain, does no handshake and ends no connection: it
// is given chains, and functions that end. It imports nothing of ours, and is
// imported by internal/mtls.
//
// # What fails closed
//
// A list revokes by the authority's signature, never by name alone. Dates are
// ignored: a list that has run out still revokes (contract 7.8).
//
//	no file yet             nothing is revoked; looked for at each handshake
//	unreadable at start     Open fails
//	unreadable when it first appears, after a start without
//	                        every handshake is refused until it is mended
//	unreadable or gone later
//	                        the last good lists stay in force
//	no list of an authority its certificates pass
//	a list in an authority's name that it did not sign
//	                        its certificates are refused; live tunnels stay
package revocation

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"sync"
	"sync/atomic"
	"time"
)

const (
	// defaultPoll and defaultSettle: the file is looked at often, which costs
	// one stat, and read when it has not changed for the reference's 2 s.
	defaultPoll   = 500 * time.Millisecond
	defaultSettle = 2 * time.Second

	// maxFile bounds what is read: a million entries and more.
	maxFile = 64 << 20
)

// A Reporter is our side of a tunnel, as metrics name it.
type Reporter uint8

const (
	// Source is the side that opens a tunnel.
	Source Reporter = iota
	// Destination is the side that accepts it.
	Destination
)

// String is the value of the label reporter.
func (r Reporter) String() string {
	if r == Destination {
		return "destination"
	}
	return "source"
}

// A Recorder counts. [Metrics] is one.
type Recorder interface {
	// Rejected counts a handshake that was refused, or a tunnel that was ended.
	Rejected(Reporter)
	// Untracked counts a tunnel that no list can end.
	Untracked(Reporter)
}

// Config says where the lists are and who is told.
type Config struct {
	// Path is the file (CRL_PATH). A symlink is followed each time.
	Path string
	// Poll is how often the file is looked at, and Settle for how long it must
	// not have changed before it is read again. Zero: 500 ms and 2 s.
	Poll, Settle time.Duration
	// Recorder counts; nil: nobody does.
	Recorder Recorder
	// Logger is told of the file and of what is refused; nil: nobody is.
	Logger *slog.Logger
}

// An Enforcer holds the lists in force. A nil *Enforcer enforces nothing, so
// that those who ask need not know whether there is a file. [Open] makes one.
type Enforcer struct {
	cfg Config
	log *slog.Logger

	stop    context.CancelFunc
	running sync.WaitGroup // the watcher, and one for each tunnel that is being ended

	state atomic.Pointer[state]

	loading sync.Mutex  // held while the file is read; taken before mu
	seen    os.FileInfo // guarded by loading: of the file that was read last, good or bad

	mu     sync.Mutex
	groups map[chainsKey]*group // guarded by mu: established tunnels
	closed bool                 // guarded by mu: no tunnel is ended any more
	told   string               // guarded by mu: the last complaint, so that it is made once
}

// A state is what is in force. With neither field there is no file yet.
type state struct {
	lists *lists
	err   error // there is a file, but never was a good one
}

// Open reads the lists and begins to watch the file. It fails if the file is
// there and cannot be read or understood, where the reference goes on with no
// enforcement at all: whoever asked for it would not get it. A file that does
// not exist is waited for.
func Open(cfg Config) (*Enforcer, error) {
	if cfg.Poll <= 0 {
		cfg.Poll = defaultPoll
	}
	if cfg.Settle <= 0 {
		cfg.Settle = defaultSettle
	}
	e := &Enforcer{cfg: cfg, log: cfg.Logger, groups: map[chainsKey]*group{}}
	if e.log == nil {
		e.log = slog.New(slog.DiscardHandler)
	}
	e.state.Store(&state{})
	err := e.load()
	switch {
	case errors.Is(err, fs.ErrNotExist):
		e.log.Warn("crl file not found, will retry on first validation", slog.String("path", cfg.Path))
	case err != nil:
		return nil, err
	}
	ctx, stop := context.WithCancel(context.Background())
	e.stop = stop
	e.running.Go(func() { e.watch(ctx) })
	return e, nil
}

// Close ends the watcher and waits for it and for the ends of tunnels that it
// began. What was in force stays so. Later calls do nothing.
func (e *Enforcer) Close() {
	if e == nil {
		return
	}
	e.mu.Lock()
	e.closed = true
	e.mu.Unlock()
	e.stop()
	e.running.Wait()
}

// Check says whether a peer may be trusted whose chains were verified, each
// leaf first and root last: one of them must hold nothing that is revoked.
// The errors, each counted, are [*RevokedError], [*UnverifiedError], and
// another one if the lists themselves are unusable.
func (e *Enforcer) Check(r Reporter, chains [][]*x509.Certificate) error {
	if e == nil {
		return nil
	}
	s := e.current()
	err := s.check(chains)
	if err == nil {
		return nil
	}
	e.reject(r, err)
	return err
}

func (s *state) check(chains [][]*x509.Certificate) error {
	switch {
	case s.err != nil:
		return s.err
	case s.lists == nil:
		return nil
	}
	return s.lists.check(chains)
}

// reject counts a refusal and says what the error's text may not.
func (e *Enforcer) reject(r Reporter, err error) {
	if e.cfg.Recorder != nil {
		e.cfg.Recorder.Rejected(r)
	}
	var revoked *RevokedError
	if errors.As(err, &revoked) {
		e.log.Info("certificate revoked", slog.String("reporter", r.String()),
			slog.String("serial", revoked.Certificate.SerialNumber.String()),
			slog.String("issuer", revoked.Certificate.Issuer.String()))
	}
}

// current is what is in force. While there is no good list it looks for one
// first, since a handshake must not slip through between the arrival of the
// file and the watcher's next look.
func (e *Enforcer) current() *state {
	if s := e.state.Load(); s.lists != nil {
		return s
	}
	e.reload()
	return e.state.Load()
}

// reload is load for those who only look at the state. It logs each new error
// once.
func (e *Enforcer) reload() {
	err := e.load()
	text := ""
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		text = err.Error()
	}
	e.mu.Lock()
	again := text == e.told
	e.told = text
	e.mu.Unlock()
	switch {
	case again || text == "":
	case e.state.Load().lists != nil:
		e.log.Warn("crl reload failed, the previous lists stay in force", slog.String("error", text))
	default:
		e.log.Error("crl unusable, all handshakes are refused", slog.String("error", text))
	}
}

// load reads the file, unless it has been read as it is, and puts it into
// force. On an error the last good lists stay.
func (e *Enforcer) load() error {
	e.loading.Lock()
	defer e.loading.Unlock()
	info, err := os.Stat(e.cfg.Path)
	if errors.Is(err, fs.ErrNotExist) {
		if e.state.Load().lists == nil {
			e.state.Store(&state{})
		}
		e.seen = nil
		return fmt.Errorf("certificate revocation list: %w", err) // Open tells this case from others
	}
	if err == nil && same(info, e.seen) {
		return nil
	}
	var data []byte
	if err == nil {
		data, err = read(e.cfg.Path, info)
	}
	var all []*list
	if err == nil {
		e.seen = info // of before the file was read: what has changed since is seen later
		all, err = parse(data)
	}
	if err != nil {
		err = fmt.Errorf("certificate revocation list %s: %v", e.cfg.Path, err)
		if e.state.Load().lists == nil {
			e.state.Store(&state{err: err})
		}
		return err
	}
	found := newLists(all)
	e.state.Store(&state{lists: found})
	e.log.Info("crl loaded", slog.String("path", e.cfg.Path), slog.Int("lists", found.lists), slog.Int("revoked", found.entries))
	e.sweep(found)
	return nil
}

func read(path string, info os.FileInfo) ([]byte, error) {
	if !info.Mode().IsRegular() {
		return nil, errors.New("not a regular file")
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err == nil && len(data) > maxFile {
		err = fmt.Errorf("larger than %d bytes", maxFile)
	}
	return data, err
}

// same reports whether two looks saw the same file with the same content, as
// far as a look can tell.
func same(a, b os.FileInfo) bool {
	return a != nil && b != nil && os.SameFile(a, b) && a.Size() == b.Size() && a.ModTime().Equal(b.ModTime())
}

// watch loads the file when it has changed and then stayed as it is for a
// while: whoever writes it may not be done. It ends with ctx.
func (e *Enforcer) watch(ctx context.Context) {
	ticker := time.NewTicker(e.cfg.Poll)
	defer ticker.Stop()
	var changed os.FileInfo // the latest look, if it differs from what was read
	var since time.Time
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
		info, err := os.Stat(e.cfg.Path)
		switch now := time.Now(); {
		case err != nil || e.hasRead(info):
			changed = nil
		case !same(info, changed):
			changed, since = info, now
		case now.Sub(since) >= e.cfg.Settle:
			e.reload()
			changed = nil
		}
	}
}

func (e *Enforcer) hasRead(info os.FileInfo) bool {
	e.loading.Lock()
	defer e.loading.Unlock()
	return same(info, e.seen)
}
