// SPDX-License-Identifier: Apache-2.0

package route

import (
	"net/netip"
	"strconv"

	"github.com/ztunnel-go/ztunnel/internal/mesh"
)

// waypointOf is the waypoint of a service, or nil: one of the weighted ones,
// unless all have weight zero, then the single one (contract 3.3).
func (d *decision) waypointOf(svc *mesh.Service) *mesh.GatewayAddress {
	if len(svc.WeightedWaypoints) > 0 {
		candidates := make([]Candidate, len(svc.WeightedWaypoints))
		for i, w := range svc.WeightedWaypoints {
			candidates[i].Weight = w.Weight
		}
		if i, ok := d.choose(candidates); ok {
			d.say("The service %v has weighted waypoints; number %d was chosen.", svc.Key(), i)
			return &svc.WeightedWaypoints[i].Destination
		}
	}
	return svc.Waypoint
}

// throughWaypoint sends the connection to a waypoint, which is told what the
// client dialled, untranslated. asked is the service the client dialled, or
// nil; meant is the one to report. A waypoint that cannot be found ends the
// connection: going around it would go around its policy (contract 3.3).
func (d *decision) throughWaypoint(waypoint *mesh.GatewayAddress, asked, meant *mesh.Service) (Outcome, error) {
	d.say("The way leads through the waypoint %s.", gatewayName(waypoint))
	up, near, found := d.gateway(waypoint, toWaypoint)
	if !found {
		return Outcome{}, errUnknownWaypoint(waypoint)
	}
	if up.workload.Network != d.query.Source.Network {
		d.say("The waypoint %s is in network %q.", up.workload.UID, up.workload.Network)
		if asked == nil {
			return Outcome{}, errNoService(d.query.Dst)
		}
		return d.acrossNetworks(up, asked)
	}
	ip, err := d.addressOf(up, near)
	if err != nil {
		return Outcome{}, err
	}
	dial := netip.AddrPortFrom(ip, up.port)
	d.say("A tunnel to %v, asking for %v as it was dialled.", dial, d.query.Dst)
	return Outcome{
		Kind:      Tunnel,
		Dial:      dial,
		Authority: d.query.Dst.String(),
		NextHop:   up.workload,
		Service:   meant,
		Expect:    d.identitiesOf(up),
		Rivals:    up.rivals,
	}, nil
}

// gateway finds the workload that a gateway address means, and the address
// whose family it should be reached by.
func (d *decision) gateway(g *mesh.GatewayAddress, why purpose) (up upstream, near netip.Addr, found bool) {
	if !g.ByHostname() {
		near = g.Address.Addr
		up, found = d.lookup(g.Address.Network, netip.AddrPortFrom(near, g.HBONEMTLSPort), why)
		return up, near, found
	}
	near = d.query.Dst.Addr()
	if svc := d.view.Service(g.Hostname); svc != nil {
		up, found = d.balance(svc, g.HBONEMTLSPort, why)
		return up, near, found
	}
	if w := d.view.WorkloadByHostname(g.Hostname); w != nil {
		d.use(w.UID)
		return upstream{workload: w, port: g.HBONEMTLSPort}, near, true
	}
	d.miss(g)
	return upstream{}, near, false
}

// acrossNetworks sends the connection through the gateway of far's network, in
// a tunnel within a tunnel. The far side chooses the endpoint anew, so it is
// asked for the service by name and whoever the service allows may answer
// (contract 3.5).
func (d *decision) acrossNetworks(far upstream, asked *mesh.Service) (Outcome, error) {
	g := far.workload.NetworkGateway
	if g == nil {
		return Outcome{}, errNoRoute(far.workload)
	}
	d.say("The way leads through the network gateway %s.", gatewayName(g))
	up, near, found := d.gateway(g, toEndpoint)
	if !found {
		return Outcome{}, errUnknownGateway(g)
	}
	ip, err := d.addressOf(up, near)
	if err != nil {
		return Outcome{}, err
	}
	authority := asked.Hostname + ":" + strconv.Itoa(int(d.query.Dst.Port()))
	dial := netip.AddrPortFrom(ip, up.port)
	d.say("Two tunnels by way of %v, both asking for %s.", dial, authority)
	return Outcome{
		Kind:        DoubleTunnel,
		Dial:        dial,
		Authority:   authority,
		NextHop:     up.workload,
		Service:     asked,
		Expect:      d.identitiesOf(up),
		InnerExpect: d.sansOf(far.service),
		Rivals:      up.rivals,
	}, nil
}

// fromWaypointOf reports whether the client is itself one of the waypoints of
// w, by identity and by address, and so must not be sent back to it
// (contract 3.6).
func (d *decision) fromWaypointOf(w *mesh.Workload) bool {
	id, ip := d.query.Source.Identity(), d.query.SourceIP
	isClient := func(member *mesh.Workload) bool {
		return !id.IsZero() && member.Identity() == id && member.HasIP(ip)
	}
	one, svc := gatewayTarget(d.view, w.Waypoint)
	if one != nil {
		return d.sayFrom(isClient(one))
	}
	if svc == nil {
		d.miss(w.Waypoint)
		return false
	}
	is := false
	d.view.Endpoints(svc.Key(), func(_ mesh.Endpoint, member *mesh.Workload) bool {
		is = isClient(member)
		return !is
	})
	return d.sayFrom(is)
}

func (d *decision) sayFrom(is bool) bool {
	if is {
		d.say("The client is the waypoint itself.")
	}
	return is
}

// gatewayTarget finds what a gateway address names, whoever asks: a workload
// or a service.
func gatewayTarget(v mesh.View, g *mesh.GatewayAddress) (*mesh.Workload, *mesh.Service) {
	if !g.ByHostname() {
		if w := v.WorkloadAt(g.Address); w != nil {
			return w, nil
		}
		return nil, v.AnyServiceByVIP(g.Address)
	}
	if svc := v.Service(g.Hostname); svc != nil {
		return nil, svc
	}
	return v.WorkloadByHostname(g.Hostname), nil
}
