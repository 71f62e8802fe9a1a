// SPDX-License-Identifier: Apache-2.0

package xds

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/ztunnel-go/ztunnel/internal/mesh"
)

// keys tells what a store holds, one word for each thing.
func keys(store *mesh.Store) string {
	var words []string
	v := store.View()
	for _, w := range v.Workloads() {
		words = append(words, "w:"+w.UID+"="+w.Name)
	}
	for _, s := range v.Services() {
		words = append(words, "s:"+s.Key().String()+"="+s.Name)
		v.Endpoints(s.Key(), func(ep mesh.Endpoint, _ *mesh.Workload) bool {
			words = append(words, fmt.Sprintf("e:%s=%d", ep.WorkloadUID, ep.Ports[80]))
			return true
		})
	}
	for _, p := range v.Policies() {
		words = append(words, "p:"+p.Key)
	}
	return strings.Join(words, " ")
}

const firstVersion = `
workloads:
- {uid: a, name: a, namespace: n, workloadIps: [], services: {n/h: {80: 1}}, hostname: x}
- {uid: b, name: b, namespace: n, workloadIps: [], services: {n/h: {80: 2}}, hostname: x}
services:
- {namespace: n, hostname: h, name: h, ports: {80: 80}}
policies:
- {name: p, namespace: n, scope: Namespace, action: Deny, rules: []}
`

func TestApplyTouchesOnlyWhatDiffers(t *testing.T) {
	store := mesh.NewStore()
	first := parse(t, firstVersion)
	first.Apply(store, nil)
	if got, want := keys(store), "w:a=a w:b=b s:n/h=h e:a=1 e:b=2 p:n/p"; got != want {
		t.Fatalf("first: %s, want %s", got, want)
	}
	kept := store.View().Workload("a")
	policies := store.PoliciesChanged()

	second := parse(t, strings.NewReplacer("name: b", "name: c").Replace(firstVersion)+`
- {name: q, namespace: n, scope: Namespace, action: Deny, rules: []}
`)
	second.Apply(store, first)
	if got, want := keys(store), "w:a=a w:b=c s:n/h=h e:a=1 e:b=2 p:n/p p:n/q"; got != want {
		t.Errorf("second: %s, want %s", got, want)
	}
	if store.View().Workload("a") != kept {
		t.Error("a workload that did not change was replaced")
	}
	select {
	case <-policies:
	default:
		t.Error("a new policy was not signalled")
	}

	changed := store.Changed()
	third := parse(t, strings.NewReplacer("name: b", "name: c").Replace(firstVersion)+`
- {name: q, namespace: n, scope: Namespace, action: Deny, rules: []}
`)
	third.Apply(store, second)
	select {
	case <-changed:
		t.Error("an equal version changed the store")
	default:
	}

	(&Static{}).Apply(store, third)
	if got := keys(store); got != "" {
		t.Errorf("empty version left %s", got)
	}
	if staged := store.View().StagedEndpoints(); len(staged) != 0 {
		t.Errorf("empty version left staged endpoints %v", staged)
	}
}

func TestApplyLeavesWhatTheControlPlaneOverlaid(t *testing.T) {
	store := mesh.NewStore()
	first := parse(t, firstVersion)
	first.Apply(store, nil)
	theirs := &mesh.Workload{UID: "a", Name: "theirs", Namespace: "n"}
	deny := &mesh.Policy{Name: "p", Namespace: "n", Action: mesh.Deny}
	svc := &mesh.Service{Name: "theirs", Namespace: "n", Hostname: "h"}
	store.Apply(func(u *mesh.Update) {
		u.PutWorkload(theirs)
		u.PutPolicy("n/p", deny)
		u.PutService(svc)
	})
	second := parse(t, strings.NewReplacer("name: a", "name: mine", "action: Deny", "action: Allow", "name: h", "name: mine").Replace(firstVersion))
	second.Apply(store, first)
	(&Static{}).Apply(store, second)
	v := store.View()
	if v.Workload("a") != theirs || v.Policy("n/p") != deny || v.Service(svc.Key()) != svc {
		t.Errorf("the control plane's state was changed: %s", keys(store))
	}
	if v.Workload("b") != nil {
		t.Error("our own workload stayed")
	}
}

func TestApplyFollowsTheEndpointsThatServicesList(t *testing.T) {
	const with, without = `
workloads:
- {uid: a, name: %s, namespace: n, workloadIps: [], services: {n/h: {80: 1}}}
- {uid: b, name: b, namespace: n, workloadIps: [], services: {}}
services:
- {namespace: n, hostname: h, name: h, endpoints: {a: {port: {80: 7}}, b: {port: {80: 8}}}}
`, `
workloads:
- {uid: a, name: %s, namespace: n, workloadIps: [], services: {n/h: {80: 1}}}
- {uid: b, name: b, namespace: n, workloadIps: [], services: {}}
services:
- {namespace: n, hostname: h, name: h}
`
	store := mesh.NewStore()
	var previous *Static
	for _, step := range []struct{ text, want string }{
		{fmt.Sprintf(with, "a"), "w:a=a w:b=b s:n/h=h e:a=7 e:b=8"},
		{fmt.Sprintf(with, "c"), "w:a=c w:b=b s:n/h=h e:b=8 e:a=7"}, // the workload was replaced; its endpoint is still the listed one
		{fmt.Sprintf(without, "c"), "w:a=c w:b=b s:n/h=h e:a=1"},    // and now the one it names itself
		{"{}", ""},
	} {
		next := parse(t, step.text)
		next.Apply(store, previous)
		if got := keys(store); got != step.want {
			t.Errorf("%s, want %s", got, step.want)
		}
		previous = next
	}
	if staged := store.View().StagedEndpoints(); len(staged) != 0 {
		t.Errorf("staged endpoints are left: %v", staged)
	}
}

func TestAnAddressThatMovesIsNeverUnknown(t *testing.T) {
	const version = "workloads: [{uid: %s, namespace: n, workloadIps: [10.0.0.1], services: {}}]"
	store := mesh.NewStore()
	first := parse(t, fmt.Sprintf(version, "a"))
	first.Apply(store, nil)
	addr := mesh.NetworkAddr{Addr: first.Workloads[0].IPs[0]}
	done := make(chan struct{})
	go func() {
		defer close(done)
		parse(t, fmt.Sprintf(version, "b")).Apply(store, first)
	}()
	for {
		if store.View().WorkloadAt(addr) == nil {
			t.Fatal("nobody has the address")
		}
		select {
		case <-done:
			if uid := store.View().WorkloadAt(addr).UID; uid != "b" {
				t.Errorf("the address is %s's", uid)
			}
			return
		default:
		}
	}
}

// A version is there whole or not at all, whatever its size.
func TestApplyIsOneStep(t *testing.T) {
	const many = 1000
	var b strings.Builder
	b.WriteString("workloads:\n")
	for i := range many {
		fmt.Fprintf(&b, "- {uid: u%d, namespace: n, workloadIps: [], services: {}}\n", i)
	}
	store := mesh.NewStore()
	s := parse(t, b.String())
	changed := store.Changed()
	go s.Apply(store, nil)
	for present := 0; present < many; present = len(store.View().Workloads()) {
		if present != 0 {
			t.Fatalf("%d workloads of %d", present, many)
		}
	}
	<-changed
	(&Static{}).Apply(store, s)
	if left := len(store.View().Workloads()); left != 0 {
		t.Errorf("%d workloads are left", left)
	}
}

func TestTheSampleIsTheMeshThatItDescribes(t *testing.T) {
	store := mesh.NewStore()
	s := parse(t, string(sample(t)))
	s.Apply(store, nil)
	v := store.View()
	at := func(network, ip string) mesh.NetworkAddr {
		return mesh.NetworkAddr{Network: network, Addr: netip.MustParseAddr(ip)}
	}
	local := v.LocalWorkload("local", "local", "default", "local")
	if local == nil || v.WorkloadAt(at("", "127.0.0.1")) != local {
		t.Fatalf("the local workload: %v", local)
	}
	// The membership is on the workload, too, so that inbound labels are right.
	if _, ok := v.Endpoint(mesh.NamespacedHostname{Namespace: "default", Hostname: "example.com"}, local.UID); !ok || len(local.Services) != 2 {
		t.Errorf("its services: %v", local.Services)
	}
	if svc := v.ServiceByVIP(at("", "127.10.0.2"), "default"); svc != nil {
		t.Errorf("the remote VIP is %v's here", svc.Key())
	}
	if svc := v.ServiceByVIP(at("remote", "127.10.0.2"), "default"); svc == nil || svc.Hostname != "example2.com" {
		t.Errorf("the remote VIP: %v", svc)
	}
	if v.WorkloadAt(at("", "127.0.0.9")) != nil {
		t.Error("the node's address is a workload's")
	}
	found, missing := v.PoliciesFor(local)
	if len(found) != 1 || found[0].Key != "default/not-9999" || missing != nil {
		t.Errorf("its policies: %v, missing %v", found, missing)
	}
}
