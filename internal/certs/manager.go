// SPDX-License-Identifier: Apache-2.0

package certs

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"time"

	"github.com/ztunnel-go/ztunnel/internal/identity"
)

/* The life of an entry
 *
 *	asked for --> Initializing -+-> Available ----+--> forgotten
 *	                            |     ^   |       |
 *	                            |     |   v       |
 *	                            +-> Unavailable --+
 *
 * Between two requests to the authority an entry stands in one of two queues:
 * delayed, by time, or ready, by priority. The scheduler moves it from the
 * first to the second when it is due, and from there to a worker. While a
 * worker has it, it stands in none. Available turns into Unavailable only when
 * a renewal fails after the certificate has expired.
 *
 * There is one lock, held for map and queue operations only: never while the
 * authority is asked, and never while something is logged.
 */

// maxConcurrent is how many requests to the authority run at once (contract
// 7.5).
const maxConcurrent = 8

// issueTimeout ends a request that the authority does not answer. The
// reference waits for ever; eight lost answers would then stop all renewals.
const issueTimeout = time.Minute

var (
	// ErrForgotten is what those who wait are told when the identity has no
	// workload any more. The text is contract 7.4's.
	ErrForgotten = errors.New("the identity is no longer needed")
	// ErrClosed is returned by a manager that was closed.
	ErrClosed = errors.New("certificate manager is closed")
)

// A Priority says who waits for a certificate. The higher is served first, and
// between equals the earlier (contract 7.5).
type Priority uint8

const (
	// Background is a renewal or a retry: nobody waits.
	Background Priority = iota
	// Warmup is a workload that has just appeared on this node.
	Warmup
	// RealTime is a connection that is being made.
	RealTime
)

// Config tunes a [Manager]. The zero value is contract 7.5.
type Config struct {
	// Concurrency is how many requests to the issuer may run at once. Zero is 8.
	Concurrency int
}

// A Manager keeps one certificate for each identity it was asked about, until
// [Manager.Forget]. It renews each at half of its life.
type Manager struct {
	issuer Issuer
	limit  int
	log    *slog.Logger

	ctx     context.Context // ends with Close
	cancel  context.CancelFunc
	wake    chan struct{}  // tells the scheduler that a queue or a worker changed
	running sync.WaitGroup // the scheduler and the workers; they end with ctx

	mu       sync.RWMutex
	entries  map[identity.ID]*entry // guarded by mu
	delayed  queue                  // guarded by mu
	ready    queue                  // guarded by mu
	inFlight int                    // guarded by mu; never above limit
	asked    uint64                 // guarded by mu; numbers entries, so that equals keep their order
	closed   bool                   // guarded by mu
}

// An entry is one identity. All fields but id and first are guarded by the
// manager's lock.
type entry struct {
	id    identity.ID
	first chan struct{} // closed with the first outcome, be it good, bad, or the entry's end

	settled bool    // first is closed
	bundle  *Bundle // not nil: Available
	err     error   // not nil: Unavailable
	gone    error   // not nil: forgotten, or the manager was closed

	priority Priority
	due      time.Time
	order    uint64
	in       *queue // nil while a worker has it
	index    int    // in in
	stop     context.CancelFunc
	failed   failures
}

// New starts a manager that asks issuer. Failures are told to log, unless it is
// nil. [Manager.Close] ends it.
func New(issuer Issuer, cfg Config, log *slog.Logger) *Manager {
	ctx, cancel := context.WithCancel(context.Background())
	m := &Manager{
		issuer:  issuer,
		limit:   cfg.Concurrency,
		log:     log,
		ctx:     ctx,
		cancel:  cancel,
		wake:    make(chan struct{}, 1),
		entries: map[identity.ID]*entry{},
		delayed: queue{entryHeap{before: dueFirst}},
		ready:   queue{entryHeap{before: urgentFirst}},
	}
	if m.limit <= 0 {
		m.limit = maxConcurrent
	}
	if m.log == nil {
		m.log = slog.New(slog.DiscardHandler)
	}
	m.running.Go(m.schedule)
	return m
}

// Certificate returns the current certificate of id. The first time it waits
// for the authority's answer or the end of ctx; after that it never waits. If
// the last answer was an error, that error is returned at once, to every
// caller, until a retry succeeds (contract 7.4). ErrForgotten and ErrClosed
// may be matched.
func (m *Manager) Certificate(ctx context.Context, id identity.ID, p Priority) (*Bundle, error) {
	m.mu.RLock()
	if e := m.entries[id]; e != nil && e.settled {
		defer m.mu.RUnlock()
		return e.bundle, e.err
	}
	m.mu.RUnlock()

	e, err := m.want(id, p)
	if err != nil {
		return nil, err
	}
	select {
	case <-e.first:
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
	m.mu.RLock()
	defer m.mu.RUnlock()
	if e.gone != nil {
		return nil, e.gone
	}
	return e.bundle, e.err
}

// Prefetch has the certificate of id fetched because a workload of that name
// has appeared on this node (contract 7.6). It does not wait.
func (m *Manager) Prefetch(id identity.ID) {
	// The only errors are a closed manager and nobody's name: in neither case is
	// there anything to fetch, nor anybody who waits for it.
	_, _ = m.want(id, Warmup)
}

// Forget drops the certificate of id, since its last workload is gone (contract
// 7.6). Whoever waits for it gets ErrForgotten, and a request that is under way
// is abandoned.
func (m *Manager) Forget(id identity.ID) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if e := m.entries[id]; e != nil {
		m.dropLocked(e, ErrForgotten)
	}
}

// Close ends all renewals and waits for them; whoever waits for a certificate
// gets ErrClosed. Later calls do nothing.
func (m *Manager) Close() {
	m.mu.Lock()
	m.closed = true
	for _, e := range m.entries {
		m.dropLocked(e, ErrClosed)
	}
	m.mu.Unlock()
	m.cancel()
	m.running.Wait()
}

// want returns the entry of id and sees to it that it is asked for with at
// least priority p.
func (m *Manager) want(id identity.ID, p Priority) (*entry, error) {
	if id.IsZero() {
		return nil, errors.New("certificate of nobody: the identity is empty")
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed {
		return nil, ErrClosed
	}
	e := m.entries[id]
	if e == nil {
		e = &entry{id: id, first: make(chan struct{}), priority: p, due: time.Now()}
		m.entries[id] = e
		m.enqueueLocked(&m.ready, e)
		return e, nil
	}
	if !e.settled && e.in != nil && p > e.priority {
		e.priority = p
		e.in.fix(e)
	}
	return e, nil
}

func (m *Manager) enqueueLocked(q *queue, e *entry) {
	m.asked++
	e.order = m.asked
	q.push(e)
	m.nudge()
}

// nudge makes the scheduler look again.
func (m *Manager) nudge() {
	select {
	case m.wake <- struct{}{}:
	default: // it will look anyway
	}
}

// dropLocked takes e out of the manager, for the reason that its waiters are
// told.
func (m *Manager) dropLocked(e *entry, reason error) {
	delete(m.entries, e.id)
	e.gone = reason
	if e.in != nil {
		e.in.remove(e)
	}
	if e.stop != nil {
		e.stop()
	}
	e.settle()
}

// settle lets go of those who wait for the first outcome. The caller holds the
// manager's lock.
func (e *entry) settle() {
	if !e.settled {
		e.settled = true
		close(e.first)
	}
}
