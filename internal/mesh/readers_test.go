// SPDX-License-Identifier: Apache-2.0

package mesh

import (
	"fmt"
	"net/netip"
	"sync"
	"testing"
)

// What a reader has pinned never changes, whatever the writer does; and what
// one step of the writer moves is in one place at each moment.
func TestReadersSeeWholeStates(t *testing.T) {
	s := NewStore()
	v := s.View()
	var at [50]NetworkAddr
	for i := range at {
		at[i] = NetworkAddr{"", netip.AddrFrom4([4]byte{10, 0, 0, byte(i)})}
	}
	version := func(n int) func(u *Update) {
		return func(u *Update) {
			u.PutService(&Service{Namespace: "ns", Hostname: "svc", Name: fmt.Sprint(n)})
			for i := range at { // the address moves from one workload to another
				u.RemoveWorkload(fmt.Sprint("w", i, "-", n-1))
				w := pod(fmt.Sprint("w", i, "-", n), at[i].Addr.String(), Healthy, "svc")
				w.Node = fmt.Sprint(n)
				u.PutWorkload(w)
			}
		}
	}
	s.Apply(version(0))
	stop := make(chan struct{})
	var readers sync.WaitGroup
	for range 4 {
		readers.Go(func() {
			for i := 0; ; i++ {
				select {
				case <-stop:
					return
				default:
				}
				if v.WorkloadAt(at[i%len(at)]) == nil || v.Service(host("svc")) == nil {
					t.Error("something that is only replaced is not there")
					return
				}
				whole(t, v.Pin(), len(at))
			}
		})
	}
	for n := range 300 {
		s.Apply(version(n + 1))
	}
	close(stop)
	readers.Wait()
}

// whole holds a pinned view against itself.
func whole(t *testing.T, v View, members int) {
	name, seen := v.Service(host("svc")).Name, 0
	v.Endpoints(host("svc"), func(ep Endpoint, w *Workload) bool {
		seen++
		if w.Node != name || v.Workload(ep.WorkloadUID) != w || v.WorkloadAt(NetworkAddr{"", w.IPs[0]}) != w || ep.Ports[80] != 8080 {
			t.Errorf("%s of version %s in version %s", w.UID, w.Node, name)
		}
		return true
	})
	if seen != members {
		t.Errorf("%d members", seen)
	}
}

func TestAChangeThatPanicsHasNotHappened(t *testing.T) {
	s := NewStore()
	apply(s, func(u *Update) { u.PutWorkload(pod("a", "10.0.0.1", Healthy, "svc")) })
	func() {
		defer func() { recover() }()
		apply(s, func(u *Update) {
			u.PutService(&Service{Namespace: "ns", Hostname: "svc"})
			u.RemoveWorkload("a")
			panic("x")
		})
	}()
	if s.View().Workload("a") == nil || s.View().Service(host("svc")) != nil {
		t.Error("half of it has")
	}
	apply(s, func(u *Update) { u.PutService(&Service{Namespace: "ns", Hostname: "svc"}) })
	want(t, "endpoints", endpoints(s.View(), "svc"), "a")
}

func TestAWaiterHearsOfItsPodOnly(t *testing.T) {
	s := NewStore()
	fired := func(c <-chan struct{}) bool {
		select {
		case <-c:
			return true
		default:
			return false
		}
	}
	mine, forget := s.WorkloadChanged("ns", "a")
	again, forgetAgain := s.WorkloadChanged("ns", "a")
	apply(s, func(u *Update) { u.PutWorkload(pod("b", "", Healthy)) })
	if fired(mine) {
		t.Error("another pod woke it")
	}
	forgetAgain()
	apply(s, func(u *Update) { u.PutWorkload(pod("a", "", Healthy)) })
	if !fired(mine) || !fired(again) {
		t.Error("its own did not")
	}
	forget()
	change, forget := s.WorkloadChanged("ns", "a")
	apply(s, func(u *Update) { u.PutWorkload(pod("a", "", Healthy)) })
	if !fired(change) {
		t.Error("a change did not wake it")
	}
	forget()
	_, forget = s.WorkloadChanged("ns", "a")
	forget()
	if len(s.waiters.byPod) != 0 {
		t.Errorf("left: %v", s.waiters.byPod)
	}
}
