// SPDX-License-Identifier: Apache-2.0

package delta

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/ztunnel-go/ztunnel/test/fakeistiod"
	"github.com/ztunnel-go/ztunnel/test/leak"
)

func TestDemand(t *testing.T) {
	leak.Check(t)
	srv := fakeistiod.Start(t, fakeistiod.Options{})
	byAlias := res(addresses, "uid", "1")
	byAlias.Aliases = []string{"net/10.0.0.1"}
	srv.World.Put(res(addresses, "ns/host", "2"), byAlias)
	g := start(t, srv, onDemand)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	if err := g.Demand(ctx, addresses, "ns/host"); err != nil || !g.has("ns/host", "2") {
		t.Errorf("by name: %v", err)
	}
	if err := g.Demand(ctx, addresses, "net/10.0.0.1"); err != nil || !g.has("uid", "1") {
		t.Errorf("by alias: %v", err)
	}
	if err := g.Demand(ctx, addresses, "net/10.0.0.9"); err != nil {
		t.Errorf("of nothing: %v", err)
	}
	if err := g.Demand(ctx, addresses, "ns/host"); err != nil {
		t.Errorf("again: %v", err)
	}
	if err := g.Demand(ctx, "no such type", "x"); err == nil {
		t.Error("demand without a subscription")
	}
	for _, r := range srv.Requests()[2:] {
		if r.GetNode() != nil {
			t.Errorf("request %v", r)
		}
	}
}

// istiod answers no second subscription to a name, and tells nothing of an
// address later.
func TestANameThatIsNoResourceIsTakenBackAndCanBeAskedForAgain(t *testing.T) {
	leak.Check(t)
	srv := fakeistiod.Start(t, fakeistiod.Options{})
	g := start(t, srv, onDemand)
	ask := func(name string) {
		t.Helper()
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		defer cancel()
		if err := g.Demand(ctx, addresses, name); err != nil {
			t.Fatal(err)
		}
	}
	srv.World.Put(res(addresses, "other", "1"))
	ask("other")
	ask("net/10.0.0.1")
	byAlias := res(addresses, "uid", "1")
	byAlias.Aliases = []string{"net/10.0.0.1"}
	srv.World.Put(byAlias)
	ask("net/10.0.0.1")
	if g.has("uid", "1") || g.counts.demanded(DemandKnown) != 1 {
		t.Error("what was answered a moment ago was asked for again")
	}
	g.age(addresses)
	ask("net/10.0.0.1")
	if !g.has("uid", "1") {
		t.Error("an address that nobody had is not found again")
	}
	g.age(addresses)
	ask("net/10.0.0.1") // of what is there
	g.age(addresses)
	ask("uid")
	if n := g.counts.demanded(DemandPresent); n != 4 {
		t.Errorf("%d answers, want 4", n)
	}
	if !g.has("other", "1") {
		t.Error("to ask again cost us another resource") // istiod takes a request without a name for the end of all
	}
	// The resource itself is followed.
	srv.World.Put(res(addresses, "uid", "2"))
	eventually(t, "a change of the resource", func() bool { return g.has("uid", "2") })
}

func TestNobodyHearsThatWhatNeverWasHasGone(t *testing.T) {
	leak.Check(t)
	g := start(t, fakeistiod.Start(t, fakeistiod.Options{}), func(c *Config) { onDemand(c) })
	if err := g.Demand(t.Context(), addresses, "net/10.0.0.1"); err != nil {
		t.Fatal(err)
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if len(g.gone) > 0 {
		t.Errorf("gone: %q", g.gone)
	}
}

func TestDemandsAreBounded(t *testing.T) {
	leak.Check(t)
	g := start(t, fakeistiod.Start(t, fakeistiod.Options{Script: func(st *fakeistiod.Stream) error {
		if err := st.Greet(); err != nil {
			return err
		}
		<-st.Done()
		return nil
	}}), onDemand)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var waiting sync.WaitGroup
	for i := range MaxDemands {
		waiting.Go(func() {
			if err := g.Demand(ctx, addresses, fmt.Sprint("net/", i)); !errors.Is(err, context.Canceled) {
				t.Error(err)
			}
		})
	}
	asked := func() int {
		g.Client.mu.Lock()
		defer g.Client.mu.Unlock()
		return len(g.topics[addresses].asked)
	}
	eventually(t, "all to be asked for", func() bool { return asked() == MaxDemands })
	if err := g.Demand(ctx, addresses, "net/more"); !errors.Is(err, ErrTooManyDemands) {
		t.Errorf("one more: %v", err)
	}
	cancel()
	waiting.Wait()
	if err := g.Demand(t.Context(), addresses, "net/more"); !errors.Is(err, ErrTooManyDemands) || asked() != MaxDemands {
		t.Errorf("one more while no answer has come: %v", err)
	}
	if g.counts.demanded(DemandRejected) != 2 || g.counts.demanded(DemandGivenUp) != MaxDemands {
		t.Errorf("counted %v", g.counts.demands)
	}
}

func TestAnswersAreForgottenInTheOrderTheyCame(t *testing.T) {
	var m answers
	now := time.Now()
	for i := range maxAnswers + 10 {
		m.note(fmt.Sprint(i), false, now)
		m.note("0", false, now)
	}
	if len(m.byName) != maxAnswers || m.order.Len() != maxAnswers || !m.absent("0") || m.absent("1") {
		t.Errorf("%d names", len(m.byName))
	}
	for _, tc := range []struct {
		present, streaming bool
		age                time.Duration
		want               bool
	}{
		{false, true, absentFor - 1, true},
		{false, true, absentFor, false},
		{false, false, time.Hour, true},
		{true, true, presentFor - 1, true},
		{true, false, presentFor, false},
	} {
		m.note("x", tc.present, now.Add(-tc.age))
		if got := m.fresh("x", tc.streaming, now); got != tc.want {
			t.Errorf("%+v: %v", tc, got)
		}
	}
}

func TestOneNameIsAskedForOnce(t *testing.T) {
	leak.Check(t)
	release := make(chan struct{})
	srv := fakeistiod.Start(t, fakeistiod.Options{Script: func(st *fakeistiod.Stream) error {
		if err := st.Greet(); err != nil {
			return err
		}
		if _, err := st.Recv(); err != nil {
			return err
		}
		<-release
		_, err := st.Exchange(fakeistiod.Response(addresses, "1", nil, "ns/host"))
		<-st.Done()
		return err
	}})
	g := start(t, srv, onDemand)
	requests(t, srv, 1, 2) // what is demanded sooner goes into the first of these
	var waiting sync.WaitGroup
	for range 10 {
		waiting.Go(func() {
			if err := g.Demand(t.Context(), addresses, "ns/host"); err != nil {
				t.Error(err)
			}
		})
	}
	short, cancel := context.WithCancel(t.Context())
	gone := make(chan error)
	go func() { gone <- g.Demand(short, addresses, "ns/host") }()
	requests(t, srv, 1, 3)
	eventually(t, "eleven waiters", func() bool {
		g.Client.mu.Lock()
		defer g.Client.mu.Unlock()
		w := g.topics[addresses].waiters["ns/host"]
		return w != nil && w.count == 11
	})
	cancel()
	if err := <-gone; !errors.Is(err, context.Canceled) {
		t.Errorf("given up: %v", err)
	}
	close(release)
	waiting.Wait()
	if got := requests(t, srv, 1, 4); len(got) != 4 || !slices.Equal(got[2].GetResourceNamesSubscribe(), []string{"ns/host"}) {
		t.Errorf("requests %v", got)
	}
}

func TestClosingEndsDemands(t *testing.T) {
	leak.Check(t)
	g := start(t, fakeistiod.Start(t, fakeistiod.Options{Script: func(st *fakeistiod.Stream) error { <-st.Done(); return nil }}), onDemand)
	ended := make(chan error)
	go func() { ended <- g.Demand(t.Context(), addresses, "x") }()
	g.Close()
	if err := <-ended; !errors.Is(err, ErrClosed) {
		t.Errorf("ended with %v", err)
	}
}

func TestDemandsOutliveAStream(t *testing.T) {
	leak.Check(t)
	srv := fakeistiod.Start(t, fakeistiod.Options{})
	srv.World.Put(res(addresses, "known", "1"), res(addresses, "new", "2"))
	g := start(t, srv, onDemand)
	if err := g.Demand(t.Context(), addresses, "known"); err != nil {
		t.Fatal(err)
	}
	g.age(addresses)
	srv.Stop()
	eventually(t, "refused connections", func() bool { return g.counts.ended(ConnectionError) > 0 })
	var waiting sync.WaitGroup
	for _, name := range []string{"known", "new"} {
		waiting.Go(func() {
			if err := g.Demand(t.Context(), addresses, name); err != nil {
				t.Error(err)
			}
		})
	}
	eventually(t, "two waiters", func() bool {
		g.Client.mu.Lock()
		defer g.Client.mu.Unlock()
		return len(g.topics[addresses].waiters) == 2
	})
	if err := srv.Restart(); err != nil {
		t.Fatal(err)
	}
	waiting.Wait()
	if got, want := requests(t, srv, 2, 1)[0].GetInitialResourceVersions(), map[string]string{"known": "v1"}; !maps.Equal(got, want) {
		t.Errorf("echoed %v, want %v", got, want)
	}
}
