// SPDX-License-Identifier: Apache-2.0

package delta

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"
)

/* The life of a demanded name
 *
 *	Demand --> fresh --sent--> asked --answered-+-> known as a resource
 *	             ^               |              |
 *	             +--new stream---+              +-> leaving --sent--> forgotten
 *
 * A server that is subscribed to a name answers no second subscription to it
 * (istiod does not), and of an address it tells nothing later, since resources
 * have other names. So a name that was answered and is not itself a resource
 * is taken back: then it can be asked for again, and neither side grows by
 * what pods make up. Names that are taken back go with the next that are
 * asked for. A name whose demand was given up waits for its answer all the
 * same, and counts: who takes it back could miss what is under way.
 */

// MaxDemands is how many names may be under way at once: asked for and not
// answered.
const MaxDemands = 4096

// manyLeaving is how many names to be taken back are worth a request of their
// own.
const manyLeaving = 256

var (
	// ErrClosed is returned by a demand that a client was closed on.
	ErrClosed = errors.New("the client is closed")
	// ErrTooManyDemands refuses a demand beyond [MaxDemands].
	ErrTooManyDemands = errors.New("too many names are being asked for")
)

// nothing is a name that no resource has. istiod answers a request that
// subscribes to no name by telling that all is gone; so whoever has only names
// to take back asks for this.
const nothing = "-/-"

// A DemandResult is what became of a demand, as a metric's label.
type DemandResult string

const (
	DemandPresent  DemandResult = "present"  // there is such a resource
	DemandAbsent   DemandResult = "absent"   // there is none
	DemandKnown    DemandResult = "known"    // it was answered a moment ago
	DemandGivenUp  DemandResult = "given_up" // there was no answer in time
	DemandRejected DemandResult = "rejected" // there were too many
)

// Demand asks for one resource by name and returns when a response has spoken
// of it, as there, as gone, or as an alias of what is there. What it said is
// with the type's Handle by then. A name that is already being asked for is
// waited for together, and one that was answered a moment ago is not asked for
// again. There is no limit in time but ctx's, whose error is returned, or
// [ErrClosed], or [ErrTooManyDemands] (contract 8.7).
func (c *Client) Demand(ctx context.Context, typeURL, name string) error {
	t := c.topics[typeURL]
	if t == nil {
		return fmt.Errorf("demand of %q: no subscription to %s", name, typeURL)
	}
	w, err := c.await(t, name)
	if w == nil {
		if err != nil {
			err = fmt.Errorf("demand of %q: %w", name, err)
		}
		return err
	}
	defer c.leave(t, name, w)
	select {
	case <-w.done:
		c.cfg.Observer.Demanded(w.result)
		return nil
	case <-ctx.Done():
		err = ctx.Err()
	case <-c.closed:
		err = ErrClosed
	}
	c.cfg.Observer.Demanded(DemandGivenUp)
	return fmt.Errorf("demand of %q: %w", name, err)
}

// await enters one who waits for a name, and has it asked for. nil: there is
// nothing to wait for.
func (c *Client) await(t *topic, name string) (*waiter, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	w := t.waiters[name]
	if w == nil {
		if t.answers.fresh(name, c.streaming, time.Now()) {
			c.cfg.Observer.Demanded(DemandKnown)
			return nil, nil
		}
		if len(t.fresh)+len(t.asked) >= MaxDemands {
			c.cfg.Observer.Demanded(DemandRejected)
			return nil, ErrTooManyDemands
		}
		w = &waiter{done: make(chan struct{})}
		t.waiters[name] = w
		if _, asked := t.asked[name]; !asked {
			t.fresh[name] = struct{}{}
			c.wake()
		}
	}
	w.count++
	return w, nil
}

func (c *Client) wake() {
	select {
	case c.told <- struct{}{}:
	default: // it will look anyway
	}
}

// leave forgets a waiter that nobody waits for any more, and its name if that
// was not sent.
func (c *Client) leave(t *topic, name string, w *waiter) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if w.count--; w.count > 0 || t.waiters[name] != w {
		return
	}
	delete(t.waiters, name)
	delete(t.fresh, name)
}

// answeredLocked lets those go who wait for a name, and takes the name back
// unless it is a resource's. c.mu is held.
func (t *topic) answeredLocked(name string, result DemandResult, now time.Time) {
	if _, asked := t.asked[name]; asked {
		delete(t.asked, name)
		if _, resource := t.versions[name]; !resource && name != nothing {
			t.leaving[name] = struct{}{}
		}
	}
	if w := t.waiters[name]; w != nil {
		delete(t.waiters, name)
		delete(t.fresh, name)
		w.result = result
		close(w.done)
		t.answers.note(name, result == DemandPresent, now)
	}
}

// news leaves out of the names that are gone those that were only asked for:
// that there is no such thing is the answer, and nothing has gone.
func (c *Client) news(t *topic, removed []string) []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(t.asked)+len(t.leaving) == 0 {
		return removed
	}
	return slices.DeleteFunc(slices.Clone(removed), func(name string) bool {
		_, asked := t.asked[name]
		_, leaving := t.leaving[name]
		_, resource := t.versions[name]
		return (asked || leaving) && !resource
	})
}

// remember brings names and versions to where a response put them, and
// releases who waited for it (contract 8.4, 8.7). It runs after Handle.
func (c *Client) remember(t *topic, r *response, rejected []Rejection) {
	refused := make(map[string]bool, len(rejected)) // to whether it is held
	for _, x := range rejected {
		refused[x.Name] = refused[x.Name] || x.Held
	}
	now := time.Now()
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
		if t.crossedLocked(res.Name) {
			t.fresh[res.Name] = struct{}{}
			t.answers.note(res.Name, true, now)
			c.wake()
		}
		t.answeredLocked(res.Name, DemandPresent, now)
		for _, alias := range res.Aliases {
			t.answeredLocked(alias, DemandPresent, now)
		}
	}
	for _, name := range r.removed {
		delete(t.versions, name)
		t.answeredLocked(name, DemandAbsent, now)
	}
	t.forgetLocked()
}

// crossedLocked reports whether a resource was told of that we may have taken
// back at the same time: then we have it, and are not told what becomes of it.
// c.mu is held.
func (t *topic) crossedLocked(name string) bool {
	_, left := t.left[name]
	delete(t.left, name)
	return t.OnDemand && (left || t.answers.absent(name))
}

// Forget takes resources back that were told of: they are not followed any
// more. It is for a type that is on demand, and to be called from its Handle.
func (c *Client) Forget(typeURL string, names []string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	t := c.topics[typeURL]
	clear(t.left)
	for _, name := range names {
		t.left[name] = struct{}{}
		t.forgotten = append(t.forgotten, name)
	}
	c.wake()
}

// forgetLocked is the part of Forget that has to wait for what the response
// that was being handled has brought. c.mu is held.
func (t *topic) forgetLocked() {
	for _, name := range t.forgotten {
		delete(t.versions, name)
		t.leaving[name] = struct{}{}
	}
	t.forgotten = nil
}

// A wish is a change of what a stream is subscribed to.
type wish struct {
	url                    string
	subscribe, unsubscribe []string
}

// takeWishes returns the names to subscribe to, with those to be taken back,
// and has them sent from now on. A name in both is taken back before it is
// asked for, in a request of its own: else it would not be answered.
func (c *Client) takeWishes() (wishes []wish) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for url, t := range c.topics {
		if len(t.fresh) == 0 && len(t.leaving) < manyLeaving {
			continue
		}
		maps.DeleteFunc(t.leaving, func(name string, _ struct{}) bool {
			_, resource := t.versions[name]
			return resource // it has come to be one
		})
		now, later := wish{url: url}, wish{url: url}
		for name := range t.fresh {
			_, leaving := t.leaving[name]
			if _, resource := t.versions[name]; leaving || resource {
				t.leaving[name] = struct{}{}
				later.subscribe = append(later.subscribe, name)
			} else {
				now.subscribe = append(now.subscribe, name)
			}
			t.asked[name] = struct{}{}
		}
		now.unsubscribe = slices.Collect(maps.Keys(t.leaving))
		clear(t.fresh)
		clear(t.leaving)
		if len(now.subscribe) == 0 {
			now.subscribe = []string{nothing}
			t.asked[nothing] = struct{}{}
		}
		wishes = append(wishes, now)
		if len(later.subscribe) > 0 {
			wishes = append(wishes, later)
		}
	}
	for _, w := range wishes {
		slices.Sort(w.subscribe)
		slices.Sort(w.unsubscribe)
	}
	return wishes
}

// streamed notes whether there is a stream.
func (c *Client) streamed(on bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.streaming = on
}
