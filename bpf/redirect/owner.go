// SPDX-License-Identifier: Apache-2.0

package redirect

import (
	"errors"
	"fmt"

	"github.com/cilium/ebpf"
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

// Claim makes the pod this process's: an older one that has it changes nothing
// of it any more, and gets [ErrReplaced]. Listeners that are in its slots stay
// until SetListener.
func (p *Pod) Claim() error {
	err := p.node.locked(func() error {
		return p.node.maps[mapOwners].Update(p.cookie, p.node.generation, ebpf.UpdateAny)
	})
	if err != nil {
		return fmt.Errorf("claim namespace %d: %w", p.cookie, err)
	}
	p.claimed.Store(true)
	return nil
}

// Owned says whether the pod is still this process's, after Claim. One that
// has no owner any more was removed by a newer process, if there is one: to
// enroll it again would capture for nobody.
func (p *Pod) Owned() (bool, error) {
	var by uint64
	err := p.node.maps[mapOwners].Lookup(p.cookie, &by)
	if errors.Is(err, ebpf.ErrKeyNotExist) {
		return p.node.newest()
	}
	if err != nil {
		return false, fmt.Errorf("read owner of namespace %d: %w", p.cookie, err)
	}
	return by == p.node.generation, nil
}

// Served says whether somebody listens in a slot, whichever process it is.
func (p *Pod) Served(s Slot) (bool, error) {
	cookie, err := p.inSlot(s)
	return cookie != 0, err
}

// inSlot is the cookie of the socket in a slot; 0: there is none.
func (p *Pod) inSlot(s Slot) (cookie uint64, err error) {
	err = p.listeners.Lookup(uint32(s), &cookie)
	if errors.Is(err, ebpf.ErrKeyNotExist) {
		return 0, nil
	}
	if err != nil {
		return 0, fmt.Errorf("read slot %d of namespace %d: %w", s, p.cookie, err)
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
