// SPDX-License-Identifier: Apache-2.0

package mesh

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
)

func apply(s *Store, change func(u *Update)) { s.Apply(change) }

func addr(s string) NetworkAddr {
	network, ip, ok := strings.Cut(s, "/")
	if !ok {
		network, ip = "", s
	}
	return NetworkAddr{network, netip.MustParseAddr(ip)}
}

func host(name string) NamespacedHostname { return NamespacedHostname{"ns", name} }

// pod is a member of the services named, with port 80 mapped to 8080.
func pod(uid, ip string, status Status, services ...string) *Workload {
	w := &Workload{UID: uid, Name: uid, Namespace: "ns", Status: status, Services: map[NamespacedHostname]map[uint16]uint16{}}
	if ip != "" {
		w.IPs = []netip.Addr{netip.MustParseAddr(ip)}
	}
	for _, name := range services {
		w.Services[host(name)] = map[uint16]uint16{80: 8080}
	}
	return w
}

func endpoints(v View, name string) string {
	var uids []string
	v.Endpoints(host(name), func(ep Endpoint, w *Workload) bool {
		uids = append(uids, w.UID)
		return true
	})
	slices.Sort(uids)
	return strings.Join(uids, " ")
}

func staged(v View) string {
	var all []string
	for key, eps := range v.StagedEndpoints() {
		for _, ep := range eps {
			all = append(all, key.Hostname+":"+ep.WorkloadUID)
		}
	}
	slices.Sort(all)
	return strings.Join(all, " ")
}

func want(t *testing.T, what, got, want string) {
	t.Helper()
	if got != want {
		t.Errorf("%s: %q, want %q", what, got, want)
	}
}

func TestWorkloadsAndServicesComeInAnyOrder(t *testing.T) {
	s := NewStore()
	v := s.View()
	apply(s, func(u *Update) { u.PutWorkload(pod("a", "10.0.0.1", Healthy, "svc")) })
	want(t, "before the service", staged(v), "svc:a")
	apply(s, func(u *Update) { u.PutService(&Service{Namespace: "ns", Hostname: "svc"}) })
	want(t, "after it, staged", staged(v), "")
	want(t, "after it", endpoints(v, "svc"), "a")
	apply(s, func(u *Update) { u.PutWorkload(pod("b", "10.0.0.2", Healthy, "svc")) })
	want(t, "a second one", endpoints(v, "svc"), "a b")

	// An upsert replaces addresses and memberships.
	apply(s, func(u *Update) { u.PutWorkload(pod("a", "10.0.0.3", Healthy, "other")) })
	want(t, "a left", endpoints(v, "svc"), "b")
	want(t, "and waits elsewhere", staged(v), "other:a")
	if v.WorkloadAt(addr("10.0.0.1")) != nil || v.WorkloadAt(addr("10.0.0.3")).UID != "a" {
		t.Error("the old address is still known, or the new one is not")
	}
	apply(s, func(u *Update) { u.RemoveWorkload("b") })
	want(t, "b is gone", endpoints(v, "svc"), "")
	if u := v.Workload("b"); u != nil || v.WorkloadAt(addr("10.0.0.2")) != nil {
		t.Error("a removed workload is still known")
	}
}

func TestStagedEndpointsGoWithTheirWorkload(t *testing.T) {
	s := NewStore()
	apply(s, func(u *Update) { u.PutWorkload(pod("a", "", Healthy, "svc", "other")) })
	want(t, "staged", staged(s.View()), "other:a svc:a")
	apply(s, func(u *Update) {
		if !u.RemoveWorkload("a") || u.RemoveWorkload("a") {
			t.Error("it was not known, or twice")
		}
	})
	want(t, "after its removal", staged(s.View()), "")
}

func TestHealthIsAskedWhenAnEndpointJoins(t *testing.T) {
	healthy := &Service{Namespace: "ns", Hostname: "svc"}
	tolerant := &Service{Namespace: "ns", Hostname: "svc", LoadBalancer: &LoadBalancer{HealthPolicy: AllowAll}}
	s := NewStore()
	v := s.View()
	apply(s, func(u *Update) {
		u.PutWorkload(pod("well", "", Healthy, "svc"))
		u.PutWorkload(pod("sick", "", Unhealthy, "svc"))
	})
	want(t, "both wait", staged(v), "svc:sick svc:well")
	apply(s, func(u *Update) { u.PutService(healthy) })
	want(t, "one joins", endpoints(v, "svc"), "well")

	apply(s, func(u *Update) { u.PutWorkload(pod("well", "", Unhealthy, "svc")) })
	want(t, "an endpoint that falls ill leaves", endpoints(v, "svc"), "")
	apply(s, func(u *Update) { u.PutService(tolerant) })
	want(t, "a new policy does not bring it back", endpoints(v, "svc"), "")
	apply(s, func(u *Update) { u.PutWorkload(pod("sick", "", Unhealthy, "svc")) })
	want(t, "but being told again does", endpoints(v, "svc"), "sick")
	apply(s, func(u *Update) { u.PutService(healthy) })
	want(t, "and the old policy sends it away", endpoints(v, "svc"), "")
}

func TestAServiceThatComesBackHasItsEndpoints(t *testing.T) {
	s := NewStore()
	svc := &Service{Namespace: "ns", Hostname: "svc", VIPs: []NetworkAddr{addr("10.1.0.1")}}
	apply(s, func(u *Update) {
		u.PutService(svc)
		u.PutWorkload(pod("a", "", Healthy, "svc"))
	})
	apply(s, func(u *Update) { u.RemoveService(host("svc")) })
	if s.View().ServiceByVIP(addr("10.1.0.1"), "ns") != nil || s.View().ServiceByHostname("svc", "ns") != nil {
		t.Error("a removed service is still found")
	}
	apply(s, func(u *Update) { u.PutService(svc) })
	want(t, "endpoints", endpoints(s.View(), "svc"), "a")
}

func TestEndpointsOfUnknownWorkloadsAreNotShown(t *testing.T) {
	s := NewStore()
	apply(s, func(u *Update) {
		u.PutService(&Service{Namespace: "ns", Hostname: "svc"})
		u.PutEndpoint(host("svc"), Endpoint{WorkloadUID: "ghost"})
	})
	want(t, "endpoints", endpoints(s.View(), "svc"), "")
	apply(s, func(u *Update) { u.RemoveEndpoint(host("svc"), "ghost") })
	if _, ok := s.View().Endpoint(host("svc"), "ghost"); ok {
		t.Error("a removed endpoint is still known")
	}
}

func TestOneAddressOfSeveralWorkloads(t *testing.T) {
	at := func(uid string, p Protocol, mode NetworkMode) *Workload {
		w := pod(uid, "10.0.0.1", Healthy)
		w.Protocol, w.NetworkMode = p, mode
		return w
	}
	for _, tc := range []struct {
		name      string
		workloads []*Workload
		want      string
	}{
		{"a pod before others", []*Workload{at("c//Pod/ns/a", TCP, Standard), at("c/entry/b", HBONE, Standard)}, "c//Pod/ns/a"},
		{"HBONE before TCP", []*Workload{at("c//Pod/ns/a", HBONE, Standard), at("c//Pod/ns/b", TCP, Standard)}, "c//Pod/ns/a"},
		{"the latest of equals", []*Workload{at("c//Pod/ns/a", HBONE, Standard), at("c//Pod/ns/b", HBONE, Standard)}, "c//Pod/ns/b"},
		{"never one of the host's network", []*Workload{at("c/entry/a", TCP, Standard), at("c//Pod/ns/b", HBONE, HostNetwork)}, "c/entry/a"},
	} {
		s := NewStore()
		for _, w := range tc.workloads {
			apply(s, func(u *Update) { u.PutWorkload(w) })
		}
		want(t, tc.name, s.View().WorkloadAt(addr("10.0.0.1")).UID, tc.want)
		if s.View().WorkloadAt(addr("net/10.0.0.1")) != nil {
			t.Errorf("%s: found in another network", tc.name)
		}
		for _, w := range tc.workloads {
			apply(s, func(u *Update) { u.RemoveWorkload(w.UID) })
		}
		if s.View().WorkloadAt(addr("10.0.0.1")) != nil {
			t.Errorf("%s: found after removal", tc.name)
		}
	}
}

func TestTheLocalWorkload(t *testing.T) {
	s := NewStore()
	here := pod("a", "", Healthy)
	here.Node, here.ServiceAccount = "here", "sa"
	apply(s, func(u *Update) { u.PutWorkload(here) })
	v := s.View()
	for _, tc := range []struct {
		node, name, sa string
		found          bool
	}{
		{"here", "a", "sa", true}, {"", "a", "sa", true}, {"there", "a", "sa", false}, {"here", "b", "sa", false}, {"here", "a", "", false},
	} {
		if got := v.LocalWorkload(tc.node, tc.name, "ns", tc.sa); (got == here) != tc.found {
			t.Errorf("%+v: %v", tc, got)
		}
	}
}

func TestAWorkloadIsFoundByItsHostname(t *testing.T) {
	s := NewStore()
	w := pod("a", "", Healthy)
	w.Hostname = "h"
	apply(s, func(u *Update) { u.PutWorkload(w) })
	if s.View().WorkloadByHostname(host("h")) != w || s.View().WorkloadByHostname(NamespacedHostname{"other", "h"}) != nil {
		t.Error("by hostname")
	}
	apply(s, func(u *Update) { u.RemoveWorkload("a") })
	if s.View().WorkloadByHostname(host("h")) != nil {
		t.Error("after removal")
	}
}

func TestAChangeIsSignalledOnce(t *testing.T) {
	s := NewStore()
	fired := func(c <-chan struct{}) bool {
		select {
		case <-c:
			return true
		default:
			return false
		}
	}
	all, policies := s.Changed(), s.PoliciesChanged()
	apply(s, func(u *Update) { u.RemoveWorkload("x"); u.RemovePolicy("x"); u.RemoveService(host("x")) })
	if fired(all) || fired(policies) {
		t.Error("nothing happened, but it was signalled")
	}
	apply(s, func(u *Update) { u.PutWorkload(pod("a", "", Healthy)) })
	if !fired(all) || fired(policies) {
		t.Error("a workload is a change, but none of policies")
	}
	all = s.Changed()
	if fired(all) {
		t.Error("the next change was signalled in advance")
	}
	apply(s, func(u *Update) { u.PutPolicy("ns/p", &Policy{}) })
	if !fired(all) || !fired(policies) {
		t.Error("a policy is a change of both kinds")
	}
}

// A waiter who takes the channel before it looks misses nothing.
func TestAWaiterMissesNothing(t *testing.T) {
	s := NewStore()
	var writer sync.WaitGroup
	writer.Go(func() {
		for i := range 100 {
			apply(s, func(u *Update) { u.PutWorkload(pod(fmt.Sprint(i), "", Healthy)) })
		}
	})
	for {
		changed := s.Changed()
		if s.View().Workload("99") != nil {
			break
		}
		<-changed
	}
	writer.Wait()
}

// The store keeps endpoints and indexes in place; a naive model forgets
// everything and builds it anew.
func TestTheIndexesAgreeWithANaiveModel(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	s := NewStore()
	workloads, services := map[string]*Workload{}, map[string]bool{}
	name := func(prefix string, n int) string { return fmt.Sprint(prefix, random.IntN(n)) }
	for range 3000 {
		switch random.IntN(5) {
		case 0, 1:
			w := pod(name("w", 12), fmt.Sprintf("10.0.0.%d", random.IntN(6)), Healthy, name("s", 4), name("s", 4))
			apply(s, func(u *Update) { u.PutWorkload(w) })
			workloads[w.UID] = w
		case 2:
			uid := name("w", 12)
			apply(s, func(u *Update) { u.RemoveWorkload(uid) })
			delete(workloads, uid)
		case 3:
			svc := name("s", 4)
			apply(s, func(u *Update) { u.PutService(&Service{Namespace: "ns", Hostname: svc}) })
			services[svc] = true
		case 4:
			svc := name("s", 4)
			apply(s, func(u *Update) { u.RemoveService(host(svc)) })
			delete(services, svc)
		}
		agree(t, s, workloads, services)
		if t.Failed() {
			return
		}
	}
}

func agree(t *testing.T, s *Store, workloads map[string]*Workload, services map[string]bool) {
	t.Helper()
	v := s.View()
	var waiting []string
	for i := range 4 {
		svc, members := fmt.Sprint("s", i), []string(nil)
		for uid, w := range workloads {
			if _, in := w.Services[host(svc)]; in {
				members = append(members, uid)
				if !services[svc] {
					waiting = append(waiting, svc+":"+uid)
				}
			}
			_, known := v.Endpoint(host(svc), uid)
			_, in := w.Services[host(svc)]
			if known != (in && services[svc]) {
				t.Errorf("%s in %s: %v", uid, svc, known)
			}
		}
		slices.Sort(members)
		if !services[svc] {
			members = nil
		}
		want(t, svc, endpoints(v, svc), strings.Join(members, " "))
	}
	slices.Sort(waiting)
	want(t, "staged", staged(v), strings.Join(waiting, " "))
	for i := range 6 {
		a := addr(fmt.Sprintf("10.0.0.%d", i))
		holders := 0
		for _, w := range workloads {
			if w.HasIP(a.Addr) {
				holders++
			}
		}
		if got := s.holders(a); got != holders {
			t.Errorf("%v: %d workloads, want %d", a, got, holders)
		}
	}
}

func TestReadersAndTheWriterShare(t *testing.T) {
	s := NewStore()
	apply(s, func(u *Update) { u.PutService(&Service{Namespace: "ns", Hostname: "svc"}) })
	stop := make(chan struct{})
	var readers sync.WaitGroup
	for range 4 {
		readers.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				v := s.View()
				endpoints(v, "svc")
				v.PoliciesFor(pod("x", "", Healthy))
				v.WorkloadAt(addr("10.0.0.1"))
				v.Workloads()
			}
		})
	}
	for i := range 300 {
		apply(s, func(u *Update) {
			u.PutWorkload(pod(fmt.Sprint("w", i%10), "10.0.0.1", Status(i%2), "svc"))
			u.PutPolicy(fmt.Sprint("ns/p", i%5), &Policy{Namespace: "ns", Scope: PolicyScope(i % 3)})
			u.RemoveWorkload(fmt.Sprint("w", (i+5)%10))
		})
	}
	close(stop)
	readers.Wait()
}

// holders counts the workloads that the index has for an address.
func (s *Store) holders(a NetworkAddr) int {
	now, n := s.now.Load(), 0
	h := now.hashAddr(a)
	for _, it := range now.byAddr.near(h) {
		if it.hash == h && it.value.HasIP(a.Addr) {
			n++
		}
	}
	return n
}
