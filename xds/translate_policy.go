// SPDX-License-Identifier: Apache-2.0

package xds

import (
	"errors"
	"fmt"
	"math"
	"net/netip"

	"google.golang.org/protobuf/proto"

	"github.com/ztunnel-go/ztunnel/internal/mesh"
	"github.com/ztunnel-go/ztunnel/xds/pb/securitypb"
)

// errNewer says that a policy holds something that a later control plane knows.
var errNewer = errors.New("a field that is not known here")

// policy converts an authorization policy. An error without a policy means
// that nothing can be said of what it is for. An error with a policy means
// that some part of it cannot be represented, and the policy is the closed
// form of it: dropping the part could let in what it keeps out.
func (t *translator) policy(p *securitypb.Authorization) (*mesh.Policy, error) {
	out := &mesh.Policy{Name: p.GetName(), Namespace: t.known.text(p.GetNamespace()), DryRun: p.GetDryRun()}
	switch p.GetScope() {
	case securitypb.Scope_GLOBAL:
		out.Scope = mesh.ScopeGlobal
	case securitypb.Scope_NAMESPACE:
		out.Scope = mesh.ScopeNamespace
	case securitypb.Scope_WORKLOAD_SELECTOR:
		out.Scope = mesh.ScopeWorkloadSelector
	default:
		return nil, unknownEnum(p.GetScope())
	}
	switch p.GetAction() {
	case securitypb.Action_ALLOW:
		out.Action = mesh.Allow
	case securitypb.Action_DENY:
		out.Action = mesh.Deny
	default:
		return nil, unknownEnum(p.GetAction())
	}
	for i, rule := range p.GetRules() {
		r, err := t.rule(rule)
		if err != nil {
			out.Rules = closed(out.Action)
			return out, fmt.Errorf("rule %d: %w (the policy is applied as %s)", i, err, closedName(out.Action))
		}
		out.Rules = append(out.Rules, r)
	}
	return out, nil
}

// closed are the rules of a policy that cannot be represented: an ALLOW
// matches nothing, a DENY everything (contract 5.5: no rules never match, a
// rule without clauses always does).
func closed(a mesh.Action) []mesh.Rule {
	if a == mesh.Deny {
		return []mesh.Rule{{}}
	}
	return nil
}

func closedName(a mesh.Action) string {
	if a == mesh.Deny {
		return "a DENY that matches everything"
	}
	return "an ALLOW that matches nothing"
}

// newer reports fields that were sent and are not known. Below the top of a
// policy each field is a condition; at the top a new one may be anything, and
// is passed over as elsewhere.
func newer(m proto.Message) bool { return len(m.ProtoReflect().GetUnknown()) > 0 }

func (t *translator) rule(p *securitypb.Rule) (mesh.Rule, error) {
	if newer(p) {
		return nil, errNewer
	}
	var rule mesh.Rule
	for i, c := range p.GetClauses() {
		if newer(c) {
			return nil, fmt.Errorf("clause %d: %w", i, errNewer)
		}
		var clause mesh.Clause
		for j, m := range c.GetMatches() {
			match, err := t.match(m)
			if err != nil {
				return nil, fmt.Errorf("clause %d: match %d: %w", i, j, err)
			}
			clause = append(clause, match)
		}
		rule = append(rule, clause)
	}
	return rule, nil
}

func (t *translator) match(p *securitypb.Match) (mesh.Match, error) {
	if newer(p) {
		return mesh.Match{}, errNewer
	}
	if len(p.GetExtensions()) > 0 {
		return mesh.Match{}, fmt.Errorf("extension %q", p.GetExtensions()[0].GetName())
	}
	var c collector
	m := mesh.Match{
		Namespaces:          gather(&c, "namespaces", p.GetNamespaces(), t.stringMatch),
		NotNamespaces:       gather(&c, "not_namespaces", p.GetNotNamespaces(), t.stringMatch),
		Principals:          gather(&c, "principals", p.GetPrincipals(), t.stringMatch),
		NotPrincipals:       gather(&c, "not_principals", p.GetNotPrincipals(), t.stringMatch),
		ServiceAccounts:     gather(&c, "service_accounts", p.GetServiceAccounts(), t.accountMatch),
		NotServiceAccounts:  gather(&c, "not_service_accounts", p.GetNotServiceAccounts(), t.accountMatch),
		SourceIPs:           gather(&c, "source_ips", p.GetSourceIps(), addressMatch),
		NotSourceIPs:        gather(&c, "not_source_ips", p.GetNotSourceIps(), addressMatch),
		DestinationIPs:      gather(&c, "destination_ips", p.GetDestinationIps(), addressMatch),
		NotDestinationIPs:   gather(&c, "not_destination_ips", p.GetNotDestinationIps(), addressMatch),
		DestinationPorts:    gather(&c, "destination_ports", p.GetDestinationPorts(), portMatch),
		NotDestinationPorts: gather(&c, "not_destination_ports", p.GetNotDestinationPorts(), portMatch),
	}
	return m, c.err
}

// A collector keeps the first error of the fields of a match.
type collector struct{ err error }

func gather[P, M any](c *collector, field string, list []P, convert func(P) (M, error)) []M {
	var out []M
	for _, p := range list {
		m, err := convert(p)
		if err != nil && c.err == nil {
			c.err = fmt.Errorf("%s: %w", field, err)
		}
		out = append(out, m)
	}
	return out
}

func (t *translator) stringMatch(p *securitypb.StringMatch) (mesh.StringMatch, error) {
	if newer(p) {
		return mesh.StringMatch{}, errNewer
	}
	switch m := p.GetMatchType().(type) {
	case *securitypb.StringMatch_Exact:
		return mesh.StringMatch{Kind: mesh.Exact, Value: t.known.text(m.Exact)}, nil
	case *securitypb.StringMatch_Prefix:
		return mesh.StringMatch{Kind: mesh.Prefix, Value: t.known.text(m.Prefix)}, nil
	case *securitypb.StringMatch_Suffix:
		return mesh.StringMatch{Kind: mesh.Suffix, Value: t.known.text(m.Suffix)}, nil
	case *securitypb.StringMatch_Presence:
		return mesh.StringMatch{Kind: mesh.Presence}, nil
	default:
		return mesh.StringMatch{}, errors.New("a string match without a kind")
	}
}

func (t *translator) accountMatch(p *securitypb.ServiceAccountMatch) (mesh.ServiceAccountMatch, error) {
	if newer(p) {
		return mesh.ServiceAccountMatch{}, errNewer
	}
	return mesh.ServiceAccountMatch{
		Namespace:      t.known.text(p.GetNamespace()),
		ServiceAccount: t.known.text(p.GetServiceAccount()),
	}, nil
}

func addressMatch(p *securitypb.Address) (netip.Prefix, error) {
	if newer(p) {
		return netip.Prefix{}, errNewer
	}
	return prefix(p.GetAddress(), p.GetLength())
}

func portMatch(p uint32) (uint16, error) {
	if p > math.MaxUint16 {
		return 0, fmt.Errorf("%d is no port", p)
	}
	return uint16(p), nil
}
