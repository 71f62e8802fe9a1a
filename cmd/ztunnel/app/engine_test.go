// SPDX-License-Identifier: Apache-2.0

package app

import (
	"testing"

	"github.com/ztunnel-go/ztunnel/internal/metrics"
	"github.com/ztunnel-go/ztunnel/test/leak"
)

func TestTheEngineIsAsAskedFor(t *testing.T) {
	leak.Check(t)
	for value, want := range map[string]bool{"reactor": true, "std": false} {
		n := &node{nodeParams: nodeParams{cfg: load(t, map[string]string{"TLS_ENGINE": value})}, registry: metrics.New("")}
		if err := n.buildEngine(t.Context()); err != nil {
			t.Fatal(err)
		}
		if got := n.shared(nil).Engine != nil; got != want {
			t.Errorf("TLS_ENGINE=%q: event loops %v", value, got)
		}
		for _, c := range n.closers {
			c.close()
		}
	}
}
