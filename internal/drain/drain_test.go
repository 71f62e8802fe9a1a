// SPDX-License-Identifier: Apache-2.0

package drain

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/ztunnel-go/ztunnel/test/leak"
)

func TestDrainWaitsForMembersThatFinish(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := New(t.Context())
		var cause error
		g.Go(func(ctx context.Context) {
			<-g.Draining()
			time.Sleep(2 * time.Second)
			cause = context.Cause(ctx)
		})
		start := time.Now()
		if err := g.Drain(5 * time.Second); err != nil {
			t.Errorf("Drain = %v, want nil", err)
		}
		if took := time.Since(start); took != 2*time.Second {
			t.Errorf("Drain took %v, want the 2s its member took", took)
		}
		if cause != nil {
			t.Errorf("the member was told to end: %v", cause)
		}
	})
}

func TestDrainInsistsAtTheDeadline(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := New(t.Context())
		var cause error
		g.Go(func(ctx context.Context) {
			<-ctx.Done()
			cause = context.Cause(ctx)
		})
		start := time.Now()
		if err := g.Drain(5 * time.Second); !errors.Is(err, ErrDeadline) {
			t.Errorf("Drain = %v, want ErrDeadline", err)
		}
		if took := time.Since(start); took != 5*time.Second {
			t.Errorf("Drain took %v, want 5s", took)
		}
		if !errors.Is(cause, ErrForced) {
			t.Errorf("cause = %v, want ErrForced", cause)
		}
	})
}

func TestZeroDeadlineForcesAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := New(t.Context())
		g.Go(func(ctx context.Context) { <-ctx.Done() })
		start := time.Now()
		if err := g.Drain(0); !errors.Is(err, ErrDeadline) {
			t.Errorf("Drain = %v, want ErrDeadline", err)
		}
		if took := time.Since(start); took != 0 {
			t.Errorf("Drain took %v", took)
		}
	})
}

func TestNobodyEntersADrainingGroup(t *testing.T) {
	leak.Check(t)
	g := New(t.Context())
	leave, ok := g.Enter()
	if !ok {
		t.Fatal("an open group takes members")
	}
	g.Begin()
	g.Begin()
	if _, ok := g.Enter(); ok || g.Go(func(context.Context) { t.Error("ran") }) {
		t.Error("a draining group took a member")
	}
	if !g.Begun() {
		t.Error("Begun = false")
	}
	leave()
	leave() // a second call does nothing
	if err := g.Drain(time.Minute); err != nil {
		t.Errorf("Drain of an empty group = %v", err)
	}
	g.Force()
}

func TestForceCutsARunningDrainShort(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := New(t.Context())
		g.Go(func(ctx context.Context) { <-ctx.Done() })
		done := make(chan error)
		go func() { done <- g.Drain(time.Hour) }()
		synctest.Wait()
		start := time.Now()
		g.Force()
		<-done
		if took := time.Since(start); took != 0 {
			t.Errorf("took %v", took)
		}
	})
}

func TestWaitEndsWithItsContext(t *testing.T) {
	g := New(t.Context())
	leave, _ := g.Enter()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := g.Wait(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("Wait = %v", err)
	}
	leave()
	g.Begin()
	if err := g.Wait(t.Context()); err != nil {
		t.Errorf("Wait of an empty group = %v", err)
	}
}
