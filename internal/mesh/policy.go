// SPDX-License-Identifier: Apache-2.0

package mesh

import "net/netip"

// A PolicyScope says to which workloads a policy applies.
type PolicyScope uint8

const (
	ScopeGlobal           PolicyScope = iota // every workload
	ScopeNamespace                           // workloads of the policy's namespace
	ScopeWorkloadSelector                    // workloads that name the policy
)

// An Action is what a matching policy asks for.
type Action uint8

const (
	Allow Action = iota
	Deny
)

// A Policy is one authorization policy (contract 9.2). A policy matches a
// connection if any rule matches; a rule, if all its clauses match; a clause,
// if any of its matches does (contract 5.5).
type Policy struct {
	Name      string
	Namespace string
	Scope     PolicyScope
	Action    Action
	DryRun    bool
	Rules     []Rule
}

// A Rule matches if all clauses match; one without clauses matches all.
type Rule []Clause

// A Clause matches if any match does; one without matches matches all.
type Clause []Match

// A Match holds if every field that is set holds; one with no field set never
// matches.
type Match struct {
	Namespaces, NotNamespaces           []StringMatch
	Principals, NotPrincipals           []StringMatch
	ServiceAccounts, NotServiceAccounts []ServiceAccountMatch
	SourceIPs, NotSourceIPs             []netip.Prefix
	DestinationIPs, NotDestinationIPs   []netip.Prefix
	DestinationPorts                    []uint16
	NotDestinationPorts                 []uint16
}

// A MatchKind is how a [StringMatch] compares.
type MatchKind uint8

const (
	Exact MatchKind = iota
	Prefix
	Suffix
	Presence // any string but the empty one
)

// A StringMatch compares a string, case and all.
type StringMatch struct {
	Kind  MatchKind
	Value string
}

// A ServiceAccountMatch compares the namespace and service account of an
// identity, whatever its trust domain.
type ServiceAccountMatch struct{ Namespace, ServiceAccount string }

// Key is namespace/name, the resource name in xDS.
func (p *Policy) Key() string { return p.Namespace + "/" + p.Name }
