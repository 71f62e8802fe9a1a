// SPDX-License-Identifier: Apache-2.0

package inpod

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/ztunnel-go/ztunnel/internal/netns"
)

// A Pod is who the agent says a pod is.
type Pod struct {
	UID, Name, Namespace, ServiceAccount string

	// Late: it ran before anybody captured it.
	Late bool
}

// A StopMode says why a proxy stops, and so how.
type StopMode uint8

const (
	// Drain is the end of the process: existing connections get their grace,
	// capture stays in force.
	Drain StopMode = iota + 1
	// Park is for a pod that the agent no longer names: connections end at
	// once, capture stays in force. Remove or Forget follows.
	Park
	// Remove is for a pod that is gone: what it opens is captured no more, open
	// connections get their grace, and then nothing of capture is left.
	// It may follow Park.
	Remove
	// Forget follows Park only: another proxy has taken over the namespace, or
	// the process ends. What Park kept is let go, and capture left alone, for
	// the other or the next.
	Forget
)

// String is the mode's name in logs.
func (m StopMode) String() string {
	switch m {
	case Drain:
		return "drain"
	case Park:
		return "park"
	case Remove:
		return "remove"
	case Forget:
		return "forget"
	}
	return fmt.Sprintf("mode %d", uint8(m))
}

// A Proxy serves one pod. Its methods may be called by several goroutines,
// Stop by one at a time.
type Proxy interface {
	// Stop returns when the proxy has stopped. An error is only logged.
	Stop(StopMode) error
	// Hurry has a Stop under way, or to come, give no more grace. It does not
	// block.
	Hurry()
	// Health says why the pod is not captured as it should be; nil if it is.
	// It is asked every two seconds and must not block.
	Health() error
}

// A StartFunc starts the proxy of a pod and returns when it listens. ns is the
// function's to close, whether it succeeds or not. ctx is for the start alone:
// it ends when the pod is no longer wanted. A start that fails is tried again.
type StartFunc func(ctx context.Context, pod Pod, ns *netns.NS) (Proxy, error)

// A State is how far a pod has come.
type State string

// States of a pod. Only Pending and Up are in the reference's dump.
const (
	StatePending  State = "Pending"  // starting, or to be tried again
	StateUp       State = "Up"       // served
	StateParked   State = "Parked"   // not named by the agent: not served, capture closed
	StateStopping State = "Stopping" // its proxy ends
)

// Status is a pod as debug pages show it.
type Status struct {
	Pod   Pod
	State State
	// Err is why the last start failed, or what ails a proxy that runs.
	Err error
	// LastErr is the last such trouble, also when it is over, and LastErrAt
	// when it was last there.
	LastErr   error
	LastErrAt time.Time
	// Proxy is nil unless the pod is served or its proxy is stopping.
	Proxy Proxy
}

// Pods are all pods, by uid. One whose namespace was replaced is there once.
func (e *Enrollment) Pods() []Status {
	e.mu.Lock()
	defer e.mu.Unlock()
	var all []Status
	for _, k := range e.pods {
		all = append(all, k.statusLocked())
	}
	for k := range e.leaving {
		if e.pods[k.pod.UID] == nil && (k.running != nil || k.stopping != nil) {
			all = append(all, k.statusLocked())
		}
	}
	slices.SortFunc(all, func(a, b Status) int { return cmp.Compare(a.Pod.UID, b.Pod.UID) })
	return all
}
