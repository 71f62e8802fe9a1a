// SPDX-License-Identifier: Apache-2.0

package fake

import (
	"io/fs"
	"testing"

	"github.com/ztunnel-go/ztunnel/test/conform"
	"github.com/ztunnel-go/ztunnel/test/leak"
)

// TestEveryFaultIsCaught proves the scenarios: the model without a fault passes
// all that it can play, and with any one fault it fails.
func TestEveryFaultIsCaught(t *testing.T) {
	leak.Check(t)
	dir, err := fs.Sub(conform.Scenarios(), "testdata")
	if err != nil {
		t.Fatal(err)
	}
	scripts, err := conform.ParseAll(dir)
	if err != nil {
		t.Fatal(err)
	}
	r, err := SelfTest(t.Context(), scripts)
	if err != nil {
		t.Fatal(err)
	}
	for name, why := range r.Failed {
		t.Errorf("%s fails on the model without a fault: %v", name, why)
	}
	for _, m := range r.Missed {
		t.Errorf("missed: %s", m)
	}
	const faults, played = 60, 200
	if len(r.Caught) < faults || len(r.Played) < played {
		t.Errorf("%d faults were caught and %d scenarios played; that is too few to prove anything", len(r.Caught), len(r.Played))
	}
	for _, s := range scripts {
		if why := unsupported(s.Name); why != "" {
			t.Logf("%s is not played: %s", s.Name, why)
		}
	}
	t.Logf("%d scenarios played, %d not, %d faults caught", len(r.Played), len(r.Skipped), len(r.Caught))
}
