// SPDX-License-Identifier: Apache-2.0

package delta

import (
	"context"
	"errors"
	"fmt"
)

// ErrClosed is returned by a demand that a client was closed on.
var ErrClosed = errors.New("the client is closed")

// Demand asks for one resource by name and returns when a response has spoken
// of it, as there, as gone, or as an alias of what is there. What it said is
// with the type's Handle by then. A name that is already being asked for is
// waited for together. There is no limit in time but ctx's, whose error is
// returned, or [ErrClosed] (contract 8.7).
//
// A name whose demand was given up stays asked for: the control plane is never
// told that we lost interest.
func (c *Client) Demand(ctx context.Context, typeURL, name string) error {
	t := c.topics[typeURL]
	if t == nil {
		return fmt.Errorf("demand of %q: no subscription to %s", name, typeURL)
	}
	c.mu.Lock()
	w := t.waiters[name]
	if w == nil {
		w = &waiter{done: make(chan struct{})}
		t.waiters[name] = w
		t.fresh = append(t.fresh, name)
		if _, known := t.versions[name]; !known {
			t.versions[name] = "" // so that a new stream asks again
		}
	}
	w.count++
	c.mu.Unlock()
	c.wake()

	defer c.leave(t, name, w)
	select {
	case <-w.done:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("demand of %q: %w", name, ctx.Err())
	case <-c.closed:
		return fmt.Errorf("demand of %q: %w", name, ErrClosed)
	}
}

func (c *Client) wake() {
	select {
	case c.told <- struct{}{}:
	default: // it will look anyway
	}
}

// leave forgets a waiter that nobody waits for any more.
func (c *Client) leave(t *topic, name string, w *waiter) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if w.count--; w.count == 0 && t.waiters[name] == w {
		delete(t.waiters, name)
	}
}

// releaseLocked lets those go who wait for a name. c.mu is held.
func (t *topic) releaseLocked(name string) {
	if w := t.waiters[name]; w != nil {
		delete(t.waiters, name)
		close(w.done)
	}
}

// remember brings names and versions to where a response put them, and
// releases who waited for it (contract 8.4, 8.7). It runs after Handle.
func (c *Client) remember(t *topic, r *response, rejected []Rejection) {
	refused := make(map[string]bool, len(rejected)) // to whether it is held
	for _, x := range rejected {
		refused[x.Name] = refused[x.Name] || x.Held
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for i := range r.resources {
		res := &r.resources[i]
		held, bad := refused[res.Name]
		_, known := t.versions[res.Name]
		switch {
		case !bad:
			t.versions[res.Name] = res.Version
		case held && !known:
			t.versions[res.Name] = ""
		}
		t.releaseLocked(res.Name)
		for _, alias := range res.Aliases {
			t.releaseLocked(alias)
		}
	}
	for _, name := range r.removed {
		delete(t.versions, name)
		t.releaseLocked(name)
	}
}

// takeFresh returns the names to subscribe to by type, and forgets them.
func (c *Client) takeFresh() map[string][]string {
	c.mu.Lock()
	defer c.mu.Unlock()
	var out map[string][]string
	for url, t := range c.topics {
		if len(t.fresh) > 0 {
			if out == nil {
				out = map[string][]string{}
			}
			out[url] = t.fresh
			t.fresh = nil
		}
	}
	return out
}
