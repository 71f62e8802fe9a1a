// SPDX-License-Identifier: Apache-2.0

package capture

import (
	"errors"
	"fmt"
	"log/slog"

	"github.com/ztunnel-go/ztunnel/bpf/redirect"
)

// know remembers a namespace that was added, whatever becomes of it: one that
// is released or could not be served stays closed.
func (n *Node) know(cookie uint64) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.known[cookie] = struct{}{}
}

// forget is for a namespace whose capture was removed.
func (n *Node) forget(cookie uint64) {
	n.mu.Lock()
	defer n.mu.Unlock()
	delete(n.known, cookie)
}

func (n *Node) knows(cookie uint64) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	_, ok := n.known[cookie]
	return ok
}

// ReleaseStrays ends the capture of pods that an earlier process captured and
// that were never added in this one: they were deleted while no process was
// there to hear of it. Until somebody is sure of that they stay closed, so call
// it when the agent has had time to tell of every pod. It does as [Pod.Remove]
// does, and returns how many pods there were. Pods whose namespace nobody
// shows stay: without a process in it there is nothing to let go.
func (n *Node) ReleaseStrays() (int, error) {
	if n.bpf == nil {
		return 0, nil
	}
	n.adding.Lock()
	defer n.adding.Unlock()
	pins, err := redirect.PodPins(n.cfg.PinDir)
	if err != nil {
		return 0, fmt.Errorf("release stray pods: %w", err)
	}
	var strays []redirect.PodPin
	for _, pin := range pins {
		if pin.NetnsIno != 0 && !n.knows(pin.Cookie) {
			strays = append(strays, pin)
		}
	}
	namespaces := findNamespaces(strays)
	released := 0
	var errs []error
	for _, pin := range strays {
		ns := namespaces[pin.NetnsIno]
		if ns == nil {
			continue
		}
		removed, err := n.bpf.RemoveStray(pin.Cookie, func() error { return cleanNamespace(ns) })
		ns.Close()
		if err != nil {
			errs = append(errs, fmt.Errorf("namespace %d: %w", pin.Cookie, err))
		}
		if !removed {
			continue
		}
		released++
		n.log.Info("released a pod that was removed while no proxy ran", slog.Uint64("cookie", pin.Cookie))
	}
	n.events.strays.Add(uint64(released))
	if err := errors.Join(errs...); err != nil {
		return released, fmt.Errorf("release stray pods: %w", err)
	}
	return released, nil
}

// Orphaned says whether there are pods that another process has captured since
// this one began, that nobody serves any more, and that were never added here:
// the agent has told them to the other alone, which is gone. Until it tells them
// again they stay closed. Each pod is reported once.
func (n *Node) Orphaned() (bool, error) {
	if n.bpf == nil {
		return false, nil
	}
	n.adding.RLock() // a pod that is being added is known
	defer n.adding.RUnlock()
	pins, err := redirect.PodPins(n.cfg.PinDir)
	if err != nil {
		return false, fmt.Errorf("look for orphaned pods: %w", err)
	}
	found := false
	for _, pin := range pins {
		if pin.NetnsIno == 0 || n.knows(pin.Cookie) {
			continue
		}
		orphan, err := n.bpf.Orphan(pin.Cookie)
		if err != nil {
			return found, fmt.Errorf("look for orphaned pods: %w", err)
		}
		if orphan && n.findNew(pin.Cookie) {
			n.log.Warn("a pod is captured that nobody serves", slog.Uint64("cookie", pin.Cookie))
			found = true
		}
	}
	return found, nil
}

// findNew says whether a namespace was neither there when the process began nor
// found before.
func (n *Node) findNew(cookie uint64) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	_, old := n.found[cookie]
	n.found[cookie] = struct{}{}
	return !old
}
