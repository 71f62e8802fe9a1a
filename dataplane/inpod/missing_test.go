// SPDX-License-Identifier: Apache-2.0

package inpod

import (
	"context"
	"sync/atomic"
	"testing"
	"time"

	"github.com/ztunnel-go/ztunnel/test/fakeagent"
	"github.com/ztunnel-go/ztunnel/test/leak"
)

func TestAConversationThatLacksPodsIsBegunAnew(t *testing.T) {
	play(t, func(s script) {
		var missing atomic.Bool
		missing.Store(true)
		s.e.cfg.Missing = missing.Load
		ctx, cancel := context.WithCancel(s.Context())
		defer cancel()
		go s.e.lookForMissing(ctx, cancel)
		s.pass(5 * missingInterval)
		if ctx.Err() != nil {
			t.Error("before the snapshot nobody can know")
		}
		missing.Store(false)
		s.snapshot()
		s.pass(5 * missingInterval)
		if ctx.Err() != nil {
			t.Error("nothing was missing")
		}
		missing.Store(true)
		s.pass(missingInterval)
		if ctx.Err() == nil {
			t.Error("the conversation goes on without the pod")
		}
	})
}

func TestTheAgentIsAskedAgainForWhatItToldAnother(t *testing.T) {
	leak.Check(t)
	var asked atomic.Int32
	l := running(t, func(c *Config) { c.Missing = func() bool { return asked.Add(1) == 1 } })
	agent, err := fakeagent.Start(l.path)
	if err != nil {
		t.Fatal(err)
	}
	defer agent.Close()
	ctx, cancel := context.WithTimeout(t.Context(), missingInterval+20*time.Second)
	defer cancel()
	if err := agent.AwaitSnapshots(ctx, 2); err != nil {
		t.Fatal(err)
	}
	if !l.logs.has("pods were told to another proxy") {
		t.Error("the log does not say why")
	}
}
