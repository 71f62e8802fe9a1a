// SPDX-License-Identifier: Apache-2.0

package xds

import (
	"github.com/ztunnel-go/ztunnel/internal/identity"
	"github.com/ztunnel-go/ztunnel/internal/mesh"
)

// prefetch follows which identities the workloads of this node have
// (contract 7.6). It belongs to the goroutine that applies.
type prefetch struct {
	to   Certificates // nil: nothing is followed
	node string

	users   map[identity.ID]int // workloads with the identity, among those that count
	doubted []identity.ID       // whose last user went in this response
}

// counts reports whether a workload keeps its identity from being forgotten.
func (p *prefetch) counts(w *mesh.Workload) bool {
	return w != nil && (p.node == "" || w.Node == p.node)
}

// wanted asks for the certificate of a workload that will run behind us.
func (p *prefetch) wanted(w *mesh.Workload) {
	if p.to == nil || p.node == "" || w.Node != p.node || !w.NativeTunnel && w.Protocol != mesh.HBONE {
		return
	}
	if id := w.Identity(); !id.IsZero() {
		p.to.Prefetch(id)
	}
}

// replaced notes that one workload stands where another stood; either may be
// nil.
func (p *prefetch) replaced(before, now *mesh.Workload) {
	if p.to == nil {
		return
	}
	if p.counts(now) {
		p.users[now.Identity()]++
	}
	if !p.counts(before) {
		return
	}
	id := before.Identity()
	if p.users[id]--; p.users[id] <= 0 {
		delete(p.users, id)
		p.doubted = append(p.doubted, id)
	}
}

// settle forgets the identities that no workload has any more. It looks
// through the store, since a local document may have put workloads there that
// were never counted.
func (p *prefetch) settle(v mesh.View) {
	if len(p.doubted) == 0 {
		return
	}
	doubted := map[identity.ID]bool{}
	for _, id := range p.doubted {
		if p.users[id] == 0 && !id.IsZero() {
			doubted[id] = true
		}
	}
	p.doubted = nil
	if len(doubted) == 0 {
		return
	}
	for _, w := range v.Workloads() {
		if p.counts(w) {
			delete(doubted, w.Identity())
		}
	}
	for id := range doubted {
		p.to.Forget(id)
	}
}
