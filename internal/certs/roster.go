// SPDX-License-Identifier: Apache-2.0

package certs

import "github.com/ztunnel-go/ztunnel/internal/identity"

// A Roster keeps a [Manager] in step with the workloads that are known
// (contract 7.6): the certificates of those that will need one are fetched
// before anybody waits, and those whose last workload is gone are forgotten.
// An identity that was never on the roster, such as our own, is left alone.
// It belongs to one goroutine.
type Roster struct {
	m     *Manager
	known map[identity.ID]bool
}

// NewRoster returns a roster with nobody on it.
func NewRoster(m *Manager) *Roster { return &Roster{m: m} }

// Update says whom the workloads known now speak as; true has the certificate
// fetched ahead, once. The map belongs to the roster from then on.
func (r *Roster) Update(known map[identity.ID]bool) {
	for id, ahead := range known {
		if ahead && !r.known[id] {
			r.m.Prefetch(id)
		}
	}
	for id := range r.known {
		if _, still := known[id]; !still {
			r.m.Forget(id)
		}
	}
	r.known = known
}
