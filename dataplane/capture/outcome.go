// SPDX-License-Identifier: Apache-2.0

package capture

import (
	"cmp"
	"slices"
	"sync/atomic"
	"time"
)

// A Check is how one of a pod's test connections ended the last time.
type Check struct {
	Name string    // outbound, inbound, delivery, dns, sweep or redirect
	At   time.Time // when it ended
	Err  error     // nil: what it proves holds
}

// A CheckCount is how often a kind of check held and failed on the node, since
// this process began.
type CheckCount struct {
	Name         string
	Held, Failed uint64
}

// The kinds of checks. Those of tier A are the first five; tier C has the last.
const (
	outboundCheck = iota
	inboundCheck
	deliveryCheck
	dnsCheck
	sweepCheck
	redirectCheck
	checkKinds
)

func checkName(kind int) string {
	return [checkKinds]string{"outbound", "inbound", "delivery", "dns", "sweep", "redirect"}[kind]
}

// checkCounts are a node's, by kind.
type checkCounts [checkKinds]struct{ held, failed atomic.Uint64 }

// note remembers how a check ended, and returns err.
func (p *Pod) note(kind int, err error) error {
	count := &p.node.checks[kind]
	if err == nil {
		count.held.Add(1)
	} else {
		count.failed.Add(1)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.last[kind] = Check{checkName(kind), time.Now(), err}
	return err
}

// Checks are the pod's checks that have been made, by name.
func (p *Pod) Checks() []Check {
	p.mu.Lock()
	defer p.mu.Unlock()
	var made []Check
	for _, c := range p.last {
		if c.Name != "" {
			made = append(made, c)
		}
	}
	slices.SortFunc(made, func(a, b Check) int { return cmp.Compare(a.Name, b.Name) })
	return made
}

// CheckCounts are those of all pods together.
func (n *Node) CheckCounts() []CheckCount {
	counts := make([]CheckCount, checkKinds)
	for kind := range n.checks {
		c := &n.checks[kind]
		counts[kind] = CheckCount{checkName(kind), c.held.Load(), c.failed.Load()}
	}
	return counts
}
