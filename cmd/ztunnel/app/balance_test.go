// SPDX-License-Identifier: Apache-2.0

package app

import (
	"testing"

	"github.com/ztunnel-go/ztunnel/dataplane/route"
	"github.com/ztunnel-go/ztunnel/internal/metrics"
)

func TestBalancePolicy(t *testing.T) {
	for value, byChance := range map[string]bool{"least-loaded": false, "random": true} {
		n := &node{nodeParams: nodeParams{cfg: load(t, map[string]string{"LB_POLICY": value})}, registry: metrics.New("")}
		if err := n.buildBalance(); err != nil {
			t.Fatal(err)
		}
		two := []route.Candidate{{UID: "busy", Weight: 1}, {UID: "idle", Weight: 1}}
		n.balance.Opened([]string{"busy"})
		busy := 0
		for range 200 { // of which chance does not leave all to one of two
			if n.balance.Choose(two) == 0 {
				busy++
			}
		}
		if (busy > 0) != byChance {
			t.Errorf("%s: the busy one was chosen %d times", value, busy)
		}
	}
}
