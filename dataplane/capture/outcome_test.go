// SPDX-License-Identifier: Apache-2.0

package capture

import (
	"context"
	"slices"
	"testing"
	"time"
)

func TestEveryCheckIsRememberedAndCounted(t *testing.T) {
	r := newRig(t)
	p := r.capture(r.pod("a"))
	began := time.Now()
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	if err := p.check(gone); err == nil {
		t.Error("a check that had no time held")
	}
	if c := p.Checks()[3]; c.Name != "outbound" || c.Err == nil {
		t.Errorf("%+v", c)
	}
	p.node.sweeps.next = time.Time{} // it would be too early
	must(t, p.verify(t.Context()))
	var names []string
	for _, c := range p.Checks() {
		names = append(names, c.Name)
		if c.Err != nil || c.At.Before(began) {
			t.Errorf("%s: %v, %v after the test began", c.Name, c.Err, c.At.Sub(began))
		}
	}
	if want := []string{"delivery", "dns", "inbound", "outbound", "sweep"}; !slices.Equal(names, want) {
		t.Errorf("checks %q, want %q", names, want)
	}
	failed := uint64(0)
	for _, c := range p.node.CheckCounts() {
		failed += c.Failed
		if made := slices.Contains(names, c.Name); made != (c.Held > 0) {
			t.Errorf("%+v", c)
		}
	}
	if failed == 0 {
		t.Error("the failure is not counted")
	}
}
