// SPDX-License-Identifier: Apache-2.0

// Package explain says what would become of a connection between two ends that
// people name, and why: the route that the client's proxy takes, what policy
// says at the other end, and what it would say on the way back.
//
// It is pure: it asks dataplane/route and dataplane/rbac, which decide the same
// way for real connections, and puts their answers beside each other. It opens
// nothing and knows no one who is connected.
package explain

import (
	"cmp"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/ztunnel-go/ztunnel/dataplane/rbac"
	"github.com/ztunnel-go/ztunnel/dataplane/reason"
	"github.com/ztunnel-go/ztunnel/dataplane/route"
	"github.com/ztunnel-go/ztunnel/internal/identity"
	"github.com/ztunnel-go/ztunnel/internal/mesh"
)

// A Question is what is asked.
type Question struct {
	View    mesh.View
	Network string // the one the ends are in (NETWORK)
	// From and To are an address, namespace/pod, namespace/hostname,
	// namespace/service, or a hostname; To may have a port behind it.
	From, To string
	// OnDemand is the proxy's (XDS_ON_DEMAND).
	OnDemand bool
	// Illegal refuses destinations that are the proxy's own.
	Illegal route.IllegalPorts
	// Choose chooses among endpoints.
	Choose route.Chooser
}

// An Answer is what would be. As JSON it is the page /debug/explain.
type Answer struct {
	From   End      `json:"from"`
	To     End      `json:"to"`
	Route  Route    `json:"route"`
	Policy *Verdict `json:"policy,omitempty"` // at the server's end; nil: nobody asks
	// PolicyNote says why there is no verdict, or what it leaves out.
	PolicyNote string `json:"policyNote,omitempty"`
	// Back is what policy would say if the server connected to the client.
	Back *Verdict `json:"back,omitempty"`
	// Allowed says whether the connection would be carried, as far as can be
	// told here.
	Allowed bool `json:"allowed"`
}

// An End is one of the two.
type End struct {
	Asked    string         `json:"asked"`
	Addr     netip.AddrPort `json:"addr"`               // the port is 0 for a client
	Workload string         `json:"workload,omitempty"` // its UID
	Service  string         `json:"service,omitempty"`  // namespace/hostname
	Identity string         `json:"identity,omitempty"`
	Node     string         `json:"node,omitempty"`
	Note     string         `json:"note,omitempty"`

	workload *mesh.Workload
}

// A Route is what the client's proxy does.
type Route struct {
	Outcome   string   `json:"outcome"` // TCP, HBONE, DOUBLEHBONE, refuse, resolve, learn, or "not captured"
	Steps     []string `json:"steps"`
	Dial      string   `json:"dial,omitempty"`
	Authority string   `json:"authority,omitempty"`
	NextHop   string   `json:"nextHop,omitempty"`
	Service   string   `json:"service,omitempty"`
	Expect    []string `json:"expectedIdentities,omitempty"`
	Warnings  []string `json:"warnings,omitempty"`
	Error     string   `json:"error,omitempty"`
	Reason    string   `json:"reason,omitempty"`
	Means     string   `json:"means,omitempty"`
	Look      string   `json:"lookAt,omitempty"`
}

// A Verdict is what policy says at one pod.
type Verdict struct {
	At       string         `json:"at"`           // the pod's UID
	As       string         `json:"as,omitempty"` // the identity that the client proves; empty: none
	From     netip.Addr     `json:"from"`
	To       netip.AddrPort `json:"to"`
	Allowed  bool           `json:"allowed"`
	Decided  string         `json:"decidedBy,omitempty"` // the policy's namespace/name
	Why      string         `json:"why"`
	Policies []string       `json:"policies"` // those that apply to the pod, with their action
	DryRun   []string       `json:"dryRun,omitempty"`
	Unknown  []string       `json:"unknownPolicies,omitempty"`
}

// Explain answers. The error is that an end could not be found or is named in
// a way that fits several.
func Explain(q Question) (Answer, error) {
	from, err := q.find(q.From, nil)
	if err != nil {
		return Answer{}, err
	}
	host, port, err := splitPort(q.To)
	if err != nil {
		return Answer{}, err
	}
	to, err := q.find(host, from.workload)
	if err != nil {
		return Answer{}, err
	}
	to.Asked = q.To
	q.givePort(&to, port)
	a := Answer{From: from, To: to}
	a.decide(q)
	return a, nil
}

// decide fills in what follows from the two ends.
func (a *Answer) decide(q Question) {
	from, to := a.From, a.To
	if !isCaptured(from.workload) {
		a.Route = Route{Outcome: "not captured", Dial: to.Addr.String(), Steps: []string{notCaptured(from)}}
		a.plain(q, to.workload, to.Addr)
	} else {
		out, r := q.route(from, to.Addr)
		a.Route = r
		a.arrive(q, out)
	}
	if from.workload != nil && to.workload != nil && isCaptured(from.workload) {
		back := q.verdict(from.workload, peer{to.workload, to.Addr.Addr()}, netip.AddrPortFrom(from.Addr.Addr(), to.Addr.Port()), isCaptured(to.workload))
		a.Back = &back
	}
}

// isCaptured says whether a proxy stands before the pod.
func isCaptured(w *mesh.Workload) bool { return w != nil && w.Protocol == mesh.HBONE }

func notCaptured(from End) string {
	if from.workload == nil {
		return fmt.Sprintf("Nobody in the mesh has the address %v: nothing captures what it opens, which arrives in plaintext.", from.Addr.Addr())
	}
	return fmt.Sprintf("%s speaks no HBONE: it is not in the mesh, nothing captures what it opens, and it arrives in plaintext.", from.Workload)
}

// plain is a connection that arrives at a pod without a tunnel.
func (a *Answer) plain(q Question, w *mesh.Workload, dst netip.AddrPort) {
	a.Allowed = true
	switch {
	case w == nil && a.To.Service != "":
		a.PolicyNote = "Not asked: which endpoint of the service gets it is decided outside of the mesh. Ask for a pod."
	case !isCaptured(w):
		a.PolicyNote = "Not asked: the server is not in the mesh."
	default:
		v := q.verdict(w, peer{a.From.workload, a.From.Addr.Addr()}, dst, false)
		a.Policy, a.Allowed = &v, v.Allowed
	}
}

// arrive is a connection that the client's proxy sends on.
func (a *Answer) arrive(q Question, out route.Outcome) {
	target, err := netip.ParseAddrPort(out.Authority)
	from := peer{a.From.workload, a.From.Addr.Addr()}
	switch {
	case out.Kind == route.Refuse || out.Kind == route.Learn || out.Kind == route.Resolve:
		a.PolicyNote = "Not asked: it is not known yet where the connection goes."
		if out.Kind == route.Refuse {
			a.PolicyNote = "Not asked: the connection does not leave."
		}
		return
	case out.NextHop == nil:
		a.Allowed, a.PolicyNote = true, "Not asked: nothing of the mesh is there."
	case out.Kind == route.Direct:
		a.Allowed, a.PolicyNote = true, "Not asked: "+out.NextHop.UID+" speaks no HBONE, so no proxy is before it."
	case out.Kind == route.DoubleTunnel:
		a.Allowed, a.PolicyNote = true, "Not known here: it is asked in the other network."
	case err == nil && out.NextHop.HasIP(target.Addr()):
		v := q.verdict(out.NextHop, from, target, true)
		a.Policy, a.Allowed = &v, v.Allowed
	default:
		a.behindWaypoint(q, out)
	}
}

// behindWaypoint asks at the pod that was named, to which the waypoint
// connects in its own name.
func (a *Answer) behindWaypoint(q Question, out route.Outcome) {
	waypoint := out.NextHop
	a.PolicyNote = "The waypoint " + waypoint.UID + " decides first, by policies that are not known here. Then policy of the server judges the waypoint, not the client."
	w, dst := a.To.workload, a.To.Addr
	if w == nil {
		w, dst = q.anyEndpoint(a.To)
	}
	a.Allowed = true
	if !isCaptured(w) || len(waypoint.IPs) == 0 {
		return
	}
	v := q.verdict(w, peer{waypoint, waypoint.IPs[0]}, dst, true)
	a.Policy, a.Allowed = &v, v.Allowed
}

// anyEndpoint is the first endpoint of the service that was asked for.
func (q Question) anyEndpoint(to End) (*mesh.Workload, netip.AddrPort) {
	key, ok := mesh.ParseNamespacedHostname(to.Service)
	if !ok {
		return nil, netip.AddrPort{}
	}
	var found *mesh.Workload
	port := to.Addr.Port()
	q.View.Endpoints(key, func(ep mesh.Endpoint, w *mesh.Workload) bool {
		if len(w.IPs) > 0 {
			found, port = w, cmp.Or(ep.Ports[to.Addr.Port()], port)
		}
		return found == nil
	})
	if found == nil {
		return nil, netip.AddrPort{}
	}
	return found, netip.AddrPortFrom(found.IPs[0], port)
}

// route asks what the client's proxy would do.
func (q Question) route(from End, dst netip.AddrPort) (route.Outcome, Route) {
	var out route.Outcome
	if err := q.Illegal.Outbound(dst); err != nil {
		out = route.Outcome{Kind: route.Refuse, Err: err, Steps: []string{"The port is the proxy's own."}}
	} else {
		out = route.Decide(q.View, route.Query{
			Source: from.workload, SourceIP: from.Addr.Addr(), Network: q.Network, Dst: dst, Explain: true, OnDemand: q.OnDemand,
		}, q.Choose)
	}
	r := Route{Outcome: out.Kind.String(), Steps: out.Steps, Authority: out.Authority, Warnings: out.Warnings, Expect: names(out.Expect)}
	if out.Dial.IsValid() {
		r.Dial = out.Dial.String()
	}
	if out.NextHop != nil {
		r.NextHop = out.NextHop.UID
	}
	if out.Service != nil {
		r.Service = out.Service.Key().String()
	}
	if out.Err != nil {
		r.Error = out.Err.Error()
		why, _ := reason.Of(out.Err)
		r.Reason, r.Means, r.Look = why.String(), why.Means(), why.Look()
	}
	return out, r
}

func names(ids []identity.ID) []string {
	var out []string
	for _, id := range ids {
		out = append(out, id.String())
	}
	return out
}

// A peer is who connects to a pod.
type peer struct {
	workload *mesh.Workload // nil: nobody's
	addr     netip.Addr
}

// verdict asks policy at a pod. Whoever comes by a tunnel has proved who he is.
func (q Question) verdict(at *mesh.Workload, from peer, dst netip.AddrPort, tunnel bool) Verdict {
	c := rbac.Conn{SourceIP: from.addr, Dst: dst, Destination: at}
	if tunnel && from.workload != nil {
		c.Source = from.workload.Identity()
	}
	d := rbac.Evaluate(q.View, c)
	v := Verdict{At: at.UID, From: from.addr, To: dst, Allowed: d.Allowed, Decided: d.Policy, Why: d.Reason, Unknown: d.Unknown, Policies: []string{}}
	if !c.Source.IsZero() {
		v.As = c.Source.String()
	}
	policies, _ := q.View.PoliciesFor(at)
	for _, p := range policies {
		text := p.Policy.Key() + " (" + p.Policy.Action.String()
		if p.Policy.DryRun {
			text += ", dry run"
		}
		v.Policies = append(v.Policies, text+")")
	}
	slices.Sort(v.Policies)
	for _, n := range d.DryRun {
		v.DryRun = append(v.DryRun, joined(n.Message, n.Policy))
	}
	return v
}

func joined(message, policy string) string {
	if policy == "" {
		return message
	}
	return message + ": " + policy
}

// errNotFound begins what is said of an end that nobody is.
var errNotFound = errors.New("nobody in the mesh")
