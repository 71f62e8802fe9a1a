// SPDX-License-Identifier: Apache-2.0

package admin

import (
	"maps"
	"slices"

	"github.com/ztunnel-go/ztunnel/internal/mesh"
)

type staticJSON struct {
	Policies  []policyJSON   `json:"policies"`
	Services  []serviceJSON  `json:"services"`
	Workloads []workloadJSON `json:"workloads"`
}

func dumpStatic(s Static) staticJSON {
	return staticJSON{
		Policies:  list(s.Policies, dumpPolicy),
		Services:  list(s.Services, func(s StaticService) serviceJSON { return dumpService(s.Service, s.Endpoints) }),
		Workloads: list(s.Workloads, dumpStaticWorkload),
	}
}

type gatewayJSON struct {
	Destination   string `json:"destination"`
	HBONEMTLSPort uint16 `json:"hboneMtlsPort"`
}

func dumpGateway(g *mesh.GatewayAddress) *gatewayJSON {
	if g == nil {
		return nil
	}
	return &gatewayJSON{g.String(), g.HBONEMTLSPort}
}

type workloadJSON struct {
	ApplicationTunnel     *tunnelJSON   `json:"applicationTunnel,omitempty"`
	AuthorizationPolicies []string      `json:"authorizationPolicies,omitempty"`
	CanonicalName         string        `json:"canonicalName,omitempty"`
	CanonicalRevision     string        `json:"canonicalRevision,omitempty"`
	Capacity              uint32        `json:"capacity"`
	ClusterID             string        `json:"clusterId"`
	Hostname              string        `json:"hostname,omitempty"`
	Locality              *localityJSON `json:"locality,omitempty"`
	Name                  string        `json:"name"`
	Namespace             string        `json:"namespace"`
	NativeTunnel          bool          `json:"nativeTunnel,omitempty"`
	Network               string        `json:"network,omitempty"`
	NetworkGateway        *gatewayJSON  `json:"networkGateway,omitempty"`
	NetworkMode           string        `json:"networkMode"`
	Node                  string        `json:"node,omitempty"`
	Protocol              string        `json:"protocol"`
	ServiceAccount        string        `json:"serviceAccount,omitempty"`
	Services              any           `json:"services,omitempty"` // names; in the local file's form names to ports
	Status                string        `json:"status"`
	TrustDomain           string        `json:"trustDomain,omitempty"`
	UID                   string        `json:"uid,omitempty"`
	Waypoint              *gatewayJSON  `json:"waypoint,omitempty"`
	WorkloadIPs           []string      `json:"workloadIps"`
	WorkloadName          string        `json:"workloadName,omitempty"`
	WorkloadType          string        `json:"workloadType,omitempty"`
}

type tunnelJSON struct {
	Port     *uint16 `json:"port"` // null when unset
	Protocol string  `json:"protocol"`
}

type localityJSON struct {
	Region  string `json:"region"`
	Subzone string `json:"subzone"`
	Zone    string `json:"zone"`
}

func dumpWorkload(w *mesh.Workload) workloadJSON {
	out := workloadJSON{
		ApplicationTunnel:     dumpTunnel(w.ApplicationTunnel),
		AuthorizationPolicies: w.AuthorizationPolicies,
		CanonicalName:         w.CanonicalName,
		CanonicalRevision:     w.CanonicalRevision,
		Capacity:              w.Capacity,
		ClusterID:             w.ClusterID,
		Hostname:              w.Hostname,
		Locality:              dumpLocality(w.Locality),
		Name:                  w.Name,
		Namespace:             w.Namespace,
		NativeTunnel:          w.NativeTunnel,
		Network:               w.Network,
		NetworkGateway:        dumpGateway(w.NetworkGateway),
		NetworkMode:           w.NetworkMode.String(),
		Node:                  w.Node,
		Protocol:              w.Protocol.String(),
		ServiceAccount:        w.ServiceAccount,
		Status:                w.Status.String(),
		TrustDomain:           w.TrustDomain,
		UID:                   w.UID,
		Waypoint:              dumpGateway(w.Waypoint),
		WorkloadIPs:           stringsOf(w.IPs),
		WorkloadName:          w.WorkloadName,
		WorkloadType:          w.WorkloadType.String(),
	}
	if len(w.Services) > 0 {
		names := stringsOf(slices.Collect(maps.Keys(w.Services)))
		slices.Sort(names)
		out.Services = names
	}
	return out
}

func dumpTunnel(t *mesh.ApplicationTunnel) *tunnelJSON {
	if t == nil {
		return nil
	}
	out := &tunnelJSON{Protocol: t.Kind.String()}
	if t.Port != 0 {
		out.Port = &t.Port
	}
	return out
}

func dumpLocality(l mesh.Locality) *localityJSON {
	if l == (mesh.Locality{}) {
		return nil
	}
	return &localityJSON{l.Region, l.Subzone, l.Zone}
}

// dumpStaticWorkload has the services as the local file has them: with their
// ports (contract 8.9).
func dumpStaticWorkload(w *mesh.Workload) workloadJSON {
	out := dumpWorkload(w)
	services := map[string]map[uint16]uint16{}
	for key, ports := range w.Services {
		services[key.String()] = portsOf(ports)
	}
	out.Services = services
	return out
}

type serviceJSON struct {
	Canonical         bool                    `json:"canonical"`
	CIDRVIPs          []cidrJSON              `json:"cidrVips,omitempty"`
	Endpoints         map[string]endpointJSON `json:"endpoints"`
	Hostname          string                  `json:"hostname"`
	IPFamilies        string                  `json:"ipFamilies,omitempty"`
	LoadBalancer      *balancerJSON           `json:"loadBalancer,omitempty"`
	Name              string                  `json:"name"`
	Namespace         string                  `json:"namespace"`
	Ports             map[uint16]uint16       `json:"ports"`
	SubjectAltNames   []string                `json:"subjectAltNames"`
	VIPs              []string                `json:"vips"`
	Visibility        string                  `json:"visibility"`
	Waypoint          *gatewayJSON            `json:"waypoint,omitempty"`
	WeightedWaypoints []weightedJSON          `json:"weightedWaypoints,omitempty"`
}

type cidrJSON struct {
	CIDR    string `json:"cidr"`
	Network string `json:"network"`
}

type balancerJSON struct {
	HealthPolicy       string   `json:"healthPolicy"`
	Mode               string   `json:"mode"`
	RoutingPreferences []string `json:"routingPreferences"`
}

type weightedJSON struct {
	Destination *gatewayJSON `json:"destination"`
	Weight      uint32       `json:"weight"`
}

type endpointJSON struct {
	Port        map[uint16]uint16 `json:"port"`
	Status      string            `json:"status"`
	WorkloadUID string            `json:"workloadUid"`
}

func dumpService(s *mesh.Service, endpoints []mesh.Endpoint) serviceJSON {
	out := serviceJSON{
		Canonical: s.Canonical,
		CIDRVIPs: list(s.CIDRVIPs, func(p mesh.NetworkPrefix) cidrJSON {
			return cidrJSON{p.Prefix.String(), p.Network}
		}),
		Endpoints:       dumpEndpoints(endpoints),
		Hostname:        s.Hostname,
		Name:            s.Name,
		Namespace:       s.Namespace,
		Ports:           portsOf(s.Ports),
		SubjectAltNames: list(s.SubjectAltNames, func(san string) string { return san }),
		VIPs:            stringsOf(s.VIPs),
		Visibility:      s.Visibility.String(),
		Waypoint:        dumpGateway(s.Waypoint),
		WeightedWaypoints: list(s.WeightedWaypoints, func(w mesh.WeightedWaypoint) weightedJSON {
			return weightedJSON{dumpGateway(&w.Destination), w.Weight}
		}),
	}
	if f := s.IPFamilies; f != nil && *f != mesh.AutomaticFamilies {
		out.IPFamilies = f.String()
	}
	if lb := s.LoadBalancer; lb != nil {
		out.LoadBalancer = &balancerJSON{lb.HealthPolicy.String(), lb.Mode.String(), stringsOf(lb.Preferences)}
	}
	return out
}

func dumpEndpoints(endpoints []mesh.Endpoint) map[string]endpointJSON {
	out := make(map[string]endpointJSON, len(endpoints))
	for _, ep := range endpoints {
		out[ep.WorkloadUID] = endpointJSON{portsOf(ep.Ports), ep.Status.String(), ep.WorkloadUID}
	}
	return out
}

// portsOf makes {} of a map that is nil; null is not what the reference has.
func portsOf(ports map[uint16]uint16) map[uint16]uint16 {
	if ports == nil {
		return map[uint16]uint16{}
	}
	return ports
}

type policyJSON struct {
	Action    string          `json:"action"`
	DryRun    bool            `json:"dryRun"`
	Name      string          `json:"name"`
	Namespace string          `json:"namespace"`
	Rules     [][][]matchJSON `json:"rules"` // rules, clauses, matches
	Scope     string          `json:"scope"`
}

type matchJSON struct {
	DestinationIPs      []string             `json:"destinationIps,omitempty"`
	DestinationPorts    []uint16             `json:"destinationPorts,omitempty"`
	Namespaces          []map[string]any     `json:"namespaces,omitempty"`
	NotDestinationIPs   []string             `json:"notDestinationIps,omitempty"`
	NotDestinationPorts []uint16             `json:"notDestinationPorts,omitempty"`
	NotNamespaces       []map[string]any     `json:"notNamespaces,omitempty"`
	NotPrincipals       []map[string]any     `json:"notPrincipals,omitempty"`
	NotServiceAccounts  []serviceAccountJSON `json:"notServiceAccounts,omitempty"`
	NotSourceIPs        []string             `json:"notSourceIps,omitempty"`
	Principals          []map[string]any     `json:"principals,omitempty"`
	ServiceAccounts     []serviceAccountJSON `json:"serviceAccounts,omitempty"`
	SourceIPs           []string             `json:"sourceIps,omitempty"`
}

type serviceAccountJSON struct {
	Namespace      string `json:"namespace"`
	ServiceAccount string `json:"serviceAccount"`
}

func dumpPolicy(p *mesh.Policy) policyJSON {
	return policyJSON{
		Action:    p.Action.String(),
		DryRun:    p.DryRun,
		Name:      p.Name,
		Namespace: p.Namespace,
		Rules: list(p.Rules, func(r mesh.Rule) [][]matchJSON {
			return list(r, func(c mesh.Clause) []matchJSON { return list(c, dumpMatch) })
		}),
		Scope: p.Scope.String(),
	}
}

func dumpMatch(m mesh.Match) matchJSON {
	accounts := func(in []mesh.ServiceAccountMatch) []serviceAccountJSON {
		return list(in, func(a mesh.ServiceAccountMatch) serviceAccountJSON {
			return serviceAccountJSON{a.Namespace, a.ServiceAccount}
		})
	}
	return matchJSON{
		DestinationIPs:      stringsOf(m.DestinationIPs),
		DestinationPorts:    m.DestinationPorts,
		Namespaces:          list(m.Namespaces, dumpString),
		NotDestinationIPs:   stringsOf(m.NotDestinationIPs),
		NotDestinationPorts: m.NotDestinationPorts,
		NotNamespaces:       list(m.NotNamespaces, dumpString),
		NotPrincipals:       list(m.NotPrincipals, dumpString),
		NotServiceAccounts:  accounts(m.NotServiceAccounts),
		NotSourceIPs:        stringsOf(m.NotSourceIPs),
		Principals:          list(m.Principals, dumpString),
		ServiceAccounts:     accounts(m.ServiceAccounts),
		SourceIPs:           stringsOf(m.SourceIPs),
	}
}

// dumpString is {"Exact": value} and so on, and {"Presence": []}.
func dumpString(s mesh.StringMatch) map[string]any {
	if s.Kind == mesh.Presence {
		return map[string]any{s.Kind.String(): []string{}}
	}
	return map[string]any{s.Kind.String(): s.Value}
}
