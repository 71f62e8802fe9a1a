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

func TestTheGateIsAsAskedFor(t *testing.T) {
	leak.Check(t)
	n := &node{nodeParams: nodeParams{cfg: load(t, map[string]string{
		"TLS_ENGINE": "std", "HANDSHAKE_LIMIT": "7", "HANDSHAKE_LIMIT_PER_SOURCE": "0"})}, registry: metrics.New("")}
	if err := n.buildEngine(t.Context()); err != nil {
		t.Fatal(err)
	}
	if g := n.shared(nil).Gate; g.All != 7 || g.PerSource != 0 {
		t.Errorf("all %d, of one source %d", g.All, g.PerSource)
	}
}
