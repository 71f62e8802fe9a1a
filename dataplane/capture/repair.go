// SPDX-License-Identifier: Apache-2.0

package capture

import (
	"errors"
	"log/slog"

	"github.com/ztunnel-go/ztunnel/bpf/redirect"
)

// repair puts everything of the pod's capture in place that is not there: the
// node's programs and the pod's own, addresses, rules, routes, listeners, and
// the enrolment last.
func (p *Pod) repair() error {
	if err := p.node.reattach(); err != nil {
		return err
	}
	p.mu.Lock()
	err := p.steer.Reattach(p.ns.Fd())
	if err == nil && !p.vacated {
		_, err = p.take()
	}
	p.mu.Unlock()
	if err != nil {
		return err
	}
	if err := p.follow(); err != nil {
		return err
	}
	return p.steer.Enroll()
}

// reattach puts back programs of the node, and says so.
func (n *Node) reattach() error {
	names, err := n.bpf.Reattach()
	if len(names) > 0 {
		n.log.Error("programs of capture had been detached, and are attached again", slog.Any("programs", names))
	}
	return err
}

// broken says what is wrong with what can be looked at in no time: what lets
// connections past the proxy, rather than nowhere, if it is gone.
func (p *Pod) broken() error {
	enrolled, err := p.node.bpf.IsEnrolled(p.cookie)
	if err != nil {
		return err
	}
	if !enrolled {
		return errors.New("its enrolment is gone")
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if err := p.steer.Attached(p.ns.Fd()); err != nil {
		return err
	}
	served, err := p.steer.Served(redirect.SlotOutbound)
	if err == nil && !served {
		err = errors.New("its listener is gone from its slot")
	}
	return err
}

// lookAfter repairs at once what must not wait for the next check.
func (p *Pod) lookAfter() {
	if p.tier != TierEBPF || p.isLeft() {
		return
	}
	err := p.broken()
	if err == nil || p.isLeft() {
		return
	}
	p.node.events.repaired.Add(1)
	p.node.log.Error("capture of a pod was broken", slog.String("pod", p.name()), slog.Any("err", err))
	if err := p.repair(); err != nil && !p.isLeft() {
		p.node.log.Error("capture of a pod cannot be repaired", slog.String("pod", p.name()), slog.Any("err", err))
		p.setHealth(err)
	}
}
