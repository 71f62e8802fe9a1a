// SPDX-License-Identifier: Apache-2.0

package route

import (
	"cmp"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/ztunnel-go/ztunnel/dataplane/reason"
	"github.com/ztunnel-go/ztunnel/internal/mesh"
)

// A Target is what a CONNECT request asks for: an address, or a hostname and a
// port.
type Target struct {
	Addr     netip.AddrPort // not valid for a hostname
	Hostname string
	Port     uint16 // of either form
}

// ParseTarget reads the authority of a CONNECT request (contract 5.2 step 2).
// IPv6 addresses stand in brackets.
func ParseTarget(authority string) (Target, error) {
	if ap, err := netip.ParseAddrPort(authority); err == nil && ap.Addr().Zone() == "" {
		ap = netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port())
		return Target{Addr: ap, Port: ap.Port()}, nil
	}
	host, digits, ok := strings.Cut(authority, ":")
	port, err := strconv.ParseUint(digits, 10, 16)
	if !ok || err != nil || !validHost(host) {
		return Target{}, reason.Errorf(reason.BadAuthority, "no valid authority pseudo header: %s", authority)
	}
	return Target{Hostname: host, Port: uint16(port)}, nil
}

// validHost keeps out what belongs to other forms of a URI's authority, and
// whatever could not be shown in a log line.
func validHost(host string) bool {
	for i := range len(host) {
		c := host[i]
		letter := 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9'
		if !letter && !strings.ContainsRune("-._~*!$&'()+,;=%", rune(c)) {
			return false
		}
	}
	return host != ""
}

// String is the authority again.
func (t Target) String() string {
	if t.Addr.IsValid() {
		return t.Addr.String()
	}
	return t.Hostname + ":" + strconv.Itoa(int(t.Port))
}

// Inbound is the receiving end of tunnels: one pod, at one of its addresses.
type Inbound struct {
	Local   *mesh.Workload // the pod's own workload
	Addr    netip.Addr     // the local address of the connection
	Network string         // the network this node is in (NETWORK)
	Illegal IllegalPorts
	// LocalhostTunnel has connections of a PROXY application tunnel delivered
	// to the loopback address (LOCALHOST_APP_TUNNEL).
	LocalhostTunnel bool
}

// An Upstream is where a request is delivered within the pod.
type Upstream struct {
	// Addr is the destination that policy judges: always an address of the
	// pod, with the port after every translation (contract 5.5).
	Addr netip.AddrPort
	// Dial is where to connect. It differs from Addr only for a PROXY tunnel
	// on the loopback address, and then the client's address cannot be kept
	// (contract 5.6).
	Dial netip.AddrPort
	// Proxy is the destination to announce in a PROXY header; invalid if there
	// is to be no header (contract 4.10).
	Proxy netip.AddrPort
	// Services are those the request may have been for, for the labels.
	Services []*mesh.Service
}

// Validate reports whether a request for t may be meant for this pod: it asks
// for the pod's own address, or the pod takes connections for others, as a
// waypoint does (contract 5.3). Requests by hostname are judged by
// [Inbound.Upstream].
func (in Inbound) Validate(v mesh.View, t Target) error {
	if !t.Addr.IsValid() || t.Addr.Addr() == in.Addr.Unmap() || in.Local.ApplicationTunnel != nil {
		return nil
	}
	if g := waypointAt(v, mesh.NetworkAddr{Network: in.Network, Addr: t.Addr.Addr()}); g != nil && in.is(v, g) {
		return nil
	}
	return reason.Errorf(reason.NotThisPod, "ip mismatch: %v != %v", in.Addr.Unmap(), t.Addr.Addr())
}

// waypointAt is the waypoint of whoever has an address. Weighted waypoints
// have no say here (contract 5.3).
func waypointAt(v mesh.View, at mesh.NetworkAddr) *mesh.GatewayAddress {
	if w := v.WorkloadAt(at); w != nil {
		return w.Waypoint
	}
	if svc := v.AnyServiceByVIP(at); svc != nil {
		return svc.Waypoint
	}
	return nil
}

// is reports whether a gateway address means this pod.
func (in Inbound) is(v mesh.View, g *mesh.GatewayAddress) bool {
	w, svc := gatewayTarget(v, g)
	if svc != nil {
		_, member := v.Endpoint(svc.Key(), in.Local.UID)
		return member
	}
	return w != nil && w.HasIP(in.Addr.Unmap())
}

// Unknown lists what [Inbound.Validate] and [Inbound.Upstream] would look at
// and v does not have. In on-demand mode it may only not have been asked for;
// who asks may find more that is unknown behind it.
func (in Inbound) Unknown(v mesh.View, t Target) []string {
	if !t.Addr.IsValid() {
		if v.ServiceByHostname(t.Hostname, in.Local.Namespace) != nil {
			return nil
		}
		return in.named(t.Hostname)
	}
	if t.Addr.Addr() == in.Addr.Unmap() || in.Local.ApplicationTunnel != nil {
		return nil
	}
	at := mesh.NetworkAddr{Network: in.Network, Addr: t.Addr.Addr()}
	if v.WorkloadAt(at) == nil && v.AnyServiceByVIP(at) == nil {
		return []string{at.String()}
	}
	g := waypointAt(v, at)
	if g == nil {
		return nil
	}
	if w, svc := gatewayTarget(v, g); w != nil || svc != nil {
		return nil
	}
	return []string{g.String()}
}

// named are the keys that a service with a hostname may have: those of the
// services that the pod is in, else its own namespace's.
func (in Inbound) named(hostname string) []string {
	var keys []string
	for key := range in.Local.Services {
		if key.Hostname == hostname {
			keys = append(keys, key.String())
		}
	}
	if len(keys) == 0 {
		return []string{mesh.NamespacedHostname{Namespace: in.Local.Namespace, Hostname: hostname}.String()}
	}
	slices.Sort(keys)
	return keys
}

// Upstream says where a request for t is delivered (contract 5.4). Only the
// port comes from the request: the address is the pod's.
func (in Inbound) Upstream(v mesh.View, t Target) (Upstream, error) {
	port, announced, services := t.Port, t.Addr, []*mesh.Service(nil)
	tunnel := in.Local.ApplicationTunnel
	proxied := tunnel != nil && tunnel.Kind == mesh.TunnelProxy
	if t.Addr.IsValid() {
		services = Services(v, in.Local)
	} else {
		svc := v.ServiceByHostname(t.Hostname, in.Local.Namespace)
		if svc == nil {
			return Upstream{}, reason.Errorf(reason.HostUnknown, "no service or workload for hostname: %s", t.Hostname)
		}
		if port = in.portOf(v, svc, t.Port); port == 0 {
			return Upstream{}, reason.Errorf(reason.PortUnresolved, "requested service %s:%d found, but cannot resolve port", t.Hostname, t.Port)
		}
		services = []*mesh.Service{svc}
		if proxied {
			vip, ok := announcedVIP(svc, in.Network)
			if !ok {
				return Upstream{}, reason.Errorf(reason.ServiceWithoutAddress, "requested service %s found, but has no IP addresses", t.Hostname)
			}
			announced = netip.AddrPortFrom(vip, t.Port)
		}
	}
	if err := in.Illegal.Inbound(port); err != nil {
		return Upstream{}, err
	}
	if tunnel != nil && tunnel.Port != 0 {
		port = tunnel.Port
	}
	up := Upstream{Addr: netip.AddrPortFrom(in.Addr.Unmap(), port), Services: services}
	up.Dial = up.Addr
	if proxied {
		up.Proxy = announced
		if in.LocalhostTunnel {
			up.Dial = netip.AddrPortFrom(loopbackLike(up.Addr.Addr()), port)
		}
	}
	return up, nil
}

func (in Inbound) portOf(v mesh.View, svc *mesh.Service, port uint16) uint16 {
	if ep, ok := v.Endpoint(svc.Key(), in.Local.UID); ok && ep.Ports[port] != 0 {
		return ep.Ports[port]
	}
	return svc.Ports[port]
}

// announcedVIP is the address that stands for a service asked for by name: of
// our own network if there is one, IPv4 before IPv6, the last of equals
// (contract 4.10).
func announcedVIP(svc *mesh.Service, network string) (netip.Addr, bool) {
	var best netip.Addr
	bestRank := -1
	for _, vip := range svc.VIPs {
		rank := 0
		if vip.Network == network {
			rank += 2
		}
		if vip.Addr.Is4() {
			rank++
		}
		if rank >= bestRank {
			best, bestRank = vip.Addr, rank
		}
	}
	return best, bestRank >= 0
}

func loopbackLike(ip netip.Addr) netip.Addr {
	if ip.Is4() {
		return netip.AddrFrom4([4]byte{127, 0, 0, 1})
	}
	return netip.IPv6Loopback()
}

// Services lists the services a workload is a member of, by key.
func Services(v mesh.View, w *mesh.Workload) []*mesh.Service {
	keys := make([]mesh.NamespacedHostname, 0, len(w.Services))
	for key := range w.Services {
		keys = append(keys, key)
	}
	slices.SortFunc(keys, func(a, b mesh.NamespacedHostname) int {
		return cmp.Or(strings.Compare(a.Namespace, b.Namespace), strings.Compare(a.Hostname, b.Hostname))
	})
	services := make([]*mesh.Service, 0, len(keys))
	for _, key := range keys {
		if svc := v.Service(key); svc != nil {
			services = append(services, svc)
		}
	}
	return services
}

// GuessService names the service that an inbound connection was probably for:
// the one the client named in its forwarded header, else the first that leads
// to the port, else nil (contract 12.4). Plaintext connections name none.
func GuessService(v mesh.View, local *mesh.Workload, candidates []*mesh.Service, forwardedHost string, port uint16) *mesh.Service {
	if forwardedHost != "" {
		for _, svc := range candidates {
			if svc.Hostname == forwardedHost {
				return svc
			}
		}
	}
	for _, svc := range candidates {
		if leadsTo(svc.Ports, port) {
			return svc
		}
		if ep, ok := v.Endpoint(svc.Key(), local.UID); ok && leadsTo(ep.Ports, port) {
			return svc
		}
	}
	return nil
}

func leadsTo(ports map[uint16]uint16, port uint16) bool {
	for _, target := range ports {
		if target == port {
			return true
		}
	}
	return false
}
