// SPDX-License-Identifier: Apache-2.0

// Package live is the table of a pod's open connections: it admits them by
// policy, ends them when policy changes, and shows them to the admin page.
//
// It asks dataplane/rbac and moves no byte: a connection is a few facts and a
// function that ends it. It imports dataplane/rbac, internal/mesh,
// internal/identity and internal/logs; dataplane imports it.
package live

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"sync"
	"time"

	"github.com/ztunnel-go/ztunnel/dataplane/rbac"
	"github.com/ztunnel-go/ztunnel/dataplane/reason"
	"github.com/ztunnel-go/ztunnel/internal/identity"
	"github.com/ztunnel-go/ztunnel/internal/logs"
	"github.com/ztunnel-go/ztunnel/internal/mesh"
)

// ErrPolicyChange is the cause of the end of a connection that policy allowed
// once and does not any more (contract 5.5, 14.6).
var ErrPolicyChange = reason.New(reason.PolicyChanged, "connection closed due to policy change")

// A Table holds the open connections of one pod. All methods may be called at
// any time from any goroutine. Entering and leaving cost the same however many
// connections there are.
type Table struct {
	store     *mesh.Store
	log       *slog.Logger // what happens to connections
	decisions *slog.Logger // what policy said
	level     slog.Level   // of decisions

	mu       sync.Mutex
	inbound  map[*Entry]struct{} // guarded by mu
	outbound map[*Entry]struct{} // guarded by mu
}

// An Option changes what [New] makes.
type Option func(*Table)

// DecisionsAt sets the level at which policy decisions are logged; without it
// they are at debug (contract 5.5, AUTHZ_POLICY_INFO_LOGGING).
func DecisionsAt(level slog.Level) Option { return func(t *Table) { t.level = level } }

// New returns an empty table that judges by the policies in store. It starts
// nothing; see [Table.Run].
func New(store *mesh.Store, logger *slog.Logger, options ...Option) *Table {
	t := &Table{
		store:     store,
		log:       logs.Target(logger, "proxy::connection_manager"),
		decisions: logs.Target(logger, "state"),
		level:     slog.LevelDebug,
		inbound:   map[*Entry]struct{}{},
		outbound:  map[*Entry]struct{}{},
	}
	for _, o := range options {
		o(t)
	}
	return t
}

// An Inbound is a connection to the pod that asks to be admitted.
type Inbound struct {
	// Src is the TCP peer, whose address is also what policy judges.
	Src netip.AddrPort
	// Source is whom TLS proved the peer to be; zero for plaintext.
	Source identity.ID
	// Dst is where the application will be dialled, after every translation
	// of the port.
	Dst netip.AddrPort
	// Destination is the pod's workload as of now. It is kept: a later change
	// of the workload alone changes no verdict (contract 5.5).
	Destination *mesh.Workload
	// Service is the host of the forwarded header; empty if there is none.
	Service string
}

func (in *Inbound) question() rbac.Conn {
	return rbac.Conn{SourceIP: in.Src.Addr(), Source: in.Source, Dst: in.Dst, Destination: in.Destination}
}

// An Outbound is a connection from the pod.
type Outbound struct {
	Src         netip.AddrPort `json:"src"`         // the application's socket
	OriginalDst netip.AddrPort `json:"originalDst"` // where it meant to go
	ActualDst   netip.AddrPort `json:"actualDst"`   // where we went
	Protocol    Protocol       `json:"protocol"`
}

// A Protocol says how an outbound connection travels.
type Protocol string

const (
	TCP         Protocol = "TCP"
	HBONE       Protocol = "HBONE"
	DoubleHBONE Protocol = "DOUBLEHBONE"
)

// An Entry is one connection's place in a table. Call Done when it has ended.
type Entry struct {
	table   *Table
	cancel  context.CancelCauseFunc
	opened  time.Time           // guarded by table.mu
	in      *Inbound            // one of the two is set
	out     *Outbound           // and neither changes
	members map[*Entry]struct{} // the table's map that holds it
	ending  bool                // guarded by table.mu; policy has ended it
}

// Admit enters an inbound connection and then asks policy about it, in this
// order and in one step: a policy that arrives in between finds the entry, so
// that no change can be missed. cancel is called with [ErrPolicyChange], at
// most once by a table, if policy stops allowing it. The error of a refusal is
// a [*rbac.DeniedError]; the entry is gone then.
func (t *Table) Admit(in Inbound, cancel context.CancelCauseFunc) (*Entry, error) {
	e := &Entry{table: t, cancel: cancel, opened: time.Now(), in: &in, members: t.inbound}
	t.enter(e)
	decision := rbac.Evaluate(t.store.View(), in.question())
	t.tell(&in, decision)
	if err := decision.Err(); err != nil {
		e.Done()
		return nil, err
	}
	return e, nil
}

// Track enters an outbound connection. Policy is not asked: that is the
// business of the other end. cancel is for [Table.CancelAll].
func (t *Table) Track(out Outbound, cancel context.CancelCauseFunc) *Entry {
	e := &Entry{table: t, cancel: cancel, opened: time.Now(), out: &out, members: t.outbound}
	t.enter(e)
	return e
}

// Inbound is what [Table.Admit] was told, nil if it was not. It is not changed.
func (e *Entry) Inbound() *Inbound { return e.in }

// Outbound is what [Table.Track] was told, nil if it was not. It is not changed.
func (e *Entry) Outbound() *Outbound { return e.out }

func (t *Table) enter(e *Entry) {
	t.mu.Lock()
	defer t.mu.Unlock()
	e.members[e] = struct{}{}
}

// Since sets when the connection was opened, where that was in another process.
func (e *Entry) Since(at time.Time) {
	e.table.mu.Lock()
	defer e.table.mu.Unlock()
	e.opened = at
}

func (e *Entry) since() time.Time {
	e.table.mu.Lock()
	defer e.table.mu.Unlock()
	return e.opened
}

// Done takes the connection out of its table. Calls after the first do
// nothing.
func (e *Entry) Done() {
	t := e.table
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(e.members, e)
}

// Len is the number of open connections, in both directions.
func (t *Table) Len() int {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.lenLocked()
}

func (t *Table) lenLocked() int { return len(t.inbound) + len(t.outbound) }

// CancelAll ends every connection of the table for the given cause. They leave
// by themselves.
func (t *Table) CancelAll(cause error) {
	for _, e := range t.entries(true) {
		e.cancel(cause)
	}
}

// entries copies the table, so that nobody is called with the lock held.
func (t *Table) entries(withOutbound bool) []*Entry {
	t.mu.Lock()
	defer t.mu.Unlock()
	all := make([]*Entry, 0, t.lenLocked())
	for e := range t.inbound {
		all = append(all, e)
	}
	if withOutbound {
		for e := range t.outbound {
			all = append(all, e)
		}
	}
	return all
}

// Run judges all inbound connections again whenever policies change, until ctx
// ends, and ends those that are not allowed any more.
func (t *Table) Run(ctx context.Context) {
	for {
		changed := t.store.PoliciesChanged() // before looking, so that no change is missed
		t.judgeAgain()
		select {
		case <-changed:
		case <-ctx.Done():
			return
		}
	}
}

func (t *Table) judgeAgain() {
	view := t.store.View()
	for _, e := range t.entries(false) {
		decision := rbac.Evaluate(view, e.in.question())
		if decision.Allowed {
			continue
		}
		if !e.claim() {
			continue // it has ended by itself, or an earlier change ended it
		}
		e.cancel(ErrPolicyChange)
		t.log.Info(fmt.Sprintf("connection %s closed because it's no longer allowed after a policy update", e.in))
	}
}

// claim gives the right to end a connection to the first that asks, as long as
// it is in the table.
func (e *Entry) claim() bool {
	e.table.mu.Lock()
	defer e.table.mu.Unlock()
	_, open := e.members[e]
	first := open && !e.ending
	e.ending = e.ending || first
	return first
}

// String is how the log names a connection: <src>(<id>)-><dst> (<workload uid>).
func (in *Inbound) String() string {
	id := "None"
	if !in.Source.IsZero() {
		id = in.Source.String()
	}
	return fmt.Sprintf("%s(%s)->%s (%s)", in.Src, id, in.Dst, in.Destination.UID)
}
