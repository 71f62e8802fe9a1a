// SPDX-License-Identifier: Apache-2.0

package route

import (
	"net/netip"
	"slices"

	"github.com/ztunnel-go/ztunnel/dataplane/reason"
	"github.com/ztunnel-go/ztunnel/internal/mesh"
)

// ErrRecursive refuses a connection that would lead the proxy to itself.
var ErrRecursive = reason.New(reason.RecursiveCall, "attempted recursive call to ourselves")

// IllegalPorts are the proxy's own ports, to which it never connects.
type IllegalPorts []uint16

// Outbound returns [ErrRecursive] for one of the ports on a loopback address.
// On other addresses the receiving side refuses (contract 3.1 step 2).
func (p IllegalPorts) Outbound(dst netip.AddrPort) error {
	if dst.Addr().Unmap().IsLoopback() {
		return p.Inbound(dst.Port())
	}
	return nil
}

// Inbound returns [ErrRecursive] for one of the ports, whatever the address
// (contract 5.4, 5.7).
func (p IllegalPorts) Inbound(port uint16) error {
	if slices.Contains(p, port) {
		return ErrRecursive
	}
	return nil
}

// The texts below are read by people in access logs and matched by their
// tools (contract 14.6).

func errNoUpstream(dst netip.AddrPort) error {
	return reason.Errorf(reason.NoHealthyUpstream, "no healthy upstream: %v", dst)
}

func errNoService(dst netip.AddrPort) error {
	return reason.Errorf(reason.NoService, "no service for target address: %v", dst)
}

func errNoRoute(w *mesh.Workload) error {
	return reason.Errorf(reason.NoRoute, "no valid routing destination for workload: %s", w.UID)
}

func errUnknownWaypoint(g *mesh.GatewayAddress) error {
	return reason.Errorf(reason.UnknownWaypoint, "unknown waypoint: waypoint %s not found", gatewayName(g))
}

func errUnknownGateway(g *mesh.GatewayAddress) error {
	return reason.Errorf(reason.UnknownGateway, "unknown network gateway: network gateway %s not found", gatewayName(g))
}

// gatewayName is the bare hostname, or network/address:port.
func gatewayName(g *mesh.GatewayAddress) string {
	if g.ByHostname() {
		return g.Hostname.Hostname
	}
	return g.Address.Network + "/" + netip.AddrPortFrom(g.Address.Addr, g.HBONEMTLSPort).String()
}

func errUnresolved(w *mesh.Workload) error {
	return reason.Errorf(reason.NameUnresolved, "no ip addresses were resolved for workload: %s", w.UID)
}

func errNoAddresses(w *mesh.Workload) error {
	return reason.Errorf(reason.NameWithoutAddress, "ip addresses were resolved for workload %s, but valid dns response had no A/AAAA records", w.UID)
}

// A needName carries the wish for a name up to [Decide]. Its text is for a
// connection that has waited for too many.
type needName struct{ workload *mesh.Workload }

func (n *needName) Error() string { return errUnresolved(n.workload).Error() }
