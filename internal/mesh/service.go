// SPDX-License-Identifier: Apache-2.0

package mesh

// A Scope is one dimension of nearness in load balancing (contract 9.1).
type Scope uint8

const (
	ScopeRegion Scope = iota + 1
	ScopeZone
	ScopeSubzone
	ScopeNode
	ScopeCluster
	ScopeNetwork
)

// A BalanceMode says what the routing preferences of a service mean.
type BalanceMode uint8

const (
	BalanceStandard    BalanceMode = iota // all eligible endpoints
	BalanceStrict                         // only endpoints that match every preference
	BalanceFailover                       // the endpoints that match the most preferences
	BalancePassthrough                    // the original destination, whatever it is
)

// A HealthPolicy says whether unhealthy endpoints are kept.
type HealthPolicy uint8

const (
	OnlyHealthy HealthPolicy = iota
	AllowAll
)

// A LoadBalancer is how a service wants its endpoints chosen.
type LoadBalancer struct {
	Preferences  []Scope
	Mode         BalanceMode
	HealthPolicy HealthPolicy
}

// IPFamilies restricts the addresses of a service.
type IPFamilies uint8

const (
	AutomaticFamilies IPFamilies = iota
	IPv4Only
	IPv6Only
	DualStack
)

// A Visibility says who may see a service.
type Visibility uint8

const (
	Public        Visibility = iota
	NamespaceOnly            // clients of the service's own namespace
)

// A WeightedWaypoint is one of several waypoints that share a service's
// connections.
type WeightedWaypoint struct {
	Destination GatewayAddress
	Weight      uint32
}

// An Endpoint is a workload's membership in a service.
type Endpoint struct {
	WorkloadUID string
	Ports       map[uint16]uint16 // service port to the endpoint's port
	Status      Status
}

// A Service is a name, with addresses, in front of workloads (contract 9.1).
// Its endpoints are asked of the [View]: they change far more often than it.
type Service struct {
	Name              string
	Namespace         string
	Hostname          string
	VIPs              []NetworkAddr
	CIDRVIPs          []NetworkPrefix
	Ports             map[uint16]uint16 // service port to target port; 0 means the endpoint says
	SubjectAltNames   []string
	Waypoint          *GatewayAddress
	WeightedWaypoints []WeightedWaypoint
	LoadBalancer      *LoadBalancer // nil: all eligible endpoints
	IPFamilies        *IPFamilies   // nil: not said
	Canonical         bool
	Visibility        Visibility
}

// Key is the service's primary key.
func (s *Service) Key() NamespacedHostname {
	return NamespacedHostname{s.Namespace, s.Hostname}
}

// VisibleTo reports whether clients in namespace may see the service.
func (s *Service) VisibleTo(namespace string) bool {
	return s.Visibility == Public || s.Namespace == namespace
}

// TakesUnhealthy reports whether unhealthy endpoints stay members.
func (s *Service) TakesUnhealthy() bool {
	return s.LoadBalancer != nil && s.LoadBalancer.HealthPolicy == AllowAll
}
