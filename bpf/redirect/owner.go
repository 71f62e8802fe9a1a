// SPDX-License-Identifier: Apache-2.0

package redirect

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
)

/* Who may write what, while two processes run
 *
 * Each process takes a generation, one more than the last, when it opens the
 * pins. What all pods share is the newest generation's to change. A pod is
 * the process's that claimed it last: until the newer one has been told of the
 * pod and is ready to serve it, the older one goes on as if it were alone.
 */

// mapOwners is the pinned map of who serves which pod: namespace cookie to
// generation. No program reads it, so it is not in redirect.c.
const mapOwners = "owners"

func ownersSpec(pods uint32) *ebpf.MapSpec {
	const cookie, generation = 8, 8
	return &ebpf.MapSpec{Name: mapOwners, Type: ebpf.Hash, KeySize: cookie, ValueSize: generation, MaxEntries: pods}
}

// A Claim is what the process found that has claimed a pod.
type Claim struct {
	// Enrolled: the pod is captured, by whichever process.
	Enrolled bool
	// Disturbed: another process had the pod, or has removed it since
	// [Node.Pod]. What that set or took away is to be put in place again:
	// addresses here; rules, routes and filters, which are the caller's.
	Disturbed bool
}

// Claim makes the pod this process's: an older one that has it changes nothing
// of it any more, and gets [ErrReplaced]. Listeners that are in its slots stay
// until SetListener.
func (p *Pod) Claim() (Claim, error) {
	var c Claim
	err := p.node.locked(func() (err error) {
		owner, err := p.owner()
		if err != nil {
			return err
		}
		if c.Enrolled, err = p.node.IsEnrolled(p.cookie); err != nil {
			return err
		}
		lost, err := p.restorePins()
		if err != nil {
			return err
		}
		c.Disturbed = lost || owner != 0 && owner != p.node.generation
		return p.node.maps[mapOwners].Update(p.cookie, p.node.generation, ebpf.UpdateAny)
	})
	if err != nil {
		return Claim{}, fmt.Errorf("claim namespace %d: %w", p.cookie, err)
	}
	p.claimed.Store(true)
	return c, nil
}

// restorePins pins again what a process has unpinned that removed the pod while
// this one prepared to serve it, and reports whether one has. If it was even
// made anew in between, this process has the wrong objects. The caller holds
// the lock.
func (p *Pod) restorePins() (lost bool, err error) {
	maps := map[string]*ebpf.Map{redirectMapListeners: p.listeners, redirectMapPodCounters: p.counters}
	for name, m := range maps {
		pinned, err := ebpf.LoadPinnedMap(filepath.Join(p.dir, name), nil)
		if errors.Is(err, os.ErrNotExist) {
			lost = true
			continue
		}
		if err != nil {
			return false, fmt.Errorf("open pin %s: %w", name, err)
		}
		same, err := sameMap(m, pinned)
		pinned.Close()
		if err != nil {
			return false, err
		}
		if !same {
			return false, fmt.Errorf("its map %s was made anew by another process meanwhile", name)
		}
	}
	if !lost {
		return false, nil
	}
	if err := makeDir(p.dir); err != nil {
		return false, err
	}
	for name, m := range maps {
		if err := errors.Join(m.Unpin(), m.Pin(filepath.Join(p.dir, name))); err != nil {
			return false, fmt.Errorf("pin map %s again: %w", name, err)
		}
	}
	if err := pinAgain(p.link, filepath.Join(p.dir, redirectProgSteer)); err != nil {
		return false, fmt.Errorf("pin link again: %w", err)
	}
	return true, nil
}

func pinAgain(l link.Link, pin string) error {
	if err := l.Unpin(); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return l.Pin(pin)
}

func sameMap(a, b *ebpf.Map) (bool, error) {
	ia, err := a.Info()
	if err != nil {
		return false, fmt.Errorf("read map: %w", err)
	}
	ib, err := b.Info()
	if err != nil {
		return false, fmt.Errorf("read map: %w", err)
	}
	x, _ := ia.ID()
	y, _ := ib.ID()
	return x == y, nil
}

// owner is the generation that has claimed the pod; 0: none has, or it was
// removed.
func (p *Pod) owner() (by uint64, err error) {
	err = p.node.maps[mapOwners].Lookup(p.cookie, &by)
	if errors.Is(err, ebpf.ErrKeyNotExist) {
		return 0, nil
	}
	if err != nil {
		return 0, fmt.Errorf("read owner of namespace %d: %w", p.cookie, err)
	}
	return by, nil
}

// Owned says whether the pod is still this process's, after Claim. One that
// has no owner any more was removed by a newer process, if there is one: to
// enroll it again would capture for nobody.
func (p *Pod) Owned() (bool, error) {
	by, err := p.owner()
	if err == nil && by == 0 {
		return p.node.newest()
	}
	return by == p.node.generation, err
}

// Served says whether somebody listens in a slot, whichever process it is.
func (p *Pod) Served(s Slot) (bool, error) {
	cookie, err := p.inSlot(s)
	return cookie != 0, err
}

// inSlot is the cookie of the socket in a slot; 0: there is none.
func (p *Pod) inSlot(s Slot) (cookie uint64, err error) {
	if cookie, err = inSlot(p.listeners, s); err != nil {
		return 0, fmt.Errorf("namespace %d: %w", p.cookie, err)
	}
	return cookie, nil
}

func inSlot(listeners *ebpf.Map, s Slot) (cookie uint64, err error) {
	err = listeners.Lookup(uint32(s), &cookie)
	if errors.Is(err, ebpf.ErrKeyNotExist) {
		return 0, nil
	}
	if err != nil {
		return 0, fmt.Errorf("read slot %d: %w", s, err)
	}
	return cookie, nil
}

// Vacate takes the socket with this cookie (SO_COOKIE) out of a slot, if it is
// there: from now on SYNs wait for another one.
func (p *Pod) Vacate(s Slot, cookie uint64) error {
	err := p.node.locked(func() error {
		now, err := p.inSlot(s)
		if err != nil || now != cookie {
			return err
		}
		return p.listeners.Delete(uint32(s))
	})
	if err != nil {
		return fmt.Errorf("vacate slot %d of namespace %d: %w", s, p.cookie, err)
	}
	return nil
}

// write runs fn under the lock unless another process has claimed the pod. One
// that nobody has claimed in this process is being prepared: what is written
// then is the same for whoever serves it.
func (p *Pod) write(fn func() error) error {
	return p.node.locked(func() error {
		if p.claimed.Load() {
			if own, err := p.Owned(); err != nil {
				return err
			} else if !own {
				return ErrReplaced
			}
		}
		return fn()
	})
}

// take is write for what takes capture away: who has only prepared to serve a
// pod must not take it from the process that does.
func (p *Pod) take(fn func() error) error {
	return p.write(func() error {
		if by, err := p.owner(); err != nil {
			return err
		} else if by != 0 && by != p.node.generation {
			return ErrReplaced
		}
		return fn()
	})
}
