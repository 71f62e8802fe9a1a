// SPDX-License-Identifier: Apache-2.0

package certs_test

import (
	"bytes"
	"context"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/ztunnel-go/ztunnel/internal/certs"
	"github.com/ztunnel-go/ztunnel/internal/certs/certstest"
	"github.com/ztunnel-go/ztunnel/internal/identity"
	"github.com/ztunnel-go/ztunnel/test/leak"
)

// A bench is a manager in a synctest bubble, with the authority behind it and
// what it logged.
type bench struct {
	*certs.Manager
	t   *testing.T
	ca  *certstest.Authority
	log *record
}

// A record is a log that may be read while it is written.
type record struct {
	mu   sync.Mutex
	text bytes.Buffer // guarded by mu
}

func (r *record) Write(p []byte) (int, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.text.Write(p)
}

// logged is what the manager said so far. It speaks after it has let go of
// those who wait, so this waits for it.
func (b *bench) logged() string {
	synctest.Wait()
	b.log.mu.Lock()
	defer b.log.mu.Unlock()
	return b.log.text.String()
}

// inBubble runs f with a manager whose clock is the bubble's. The bubble fails
// the test if a goroutine is left when f is done.
func inBubble(t *testing.T, ttl time.Duration, cfg certs.Config, f func(t *testing.T, b *bench)) {
	t.Helper()
	leak.Check(t)
	synctest.Test(t, func(t *testing.T) {
		b := &bench{t: t, ca: certstest.Issuer(t, ttl), log: new(record)}
		b.Manager = certs.New(b.ca, cfg, slog.New(slog.NewTextHandler(b.log, nil)))
		defer b.Close()
		f(t, b)
	})
}

func (b *bench) id(name string) identity.ID {
	return certstest.ID(b.t, "spiffe://cluster.local/ns/default/sa/"+name)
}

func (b *bench) get(name string) *certs.Bundle {
	b.t.Helper()
	got, err := b.Certificate(b.t.Context(), b.id(name), certs.RealTime)
	if err != nil {
		b.t.Fatalf("certificate of %s: %v", name, err)
	}
	return got
}

func (b *bench) getErr(name string) error {
	_, err := b.Certificate(b.t.Context(), b.id(name), certs.RealTime)
	return err
}

// waiting has the certificate of name asked for in the background, and returns
// when the manager has noted it.
func (b *bench) waiting(name string, p certs.Priority) <-chan error {
	got := make(chan error, 1)
	id := b.id(name)
	go func() {
		_, err := b.Certificate(b.t.Context(), id, p)
		got <- err
	}()
	synctest.Wait()
	return got
}

func (b *bench) state() string {
	b.t.Helper()
	var s []string
	for _, state := range b.States() {
		s = append(s, state.Identity.ServiceAccount()+": "+state.State)
	}
	return strings.Join(s, "; ")
}

func (b *bench) asked() string {
	var s []string
	for _, id := range b.ca.Calls() {
		s = append(s, id.ServiceAccount())
	}
	return strings.Join(s, " ")
}

// gate has every request to the authority wait until it is let through; each
// send on the channel lets one through.
func (b *bench) gate() chan<- struct{} {
	pass := make(chan struct{})
	b.ca.Before(func(ctx context.Context, _ identity.ID) error {
		select {
		case <-pass:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	})
	return pass
}

func (b *bench) fail(err error) {
	b.ca.Before(func(context.Context, identity.ID) error { return err })
}
