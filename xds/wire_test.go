// SPDX-License-Identifier: Apache-2.0

package xds

import (
	"slices"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"

	"github.com/ztunnel-go/ztunnel/internal/logs"
	"github.com/ztunnel-go/ztunnel/internal/mesh"
	"github.com/ztunnel-go/ztunnel/test/fakeistiod"
	"github.com/ztunnel-go/ztunnel/xds/delta"
	sec "github.com/ztunnel-go/ztunnel/xds/pb/securitypb"
	pb "github.com/ztunnel-go/ztunnel/xds/pb/workloadpb"
)

// What is wrong with a message is said in the reference's words.
func TestFaults(t *testing.T) {
	for _, tc := range []struct {
		name, payload, want string
	}{
		{"varint that does not end", "\xff\xff", "invalid varint"},
		{"tag 0", "\x00", "invalid tag value: 0"},
		{"wire type 7", "\x0f", "invalid wire type value: 7"},
		{"length beyond the end", "\x0a\x05a", "Address.workload: buffer underflow"},
		{"inside", "\x0a\x02\xa2\x01", "Address.workload: Workload.uid: buffer underflow"},
		{"string that is none", "\x0a\x04\xa2\x01\x01\xff", "Address.workload: Workload.uid: invalid string value: data is not UTF-8 encoded"},
		{"number that does not end", "\x0a\x02\x28\xff", "Address.workload: Workload.tunnel_protocol: invalid varint"},
		{"list that does not end", "\x12\x05\x42\x03\x0a\x01\xff", "Address.service: Service.load_balancing: LoadBalancing.routing_preference: invalid varint"},
		{"group that was not opened", "\x0c", "Address.workload: unexpected end group tag"},
	} {
		err := decode(&delta.Resource{Payload: []byte(tc.payload), HasPayload: true}, &pb.Address{})
		if want := "decode: failed to decode Protobuf message: " + tc.want; err == nil || err.Error() != want {
			t.Errorf("%s: %v, want %s", tc.name, err, want)
		}
	}
}

// quiet is a feed without a control plane.
func quiet() *Feed {
	return &Feed{store: mesh.NewStore(), logger: logs.Target((&logLines{}).logger(), "xds")}
}

func one(payload []byte) []delta.Resource {
	return []delta.Resource{{Name: "ns/name", Payload: payload, HasPayload: true}}
}

// checkAddress applies anything as an address: it is either applied or
// refused by name.
func checkAddress(t *testing.T, payload []byte) {
	t.Helper()
	f := quiet()
	rejected := f.addresses(one(payload), nil)
	v := f.store.View()
	there := len(v.Workloads()) + len(v.Services())
	if len(rejected)+there != 1 {
		t.Fatalf("%x: %d there, refused: %v", payload, there, rejected)
	}
	if len(rejected) == 1 && (rejected[0].Name != "ns/name" || rejected[0].Reason == "" || strings.Contains(rejected[0].Reason, "malformed message")) {
		t.Fatalf("%x: %+v", payload, rejected[0])
	}
	f.addresses(one(payload), []string{"ns/name"}) // twice, and gone or not
	for _, w := range v.Workloads() {
		f.addresses(nil, []string{w.UID})
	}
	if n := len(v.Workloads()); n != 0 {
		t.Fatalf("%x: %d workloads stay", payload, n)
	}
}

// checkPolicy applies anything as a policy. One that was refused and is in
// force lets nobody in.
func checkPolicy(t *testing.T, payload []byte) {
	t.Helper()
	f := quiet()
	rejected := f.authorizations(one(payload), nil)
	p := f.store.View().Policy("ns/name")
	switch {
	case len(rejected) == 0 && p == nil, len(rejected) > 1:
		t.Fatalf("%x: %v, refused: %v", payload, p, rejected)
	case len(rejected) == 1 && rejected[0].Held != (p != nil):
		t.Fatalf("%x: held %v: %+v", payload, p, rejected[0])
	case len(rejected) == 1 && p != nil:
		open := p.Action == mesh.Allow && len(p.Rules) > 0 ||
			p.Action == mesh.Deny && !slices.ContainsFunc(p.Rules, func(r mesh.Rule) bool { return len(r) == 0 })
		if open {
			t.Fatalf("%x: refused, and applied as %+v", payload, p)
		}
	}
}

func addressSeeds() [][]byte {
	return [][]byte{
		fakeistiod.Workload(fullWorkload()).Payload,
		fakeistiod.Workload(simpleWorkload("w1", "n")).Payload,
		fakeistiod.Service(simpleService()).Payload,
		fakeistiod.Service(&pb.Service{
			Namespace: "ns", Hostname: "h", LoadBalancing: &pb.LoadBalancing{RoutingPreference: []pb.LoadBalancing_Scope{1, 2}},
			WeightedWaypoints: []*pb.WeightedWaypoint{{Destination: byHost("a", "b", 1), Weight: 1}},
			Addresses:         []*pb.NetworkAddress{networkAddress("10.0.0.0", ptr[uint32](8))},
		}).Payload,
		// Both members of the oneof: the last one counts.
		append(fakeistiod.Workload(simpleWorkload("w1", "n")).Payload, fakeistiod.Service(simpleService()).Payload...),
		append(fakeistiod.Service(simpleService()).Payload, fakeistiod.Workload(simpleWorkload("w1", "n")).Payload...),
		{},
		{0xff, 0xff},
	}
}

func policySeeds() [][]byte {
	refused := &sec.Authorization{Name: "p", Namespace: "ns", Action: sec.Action_DENY, Rules: oneMatch(&sec.Match{Principals: []*sec.StringMatch{{}}})}
	return [][]byte{
		fakeistiod.Policy(fullPolicy()).Payload,
		fakeistiod.Policy(simplePolicy("p", 0, &sec.Rule{})).Payload,
		fakeistiod.Policy(refused).Payload,
		{},
		{0xff, 0xff},
	}
}

func TestEveryPrefixOfAResource(t *testing.T) {
	for _, b := range addressSeeds() {
		for n := range len(b) + 1 {
			checkAddress(t, b[:n])
		}
	}
	for _, b := range policySeeds() {
		for n := range len(b) + 1 {
			checkPolicy(t, b[:n])
		}
	}
}

func FuzzAddress(f *testing.F) {
	for _, b := range addressSeeds() {
		f.Add(b)
	}
	f.Fuzz(checkAddress)
}

func FuzzAuthorization(f *testing.F) {
	for _, b := range policySeeds() {
		f.Add(b)
	}
	f.Fuzz(checkPolicy)
}

// The files under xds/proto are what contract 9 lists; the numbers are what
// others see of them.
func TestMessageNames(t *testing.T) {
	for _, tc := range []struct {
		m    proto.Message
		want string
	}{
		{&pb.Address{}, "istio.workload.Address"}, {&sec.Authorization{}, "istio.security.Authorization"},
	} {
		if got := string(tc.m.ProtoReflect().Descriptor().FullName()); got != tc.want {
			t.Errorf("%s, want %s", got, tc.want)
		}
	}
}
