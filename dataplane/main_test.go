// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"os"
	"testing"

	"github.com/ztunnel-go/ztunnel/dataplane/engine"
	"github.com/ztunnel-go/ztunnel/dataplane/reactor"
)

// theEngine carries the tunnels of all proxies; nil: goroutines do.
var theEngine *engine.Engine

// TestMain runs all tests with either engine.
func TestMain(m *testing.M) {
	code := m.Run()
	group, err := reactor.Start(2)
	if err != nil {
		panic(err)
	}
	theEngine = engine.New(group)
	os.Exit(max(code, m.Run()))
}
