// SPDX-License-Identifier: Apache-2.0

package balance

import (
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/ztunnel-go/ztunnel/dataplane/route"
)

// seeded is a table whose chance is the same in each run.
func seeded(p Policy) *Table {
	return New(Config{Policy: p, Random: rand.New(rand.NewPCG(1, 2)).Uint64N})
}

// of makes candidates a, b, c ... with these weights.
func of(weights ...uint32) []route.Candidate {
	var all []route.Candidate
	for i, w := range weights {
		all = append(all, route.Candidate{UID: string(rune('a' + i)), Weight: w})
	}
	return all
}

// chosen counts how often each is chosen while nothing else happens.
func chosen(t *Table, all []route.Candidate) map[string]int {
	seen := map[string]int{}
	for range 4000 {
		seen[all[t.Choose(all)].UID]++
	}
	return seen
}

func TestAnIdleServiceIsUsedByCapacity(t *testing.T) {
	for _, p := range []Policy{LeastLoaded, Random} {
		seen := chosen(seeded(p), of(1, 0, 3))
		if seen["b"] != 0 || seen["a"] < 900 || seen["a"] > 1100 || seen["a"]+seen["c"] != 4000 {
			t.Errorf("%v: %v", p, seen)
		}
	}
}

func TestTheLessLoadedOfTwoIsChosen(t *testing.T) {
	table, two := seeded(LeastLoaded), of(1, 1)
	closed := table.Opened([]string{"a"})
	if seen := chosen(table, two); seen["b"] != 4000 {
		t.Errorf("b is idle: %v", seen)
	}
	closed()
	if seen := chosen(table, two); seen["a"] < 1900 || seen["a"] > 2100 {
		t.Errorf("both are idle: %v", seen)
	}
	// Of three, the most loaded is never the lesser of two.
	table.Opened([]string{"a"})
	table.Opened([]string{"a"})
	table.Opened([]string{"b"})
	if seen := chosen(table, of(1, 1, 1)); seen["a"] != 0 || seen["b"] == 0 || seen["c"] <= seen["b"] {
		t.Errorf("a has two, b one, c none: %v", seen)
	}
}

func TestLoadIsRelativeToCapacity(t *testing.T) {
	table, all := seeded(LeastLoaded), of(1, 3, 0)
	for range 400 {
		table.Opened([]string{all[table.Choose(all)].UID})
	}
	open := table.Open()
	if open["a"] < 98 || open["a"] > 102 || open["a"]+open["b"] != 400 {
		t.Errorf("open: %v", open)
	}
	// The largest numbers that there are do not overflow.
	table, all = seeded(LeastLoaded), of(1<<32-1, 1<<32-1)
	table.Opened([]string{"a"})
	if seen := chosen(table, all); seen["b"] != 4000 {
		t.Errorf("large weights: %v", seen)
	}
}

func TestRandomHeedsNeitherLoadNorFailure(t *testing.T) {
	table := seeded(Random)
	table.Opened([]string{"a"})
	table.Failed("a")
	if seen := chosen(table, of(1, 1)); seen["a"] < 1900 || seen["a"] > 2100 {
		t.Errorf("chosen: %v", seen)
	}
}

func TestWhatHasNoNameIsChosenByWeight(t *testing.T) {
	table, all := seeded(LeastLoaded), []route.Candidate{{Weight: 1}, {Weight: 3}}
	table.Failed("a")
	table.Opened([]string{"a"})
	first := 0
	for range 4000 {
		if table.Choose(all) == 0 {
			first++
		}
	}
	if first < 900 || first > 1100 {
		t.Errorf("the first was chosen %d times", first)
	}
}

func TestNobodyToChoose(t *testing.T) {
	table := seeded(LeastLoaded)
	if got := table.Choose(of(0, 0)); got != -1 {
		t.Errorf("without weights: %d", got)
	}
	if got := table.Choose(nil); got != -1 {
		t.Errorf("without candidates: %d", got)
	}
	if got := table.Choose(of(0, 2)); got != 1 {
		t.Errorf("with one: %d", got)
	}
}

// avoids reports whether a is left alone.
func avoids(table *Table) bool { return chosen(table, of(1, 1))["a"] == 0 }

func TestAvoidanceGrowsAndEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		table := seeded(LeastLoaded)
		for _, want := range []string{"1s", "2s", "4s", "8s", "16s", "30s", "30s"} {
			pause, err := time.ParseDuration(want)
			if err != nil {
				t.Fatal(err)
			}
			table.Failed("a")
			table.Failed("a") // another connection, at the same time
			time.Sleep(pause - time.Nanosecond)
			if !avoids(table) {
				t.Fatalf("not avoided until %s have passed", want)
			}
			time.Sleep(time.Nanosecond)
			if avoids(table) {
				t.Fatalf("still avoided after %s", want)
			}
		}
		time.Sleep(memory)
		table.Failed("a")
		time.Sleep(firstPause)
		if avoids(table) {
			t.Error("failures of long ago still count")
		}
		table.Failed("a")
		table.Reached("a")
		if avoids(table) {
			t.Error("avoided though it was reached")
		}
		table.Failed("a")
		time.Sleep(firstPause)
		if avoids(table) {
			t.Error("failures before it was reached still count")
		}
	})
}

func TestIfAllAreAvoidedNoneIs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		table := seeded(LeastLoaded)
		table.Failed("a")
		table.Failed("b")
		if seen := chosen(table, of(1, 1)); seen["a"] == 0 || seen["b"] == 0 {
			t.Errorf("chosen: %v", seen)
		}
		if seen := chosen(table, of(1, 1, 0)); seen["c"] != 0 {
			t.Errorf("one without capacity was chosen: %v", seen)
		}
	})
}

func TestOldFailuresTakeNoMemory(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		table := seeded(LeastLoaded)
		for i := range 100 * fewAvoided {
			table.Failed(fmt.Sprint(i))
			time.Sleep(time.Second)
		}
		if n := len(table.Avoided()); n > 2*fewAvoided {
			t.Errorf("%d are remembered", n)
		}
	})
}

func TestCountsComeToNothing(t *testing.T) {
	table := New(Config{})
	var all sync.WaitGroup
	for range 50 {
		all.Go(func() {
			closed := table.Opened([]string{"a", "b"})
			table.Choose(of(1, 1))
			closed()
			closed()
		})
	}
	all.Wait()
	table.Opened(nil)()
	if open := table.Open(); len(open) != 0 {
		t.Errorf("open: %v", open)
	}
}

func TestPolicies(t *testing.T) {
	for _, p := range []Policy{LeastLoaded, Random} {
		if got, err := ParsePolicy(p.String()); got != p || err != nil {
			t.Errorf("%v is read as %v, %v", p, got, err)
		}
	}
	for _, s := range []string{"", "least", "Random"} {
		if _, err := ParsePolicy(s); err == nil {
			t.Errorf("%q is a policy", s)
		}
	}
}

func TestRetriesAreCounted(t *testing.T) {
	r := prometheus.NewRegistry()
	table := New(Config{Metrics: NewMetrics(r)})
	table.Retried()
	New(Config{}).Retried()
	families, err := r.Gather()
	if err != nil || len(families) != 1 || families[0].GetName() != "ztunnel_connect_retries_total" ||
		families[0].GetMetric()[0].GetCounter().GetValue() != 1 {
		t.Errorf("%v, %v", families, err)
	}
}
