// SPDX-License-Identifier: Apache-2.0

package route

import (
	"net/netip"
	"slices"

	"github.com/ztunnel-go/ztunnel/internal/mesh"
)

// An upstream is a workload that was found for an address, the port on it, and
// the service it was found through, if any.
type upstream struct {
	workload *mesh.Workload
	port     uint16
	service  *mesh.Service
	rivals   bool // the service has other endpoints that would do
}

// A purpose is what an upstream is looked up for: waypoints may be reached on
// ports that their service does not list (contract 3.4, eligibility).
type purpose uint8

const (
	toEndpoint purpose = iota
	toWaypoint
)

func passesThrough(svc *mesh.Service) bool {
	return svc.LoadBalancer != nil && svc.LoadBalancer.Mode == mesh.BalancePassthrough
}

// lookup finds who is behind an address: the best service first, then a
// workload, whose port stays as it is (contract 3.4).
func (d *decision) lookup(network string, addr netip.AddrPort, why purpose) (upstream, bool) {
	at := mesh.NetworkAddr{Network: network, Addr: addr.Addr()}
	if svc := d.view.ServiceByVIP(at, d.query.Source.Namespace); svc != nil {
		return d.balance(svc, addr.Port(), why)
	}
	if w := d.view.WorkloadAt(at); w != nil {
		d.use(w.UID)
		return upstream{workload: w, port: addr.Port()}, true
	}
	d.miss(at)
	return upstream{}, false
}

// balance chooses one endpoint of a service.
func (d *decision) balance(svc *mesh.Service, port uint16, why purpose) (upstream, bool) {
	if passesThrough(svc) {
		d.say("The service %v passes connections through.", svc.Key())
		return upstream{}, false
	}
	if _, listed := svc.Ports[port]; !listed && why == toEndpoint {
		d.say("The service %v has no port %d.", svc.Key(), port)
		return upstream{}, false
	}
	d.use(svc.Key().String())
	near := d.nearest(svc, port, why)
	d.say("Of %d endpoints of %v, %d are eligible and nearest.", near.members, svc.Key(), len(near.found))
	i, ok := d.choose(near.candidates)
	if !ok {
		// istiod does not tell of endpoints that a service gets after it was
		// asked for; to ask again brings them.
		d.miss(svc.Key())
		return upstream{}, false
	}
	up := near.found[i]
	up.rivals = near.usable > 1
	if up.port == 0 {
		d.say("%s has no port for %d.", up.workload.UID, port)
		return upstream{}, false
	}
	d.say("%s was chosen, port %d.", up.workload.UID, up.port)
	d.use(up.workload.UID)
	return up, true
}

// A wish is what an endpoint of a service is wanted for.
type wish struct {
	src  *mesh.Workload
	svc  *mesh.Service
	port uint16 // the service's
	why  purpose
}

// A neighbourhood is the eligible endpoints of a service that match its
// preferences best. Both lists have the same order.
type neighbourhood struct {
	found      []upstream
	candidates []Candidate
	members    int // endpoints of the service
	usable     int // those of them that may be used, near or not
}

// nearest leaves out the endpoints that this connection has failed to reach.
// Where preferences are no more than that, those farther off take their place.
func (d *decision) nearest(svc *mesh.Service, port uint16, why purpose) (near neighbourhood) {
	want, best := wish{d.query.Source, svc, port, why}, 0
	d.view.Endpoints(svc.Key(), func(ep mesh.Endpoint, w *mesh.Workload) bool {
		near.members++
		if !want.grantedBy(ep, w) || slices.Contains(d.query.failed, w.UID) {
			return true
		}
		rank, ok := nearness(svc.LoadBalancer, want.src, w)
		if ok && w.Capacity > 0 {
			near.usable++
		}
		if !ok || rank < best {
			return true
		}
		if rank > best {
			best, near.found, near.candidates = rank, near.found[:0], near.candidates[:0]
		}
		near.found = append(near.found, upstream{workload: w, port: targetPort(svc, ep, w, port), service: svc})
		near.candidates = append(near.candidates, Candidate{w.UID, w.Capacity})
		return true
	})
	return near
}

// grantedBy reports whether an endpoint is eligible (contract 3.4).
func (x wish) grantedBy(ep mesh.Endpoint, w *mesh.Workload) bool {
	if len(w.IPs) == 0 && w.Hostname == "" && (w.Network == x.src.Network || w.NetworkGateway == nil) {
		return false // no way to reach it
	}
	target, listed := x.svc.Ports[x.port]
	if x.why == toWaypoint {
		return listed || w.ApplicationTunnel != nil
	}
	return listed && (target != 0 || ep.Ports[x.port] != 0)
}

// targetPort is the endpoint's port for a service port, or 0 if it has none:
// its own mapping first, then the service's, then the port as it is if the
// workload takes everything through a tunnel port of its own.
func targetPort(svc *mesh.Service, ep mesh.Endpoint, w *mesh.Workload, port uint16) uint16 {
	switch {
	case ep.Ports[port] != 0:
		return ep.Ports[port]
	case svc.Ports[port] != 0:
		return svc.Ports[port]
	case w.ApplicationTunnel != nil && w.ApplicationTunnel.Port != 0:
		return port
	default:
		return 0
	}
}

// nearness ranks an endpoint by the service's preferences; not ok means it may
// not be used. All endpoints rank alike where there are no preferences.
func nearness(lb *mesh.LoadBalancer, src, w *mesh.Workload) (rank int, ok bool) {
	if lb == nil {
		return 0, true
	}
	switch lb.Mode {
	case mesh.BalanceFailover:
		return failoverRank(lb.Preferences, src, w), true
	case mesh.BalanceStrict:
		for _, scope := range lb.Preferences {
			if !shares(scope, src, w) {
				return 0, false
			}
		}
	}
	return 0, true
}

// failoverRank counts the leading preferences that match. The network as first
// preference is different: a match outweighs all others together, and a
// mismatch does not end the count, so that the remote endpoints are still
// ranked among themselves.
func failoverRank(preferences []mesh.Scope, src, w *mesh.Workload) int {
	rank := 0
	for i, scope := range preferences {
		leadingNetwork := i == 0 && scope == mesh.ScopeNetwork
		switch match := shares(scope, src, w); {
		case match && leadingNetwork:
			rank += len(preferences)
		case match:
			rank++
		case !leadingNetwork:
			return rank
		}
	}
	return rank
}

// shares compares one dimension only: two zones of the same name match even in
// different regions, and so do two places that are both unknown.
func shares(scope mesh.Scope, a, b *mesh.Workload) bool {
	switch scope {
	case mesh.ScopeRegion:
		return a.Locality.Region == b.Locality.Region
	case mesh.ScopeZone:
		return a.Locality.Zone == b.Locality.Zone
	case mesh.ScopeSubzone:
		return a.Locality.Subzone == b.Locality.Subzone
	case mesh.ScopeNode:
		return a.Node == b.Node
	case mesh.ScopeCluster:
		return a.ClusterID == b.ClusterID
	case mesh.ScopeNetwork:
		return a.Network == b.Network
	default:
		return false
	}
}

// addressOf chooses the address of an upstream: near itself if it is one of
// the workload's, else one of near's family if there is one. A workload
// without addresses is looked up by its hostname.
func (d *decision) addressOf(up upstream, near netip.Addr) (netip.Addr, error) {
	w := up.workload
	if ip, ok := chooseIP(w, near, up.service); ok {
		return ip, nil
	}
	if w.Hostname == "" {
		return netip.Addr{}, errNoRoute(w)
	}
	for _, a := range d.query.answers {
		if a.hostname == w.Hostname {
			return d.fromAnswer(a, w, near)
		}
	}
	return netip.Addr{}, &needName{w}
}

func chooseIP(w *mesh.Workload, near netip.Addr, svc *mesh.Service) (netip.Addr, bool) {
	if slices.Contains(w.IPs, near) {
		return near, true
	}
	var first netip.Addr
	for _, ip := range w.IPs {
		switch {
		case !allows(svc, ip):
		case ip.Is4() == near.Is4():
			return ip, true
		case !first.IsValid():
			first = ip
		}
	}
	return first, first.IsValid()
}

func allows(svc *mesh.Service, ip netip.Addr) bool {
	if svc == nil || svc.IPFamilies == nil {
		return true
	}
	switch *svc.IPFamilies {
	case mesh.IPv4Only:
		return ip.Is4()
	case mesh.IPv6Only:
		return ip.Is6()
	default:
		return true
	}
}

// fromAnswer chooses among the addresses of a name: any of near's family, else
// any (contract 3.8).
func (d *decision) fromAnswer(a answer, w *mesh.Workload, near netip.Addr) (netip.Addr, error) {
	if a.err != nil {
		return netip.Addr{}, errUnresolved(w)
	}
	var same, other []netip.Addr
	for _, ip := range a.addrs {
		if ip = ip.Unmap(); ip.Is4() == near.Is4() {
			same = append(same, ip)
		} else {
			other = append(other, ip)
		}
	}
	if len(same) == 0 {
		same = other
	}
	even := make([]Candidate, len(same))
	for i := range even {
		even[i].Weight = 1
	}
	i, ok := d.choose(even)
	if !ok {
		return netip.Addr{}, errNoAddresses(w)
	}
	d.say("%s was looked up: %v.", a.hostname, same[i])
	return same[i], nil
}
