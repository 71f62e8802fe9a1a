// SPDX-License-Identifier: Apache-2.0

package xds

import (
	"net/netip"
	"reflect"
	"strings"
	"testing"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/emptypb"

	"github.com/ztunnel-go/ztunnel/internal/mesh"
	sec "github.com/ztunnel-go/ztunnel/xds/pb/securitypb"
)

func exact(s string) *sec.StringMatch {
	return &sec.StringMatch{MatchType: &sec.StringMatch_Exact{Exact: s}}
}

func oneMatch(m *sec.Match) []*sec.Rule {
	return []*sec.Rule{{Clauses: []*sec.Clause{{Matches: []*sec.Match{m}}}}}
}

// fullPolicy has every field set.
func fullPolicy() *sec.Authorization {
	any4 := []*sec.Address{{Address: []byte{10, 1, 2, 3}, Length: 8}}
	return &sec.Authorization{
		Name: "p", Namespace: "ns", Scope: sec.Scope_NAMESPACE, Action: sec.Action_DENY, DryRun: true,
		Extensions: []*sec.Extension{{Name: "ignored"}},
		Rules: append(oneMatch(&sec.Match{
			Namespaces: []*sec.StringMatch{exact("a"), {MatchType: &sec.StringMatch_Presence{Presence: &emptypb.Empty{}}}},
			NotNamespaces: []*sec.StringMatch{
				{MatchType: &sec.StringMatch_Prefix{Prefix: "b"}}, {MatchType: &sec.StringMatch_Suffix{Suffix: "c"}},
			},
			Principals: []*sec.StringMatch{exact("d")}, NotPrincipals: []*sec.StringMatch{exact("e")},
			SourceIps: any4, NotSourceIps: any4,
			DestinationIps:    []*sec.Address{{Address: make([]byte, 16), Length: 0}},
			NotDestinationIps: []*sec.Address{{Address: []byte{10, 0, 0, 1}, Length: 32}},
			DestinationPorts:  []uint32{80}, NotDestinationPorts: []uint32{65535},
			ServiceAccounts:    []*sec.ServiceAccountMatch{{Namespace: "f", ServiceAccount: "g"}},
			NotServiceAccounts: []*sec.ServiceAccountMatch{{Namespace: "h", ServiceAccount: "i"}},
		}), &sec.Rule{}, &sec.Rule{Clauses: []*sec.Clause{{}}}, &sec.Rule{Clauses: []*sec.Clause{{Matches: []*sec.Match{{}}}}}),
	}
}

func TestAPolicyWithEverything(t *testing.T) {
	var tr translator
	got, err := tr.policy(fullPolicy())
	if err != nil {
		t.Fatal(err)
	}
	ten := []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}
	want := &mesh.Policy{
		Name: "p", Namespace: "ns", Scope: mesh.ScopeNamespace, Action: mesh.Deny, DryRun: true,
		Rules: []mesh.Rule{{{{
			Namespaces:    []mesh.StringMatch{{Kind: mesh.Exact, Value: "a"}, {Kind: mesh.Presence}},
			NotNamespaces: []mesh.StringMatch{{Kind: mesh.Prefix, Value: "b"}, {Kind: mesh.Suffix, Value: "c"}},
			Principals:    []mesh.StringMatch{{Kind: mesh.Exact, Value: "d"}}, NotPrincipals: []mesh.StringMatch{{Kind: mesh.Exact, Value: "e"}},
			ServiceAccounts:    []mesh.ServiceAccountMatch{{Namespace: "f", ServiceAccount: "g"}},
			NotServiceAccounts: []mesh.ServiceAccountMatch{{Namespace: "h", ServiceAccount: "i"}},
			SourceIPs:          ten, NotSourceIPs: ten,
			DestinationIPs: []netip.Prefix{netip.MustParsePrefix("::/0")}, NotDestinationIPs: []netip.Prefix{netip.MustParsePrefix("10.0.0.1/32")},
			DestinationPorts: []uint16{80}, NotDestinationPorts: []uint16{65535},
		}}}, nil, {nil}, {{{}}}},
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got  %+v\nwant %+v", got, want)
	}
}

func TestPoliciesOfUnknownKindAreNotApplied(t *testing.T) {
	var tr translator
	for _, p := range []*sec.Authorization{{Scope: 9}, {Action: 9}} {
		got, err := tr.policy(p)
		if got != nil || err == nil || err.Error() != "unknown enum: unknown enumeration value 9" {
			t.Errorf("%v: %v, %v", p, got, err)
		}
	}
}

// with adds a field that nobody knows to a message.
func with[M proto.Message](m M) M {
	m.ProtoReflect().SetUnknown(protowire.AppendVarint(protowire.AppendTag(nil, 99, protowire.VarintType), 1))
	return m
}

// A policy with a part that we cannot represent is closed, wherever the part
// is: dropping a condition could let in whom it keeps out.
func TestPoliciesWithUnknownPartsAreClosed(t *testing.T) {
	for _, tc := range []struct {
		name  string
		rules []*sec.Rule
		err   string
	}{
		{"rule", []*sec.Rule{{}, with(&sec.Rule{})}, "rule 1: a field that is not known here"},
		{"clause", []*sec.Rule{{Clauses: []*sec.Clause{with(&sec.Clause{})}}}, "clause 0: a field"},
		{"match", oneMatch(with(&sec.Match{})), "match 0: a field"},
		{"extension", oneMatch(&sec.Match{Extensions: []*sec.Extension{{Name: "x"}}}), `extension "x"`},
		{"string of no kind", oneMatch(&sec.Match{Principals: []*sec.StringMatch{exact("a"), {}}}), "principals: a string match without a kind"},
		{"string of a new kind", oneMatch(&sec.Match{NotPrincipals: []*sec.StringMatch{with(&sec.StringMatch{})}}), "not_principals: a field"},
		{"account", oneMatch(&sec.Match{ServiceAccounts: []*sec.ServiceAccountMatch{with(&sec.ServiceAccountMatch{})}}), "service_accounts: a field"},
		{"address", oneMatch(&sec.Match{SourceIps: []*sec.Address{with(&sec.Address{Address: make([]byte, 4)})}}), "source_ips: a field"},
		{"address of 5 bytes", oneMatch(&sec.Match{NotSourceIps: []*sec.Address{{Address: make([]byte, 5)}}}), "not_source_ips: failed to parse address, had 5 bytes"},
		{"address /33", oneMatch(&sec.Match{DestinationIps: []*sec.Address{{Address: make([]byte, 4), Length: 33}}}), "destination_ips: invalid prefix length 33"},
		{"port", oneMatch(&sec.Match{DestinationPorts: []uint32{80, 65616}}), "destination_ports: 65616 is no port"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var tr translator
			for action, rules := range map[sec.Action][]mesh.Rule{sec.Action_ALLOW: nil, sec.Action_DENY: {{}}} {
				got, err := tr.policy(&sec.Authorization{Name: "p", Namespace: "ns", Action: action, Rules: tc.rules})
				if err == nil || !strings.Contains(err.Error(), tc.err) {
					t.Errorf("error %v, want %s", err, tc.err)
				}
				if got == nil || !reflect.DeepEqual(got.Rules, rules) || got.Key() != "ns/p" {
					t.Errorf("%v is applied as %+v", action, got)
				}
			}
		})
	}
}

// A newer control plane may say more about a policy than we know: what is no
// condition is passed over.
func TestUnknownFieldsAtTheTopArePassedOver(t *testing.T) {
	var tr translator
	got, err := tr.policy(with(&sec.Authorization{Name: "p", Rules: []*sec.Rule{{}}}))
	if err != nil || len(got.Rules) != 1 {
		t.Errorf("%+v, %v", got, err)
	}
}
