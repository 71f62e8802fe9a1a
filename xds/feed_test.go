// SPDX-License-Identifier: Apache-2.0

package xds

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/ztunnel-go/ztunnel/internal/mesh"
	"github.com/ztunnel-go/ztunnel/test/fakeistiod"
	"github.com/ztunnel-go/ztunnel/test/leak"
	sec "github.com/ztunnel-go/ztunnel/xds/pb/securitypb"
	pb "github.com/ztunnel-go/ztunnel/xds/pb/workloadpb"
)

func TestAMeshArrivesChangesAndGoes(t *testing.T) {
	leak.Check(t)
	srv := fakeistiod.Start(t, fakeistiod.Options{})
	srv.World.Put(
		fakeistiod.Workload(simpleWorkload("w1", "node1")), fakeistiod.Service(simpleService()),
		fakeistiod.Policy(simplePolicy("p", sec.Scope_NAMESPACE)),
	)
	f := feedFrom(t, srv, nil)
	f.ready(t)
	if w := f.view.Workload("w1"); w == nil || f.view.Service(serviceKey) == nil || f.view.Policy("ns/p") == nil || !slices.Equal(f.endpoints(), []string{"w1"}) {
		t.Fatalf("workload %v, endpoints %v", w, f.endpoints())
	}
	if !f.log.has("handling RBAC update ns/p") {
		t.Error("policies come unheard")
	}
	if e := f.push(t, []fakeistiod.Resource{fakeistiod.Workload(simpleWorkload("w2", "node2"))}); e != "" {
		t.Error(e)
	}
	if !slices.Equal(f.endpoints(), []string{"w1", "w2"}) {
		t.Errorf("endpoints %v", f.endpoints())
	}
	srv.World.Remove(AuthorizationType, "ns/p")
	srv.World.Remove(AddressType, "w1")
	until(t, "removals", func() bool { return f.view.Workload("w1") == nil && f.view.Policy("ns/p") == nil })
	if !slices.Equal(f.endpoints(), []string{"w2"}) || !f.log.has("handling RBAC delete ns/p") {
		t.Errorf("endpoints %v", f.endpoints())
	}
	srv.World.Remove(AddressType, "ns/s.example")
	until(t, "removal of the service", func() bool { return f.view.Service(serviceKey) == nil })
	srv.World.Put(fakeistiod.Service(simpleService()))
	until(t, "the service that came back with its endpoint", func() bool { return slices.Equal(f.endpoints(), []string{"w2"}) })
}

func TestBadResourcesAreNamedAndGoodOnesApplied(t *testing.T) {
	leak.Check(t)
	srv := fakeistiod.Start(t, fakeistiod.Options{})
	f := feedFrom(t, srv, nil)
	f.ready(t)
	bad := simpleWorkload("bad2", "n")
	bad.Addresses = [][]byte{make([]byte, 5)}
	future := simpleWorkload("bad3", "n")
	future.TunnelProtocol = 7
	got := f.push(t, []fakeistiod.Resource{
		{Type: AddressType, Name: "bad1", Payload: []byte{0xff, 0xff}},
		{Type: AddressType, Name: "bad0", Bare: true},
		{Type: AddressType, Name: "bad4"},
		fakeistiod.Workload(bad), fakeistiod.Workload(simpleWorkload("good", "n")), fakeistiod.Workload(future),
		{Type: AddressType, Name: "badS", Payload: fakeistiod.Service(&pb.Service{IpFamilies: 9}).Payload},
	})
	// What was read and is wrong comes first, then what could not be read.
	want := "bad4: unknown address type; badS: unknown enum: unknown enumeration value 9; " +
		"bad2: failed to parse address, had 5 bytes; bad3: unknown enum: unknown enumeration value 7; " +
		"bad0: XDS payload without resource; bad1: decode: failed to decode Protobuf message: invalid varint"
	if got != want {
		t.Errorf("refused\n%s\nwant\n%s", got, want)
	}
	if f.view.Workload("good") == nil || f.view.Workload("bad2") != nil {
		t.Error("the good one is not there, or a bad one is")
	}
}

// An update that is refused leaves what was there.
func TestGoodStateStays(t *testing.T) {
	leak.Check(t)
	srv := fakeistiod.Start(t, fakeistiod.Options{})
	srv.World.Put(fakeistiod.Workload(simpleWorkload("w1", "n")))
	f := feedFrom(t, srv, nil)
	f.ready(t)
	bad := simpleWorkload("w1", "n")
	bad.Status = 9
	if e := f.push(t, []fakeistiod.Resource{fakeistiod.Workload(bad)}); e == "" {
		t.Error("taken")
	}
	if f.view.Workload("w1") == nil || len(f.endpoints()) != 0 {
		t.Error("the good version is gone")
	}
}

func TestHealthPolicyOfTheSameResponseCounts(t *testing.T) {
	leak.Check(t)
	srv := fakeistiod.Start(t, fakeistiod.Options{})
	f := feedFrom(t, srv, nil)
	f.ready(t)
	sick := simpleWorkload("w2", "n")
	sick.Status = pb.WorkloadStatus_UNHEALTHY
	all := simpleService()
	all.LoadBalancing = &pb.LoadBalancing{HealthPolicy: pb.LoadBalancing_ALLOW_ALL}
	resources := []fakeistiod.Resource{
		fakeistiod.Workload(simpleWorkload("w1", "n")), fakeistiod.Workload(sick), fakeistiod.Service(simpleService()),
	}
	f.push(t, resources)
	if got := f.endpoints(); !slices.Equal(got, []string{"w1"}) {
		t.Errorf("healthy ones only: %v", got)
	}
	resources[2] = fakeistiod.Service(all)
	f.push(t, resources[1:])
	if got := f.endpoints(); !slices.Equal(got, []string{"w1", "w2"}) {
		t.Errorf("all of them: %v", got)
	}
	f.push(t, []fakeistiod.Resource{fakeistiod.Service(simpleService())})
	f.push(t, []fakeistiod.Resource{fakeistiod.Service(all)})
	if got := f.endpoints(); !slices.Equal(got, []string{"w1"}) {
		t.Errorf("switching back restores nothing by itself: %v", got)
	}
}

// One response may both bring and remove a name: the removal counts.
func TestUpdatesComeBeforeRemovals(t *testing.T) {
	leak.Check(t)
	srv := fakeistiod.Start(t, fakeistiod.Options{Script: func(st *fakeistiod.Stream) error {
		if err := st.Greet(); err != nil {
			return err
		}
		_, err := st.Push("1", []fakeistiod.Resource{
			fakeistiod.Workload(simpleWorkload("w1", "n")), fakeistiod.Workload(simpleWorkload("w2", "n")),
		}, "w1", "no slash", "ns/unknown.example", "cluster1//v1/Pod/ns/unknown")
		if err == nil {
			_, err = st.Push("2", []fakeistiod.Resource{fakeistiod.Policy(simplePolicy("p", 0))}, "ns/p", "ns/never")
		}
		<-st.Done()
		return err
	}})
	f := feedFrom(t, srv, nil)
	f.ready(t)
	if f.view.Workload("w1") != nil || f.view.Workload("w2") == nil || f.view.Policy("ns/p") != nil {
		t.Error("the removals did not come last")
	}
	if !f.log.has("level=WARN", `tried to remove \"no slash\"`) || !f.log.has("level=WARN", "tried to remove service, but it was not found: ns/unknown.example") || f.log.has("Pod/ns/unknown") {
		t.Errorf("log: %s", f.log.buf.String())
	}
}

func TestAPolicyThatIsNotUnderstoodIsClosedAndItsRemovalHeard(t *testing.T) {
	leak.Check(t)
	srv := fakeistiod.Start(t, fakeistiod.Options{})
	srv.World.Put(fakeistiod.Policy(simplePolicy("p", sec.Scope_NAMESPACE, oneMatch(&sec.Match{Principals: []*sec.StringMatch{{}}})...)))
	f := feedFrom(t, srv, nil)
	until(t, "the policy", func() bool { return f.view.Policy("ns/p") != nil })
	if p := f.view.Policy("ns/p"); p.Rules != nil || p.Action != mesh.Allow {
		t.Errorf("applied as %+v", p)
	}
	until(t, "the refusal", func() bool {
		return f.log.has("level=WARN", "ns/p: rule 0: clause 0: match 0: principals: a string match without a kind (the policy is applied as an ALLOW that matches nothing)")
	})
	srv.Stop()
	srv.World.Remove(AuthorizationType, "ns/p")
	if err := srv.Restart(); err != nil {
		t.Fatal(err)
	}
	until(t, "the removal", func() bool { return f.view.Policy("ns/p") == nil })
	f.ready(t)
}

func TestCertificatesAreAskedForAndForgotten(t *testing.T) {
	leak.Check(t)
	srv := fakeistiod.Start(t, fakeistiod.Options{})
	f := feedFrom(t, srv, nil)
	f.ready(t)
	plain, native, shared := simpleWorkload("plain", "node1"), simpleWorkload("native", "node1"), simpleWorkload("shared", "node1")
	plain.TunnelProtocol = pb.TunnelProtocol_NONE
	native.TunnelProtocol, native.NativeTunnel = pb.TunnelProtocol_NONE, true
	shared.ServiceAccount = "sa-w1"
	f.store.Apply(func(u *mesh.Update) { // a local document's, which nobody announced
		u.PutWorkload(&mesh.Workload{UID: "static", Namespace: "ns", TrustDomain: "cluster.local", ServiceAccount: "sa-native", Node: "node1"})
	})
	f.push(t, []fakeistiod.Resource{
		fakeistiod.Workload(simpleWorkload("w1", "node1")), fakeistiod.Workload(simpleWorkload("far", "node2")),
		fakeistiod.Workload(plain), fakeistiod.Workload(native), fakeistiod.Workload(shared),
	})
	const sa = " cluster.local/ns/ns/sa/sa-"
	want := []string{"prefetch" + sa + "native", "prefetch" + sa + "w1", "prefetch" + sa + "w1"}
	if got := slices.Sorted(slices.Values(f.certs.list())); !slices.Equal(got, want) {
		t.Errorf("asked for %q, want %q", got, want)
	}
	srv.World.Remove(AddressType, "w1") // shared has its identity too
	until(t, "removal", func() bool { return f.view.Workload("w1") == nil })
	srv.World.Remove(AddressType, "far", "native")
	until(t, "removal", func() bool { return f.view.Workload("native") == nil })
	moved := simpleWorkload("shared", "node1") // with an identity of its own
	f.push(t, []fakeistiod.Resource{fakeistiod.Workload(moved)})
	srv.World.Remove(AddressType, "plain")
	until(t, "three to be forgotten", func() bool { return len(f.certs.list()) >= 6 })
	got := f.certs.list()[3:]
	want = []string{"prefetch" + sa + "shared", "forget" + sa + "w1", "forget" + sa + "plain"}
	if !slices.Equal(got, want) {
		t.Errorf("then %q, want %q", got, want)
	}
}

func TestDemandReturnsWhenTheStoreHasIt(t *testing.T) {
	leak.Check(t)
	srv := fakeistiod.Start(t, fakeistiod.Options{})
	w := fakeistiod.Workload(simpleWorkload("w1", "node1"))
	w.Aliases = []string{"/10.0.0.49"}
	srv.World.Put(w, fakeistiod.Service(simpleService()))
	f := feedFrom(t, srv, func(c *Config) { c.OnDemand = true })
	f.ready(t)
	if f.view.Workload("w1") != nil {
		t.Fatal("came unasked")
	}
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	if err := f.Demand(ctx, "ns/s.example"); err != nil || f.view.Service(serviceKey) == nil {
		t.Errorf("service: %v", err)
	}
	if err := f.Demand(ctx, "/10.0.0.49"); err != nil || f.view.Workload("w1") == nil || len(f.endpoints()) != 1 {
		t.Errorf("workload: %v", err)
	}
	if err := f.Demand(ctx, "ns/none.example"); err != nil {
		t.Errorf("nothing: %v", err)
	}
	given, up := context.WithCancel(t.Context())
	up()
	if err := f.Demand(given, "ns/late.example"); err == nil {
		t.Error("given up without an error")
	}
}

func TestTheNodeSaysWhoWeAre(t *testing.T) {
	leak.Check(t)
	srv := fakeistiod.Start(t, fakeistiod.Options{})
	f := feedFrom(t, srv, func(c *Config) {
		c.Node.Metadata = map[string]string{"NAME": "over", "EXTRA": "x"}
		c.Node.MetadataJSON = map[string]json.RawMessage{
			"EXTRA": json.RawMessage(`{"a":[1,true,null,"s",{"b":2.5}],"a2":1,"a2":2}`), "BAD": json.RawMessage(`{`),
		}
	})
	f.ready(t)
	node := srv.Requests()[0].GetNode()
	if node.GetId() != "ztunnel~1.1.1.1~z.istio-system~istio-system.svc.cluster.local" || node.GetCluster() != "" {
		t.Errorf("node %v", node)
	}
	got, err := json.Marshal(node.GetMetadata().AsMap())
	want := `{"EXTRA":{"a":[1,true,null,"s",{"b":2.5}],"a2":2},"INSTANCE_IPS":"1.1.1.1","NAME":"over","NAMESPACE":"istio-system","NODE_NAME":"node1"}`
	if err != nil || string(got) != want {
		t.Errorf("metadata %s, want %s", got, want)
	}
	if !f.log.has("level=ERROR", "failed to parse BAD={") {
		t.Error("bad JSON passes unheard")
	}
}

func TestWhatArrivesIsCounted(t *testing.T) {
	leak.Check(t)
	srv := fakeistiod.Start(t, fakeistiod.Options{})
	w := fakeistiod.Workload(simpleWorkload("w1", "n"))
	srv.World.Put(w)
	f := feedFrom(t, srv, nil)
	f.ready(t)
	if err := srv.Restart(); err != nil {
		t.Fatal(err)
	}
	until(t, "a second stream's answers", func() bool { return f.answers() >= 4 })
	f.Close()
	var text bytes.Buffer
	if err := f.reg.Expose(&text); err != nil {
		t.Fatal(err)
	}
	for _, line := range []string{
		`istio_xds_connection_terminations_total{reason="Reconnect"} 1`,
		fmt.Sprintf(`istio_xds_message_total{url=%q} 2`, AddressType),
		fmt.Sprintf(`istio_xds_message_bytes_total{url=%q} %d`, AddressType, 2*len(w.Payload)),
		fmt.Sprintf(`istio_xds_message_bytes_total{url=%q} 0`, AuthorizationType),
		"# UNIT istio_xds_message_bytes bytes",
		"# TYPE istio_xds_message counter",
	} {
		if !strings.Contains(text.String(), line+"\n") {
			t.Errorf("no line %s in\n%s", line, text.String())
		}
	}
	lint(t, f.reg.Registerer())
}

// lint sees that the names are new to the registry only once.
func lint(t *testing.T, reg prometheus.Registerer) {
	t.Helper()
	defer func() {
		if recover() == nil {
			t.Error("the families were not registered")
		}
	}()
	NewMetrics(reg)
}

// A control plane tells everything again on each stream; what is known costs
// nothing.
func TestWhatIsToldAgainIsNoChange(t *testing.T) {
	leak.Check(t)
	srv := fakeistiod.Start(t, fakeistiod.Options{})
	world := []fakeistiod.Resource{fakeistiod.Workload(fullWorkload()), fakeistiod.Workload(simpleWorkload("w1", "n")), fakeistiod.Service(simpleService())}
	sick := simpleWorkload("w2", "n")
	sick.Status = pb.WorkloadStatus_UNHEALTHY
	srv.World.Put(append(world, fakeistiod.Workload(sick))...)
	f := feedFrom(t, srv, nil)
	f.ready(t)
	w, s, changed := f.view.Workload("w1"), f.view.Service(serviceKey), f.store.Changed()
	f.push(t, world[1:])
	if f.view.Workload("w1") != w || f.view.Service(serviceKey) != s {
		t.Error("put again")
	}
	select {
	case <-changed:
		t.Error("told of as a change")
	default:
	}
	all := simpleService()
	all.LoadBalancing = &pb.LoadBalancing{HealthPolicy: pb.LoadBalancing_ALLOW_ALL}
	f.push(t, []fakeistiod.Resource{fakeistiod.Service(all)})
	f.push(t, []fakeistiod.Resource{fakeistiod.Workload(sick)})
	if got := f.endpoints(); !slices.Equal(got, []string{"w1", "w2"}) {
		t.Errorf("an unhealthy one that is told again: endpoints %v", got)
	}
}

// A local document stays where the control plane says nothing, and gives way
// where it does.
func TestTheControlPlaneOverlaysALocalDocument(t *testing.T) {
	leak.Check(t)
	srv := fakeistiod.Start(t, fakeistiod.Options{})
	srv.World.Put(fakeistiod.Workload(simpleWorkload("w1", "n")))
	f := feedFrom(t, srv, nil)
	static, err := ParseLocal("inline", []byte("workloads: [{uid: w1, namespace: local, workloadIps: [], services: {}}, {uid: w2, namespace: local, workloadIps: [], services: {}}]"))
	if err != nil {
		t.Fatal(err)
	}
	f.ready(t)
	static.Apply(f.store, nil)
	f.push(t, []fakeistiod.Resource{fakeistiod.Workload(simpleWorkload("w1", "n"))})
	got := map[string]string{}
	for _, w := range f.view.Workloads() {
		got[w.UID] = w.Namespace
	}
	if want := map[string]string{"w1": "ns", "w2": "local"}; !maps.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}
