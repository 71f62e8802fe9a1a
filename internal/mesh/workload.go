// SPDX-License-Identifier: Apache-2.0

// Package mesh is the picture of the mesh: workloads, services and
// authorization policies as plain values, and the [Store] that indexes them.
//
// It is where the three middle rooms meet: xds writes it, dataplane and
// dnsproxy read it through a [View]. It decides nothing (that is
// dataplane/route and dataplane/rbac), speaks to nobody and imports only
// net/netip, pure parts of the standard library and internal/identity, so
// that every decision over it can be asked in a table test.
//
// Values that have been given to a Store are shared and must not be changed
// afterwards; an update replaces the value.
package mesh

import (
	"net/netip"
	"strings"

	"github.com/ztunnel-go/ztunnel/internal/identity"
)

// A Protocol says how a workload wants to be reached (contract 9.1,
// TunnelProtocol).
type Protocol uint8

const (
	TCP   Protocol = iota // plaintext, straight to the port
	HBONE                 // through a tunnel to port 15008
)

// A NetworkMode says whether the workload's address is its own.
type NetworkMode uint8

const (
	Standard    NetworkMode = iota
	HostNetwork             // shares its node's address, so it is not indexed by it
)

// A Status is what the control plane knows of a workload's health.
type Status uint8

const (
	Healthy Status = iota
	Unhealthy
)

// A WorkloadType is the kind of owner a workload has; its lower-case name is
// part of the baggage (contract 4.5).
type WorkloadType uint8

const (
	Deployment WorkloadType = iota
	CronJob
	Pod
	Job
)

// Locality places a workload; empty fields are unknown.
type Locality struct{ Region, Zone, Subzone string }

// A NetworkAddr is an address within a named network; the same address may
// exist in several.
type NetworkAddr struct {
	Network string
	Addr    netip.Addr
}

// String is the form that xDS resource aliases have: network/address.
func (a NetworkAddr) String() string { return a.Network + "/" + a.Addr.String() }

// A NetworkPrefix is a range of addresses within a named network.
type NetworkPrefix struct {
	Network string
	Prefix  netip.Prefix
}

// A NamespacedHostname is the primary key of a service.
type NamespacedHostname struct{ Namespace, Hostname string }

// String is namespace/hostname, the resource name in xDS.
func (n NamespacedHostname) String() string { return n.Namespace + "/" + n.Hostname }

// ParseNamespacedHostname reads namespace/hostname. The hostname may not hold
// a slash.
func ParseNamespacedHostname(s string) (NamespacedHostname, bool) {
	ns, host, ok := strings.Cut(s, "/")
	if !ok || strings.Contains(host, "/") {
		return NamespacedHostname{}, false
	}
	return NamespacedHostname{ns, host}, true
}

// A GatewayAddress points at a waypoint or network gateway, by hostname or,
// when Hostname is zero, by address.
type GatewayAddress struct {
	Hostname      NamespacedHostname
	Address       NetworkAddr
	HBONEMTLSPort uint16
}

// ByHostname reports which of the two forms g has.
func (g *GatewayAddress) ByHostname() bool { return g.Hostname != NamespacedHostname{} }

// String is the destination as config_dump shows it, without the port.
func (g *GatewayAddress) String() string {
	if g.ByHostname() {
		return g.Hostname.String()
	}
	return g.Address.String()
}

// A TunnelKind is how an application behind an [ApplicationTunnel] wants its
// connections announced.
type TunnelKind uint8

const (
	TunnelNone  TunnelKind = iota // bytes only
	TunnelProxy                   // a PROXY protocol v2 header first
)

// An ApplicationTunnel says that a workload takes all its connections at one
// port. Port 0 is unset.
type ApplicationTunnel struct {
	Kind TunnelKind
	Port uint16
}

// A Workload is one pod, VM or external endpoint (contract 9.1).
type Workload struct {
	UID            string
	Name           string
	Namespace      string
	TrustDomain    string
	ServiceAccount string
	Network        string
	Node           string
	Hostname       string
	IPs            []netip.Addr
	Protocol       Protocol
	NetworkMode    NetworkMode
	Status         Status
	NativeTunnel   bool

	WorkloadName      string
	WorkloadType      WorkloadType
	CanonicalName     string
	CanonicalRevision string
	ClusterID         string
	Locality          Locality
	Capacity          uint32 // weight in load balancing; 0 is never chosen

	Waypoint          *GatewayAddress
	NetworkGateway    *GatewayAddress
	ApplicationTunnel *ApplicationTunnel

	AuthorizationPolicies []string                                 // keys namespace/name
	Services              map[NamespacedHostname]map[uint16]uint16 // service port to this workload's port; target 0 is none
}

// Identity is the identity that the control plane gives the workload.
func (w *Workload) Identity() identity.ID {
	id, err := identity.New(w.TrustDomain, w.Namespace, w.ServiceAccount)
	if err != nil {
		return identity.ID{} // nobody: no peer can be this workload
	}
	return id
}

// HasIP reports whether ip is one of the workload's own addresses.
func (w *Workload) HasIP(ip netip.Addr) bool {
	for _, own := range w.IPs {
		if own == ip {
			return true
		}
	}
	return false
}
