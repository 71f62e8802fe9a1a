// SPDX-License-Identifier: Apache-2.0

package certs

import (
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"time"
)

const (
	// Contract 7.5: the pause after a failure is 1 s, doubled each time up to
	// 150 s, give or take a fifth; when the failures have lasted 15 minutes it is
	// 150 s.
	firstPause  = time.Second
	maxPause    = 150 * time.Second
	pauseSpread = 0.2
	patience    = 15 * time.Minute

	// refreshSpread is the part of a certificate's life within which its renewal
	// comes early. The reference renews at exactly half, so that pods started
	// together ask the authority together ever after.
	refreshSpread = 0.05
	// minRefresh keeps an authority that hands out certificates already past
	// half of their life from being asked without end.
	minRefresh = time.Second
	// clockCheck is the longest time between two looks at the clock while
	// something is due later: a machine that was suspended, or whose clock was
	// set, renews at most this late.
	clockCheck = time.Minute
)

// schedule hands entries to workers until the manager is closed.
func (m *Manager) schedule() {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		if next, ok := m.startDue(time.Now()); ok {
			timer.Reset(min(time.Until(next), clockCheck))
		} else {
			timer.Stop()
		}
		select {
		case <-m.ctx.Done():
			return
		case <-m.wake:
		case <-timer.C:
		}
	}
}

// startDue gives workers as many due entries as may run at once. It returns
// when the next one is due, if any waits for its time.
func (m *Manager) startDue(now time.Time) (next time.Time, ok bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for m.delayed.len() > 0 && !m.delayed.head().due.After(now) {
		e := m.delayed.head()
		m.delayed.remove(e)
		m.ready.push(e)
	}
	for m.ready.len() > 0 && m.inFlight < m.limit && !m.closed {
		e := m.ready.head()
		m.ready.remove(e)
		m.inFlight++
		ctx, stop := context.WithTimeout(m.ctx, issueTimeout)
		e.stop = stop
		m.running.Go(func() { m.ask(ctx, e) })
	}
	if m.delayed.len() == 0 {
		return time.Time{}, false
	}
	return m.delayed.head().due, true
}

// ask is a worker: one request to the authority and what follows from it. It
// ends when the issuer returns, which it does soon after the manager is closed.
func (m *Manager) ask(ctx context.Context, e *entry) {
	b, err := m.issuer.Issue(ctx, e.id)
	if err == nil && b == nil {
		panic("certs: the issuer returned neither a certificate nor an error")
	}
	level, text := m.finish(e, b, err)
	if text != "" {
		m.log.Log(context.WithoutCancel(ctx), level, text, slog.Any("identity", e.id))
	}
}

// finish notes the outcome of a request. It returns what is to be logged.
func (m *Manager) finish(e *entry, b *Bundle, err error) (slog.Level, string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.inFlight--
	m.nudge()
	e.stop()
	e.stop = nil
	if e.gone != nil {
		return 0, ""
	}
	defer e.settle()
	now := time.Now()
	e.priority = Background
	if err == nil {
		e.bundle, e.err, e.failed = b, nil, failures{}
		e.due = refreshAt(b.Leaf.NotBefore, b.Leaf.NotAfter, now)
		m.enqueueLocked(&m.delayed, e)
		return 0, ""
	}

	pause := e.failed.next(now)
	e.due = now.Add(pause)
	defer m.enqueueLocked(&m.delayed, e)
	if e.bundle != nil && now.Before(e.bundle.Leaf.NotAfter) {
		until := e.bundle.Leaf.NotAfter
		if until.Before(e.due) {
			e.due = until
		}
		return slog.LevelInfo, fmt.Sprintf("certificate renewal failed (%v); retaining existing valid certificate until %s; next retry at %s",
			err, stamp(until), stamp(e.due))
	}
	e.bundle, e.err = nil, err
	return slog.LevelWarn, fmt.Sprintf("certificate fetch failed (%v) and no valid existing certificate; will retry in %v", err, pause.Round(time.Millisecond))
}

func stamp(t time.Time) string { return t.UTC().Format(time.RFC3339) }

// refreshAt says when to renew a certificate received now: at half of its
// life, or a little before. If that is past, half of what is left of its life
// is waited for, so that a wrong clock costs a few requests and not a storm of
// them. Dates that are the wrong way round leave the end (contract 7.5).
func refreshAt(notBefore, notAfter, now time.Time) time.Time {
	at := notAfter
	if life := notAfter.Sub(notBefore); life >= 0 {
		early := time.Duration(rand.Float64() * refreshSpread * float64(life))
		at = notBefore.Add(life/2 - early)
	}
	if at.After(now) {
		return at
	}
	return now.Add(max(minRefresh, notAfter.Sub(now)/2))
}

// failures counts what went wrong since the last success.
type failures struct {
	count int
	since time.Time
}

// next notes one more failure and returns the pause before the next try.
func (f *failures) next(now time.Time) time.Duration {
	if f.count == 0 {
		f.since = now
	}
	f.count++
	if now.Sub(f.since) >= patience {
		return maxPause
	}
	pause := maxPause
	if doublings := f.count - 1; doublings < 8 { // 2^8 s is beyond the cap
		pause = min(pause, firstPause<<doublings)
	}
	spread := 1 + pauseSpread*(2*rand.Float64()-1)
	return time.Duration(spread * float64(pause))
}
