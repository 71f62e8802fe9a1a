// SPDX-License-Identifier: Apache-2.0

// Package rbac answers one question: may this connection be, and which policy
// says so?
//
// It is pure: its inputs are a [mesh.View] and the arguments, its output a
// [Decision]. What is to be logged comes back in it; what a malformed policy
// means was settled when the policy was read (package xds). It imports
// internal/mesh and internal/identity, and nothing else of ours.
package rbac

import (
	"net/netip"

	"github.com/ztunnel-go/ztunnel/dataplane/reason"
	"github.com/ztunnel-go/ztunnel/internal/identity"
	"github.com/ztunnel-go/ztunnel/internal/mesh"
)

// A Conn is what policies judge (contract 5.5).
type Conn struct {
	SourceIP    netip.Addr     // the TCP peer
	Source      identity.ID    // whom TLS proved the peer to be; zero for plaintext
	Dst         netip.AddrPort // the final destination, after every translation of the port
	Destination *mesh.Workload // the pod it is for
}

// A Decision is the answer, with what is to be said about it.
type Decision struct {
	Allowed bool
	Policy  string   // namespace/name of the policy that decided, if one did
	Reason  string   // why: for a refusal the text of the error, else the text of the debug log
	DryRun  []Notice // what policies on trial would have done, to be logged
	Unknown []string // policies that the workload names and nobody has, to be logged
}

// A Notice is one dry-run result.
type Notice struct {
	Message string
	Policy  string // namespace/name; empty where no single policy is meant
}

// Err is nil if the connection is allowed, else a [*DeniedError].
func (d Decision) Err() error {
	if d.Allowed {
		return nil
	}
	return &DeniedError{Policy: d.Policy, Reason: d.Reason}
}

// A DeniedError says why policy refused a connection. Policy is empty when
// allow policies exist and none matched.
type DeniedError struct{ Policy, Reason string }

// Error is the text that access logs show (contract 14.6).
func (e *DeniedError) Error() string {
	return "connection closed due to policy rejection: " + e.Reason
}

// Why tells a policy that denies from policies that do not allow.
func (e *DeniedError) Why() reason.Reason {
	if e.Policy != "" {
		return reason.PolicyDenied
	}
	return reason.PolicyNotAllowed
}

// Evaluate judges a connection by the policies that apply to its destination:
// an enforced deny that matches refuses; else, if there are enforced allows,
// one must match (contract 5.5). A policy on trial changes nothing and is
// reported.
func Evaluate(v mesh.View, c Conn) Decision {
	if c.Destination == nil { // nobody's policies apply to nobody; never a reason to let in
		return Decision{Reason: "the destination workload is unknown"}
	}
	policies, missing := v.PoliciesFor(c.Destination)
	d := judge(policies, newFacts(c))
	d.Unknown = missing
	return d
}

func judge(policies []mesh.NamedPolicy, f facts) Decision {
	var d Decision
	for _, p := range policies {
		if p.Policy.Action == mesh.Deny && p.Policy.DryRun && f.matchPolicy(p.Policy) {
			d.DryRun = append(d.DryRun, Notice{"dry-run: deny policy match", p.Policy.Key()})
		}
	}
	for _, p := range policies {
		if p.Policy.Action == mesh.Deny && !p.Policy.DryRun && f.matchPolicy(p.Policy) {
			d.Policy = p.Policy.Key()
			d.Reason = "explicitly denied by: " + d.Policy
			return d
		}
	}
	enforced := d.tryAllows(policies, f)
	if !enforced {
		d.Allowed, d.Reason = true, "no allow policies, allow"
		return d
	}
	for _, p := range policies {
		if p.Policy.Action == mesh.Allow && !p.Policy.DryRun && f.matchPolicy(p.Policy) {
			d.Allowed, d.Policy, d.Reason = true, p.Policy.Key(), "allow policy match"
			return d
		}
	}
	d.Reason = "allow policies exist, but none allowed"
	return d
}

// tryAllows notes what allow policies on trial would have done, and reports
// whether there are enforced ones.
func (d *Decision) tryAllows(policies []mesh.NamedPolicy, f facts) (enforced bool) {
	trials, matched := 0, false
	for _, p := range policies {
		switch {
		case p.Policy.Action != mesh.Allow:
		case !p.Policy.DryRun:
			enforced = true
		default:
			trials++
			if f.matchPolicy(p.Policy) {
				matched = true
				d.DryRun = append(d.DryRun, Notice{"dry-run: allow policy match", p.Policy.Key()})
			}
		}
	}
	if !enforced && trials > 0 && !matched {
		d.DryRun = append(d.DryRun, Notice{Message: "dry-run: no allow policies match"})
	}
	return enforced
}
