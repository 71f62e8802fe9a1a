// SPDX-License-Identifier: Apache-2.0

package capture

import (
	"context"
	"errors"
	"fmt"
)

// Enable puts capture in force and proves it. The accept loops and the DNS
// server must be running. On error the pod is not ready and not captured,
// unless an earlier process had captured it, in which case it stays so.
func (p *Pod) Enable(ctx context.Context) error {
	if p.tier == TierPlain {
		return nil
	}
	err := p.enable(ctx)
	if err != nil {
		p.setHealth(err)
		return fmt.Errorf("capture pod %s: %w", p.name(), err)
	}
	p.tasks.Go(func() { p.keepChecking(p.running) })
	return nil
}

func (p *Pod) enable(ctx context.Context) error {
	if p.tier == TierEBPF {
		if err := p.enroll(); err != nil {
			return err
		}
	}
	err := p.verify(ctx)
	p.proven = err == nil
	if err == nil || p.tier != TierEBPF || p.inherited {
		return err
	}
	gone := p.steer.Unenroll(nil)
	if gone == nil { // else its connections may be another process's
		gone = p.destroyCaptured()
	}
	return errors.Join(err, gone)
}

// enroll claims the pod, puts the sockets into their slots, and captures. What
// another process has set or taken away since Add is put in place before.
func (p *Pod) enroll() error {
	claim, err := p.take()
	if err != nil {
		return err
	}
	p.inherited = claim.Enrolled
	if claim.Disturbed {
		if err := p.follow(); err != nil {
			return err
		}
		p.hold()
	}
	if err := p.steer.Enroll(); err != nil {
		return err
	}
	if err := p.rememberSockets(); err != nil {
		return err
	}
	p.endOlder()
	return nil
}
