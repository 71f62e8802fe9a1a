// SPDX-License-Identifier: Apache-2.0

package xds

import (
	"errors"
	"fmt"

	"github.com/ztunnel-go/ztunnel/internal/mesh"
	"github.com/ztunnel-go/ztunnel/xds/pb/workloadpb"
)

// service converts a service, or says what is wrong with it.
func (t *translator) service(p *workloadpb.Service) (*mesh.Service, error) {
	k := &t.known
	s := &mesh.Service{
		Name:            p.GetName(),
		Namespace:       k.text(p.GetNamespace()),
		Hostname:        k.text(p.GetHostname()),
		Ports:           ports(p.GetPorts()),
		SubjectAltNames: k.list(p.GetSubjectAltNames()),
		Canonical:       p.GetCanonical(),
	}
	if p.GetVisibility() == workloadpb.Service_NAMESPACE { // anything else is public
		s.Visibility = mesh.NamespaceOnly
	}
	if err := t.vips(s, p.GetAddresses()); err != nil {
		return nil, err
	}
	var err error
	if s.Waypoint, err = t.gateway(p.GetWaypoint()); err != nil {
		return nil, err
	}
	if s.WeightedWaypoints, err = t.weightedWaypoints(p.GetWeightedWaypoints()); err != nil {
		return nil, err
	}
	if s.LoadBalancer, err = loadBalancer(p.GetLoadBalancing()); err != nil {
		return nil, err
	}
	if s.IPFamilies, err = ipFamilies(p.GetIpFamilies()); err != nil {
		return nil, err
	}
	return s, nil
}

// vips sorts the addresses of a service into single ones and ranges.
func (t *translator) vips(s *mesh.Service, list []*workloadpb.NetworkAddress) error {
	for _, a := range list {
		ip, err := address(a.GetAddress())
		if err != nil {
			return err
		}
		network := t.known.text(a.GetNetwork())
		if a.Length == nil || a.GetLength() == uint32(8*len(a.GetAddress())) {
			s.VIPs = append(s.VIPs, mesh.NetworkAddr{Network: network, Addr: ip})
			continue
		}
		p, err := prefix(a.GetAddress(), a.GetLength())
		if err != nil {
			return err
		}
		s.CIDRVIPs = append(s.CIDRVIPs, mesh.NetworkPrefix{Network: network, Prefix: p})
	}
	return nil
}

func (t *translator) weightedWaypoints(list []*workloadpb.WeightedWaypoint) ([]mesh.WeightedWaypoint, error) {
	var out []mesh.WeightedWaypoint
	for _, p := range list {
		if p.GetDestination() == nil {
			return nil, errors.New("weighted waypoint is missing destination")
		}
		g, err := t.gateway(p.GetDestination())
		if err != nil {
			return nil, fmt.Errorf("weighted waypoint: %w", err)
		}
		out = append(out, mesh.WeightedWaypoint{Destination: *g, Weight: p.GetWeight()})
	}
	return out, nil
}

func loadBalancer(p *workloadpb.LoadBalancing) (*mesh.LoadBalancer, error) {
	if p == nil {
		return nil, nil
	}
	lb := &mesh.LoadBalancer{}
	for _, scope := range p.GetRoutingPreference() {
		s, err := balanceScope(scope)
		if err != nil {
			return nil, err
		}
		lb.Preferences = append(lb.Preferences, s)
	}
	switch p.GetMode() {
	case workloadpb.LoadBalancing_UNSPECIFIED_MODE:
		lb.Mode = mesh.BalanceStandard
	case workloadpb.LoadBalancing_STRICT:
		lb.Mode = mesh.BalanceStrict
	case workloadpb.LoadBalancing_FAILOVER:
		lb.Mode = mesh.BalanceFailover
	case workloadpb.LoadBalancing_PASSTHROUGH:
		lb.Mode = mesh.BalancePassthrough
	default:
		return nil, unknownEnum(p.GetMode())
	}
	switch p.GetHealthPolicy() {
	case workloadpb.LoadBalancing_ONLY_HEALTHY:
		lb.HealthPolicy = mesh.OnlyHealthy
	case workloadpb.LoadBalancing_ALLOW_ALL:
		lb.HealthPolicy = mesh.AllowAll
	default:
		return nil, unknownEnum(p.GetHealthPolicy())
	}
	return lb, nil
}

func balanceScope(p workloadpb.LoadBalancing_Scope) (mesh.Scope, error) {
	switch p {
	case workloadpb.LoadBalancing_REGION:
		return mesh.ScopeRegion, nil
	case workloadpb.LoadBalancing_ZONE:
		return mesh.ScopeZone, nil
	case workloadpb.LoadBalancing_SUBZONE:
		return mesh.ScopeSubzone, nil
	case workloadpb.LoadBalancing_NODE:
		return mesh.ScopeNode, nil
	case workloadpb.LoadBalancing_CLUSTER:
		return mesh.ScopeCluster, nil
	case workloadpb.LoadBalancing_NETWORK:
		return mesh.ScopeNetwork, nil
	case workloadpb.LoadBalancing_UNSPECIFIED_SCOPE:
		return 0, errors.New("unknown enum: invalid target")
	default:
		return 0, unknownEnum(p)
	}
}

// ipFamilies is nil where nothing was said.
func ipFamilies(p workloadpb.IPFamilies) (*mesh.IPFamilies, error) {
	var f mesh.IPFamilies
	switch p {
	case workloadpb.IPFamilies_AUTOMATIC:
		return nil, nil
	case workloadpb.IPFamilies_IPV4_ONLY:
		f = mesh.IPv4Only
	case workloadpb.IPFamilies_IPV6_ONLY:
		f = mesh.IPv6Only
	case workloadpb.IPFamilies_DUAL:
		f = mesh.DualStack
	default:
		return nil, unknownEnum(p)
	}
	return &f, nil
}
