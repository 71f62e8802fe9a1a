// SPDX-License-Identifier: Apache-2.0

package rbac

import (
	"errors"
	"net/netip"
	"reflect"
	"testing"

	"github.com/ztunnel-go/ztunnel/internal/identity"
	"github.com/ztunnel-go/ztunnel/internal/mesh"
)

var (
	pod = &mesh.Workload{UID: "pod", Name: "pod", Namespace: "default", AuthorizationPolicies: []string{"default/chosen", "default/gone"}}

	plaintext = conn("")
	alice     = conn("spiffe://td/ns/default/sa/alice")
	bob       = conn("spiffe://td/ns/other/sa/bob")
	foreign   = conn("spiffe://elsewhere/ns/default/sa/alice")
)

func conn(id string) Conn {
	c := Conn{
		SourceIP:    netip.MustParseAddr("127.0.0.1"),
		Dst:         netip.MustParseAddrPort("127.0.0.2:8080"),
		Destination: pod,
	}
	if id != "" {
		var err error
		if c.Source, err = identity.Parse(id); err != nil {
			panic(err)
		}
	}
	return c
}

func exact(values ...string) (out []mesh.StringMatch) {
	for _, v := range values {
		out = append(out, mesh.StringMatch{Kind: mesh.Exact, Value: v})
	}
	return out
}

func cidr(values ...string) (out []netip.Prefix) {
	for _, v := range values {
		out = append(out, netip.MustParsePrefix(v))
	}
	return out
}

func one(m mesh.Match) []mesh.Rule { return []mesh.Rule{{{m}}} }

func TestTheAlgebraAtItsBorders(t *testing.T) {
	yes := mesh.Match{DestinationPorts: []uint16{8080}}
	no := mesh.Match{DestinationPorts: []uint16{1}}
	for _, tc := range []struct {
		name  string
		rules []mesh.Rule
		want  bool
	}{
		{"no rules match nothing", nil, false},
		{"a rule without clauses matches", []mesh.Rule{{}}, true},
		{"a clause without matches matches", []mesh.Rule{{{}}}, true},
		{"a match without fields does not", one(mesh.Match{}), false},
		{"nor next to one that fails", []mesh.Rule{{{mesh.Match{}, no}}}, false},
		{"but it takes nothing away from one that holds", []mesh.Rule{{{mesh.Match{}, yes}}}, true},
		{"any rule", []mesh.Rule{{{no}}, {{yes}}}, true},
		{"no rule", []mesh.Rule{{{no}}, {{no}}}, false},
		{"all clauses", []mesh.Rule{{{yes}, {no}}}, false},
		{"all clauses, empty ones too", []mesh.Rule{{{yes}, {}}}, true},
		{"any match", []mesh.Rule{{{no, yes}}}, true},
		{"all fields of a match", one(mesh.Match{DestinationPorts: []uint16{8080}, Namespaces: exact("nowhere")}), false},
		{"both forms of a field", one(mesh.Match{DestinationPorts: []uint16{8080}, NotDestinationPorts: []uint16{8080}}), false},
	} {
		f := newFacts(plaintext)
		if got := f.matchPolicy(&mesh.Policy{Rules: tc.rules}); got != tc.want {
			t.Errorf("%s: %v", tc.name, got)
		}
	}
}

func TestEachFieldAgainstEachCaller(t *testing.T) {
	account := func(ns, sa string) []mesh.ServiceAccountMatch {
		return []mesh.ServiceAccountMatch{{Namespace: ns, ServiceAccount: sa}}
	}
	presence := []mesh.StringMatch{{Kind: mesh.Presence}}
	for _, tc := range []struct {
		name                             string
		m                                mesh.Match
		plaintext, alice, bob, foreigner bool
	}{
		{"namespaces", mesh.Match{Namespaces: exact("default")}, false, true, false, true},
		{"notNamespaces", mesh.Match{NotNamespaces: exact("default")}, true, false, true, false},
		{"namespaces: the empty one is plaintext's", mesh.Match{Namespaces: exact("")}, true, false, false, false},
		{"namespaces present", mesh.Match{Namespaces: presence}, false, true, true, true},
		{"notNamespaces present", mesh.Match{NotNamespaces: presence}, true, false, false, false},
		{"any of several", mesh.Match{Namespaces: exact("x", "other")}, false, false, true, false},
		{"none of several", mesh.Match{NotNamespaces: exact("x", "other")}, true, true, false, true},

		{"serviceAccounts", mesh.Match{ServiceAccounts: account("default", "alice")}, false, true, false, true},
		{"serviceAccounts of another namespace", mesh.Match{ServiceAccounts: account("other", "alice")}, false, false, false, false},
		{"notServiceAccounts", mesh.Match{NotServiceAccounts: account("default", "alice")}, true, false, true, false},
		{"serviceAccounts: nobody is not the empty one", mesh.Match{ServiceAccounts: account("", "")}, false, false, false, false},

		{"principals", mesh.Match{Principals: exact("td/ns/default/sa/alice")}, false, true, false, false},
		{"principals with the scheme never match", mesh.Match{Principals: exact("spiffe://td/ns/default/sa/alice")}, false, false, false, false},
		{"notPrincipals", mesh.Match{NotPrincipals: exact("td/ns/default/sa/alice")}, true, false, true, true},
		{"principals present", mesh.Match{Principals: presence}, false, true, true, true},
		{"notPrincipals present: strict mTLS", mesh.Match{NotPrincipals: presence}, true, false, false, false},
		{"principals: nobody has not even the empty prefix", mesh.Match{Principals: []mesh.StringMatch{{Kind: mesh.Prefix}}}, false, true, true, true},

		{"sourceIps", mesh.Match{SourceIPs: cidr("127.0.0.1/32")}, true, true, true, true},
		{"sourceIps elsewhere", mesh.Match{SourceIPs: cidr("127.0.0.2/32")}, false, false, false, false},
		{"sourceIps in a range", mesh.Match{SourceIPs: cidr("127.0.0.0/8")}, true, true, true, true},
		{"sourceIps of the other family", mesh.Match{SourceIPs: cidr("::/0")}, false, false, false, false},
		{"notSourceIps", mesh.Match{NotSourceIPs: cidr("127.0.0.1/32")}, false, false, false, false},
		{"notSourceIps elsewhere", mesh.Match{NotSourceIPs: cidr("10.0.0.0/8")}, true, true, true, true},

		{"destinationIps", mesh.Match{DestinationIPs: cidr("10.0.0.0/8", "127.0.0.2/32")}, true, true, true, true},
		{"destinationIps elsewhere", mesh.Match{DestinationIPs: cidr("127.0.0.1/32")}, false, false, false, false},
		{"notDestinationIps", mesh.Match{NotDestinationIPs: cidr("0.0.0.0/0")}, false, false, false, false},

		{"destinationPorts", mesh.Match{DestinationPorts: []uint16{80, 8080}}, true, true, true, true},
		{"destinationPorts, another", mesh.Match{DestinationPorts: []uint16{80}}, false, false, false, false},
		{"notDestinationPorts", mesh.Match{NotDestinationPorts: []uint16{8080}}, false, false, false, false},
		{"notDestinationPorts, another", mesh.Match{NotDestinationPorts: []uint16{9999}}, true, true, true, true},
	} {
		for _, who := range []struct {
			name string
			conn Conn
			want bool
		}{{"plaintext", plaintext, tc.plaintext}, {"alice", alice, tc.alice}, {"bob", bob, tc.bob}, {"foreigner", foreign, tc.foreigner}} {
			f := newFacts(who.conn)
			if got := f.matchPolicy(&mesh.Policy{Rules: one(tc.m)}); got != who.want {
				t.Errorf("%s, %s: %v", tc.name, who.name, got)
			}
		}
	}
}

func TestAddressesThatAreMappedIntoIPv6AreIPv4(t *testing.T) {
	c := plaintext
	c.SourceIP = netip.MustParseAddr("::ffff:127.0.0.1")
	c.Dst = netip.MustParseAddrPort("[::ffff:127.0.0.2]:8080")
	f := newFacts(c)
	if !f.matchPolicy(&mesh.Policy{Rules: one(mesh.Match{SourceIPs: cidr("127.0.0.1/32"), DestinationIPs: cidr("127.0.0.2/32")})}) {
		t.Error("a mapped address did not match")
	}
}

func TestStringMatch(t *testing.T) {
	for _, tc := range []struct {
		kind     mesh.MatchKind
		value, s string
		want     bool
	}{
		{mesh.Exact, "abc", "abc", true}, {mesh.Exact, "abc", "Abc", false}, {mesh.Exact, "abc", "abcd", false},
		{mesh.Prefix, "ab", "abc", true}, {mesh.Prefix, "bc", "abc", false}, {mesh.Prefix, "ab*", "abc", false},
		{mesh.Suffix, "bc", "abc", true}, {mesh.Suffix, "ab", "abc", false},
		{mesh.Presence, "", "abc", true}, {mesh.Presence, "", "", false},
		{mesh.MatchKind(9), "abc", "abc", false},
	} {
		if got := matchString(mesh.StringMatch{Kind: tc.kind, Value: tc.value}, tc.s); got != tc.want {
			t.Errorf("%v %q against %q: %v", tc.kind, tc.value, tc.s, got)
		}
	}
}

// policy makes one that matches everything or nothing.
func policy(name string, action mesh.Action, matches, dryRun bool) *mesh.Policy {
	p := &mesh.Policy{Name: name, Namespace: "default", Scope: mesh.ScopeNamespace, Action: action, DryRun: dryRun}
	if matches {
		p.Rules = []mesh.Rule{{}}
	}
	return p
}

func store(policies ...*mesh.Policy) mesh.View {
	s := mesh.NewStore()
	s.Apply(func(u *mesh.Update) {
		for _, p := range policies {
			u.PutPolicy(p.Key(), p)
		}
	})
	return s.View()
}

func TestTheOrderOfJudgement(t *testing.T) {
	const yes, no, enforced, trial = true, false, false, true
	for _, tc := range []struct {
		name     string
		policies []*mesh.Policy
		want     Decision
	}{
		{"no policies", nil, Decision{Allowed: true, Reason: "no allow policies, allow"}},
		{"a deny that does not match", []*mesh.Policy{policy("d", mesh.Deny, no, enforced)},
			Decision{Allowed: true, Reason: "no allow policies, allow"}},
		{"a deny that matches", []*mesh.Policy{policy("d", mesh.Deny, yes, enforced)},
			Decision{Policy: "default/d", Reason: "explicitly denied by: default/d"}},
		{"deny comes before allow", []*mesh.Policy{policy("a", mesh.Allow, yes, enforced), policy("d", mesh.Deny, yes, enforced)},
			Decision{Policy: "default/d", Reason: "explicitly denied by: default/d"}},
		{"an allow that matches", []*mesh.Policy{policy("a", mesh.Allow, no, enforced), policy("b", mesh.Allow, yes, enforced)},
			Decision{Allowed: true, Policy: "default/b", Reason: "allow policy match"}},
		{"an allow that does not: deny all", []*mesh.Policy{policy("a", mesh.Allow, no, enforced)},
			Decision{Reason: "allow policies exist, but none allowed"}},
		{"a deny on trial", []*mesh.Policy{policy("d", mesh.Deny, yes, trial)},
			Decision{Allowed: true, Reason: "no allow policies, allow", DryRun: []Notice{{"dry-run: deny policy match", "default/d"}}}},
		{"an allow on trial that matches", []*mesh.Policy{policy("a", mesh.Allow, yes, trial), policy("b", mesh.Allow, no, trial)},
			Decision{Allowed: true, Reason: "no allow policies, allow", DryRun: []Notice{{"dry-run: allow policy match", "default/a"}}}},
		{"an allow on trial that does not", []*mesh.Policy{policy("a", mesh.Allow, no, trial)},
			Decision{Allowed: true, Reason: "no allow policies, allow", DryRun: []Notice{{Message: "dry-run: no allow policies match"}}}},
		{"an allow on trial beside an enforced one", []*mesh.Policy{policy("a", mesh.Allow, yes, trial), policy("b", mesh.Allow, no, enforced)},
			Decision{Reason: "allow policies exist, but none allowed", DryRun: []Notice{{"dry-run: allow policy match", "default/a"}}}},
		{"an allow on trial that fails beside an enforced one", []*mesh.Policy{policy("a", mesh.Allow, no, trial), policy("b", mesh.Allow, yes, enforced)},
			Decision{Allowed: true, Policy: "default/b", Reason: "allow policy match"}},
		{"after a deny nothing is tried", []*mesh.Policy{policy("a", mesh.Allow, yes, trial), policy("d", mesh.Deny, yes, enforced)},
			Decision{Policy: "default/d", Reason: "explicitly denied by: default/d"}},
	} {
		tc.want.Unknown = []string{"default/chosen", "default/gone"}
		if got := Evaluate(store(tc.policies...), alice); !reflect.DeepEqual(got, tc.want) {
			t.Errorf("%s:\ngot  %+v\nwant %+v", tc.name, got, tc.want)
		}
	}
}

func TestWhichPoliciesApply(t *testing.T) {
	deny := func(name, namespace string, scope mesh.PolicyScope) *mesh.Policy {
		return &mesh.Policy{Name: name, Namespace: namespace, Scope: scope, Action: mesh.Deny, Rules: []mesh.Rule{{}}}
	}
	for _, tc := range []struct {
		name   string
		policy *mesh.Policy
		allow  bool
	}{
		{"global", deny("g", "istio-system", mesh.ScopeGlobal), false},
		{"of the namespace", deny("n", "default", mesh.ScopeNamespace), false},
		{"of another namespace", deny("n", "other", mesh.ScopeNamespace), true},
		{"chosen by the workload", deny("chosen", "default", mesh.ScopeWorkloadSelector), false},
		{"chosen by others", deny("x", "default", mesh.ScopeWorkloadSelector), true},
	} {
		if got := Evaluate(store(tc.policy), alice).Allowed; got != tc.allow {
			t.Errorf("%s: allowed %v", tc.name, got)
		}
	}
}

func TestARefusalIsAnErrorWithTheContractsText(t *testing.T) {
	d := Evaluate(store(policy("d", mesh.Deny, true, false)), alice)
	var denied *DeniedError
	if err := d.Err(); !errors.As(err, &denied) || denied.Policy != "default/d" ||
		err.Error() != "connection closed due to policy rejection: explicitly denied by: default/d" {
		t.Errorf("error: %v", err)
	}
	if err := Evaluate(store(), alice).Err(); err != nil {
		t.Errorf("allowed, but %v", err)
	}
}

func TestAnUnknownDestinationIsRefused(t *testing.T) {
	c := alice
	c.Destination = nil
	if d := Evaluate(store(), c); d.Allowed {
		t.Errorf("allowed: %+v", d)
	}
}
