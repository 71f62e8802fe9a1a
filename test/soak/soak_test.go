// SPDX-License-Identifier: Apache-2.0

package main

import (
	"os"
	"strings"
	"testing"
	"time"

	"github.com/ztunnel-go/ztunnel/test/leak"
	"github.com/ztunnel-go/ztunnel/test/netlab"
	"github.com/ztunnel-go/ztunnel/test/privileged"
	"github.com/ztunnel-go/ztunnel/test/rig"
)

func TestMain(m *testing.M) {
	netlab.Main()
	os.Exit(m.Run())
}

// TestSoak is a short soak with the engine of every day; the other's, and the
// long one, are make soak's. ZTUNNEL_RACE=1 builds the proxy with the race
// detector.
func TestSoak(t *testing.T) {
	privileged.Need(t)
	leak.Check(t)
	ztunnel, err := rig.Build(t.TempDir(), os.Getenv("ZTUNNEL_RACE") != "")
	if err != nil {
		t.Fatal(err)
	}
	var out strings.Builder
	held, err := run(t.Context(), options{
		ztunnel: ztunnel, engine: "reactor", lasts: 12 * time.Second, warm: time.Second, seed: uint64(time.Now().UnixNano()), lanes: 12,
	}, &out)
	if err != nil {
		t.Error(err)
	}
	if !held {
		t.Error("something was violated")
	}
	t.Logf("%s", out.String())
}
