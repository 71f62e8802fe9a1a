// SPDX-License-Identifier: Apache-2.0

package route

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/ztunnel-go/ztunnel/dataplane/reason"
	"github.com/ztunnel-go/ztunnel/internal/identity"
	"github.com/ztunnel-go/ztunnel/internal/mesh"
)

/* The life of a decision (contract 3.2; the letters are its rows)
 *
 *	what was dialled? -+- a service with a waypoint ---------------> A  waypoint
 *	                   |
 *	                   +- who is behind it? -+- nobody, a service -> B  refuse
 *	                                         +- nobody, unknown ---> C  direct
 *	                                         +- another network ---> D  double tunnel
 *	                                         +- has a waypoint ----> E  waypoint
 *	                                         +- speaks HBONE ------> F  tunnel
 *	                                         +- does not ----------> G  direct
 *
 * The first question puts workloads before services, the second services
 * before workloads: an address that is both counts as a pod for waypoints and
 * is still balanced over the service.
 */

// maxNames bounds how many names one connection may wait for. Two are real (a
// waypoint and an endpoint); more come only from state that keeps changing.
const maxNames = 4

// maxLearned bounds how many names of resources one connection may wait for.
// Four are real: what was dialled, its waypoint, and a gateway with its
// network's other address.
const maxLearned = 8

// Decide says what to do with a connection (contract 3). pick chooses where
// there are several; where there is no choice it is not asked.
func Decide(v mesh.View, q Query, pick Chooser) Outcome {
	q.Dst = netip.AddrPortFrom(q.Dst.Addr().Unmap(), q.Dst.Port())
	q.SourceIP = q.SourceIP.Unmap()
	d := &decision{view: v, query: q, pick: pick}
	out, err := d.decide()
	var need *needName
	switch {
	case d.missing != "":
		// Whatever the answer was, it was for want of this.
		d.say("%s is unknown, and has to be asked for first.", d.missing)
		out, d.picked = Outcome{Kind: Learn, Learn: d.missing}, d.picked[:d.pickedThen]
	case err == nil:
	case errors.As(err, &need) && len(q.answers) < maxNames:
		d.say("The hostname %s has to be looked up first.", need.workload.Hostname)
		out = Outcome{Kind: Resolve, Resolve: need.workload.Hostname}
	default:
		d.say("Refused: %v.", err)
		out = Outcome{Kind: Refuse, Err: err}
	}
	out.query, out.query.picks = q, d.picked
	out.Endpoints = d.weighsOn(out)
	out.Warnings, out.Steps, out.Used = d.warnings, d.steps, d.used
	return out
}

// A decision is one run of [Decide].
type decision struct {
	view  mesh.View
	query Query
	pick  Chooser

	picked  []choice // all so far, replayed ones included
	missing string   // the first name that was not known and may become so
	// pickedThen is the length of picked when missing was missed.
	pickedThen int
	warnings   []string
	steps      []string
	used       []string
}

// use notes that the decision rests on a resource.
func (d *decision) use(name string) {
	if d.query.OnDemand {
		d.used = append(d.used, name)
	}
}

func (d *decision) say(format string, args ...any) {
	if d.query.Explain {
		d.steps = append(d.steps, fmt.Sprintf(format, args...))
	}
}

// miss notes that something was looked for and is not known: in on-demand mode
// that is no answer until it has been asked for.
func (d *decision) miss(name fmt.Stringer) {
	q := &d.query
	if !q.OnDemand || d.missing != "" || len(q.learned) >= maxLearned || slices.Contains(q.learned, name.String()) {
		return
	}
	d.missing, d.pickedThen = name.String(), len(d.picked)
}

func (d *decision) decide() (Outcome, error) {
	src, dst := d.query.Source, d.query.Dst
	if src == nil {
		return Outcome{}, reason.New(reason.WorkloadUnknown, "the source workload is unknown")
	}
	asked := d.askedService()
	if asked != nil {
		if waypoint := d.waypointOf(asked); waypoint != nil { // A
			return d.throughWaypoint(waypoint, asked, asked)
		}
	}
	up, found := d.lookup(src.Network, dst, toEndpoint)
	if !found {
		return d.nobody(asked)
	}
	w := up.workload
	switch {
	case w.Network != src.Network: // D
		d.say("%s is in network %q, the client in %q.", w.UID, w.Network, src.Network)
		if asked == nil {
			return Outcome{}, errNoService(dst)
		}
		return d.acrossNetworks(up, asked)
	case asked == nil && w.Waypoint != nil && !d.fromWaypointOf(w): // E
		d.say("%s has a waypoint.", w.UID)
		return d.throughWaypoint(w.Waypoint, nil, up.service)
	default: // F, G
		return d.straight(up)
	}
}

// askedService is the service that the client dialled, or nil if the address
// is a workload's or unknown.
func (d *decision) askedService() *mesh.Service {
	at := mesh.NetworkAddr{Network: d.query.Network, Addr: d.query.Dst.Addr()}
	if w := d.view.WorkloadAt(at); w != nil {
		d.say("%v is the address of the workload %s.", at.Addr, w.UID)
		d.use(w.UID)
		return nil
	}
	svc := d.view.ServiceByVIP(at, d.query.Source.Namespace)
	if svc != nil {
		d.say("%v is an address of the service %v.", at.Addr, svc.Key())
		d.use(svc.Key().String())
	} else {
		d.say("%v is unknown in network %q.", at.Addr, at.Network)
		d.miss(at)
	}
	return svc
}

func (d *decision) nobody(asked *mesh.Service) (Outcome, error) {
	dst := d.query.Dst
	if asked != nil && !passesThrough(asked) || len(d.query.failed) > 0 { // B, also once all have failed
		return Outcome{}, errNoUpstream(dst)
	}
	d.say("Nothing of the mesh is behind %v: passed through as it is.", dst) // C
	return Outcome{Kind: Direct, Dial: dst}, nil
}

// straight connects to an endpoint itself.
func (d *decision) straight(up upstream) (Outcome, error) {
	ip, err := d.addressOf(up, d.query.Dst.Addr())
	if err != nil {
		return Outcome{}, err
	}
	w, target := up.workload, netip.AddrPortFrom(ip, up.port)
	if w.Protocol == mesh.HBONE { // F
		d.say("%s speaks HBONE: a tunnel to port %d, asking for %v.", w.UID, HBONEPort, target)
		return Outcome{
			Kind:      Tunnel,
			Dial:      netip.AddrPortFrom(ip, HBONEPort),
			Authority: target.String(),
			NextHop:   w,
			Service:   up.service,
			Expect:    d.identitiesOf(up),
			Rivals:    up.rivals,
		}, nil
	}
	d.say("%s does not speak HBONE: plain TCP to %v.", w.UID, target) // G
	return Outcome{Kind: Direct, Dial: target, NextHop: w, Service: up.service, Rivals: up.rivals}, nil
}

// identitiesOf lists who may be at the other end of a tunnel to up: whoever
// the service allows, then the workload itself.
func (d *decision) identitiesOf(up upstream) []identity.ID {
	ids := d.sansOf(up.service)
	if id := up.workload.Identity(); !id.IsZero() {
		ids = append(ids, id)
	}
	return ids
}

func (d *decision) sansOf(svc *mesh.Service) []identity.ID {
	if svc == nil {
		return nil
	}
	var ids []identity.ID
	for _, san := range svc.SubjectAltNames {
		id, err := identity.Parse(san)
		if err != nil {
			d.warnings = append(d.warnings, fmt.Sprintf("ignoring invalid SAN %s of service %v", san, svc.Key()))
			continue
		}
		ids = append(ids, id)
	}
	return ids
}

// A choice is what was chosen: an index, and whose it was, if an endpoint's.
type choice struct {
	index int
	uid   string
}

// choose picks one candidate. It replays the choices of an earlier asking, so
// that the outcome stays the same but for what was wrong with it.
func (d *decision) choose(candidates []Candidate) (int, bool) {
	only, many := -1, 0
	for i, c := range candidates {
		if c.Weight > 0 {
			only, many = i, many+1
		}
	}
	if many > 1 {
		only = d.pickAgain(candidates)
	}
	chosen := choice{index: only}
	if only >= 0 {
		chosen.uid = candidates[only].UID
	}
	d.picked = append(d.picked, chosen)
	return only, only >= 0
}

func (d *decision) pickAgain(candidates []Candidate) int {
	usable := func(i int) bool { return i >= 0 && i < len(candidates) && candidates[i].Weight > 0 }
	if n := len(d.picked); n < len(d.query.picks) {
		old := d.query.picks[n]
		i := old.index
		if old.uid != "" { // the mesh may have changed since
			i = slices.IndexFunc(candidates, func(c Candidate) bool { return c.UID == old.uid })
		}
		if usable(i) {
			return i
		}
	}
	if i := d.pick(candidates); usable(i) {
		return i
	}
	return -1
}

// weighsOn lists whom a connection to the outcome is a load for.
func (d *decision) weighsOn(out Outcome) []string {
	if out.NextHop == nil {
		return nil
	}
	uids := []string{out.NextHop.UID}
	for _, c := range d.picked {
		if c.uid != "" && !slices.Contains(uids, c.uid) {
			uids = append(uids, c.uid)
		}
	}
	return uids
}
