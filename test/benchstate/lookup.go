// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/ztunnel-go/ztunnel/dataplane/route"
	"github.com/ztunnel-go/ztunnel/internal/mesh"
	"github.com/ztunnel-go/ztunnel/xds"
)

// A lookup is what one question costs in a mesh of one size.
type lookup struct {
	Workloads int     `json:"workloads"`
	Question  string  `json:"question"`
	Mean      float64 `json:"mean_ns"` // asked in a row
	Alone     spread  `json:"alone"`   // asked one by one, with the clock's own time
	Pushed    spread  `json:"pushed"`  // the same while a writer pushes without pause
}

// A spread is of the times of single calls, in nanoseconds.
type spread struct {
	P50 float64 `json:"p50_ns"`
	P99 float64 `json:"p99_ns"`
}

// A question is asked of the i-th of the workloads or services.
type question struct {
	name string
	ask  func(i int)
}

const (
	perService = 10
	asked      = 100_000 // calls of one measurement
	batch      = 256     // workloads of one push
)

// A city is a mesh that can be asked, in memory.
type city struct {
	scale
	store  *mesh.Store
	static *xds.Static
	picked *rand.Rand
}

func build(workloads int) (*city, error) {
	c := &city{scale: scale{workloads, workloads / perService}, store: mesh.NewStore(), picked: rand.New(rand.NewPCG(1, 2))}
	var text bytes.Buffer
	forms()[1].print(&text, c.scale)
	var err error
	if c.static, err = xds.ParseLocal("mesh", text.Bytes()); err != nil {
		return nil, err
	}
	c.static.Apply(c.store, nil)
	c.store.Apply(func(u *mesh.Update) {
		u.PutPolicy("istio-system/all", &mesh.Policy{Name: "all", Namespace: "istio-system", Scope: mesh.ScopeGlobal})
		for i := range namespaces {
			p := &mesh.Policy{Name: "own", Namespace: member{0, i}.namespace(), Scope: mesh.ScopeNamespace}
			u.PutPolicy(p.Key(), p)
		}
	})
	return c, nil
}

func (c *city) questions() []question {
	v := c.store.View()
	workload := func(i int) *mesh.Workload { return c.static.Workloads[i%c.Workloads] }
	service := func(i int) *mesh.Service { return c.static.Services[i%c.Services].Service }
	pick := func(all []route.Candidate) int { return c.picked.IntN(len(all)) }
	return []question{
		{"WorkloadAt", func(i int) { must(v.WorkloadAt(mesh.NetworkAddr{Addr: workload(i).IPs[0]}) != nil) }},
		{"ServiceByVIP", func(i int) { must(v.ServiceByVIP(service(i).VIPs[0], "team-00") != nil) }},
		{"Endpoints of 10", func(i int) {
			n := 0
			v.Endpoints(service(i).Key(), func(ep mesh.Endpoint, _ *mesh.Workload) bool { n++; return len(ep.Ports) > 0 })
			must(n == perService)
		}},
		{"PoliciesFor", func(i int) {
			found, _ := v.PoliciesFor(workload(i))
			must(len(found) == 2)
		}},
		{"route.Decide", func(i int) {
			src := workload(i + 1)
			out := route.Decide(v, route.Query{
				Source: src, SourceIP: src.IPs[0], Dst: netip.AddrPortFrom(service(i).VIPs[0].Addr, 80),
			}, pick)
			must(out.Kind == route.Tunnel)
		}},
	}
}

func must(ok bool) {
	if !ok {
		panic("the mesh does not hold what was put into it")
	}
}

// order is a walk over indexes that caches cannot foresee, the same each time.
func order() []int {
	r := rand.New(rand.NewPCG(3, 4))
	out := make([]int, asked)
	for i := range out {
		out[i] = r.IntN(1 << 20)
	}
	return out
}

// mean asks in a row.
func (q question) mean(order []int) float64 {
	begin := time.Now()
	for _, i := range order {
		q.ask(i)
	}
	return float64(time.Since(begin).Nanoseconds()) / float64(len(order))
}

// spread asks one by one.
func (q question) spread(order []int) spread {
	took := make([]float64, len(order))
	for n, i := range order {
		begin := time.Now()
		q.ask(i)
		took[n] = float64(time.Since(begin).Nanoseconds())
	}
	slices.Sort(took)
	return spread{took[len(took)/2], took[len(took)*99/100]}
}

// push replaces batches of workloads until stop is closed, and counts them.
func (c *city) push(stop <-chan struct{}) (workloads int) {
	for i := 0; ; i += batch {
		select {
		case <-stop:
			return workloads
		default:
		}
		c.store.Apply(func(u *mesh.Update) {
			for j := range batch {
				w := *c.static.Workloads[(i+j)%c.Workloads]
				u.PutWorkload(&w)
			}
		})
		workloads += batch
	}
}

// measure asks every question, rounds times in turn, and shows medians.
func (c *city) measure(rounds int) []lookup {
	order := order()
	questions := c.questions()
	means := make([][]float64, len(questions))
	alone, pushed := make([][]spread, len(questions)), make([][]spread, len(questions))
	for range rounds {
		for n, q := range questions {
			means[n] = append(means[n], q.mean(order))
			alone[n] = append(alone[n], q.spread(order))
			stop := make(chan struct{})
			var writer sync.WaitGroup
			writer.Go(func() { c.push(stop) })
			pushed[n] = append(pushed[n], q.spread(order))
			close(stop)
			writer.Wait()
		}
	}
	out := make([]lookup, 0, len(questions))
	for n, q := range questions {
		out = append(out, lookup{c.Workloads, q.name, median(means[n]), medianSpread(alone[n]), medianSpread(pushed[n])})
	}
	return out
}

func median(list []float64) float64 {
	list = slices.Sorted(slices.Values(list))
	return list[len(list)/2]
}

func medianSpread(list []spread) spread {
	var p50, p99 []float64
	for _, s := range list {
		p50, p99 = append(p50, s.P50), append(p99, s.P99)
	}
	return spread{median(p50), median(p99)}
}

// A change is what one step of a writer costs.
type change struct {
	Workloads int     `json:"workloads"`
	What      string  `json:"what"`
	Mean      float64 `json:"mean_ns"` // for each workload
}

// changes measures one endpoint of a large service, and a push.
func (c *city) changes(rounds int) []change {
	const large, steps = 10_000, 500
	key := mesh.NamespacedHostname{Namespace: "large", Hostname: "large"}
	members := make([]mesh.Workload, min(large, c.Workloads))
	c.store.Apply(func(u *mesh.Update) {
		u.PutService(&mesh.Service{Namespace: key.Namespace, Hostname: key.Hostname})
		for i := range members {
			members[i] = mesh.Workload{
				UID: fmt.Sprint("large/", i), Name: fmt.Sprint("large-", i), Namespace: "large",
				IPs:      []netip.Addr{netip.AddrFrom4([4]byte{11, 0, byte(i >> 8), byte(i)})},
				Services: map[mesh.NamespacedHostname]map[uint16]uint16{key: {80: 8080}},
			}
			u.PutWorkload(&members[i])
		}
	})
	var single, pushed []float64
	for range rounds {
		begin := time.Now()
		for i := range steps {
			w := members[i*7919%len(members)]
			c.store.Apply(func(u *mesh.Update) { u.PutWorkload(&w) })
		}
		single = append(single, float64(time.Since(begin).Nanoseconds())/steps)
		stop := make(chan struct{})
		begin = time.Now()
		time.AfterFunc(200*time.Millisecond, func() { close(stop) })
		n := c.push(stop)
		pushed = append(pushed, float64(time.Since(begin).Nanoseconds())/float64(n))
	}
	return []change{
		{c.Workloads, fmt.Sprintf("one of %d endpoints", len(members)), median(single)},
		{c.Workloads, fmt.Sprintf("pushes of %d, each", batch), median(pushed)},
	}
}
