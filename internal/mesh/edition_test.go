// SPDX-License-Identifier: Apache-2.0

package mesh

import "testing"

func TestEachChangeIsAnotherEdition(t *testing.T) {
	s := NewStore()
	v := s.View()
	seen := map[uint64]bool{v.Edition(): true}
	before := v.Pin()
	for i, change := range []func(*Update){
		func(u *Update) { u.PutService(&Service{Name: "a", Namespace: "ns", Hostname: "a.ns"}) },
		func(u *Update) { u.PutWorkload(&Workload{UID: "w", Name: "w", Namespace: "ns"}) },
		func(u *Update) { u.RemoveService(NamespacedHostname{Namespace: "ns", Hostname: "a.ns"}) },
	} {
		s.Apply(change)
		if seen[v.Edition()] {
			t.Errorf("change %d: edition %d was there before", i, v.Edition())
		}
		seen[v.Edition()] = true
	}
	now := v.Edition()
	s.Apply(func(*Update) {})
	if v.Edition() != now {
		t.Error("another edition without a change")
	}
	if before.Edition() != NewStore().View().Edition() {
		t.Error("what was pinned has another edition")
	}
}
