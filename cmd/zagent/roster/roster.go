// SPDX-License-Identifier: Apache-2.0

// Package roster keeps the list of pods that are to be captured, and tells it
// to the proxies of the node (docs/wire/zds.md).
//
// It works by comparison, not by events: each connection knows what it has
// told, and tells whatever differs from the list. So an agent or a proxy that
// restarts, a request that is refused and a pod that changes its namespace all
// take the same road. Where pods come from, and who waits for them, is not
// known here.
package roster

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"sync"

	"github.com/ztunnel-go/ztunnel/internal/netns"
	"github.com/ztunnel-go/ztunnel/internal/zds"
)

// A Pod is what a proxy is told of a pod.
type Pod struct {
	UID, Name, Namespace, ServiceAccount string

	// Late: it ran before anybody captured it.
	Late bool
	// Sandbox is the runtime's name for what holds the namespace, if it told
	// us: see [Roster.Leave].
	Sandbox string
	// NS is the pod's namespace. Without one the proxy is only asked to keep
	// the pod, should it know it.
	NS *netns.NS
}

func (p Pod) String() string { return p.Namespace + "/" + p.Name }

// A State is how far a pod has come.
type State string

// The states.
const (
	Waiting State = "waiting" // for a proxy to connect, or to answer
	Served  State = "served"  // the proxy that is connected has accepted it
	Refused State = "refused" // the proxy has not; see [Roster.Again]
	Unknown State = "unknown" // its namespace has not been found
)

// A Status is a pod of the list. Its Pod has no NS.
type Status struct {
	Pod   Pod
	State State
	Err   error  // of a pod that is refused
	Inode uint64 // of its namespace
}

// A Config says where proxies connect and whom to tell.
type Config struct {
	// Socket is the path of the socket (INPOD_UDS of the proxy).
	Socket string
	// Changed is called after the state of a pod has changed by what a proxy
	// did. It must not block. May be nil.
	Changed func(uid string)
	// Logger may be nil.
	Logger *slog.Logger
}

// A Roster is the list. Its methods may be called by several goroutines.
type Roster struct {
	cfg Config
	log *slog.Logger

	mu      sync.Mutex
	pods    map[string]*entry // guarded by mu; by uid
	gone    map[string]bool   // guarded by mu; dropped, and no proxy knows yet
	conns   []*conn           // guarded by mu; proxies get the list in turn, only the last is told of pods that come
	version uint64            // guarded by mu; of the youngest entry
	more    chan struct{}     // guarded by mu; closed when anything changes
	counts  map[Count]uint64  // guarded by mu
}

// A Count names requests to proxies that ended alike.
type Count struct{ Request, Result string }

// An entry is a pod of the list.
type entry struct {
	pod     Pod
	version uint64 // changes when it has to be told again
	state   State
	err     error
}

// New makes an empty roster.
func New(cfg Config) *Roster {
	r := &Roster{cfg: cfg, log: cfg.Logger, pods: map[string]*entry{}, gone: map[string]bool{}, more: make(chan struct{}), counts: map[Count]uint64{}}
	if r.log == nil {
		r.log = slog.New(slog.DiscardHandler)
	}
	return r
}

// Set puts a pod on the list, in the place of one with its uid, and has the
// proxy told. A pod that is served already, in the same namespace, stays as it
// is. p.NS belongs to the roster from now on.
func (r *Roster) Set(p Pod) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.gone, p.UID)
	for _, c := range r.conns {
		delete(c.dels, p.UID)
	}
	e := r.pods[p.UID]
	if e != nil && sameNS(e.pod.NS, p.NS) {
		closeNS(p.NS)
		e.pod.Sandbox = cmp.Or(p.Sandbox, e.pod.Sandbox)
		if e.state == Served {
			return
		}
	} else {
		if e != nil {
			closeNS(e.pod.NS)
		}
		e = &entry{pod: p}
		r.pods[p.UID] = e
	}
	r.version++
	e.version, e.state, e.err = r.version, Waiting, nil
	if e.pod.NS == nil {
		e.state = Unknown
	}
	r.changedLocked()
}

// Again has a pod told once more that the proxy has refused.
func (r *Roster) Again(uid string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if e := r.pods[uid]; e != nil && e.state == Refused {
		r.version++
		e.version, e.state, e.err = r.version, Waiting, nil
		r.changedLocked()
	}
}

// Drop takes a pod off the list and has every proxy told, also that which
// connects next: it may know the pod from before. An uid that is not on the
// list is told as well.
func (r *Roster) Drop(uid string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.dropLocked(uid)
}

func (r *Roster) dropLocked(uid string) {
	if e := r.pods[uid]; e != nil {
		closeNS(e.pod.NS)
		delete(r.pods, uid)
	}
	r.gone[uid] = true
	for _, c := range r.conns {
		c.dels[uid] = true
	}
	r.changedLocked()
}

// Leave drops the pod whose sandbox has ended, if it has no newer one, and
// reports whether it did.
func (r *Roster) Leave(uid, sandbox string) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	e := r.pods[uid]
	if e == nil || sandbox == "" || e.pod.Sandbox != sandbox {
		return false
	}
	r.dropLocked(uid)
	return true
}

// Get is a pod of the list.
func (r *Roster) Get(uid string) (Status, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	e, ok := r.pods[uid]
	if !ok {
		return Status{}, false
	}
	return e.status(), true
}

// All is the list, by uid.
func (r *Roster) All() []Status {
	r.mu.Lock()
	defer r.mu.Unlock()
	var all []Status
	for _, uid := range slices.Sorted(maps.Keys(r.pods)) {
		all = append(all, r.pods[uid].status())
	}
	return all
}

// Owner is the uid of the pod that has a namespace, if one on the list has.
func (r *Roster) Owner(id netns.ID) (uid string, ok bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for uid, e := range r.pods {
		if e.pod.NS != nil && e.pod.NS.ID() == id {
			return uid, true
		}
	}
	return "", false
}

// Proxies is how many proxies are connected.
func (r *Roster) Proxies() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.conns)
}

// Counts is how many requests have ended how.
func (r *Roster) Counts() map[Count]uint64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	return maps.Clone(r.counts)
}

var (
	errNotListed = errors.New("the pod is not on the list any more")
	errNoProxy   = errors.New("no proxy is connected to the node agent")
	errNoAnswer  = errors.New("the proxy has not answered yet")
)

// Await waits until the proxy serves the pod. It returns the proxy's refusal,
// or with ctx's error what was waited for.
func (r *Roster) Await(ctx context.Context, uid string) error {
	for {
		r.mu.Lock()
		e, more, proxies := r.pods[uid], r.more, len(r.conns)
		var state State
		var refusal error
		if e != nil {
			state, refusal = e.state, e.err
		}
		r.mu.Unlock()
		switch {
		case e == nil:
			return errNotListed
		case state == Served:
			return nil
		case state == Refused:
			return refusal
		}
		select {
		case <-more:
		case <-ctx.Done():
			if proxies == 0 {
				return fmt.Errorf("%w: %w", errNoProxy, ctx.Err())
			}
			return fmt.Errorf("%w: %w", errNoAnswer, ctx.Err())
		}
	}
}

// Close lets go of the namespaces. Run must have returned.
func (r *Roster) Close() {
	r.mu.Lock()
	defer r.mu.Unlock()
	for uid, e := range r.pods {
		closeNS(e.pod.NS)
		delete(r.pods, uid)
	}
}

// changedLocked wakes everybody. r.mu is held.
func (r *Roster) changedLocked() {
	close(r.more)
	r.more = make(chan struct{})
}

func (e *entry) status() Status {
	s := Status{Pod: e.pod, State: e.state, Err: e.err}
	if e.pod.NS != nil {
		s.Inode = e.pod.NS.ID().Ino
	}
	s.Pod.NS = nil
	return s
}

// request is what tells a proxy of the pod. The namespace in it is the
// caller's to close.
func (e *entry) request() (zds.Request, error) {
	if e.pod.NS == nil {
		return zds.Request{Kind: zds.Keep, UID: e.pod.UID}, nil
	}
	ns, err := e.pod.NS.Dup()
	return zds.Request{
		Kind: zds.Add, UID: e.pod.UID, NetNS: ns, Late: e.pod.Late,
		Info: &zds.Info{Name: e.pod.Name, Namespace: e.pod.Namespace, ServiceAccount: e.pod.ServiceAccount},
	}, err
}

func sameNS(a, b *netns.NS) bool {
	return a == nil && b == nil || a != nil && b != nil && a.ID() == b.ID()
}

func closeNS(ns *netns.NS) {
	if ns != nil {
		ns.Close()
	}
}
