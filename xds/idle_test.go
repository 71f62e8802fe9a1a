// SPDX-License-Identifier: Apache-2.0

package xds

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/ztunnel-go/ztunnel/internal/mesh"
	"github.com/ztunnel-go/ztunnel/test/fakeistiod"
	"github.com/ztunnel-go/ztunnel/test/leak"
	pb "github.com/ztunnel-go/ztunnel/xds/pb/workloadpb"
)

func TestWhatIsLetGo(t *testing.T) {
	store := mesh.NewStore()
	in := func(hosts ...string) map[mesh.NamespacedHostname]map[uint16]uint16 {
		m := map[mesh.NamespacedHostname]map[uint16]uint16{}
		for _, h := range hosts {
			m[mesh.NamespacedHostname{Namespace: "ns", Hostname: h}] = nil
		}
		return m
	}
	store.Apply(func(u *mesh.Update) {
		for _, w := range []*mesh.Workload{
			{UID: "free1", Node: "far"}, {UID: "free2", Node: "far"}, {UID: "ours", Node: "here"},
			{UID: "ofUnheld", Node: "far", Services: in("unheld")},
			{UID: "ofOld", Node: "far", Services: in("old")},
			{UID: "ofBoth", Node: "far", Services: in("old", "busy")},
		} {
			u.PutWorkload(w)
		}
		for _, h := range []string{"old", "busy"} {
			u.PutService(&mesh.Service{Namespace: "ns", Hostname: h})
		}
	})
	resting := strings.Fields("ofOld free1 ours ns/old ofBoth ofUnheld free2 gone ns/gone")
	for _, tc := range []struct {
		node   string
		excess int
		want   string
	}{
		{"here", 1, "free1"},
		{"here", 3, "free1 free2 ofUnheld"},
		{"here", 4, "free1 free2 ns/old ofUnheld"},
		{"here", 100, "free1 free2 ns/old ofOld ofUnheld"},
		{"", 100, "ns/old"},
	} {
		e := eviction{store.View(), tc.node, tc.excess, map[string]bool{}}
		got := e.choose(resting)
		slices.Sort(got)
		if strings.Join(got, " ") != tc.want {
			t.Errorf("%+v: %q", tc, got)
		}
	}
}

func TestIdlenessCountsFromTheLastUse(t *testing.T) {
	i, start := newIdleness(), time.Now()
	i.keep = 2
	for n, name := range []string{"a", "b", "c", "d"} {
		i.arrived(name, start.Add(time.Duration(n)*time.Second))
	}
	i.used([]string{"a", "stranger"}, start.Add(restFor))
	if names, _ := i.resting(start.Add(restFor + 2*time.Second)); !slices.Equal(names, []string{"b", "c"}) {
		t.Errorf("resting: %q", names)
	}
	if names, _ := i.resting(start.Add(restFor + 3*time.Second)); len(names) > 0 {
		t.Error("it looks all the time")
	}
	i.gone("b")
	i.gone("c")
	if names, excess := i.resting(start.Add(time.Hour)); len(names) > 0 || excess > 0 {
		t.Errorf("without excess: %q", names)
	}
}

// A pod that connects to everybody once leaves us with no more than is kept,
// and whoever was let go is found again, and followed.
func TestAPodThatTriesAllAddressesDoesNotFillUs(t *testing.T) {
	leak.Check(t)
	srv := fakeistiod.Start(t, fakeistiod.Options{})
	f := feedFrom(t, srv, func(c *Config) { c.OnDemand = true })
	f.ready(t)
	f.idle.mu.Lock()
	f.idle.keep, f.idle.rest = 20, time.Millisecond
	f.idle.mu.Unlock()
	ctx, cancel := context.WithTimeout(t.Context(), 60*time.Second)
	defer cancel()
	key := func(i int) string { return fmt.Sprintf("/10.9.%d.%d", i/250, i%250) }
	put := func(i int, account string) {
		w := fakeistiod.Workload(&pb.Workload{
			Uid: fmt.Sprint("w", i), Name: fmt.Sprint("w", i), Namespace: "ns", Node: "far", ServiceAccount: account,
			Addresses: [][]byte{{10, 9, byte(i / 250), byte(i % 250)}},
		})
		w.Aliases = []string{key(i)}
		srv.World.Put(w)
	}
	for i := range 200 {
		put(i, "sa")
		if err := f.Demand(ctx, key(i)); err != nil {
			t.Fatal(err)
		}
		if i == 0 {
			continue
		}
		if f.view.Workload("w0") == nil {
			t.Fatalf("after %d, what is used was let go", i)
		}
		f.Used([]string{"w0"})
		time.Sleep(2 * time.Millisecond) // for that is what rest means here
	}
	if n := len(f.view.Workloads()); n > 40 {
		t.Errorf("%d workloads are held", n)
	}
	gone := -1
	for i := range 200 {
		if f.view.Workload(fmt.Sprint("w", i)) == nil {
			gone = i
			break
		}
	}
	if gone < 0 {
		t.Fatal("nothing was let go")
	}
	uid := fmt.Sprint("w", gone)
	until(t, "it to be asked for again", func() bool {
		if err := f.Demand(ctx, key(gone)); err != nil {
			t.Fatal(err)
		}
		return f.view.Workload(uid) != nil
	})
	put(gone, "other")
	until(t, "a change of it", func() bool { w := f.view.Workload(uid); return w != nil && w.ServiceAccount == "other" })
}
