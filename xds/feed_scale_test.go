// SPDX-License-Identifier: Apache-2.0

package xds

import (
	"runtime"
	"testing"
	"time"

	"github.com/ztunnel-go/ztunnel/internal/mesh"
	"github.com/ztunnel-go/ztunnel/test/fakeistiod"
	"github.com/ztunnel-go/ztunnel/test/leak"
	"github.com/ztunnel-go/ztunnel/xds/delta"
)

const largeServices = largeWorkloads / 20

func largeUID(i int) string { return fakeistiod.BulkUID(i, largeServices) }

// A mesh that arrives in one message is applied in many steps, between which
// readers read.
func TestALargeMeshInOneMessage(t *testing.T) {
	leak.Check(t)
	srv := fakeistiod.Start(t, fakeistiod.Options{})
	srv.World.Put(fakeistiod.Bulk(largeWorkloads, largeServices)...)
	f := feedFrom(t, srv, nil)
	between := 0
	for marks, last := 16, 0; last < marks; {
		present := 0
		for k := range marks {
			if f.view.Workload(largeUID((k+1)*largeWorkloads/marks-1)) != nil {
				present++
			}
		}
		if present > last && present < marks {
			between++
		}
		last = present
		time.Sleep(time.Millisecond) // a large mesh takes a few hundred of these
	}
	if between == 0 {
		t.Error("nobody could read before the last workload was there")
	}
	f.ready(t)
	key := mesh.NamespacedHostname{Namespace: "ns-7", Hostname: "app-7.example"}
	n := 0
	f.view.Endpoints(key, func(mesh.Endpoint, *mesh.Workload) bool { n++; return true })
	if n != largeWorkloads/largeServices {
		t.Errorf("%d endpoints", n)
	}
}

// A workload costs little more than its data: names that repeat are there once.
func TestMemoryOfALargeMesh(t *testing.T) {
	resources := fakeistiod.Bulk(largeWorkloads, largeServices)
	updates := make([]delta.Resource, len(resources))
	for i, r := range resources {
		updates[i] = delta.Resource{Name: r.Name, Payload: r.Payload, HasPayload: true}
	}
	heap := func() uint64 {
		var m runtime.MemStats
		runtime.GC()
		runtime.GC()
		runtime.ReadMemStats(&m)
		return m.HeapAlloc
	}
	before := heap()
	f := &Feed{store: mesh.NewStore()}
	if rejected := f.addresses(updates, nil); len(rejected) > 0 {
		t.Fatal(rejected[0])
	}
	after := heap()
	each := (after - before) / (largeWorkloads + largeServices)
	t.Logf("%d bytes for each resource", each)
	if each > 2000 {
		t.Errorf("%d bytes for each resource", each)
	}
	runtime.KeepAlive(f)
	runtime.KeepAlive(updates)
}
