// SPDX-License-Identifier: Apache-2.0

package rbac

import (
	"net/netip"
	"slices"
	"strings"

	"github.com/ztunnel-go/ztunnel/internal/identity"
	"github.com/ztunnel-go/ztunnel/internal/mesh"
)

// facts are a connection in the form that matches compare with, made once for
// all policies.
type facts struct {
	src       netip.Addr
	dst       netip.AddrPort
	id        identity.ID
	principal string
}

func newFacts(c Conn) facts {
	return facts{
		src:       c.SourceIP.Unmap(),
		dst:       netip.AddrPortFrom(c.Dst.Addr().Unmap(), c.Dst.Port()),
		id:        c.Source,
		principal: c.Source.Principal(),
	}
}

// The borders of the algebra (contract 5.5): no rules match nothing, but no
// clauses and no matches match everything, and a match in which no field is
// set matches nothing.

func (f *facts) matchPolicy(p *mesh.Policy) bool {
	return slices.ContainsFunc(p.Rules, f.matchRule)
}

func (f *facts) matchRule(r mesh.Rule) bool {
	for _, clause := range r {
		if !f.matchClause(clause) {
			return false
		}
	}
	return true
}

func (f *facts) matchClause(c mesh.Clause) bool {
	if len(c) == 0 {
		return true
	}
	for i := range c {
		if f.match(&c[i]) {
			return true
		}
	}
	return false
}

func (f *facts) match(m *mesh.Match) bool {
	set := false
	return holds(&set, m.DestinationIPs, m.NotDestinationIPs, f.toIP) &&
		holds(&set, m.SourceIPs, m.NotSourceIPs, f.fromIP) &&
		holds(&set, m.DestinationPorts, m.NotDestinationPorts, f.toPort) &&
		holds(&set, m.ServiceAccounts, m.NotServiceAccounts, f.fromServiceAccount) &&
		holds(&set, m.Principals, m.NotPrincipals, f.fromPrincipal) &&
		holds(&set, m.Namespaces, m.NotNamespaces, f.fromNamespace) &&
		set
}

// holds is one field in both forms: any of the wanted, none of the unwanted.
// It notes in set that there is something to hold.
func holds[T any](set *bool, wanted, unwanted []T, is func(T) bool) bool {
	if len(wanted) > 0 {
		*set = true
		if !slices.ContainsFunc(wanted, is) {
			return false
		}
	}
	if len(unwanted) > 0 {
		*set = true
		if slices.ContainsFunc(unwanted, is) {
			return false
		}
	}
	return true
}

func (f *facts) toIP(p netip.Prefix) bool   { return p.Contains(f.dst.Addr()) }
func (f *facts) fromIP(p netip.Prefix) bool { return p.Contains(f.src) }
func (f *facts) toPort(port uint16) bool    { return f.dst.Port() == port }

func (f *facts) fromServiceAccount(m mesh.ServiceAccountMatch) bool {
	return !f.id.IsZero() && f.id.Namespace() == m.Namespace && f.id.ServiceAccount() == m.ServiceAccount
}

func (f *facts) fromPrincipal(m mesh.StringMatch) bool {
	return !f.id.IsZero() && matchString(m, f.principal)
}

// fromNamespace compares with the empty string if nobody was proved, unlike
// the other two.
func (f *facts) fromNamespace(m mesh.StringMatch) bool { return matchString(m, f.id.Namespace()) }

func matchString(m mesh.StringMatch, s string) bool {
	switch m.Kind {
	case mesh.Exact:
		return s == m.Value
	case mesh.Prefix:
		return strings.HasPrefix(s, m.Value)
	case mesh.Suffix:
		return strings.HasSuffix(s, m.Value)
	case mesh.Presence:
		return s != ""
	default:
		return false
	}
}
