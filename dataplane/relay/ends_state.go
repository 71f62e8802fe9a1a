// SPDX-License-Identifier: Apache-2.0

package relay

// EndsState is an [Ends] as plain values, for another process.
type EndsState struct {
	First            Party // empty: nobody yet
	Client, Upstream End
}

// State is what e has been told so far.
func (e *Ends) State() EndsState {
	e.mu.Lock()
	defer e.mu.Unlock()
	return EndsState{e.first, e.client, e.upstream}
}

// EndsOf goes on from s.
func EndsOf(s EndsState) *Ends {
	return &Ends{first: s.First, client: s.Client, upstream: s.Upstream}
}
