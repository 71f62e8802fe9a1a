// SPDX-License-Identifier: Apache-2.0

package admin

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"strings"

	"github.com/ztunnel-go/ztunnel/internal/mesh"
)

// A Picture is what a config dump says of the mesh.
type Picture struct {
	Network   string // NETWORK of the proxy that was dumped
	Workloads []*mesh.Workload
	Services  []StaticService
	Policies  []*mesh.Policy
}

// Apply makes the picture what a store holds, which must be empty.
func (p *Picture) Apply(s *mesh.Store) {
	s.Apply(func(u *mesh.Update) {
		for _, w := range p.Workloads {
			u.PutWorkload(w)
		}
		for _, svc := range p.Services {
			u.PutService(svc.Service)
			for _, ep := range svc.Endpoints {
				u.PutEndpoint(svc.Service.Key(), ep)
			}
		}
		for _, policy := range p.Policies {
			u.PutPolicy(policy.Key(), policy)
		}
	})
}

// ErrNoDump means that a text is no config dump, whatever else it is.
var ErrNoDump = errors.New("this is no config dump: there is no \"config\" in it")

// ReadDump reads what /config_dump has written, of this proxy or of ztunnel.
// What it does not know it leaves out; what it does not understand of what it
// knows is an error that names it.
func ReadDump(text []byte) (*Picture, error) {
	var dump struct {
		Config *struct {
			Network string `json:"network"`
		} `json:"config"`
		Workloads []workloadJSON `json:"workloads"`
		Services  []serviceJSON  `json:"services"`
		Policies  []policyJSON   `json:"policies"`
	}
	if err := json.Unmarshal(text, &dump); err != nil {
		return nil, fmt.Errorf("read config dump: %w", err)
	}
	if dump.Config == nil {
		return nil, ErrNoDump
	}
	p := &Picture{Network: dump.Config.Network}
	for _, w := range dump.Workloads {
		var r dumpReader
		p.Workloads = append(p.Workloads, r.workload(w))
		if r.err != nil {
			return nil, fmt.Errorf("read config dump: workload %q: %w", w.UID, r.err)
		}
	}
	for _, s := range dump.Services {
		var r dumpReader
		p.Services = append(p.Services, r.service(s))
		if r.err != nil {
			return nil, fmt.Errorf("read config dump: service %q: %w", s.Namespace+"/"+s.Hostname, r.err)
		}
	}
	p.join()
	for _, policy := range dump.Policies {
		var r dumpReader
		p.Policies = append(p.Policies, r.policy(policy))
		if r.err != nil {
			return nil, fmt.Errorf("read config dump: policy %q: %w", policy.Namespace+"/"+policy.Name, r.err)
		}
	}
	return p, nil
}

// join tells workloads the ports of their services, which a dump has with the
// services.
func (p *Picture) join() {
	byUID := map[string]*mesh.Workload{}
	for _, w := range p.Workloads {
		byUID[w.UID] = w
	}
	for _, svc := range p.Services {
		for _, ep := range svc.Endpoints {
			if w := byUID[ep.WorkloadUID]; w != nil {
				w.Services[svc.Service.Key()] = ep.Ports
			}
		}
	}
}

// A dumpReader keeps the first thing that it does not understand.
type dumpReader struct{ err error }

func (r *dumpReader) fail(what, value string) {
	if r.err == nil {
		r.err = fmt.Errorf("%s %q is not understood", what, value)
	}
}

// enum is the value that is written as s; an empty string is the first.
func enum[T interface {
	~uint8
	String() string
}](r *dumpReader, what, s string, first T) T {
	if s == "" {
		return first
	}
	for v := first; v < first+16; v++ {
		if v.String() == s && s != "unknown" { // which is what no value is called
			return v
		}
	}
	r.fail(what, s)
	return first
}

func (r *dumpReader) workload(in workloadJSON) *mesh.Workload {
	w := &mesh.Workload{
		UID: in.UID, Name: in.Name, Namespace: in.Namespace, TrustDomain: in.TrustDomain, ServiceAccount: in.ServiceAccount,
		Network: in.Network, Node: in.Node, Hostname: in.Hostname, NativeTunnel: in.NativeTunnel, Capacity: in.Capacity,
		Protocol:    enum(r, "protocol", in.Protocol, mesh.TCP),
		NetworkMode: enum(r, "networkMode", in.NetworkMode, mesh.Standard),
		Status:      enum(r, "status", in.Status, mesh.Healthy),

		WorkloadName: in.WorkloadName, WorkloadType: enum(r, "workloadType", in.WorkloadType, mesh.Deployment),
		CanonicalName: in.CanonicalName, CanonicalRevision: in.CanonicalRevision, ClusterID: in.ClusterID,
		Waypoint: r.gateway(in.Waypoint), NetworkGateway: r.gateway(in.NetworkGateway),
		AuthorizationPolicies: in.AuthorizationPolicies,
	}
	if l := in.Locality; l != nil {
		w.Locality = mesh.Locality{Region: l.Region, Zone: l.Zone, Subzone: l.Subzone}
	}
	if t := in.ApplicationTunnel; t != nil {
		w.ApplicationTunnel = &mesh.ApplicationTunnel{Kind: enum(r, "applicationTunnel", t.Protocol, mesh.TunnelNone)}
		if t.Port != nil {
			w.ApplicationTunnel.Port = *t.Port
		}
	}
	for _, s := range in.WorkloadIPs {
		w.IPs = append(w.IPs, r.addr(s))
	}
	w.Services = map[mesh.NamespacedHostname]map[uint16]uint16{}
	names, _ := in.Services.([]any)
	for _, name := range names {
		if key, ok := mesh.ParseNamespacedHostname(fmt.Sprint(name)); ok {
			w.Services[key] = nil
		} else {
			r.fail("service", fmt.Sprint(name))
		}
	}
	return w
}

func (r *dumpReader) addr(s string) netip.Addr {
	a, err := netip.ParseAddr(s)
	if err != nil {
		r.fail("address", s)
	}
	return a
}

func (r *dumpReader) prefix(s string) netip.Prefix {
	p, err := netip.ParsePrefix(s)
	if err != nil {
		r.fail("range of addresses", s)
	}
	return p
}

// networkAddr reads network/address; either may be empty before the slash.
func (r *dumpReader) networkAddr(s string) mesh.NetworkAddr {
	i := strings.LastIndexByte(s, '/')
	if i < 0 {
		r.fail("address", s)
		return mesh.NetworkAddr{}
	}
	return mesh.NetworkAddr{Network: s[:i], Addr: r.addr(s[i+1:])}
}

// gateway reads network/address or namespace/hostname.
func (r *dumpReader) gateway(in *gatewayJSON) *mesh.GatewayAddress {
	if in == nil {
		return nil
	}
	g := &mesh.GatewayAddress{HBONEMTLSPort: in.HBONEMTLSPort}
	_, rest, _ := strings.Cut(in.Destination, "/")
	if _, err := netip.ParseAddr(rest); err == nil {
		g.Address = r.networkAddr(in.Destination)
		return g
	}
	var ok bool
	if g.Hostname, ok = mesh.ParseNamespacedHostname(in.Destination); !ok {
		r.fail("gateway", in.Destination)
	}
	return g
}

func (r *dumpReader) service(in serviceJSON) StaticService {
	s := &mesh.Service{
		Name: in.Name, Namespace: in.Namespace, Hostname: in.Hostname, Ports: in.Ports, SubjectAltNames: in.SubjectAltNames,
		Canonical: in.Canonical, Visibility: enum(r, "visibility", in.Visibility, mesh.Public), Waypoint: r.gateway(in.Waypoint),
	}
	for _, vip := range in.VIPs {
		s.VIPs = append(s.VIPs, r.networkAddr(vip))
	}
	for _, c := range in.CIDRVIPs {
		s.CIDRVIPs = append(s.CIDRVIPs, mesh.NetworkPrefix{Network: c.Network, Prefix: r.prefix(c.CIDR)})
	}
	for _, w := range in.WeightedWaypoints {
		if g := r.gateway(w.Destination); g != nil {
			s.WeightedWaypoints = append(s.WeightedWaypoints, mesh.WeightedWaypoint{Destination: *g, Weight: w.Weight})
		}
	}
	if in.IPFamilies != "" {
		f := enum(r, "ipFamilies", in.IPFamilies, mesh.AutomaticFamilies)
		s.IPFamilies = &f
	}
	if lb := in.LoadBalancer; lb != nil {
		s.LoadBalancer = &mesh.LoadBalancer{
			Mode:         enum(r, "loadBalancer mode", lb.Mode, mesh.BalanceStandard),
			HealthPolicy: enum(r, "healthPolicy", lb.HealthPolicy, mesh.OnlyHealthy),
		}
		for _, p := range lb.RoutingPreferences {
			s.LoadBalancer.Preferences = append(s.LoadBalancer.Preferences, enum(r, "routing preference", p, mesh.ScopeRegion))
		}
	}
	out := StaticService{Service: s}
	for _, ep := range in.Endpoints {
		out.Endpoints = append(out.Endpoints, mesh.Endpoint{
			WorkloadUID: ep.WorkloadUID, Ports: ep.Port, Status: enum(r, "endpoint status", ep.Status, mesh.Healthy),
		})
	}
	return out
}

func (r *dumpReader) policy(in policyJSON) *mesh.Policy {
	p := &mesh.Policy{
		Name: in.Name, Namespace: in.Namespace, DryRun: in.DryRun,
		Action: enum(r, "action", in.Action, mesh.Allow), Scope: enum(r, "scope", in.Scope, mesh.ScopeGlobal),
	}
	for _, rule := range in.Rules {
		var clauses mesh.Rule
		for _, clause := range rule {
			var matches mesh.Clause
			for _, m := range clause {
				matches = append(matches, r.match(m))
			}
			clauses = append(clauses, matches)
		}
		p.Rules = append(p.Rules, clauses)
	}
	return p
}

func (r *dumpReader) match(in matchJSON) mesh.Match {
	accounts := func(in []serviceAccountJSON) (out []mesh.ServiceAccountMatch) {
		for _, a := range in {
			out = append(out, mesh.ServiceAccountMatch(a))
		}
		return out
	}
	prefixes := func(in []string) (out []netip.Prefix) {
		for _, s := range in {
			out = append(out, r.prefix(s))
		}
		return out
	}
	return mesh.Match{
		Namespaces: r.texts(in.Namespaces), NotNamespaces: r.texts(in.NotNamespaces),
		Principals: r.texts(in.Principals), NotPrincipals: r.texts(in.NotPrincipals),
		ServiceAccounts: accounts(in.ServiceAccounts), NotServiceAccounts: accounts(in.NotServiceAccounts),
		SourceIPs: prefixes(in.SourceIPs), NotSourceIPs: prefixes(in.NotSourceIPs),
		DestinationIPs: prefixes(in.DestinationIPs), NotDestinationIPs: prefixes(in.NotDestinationIPs),
		DestinationPorts: in.DestinationPorts, NotDestinationPorts: in.NotDestinationPorts,
	}
}

// texts reads {"Exact": s} and its like. A form that is not known would make a
// policy say something else than it does.
func (r *dumpReader) texts(in []map[string]any) (out []mesh.StringMatch) {
	for _, m := range in {
		if len(m) != 1 {
			r.fail("match", fmt.Sprint(m))
		}
		for kind, value := range m {
			text, isText := value.(string)
			k := enum(r, "match", kind, mesh.Exact)
			if !isText && k != mesh.Presence || kind == "" {
				r.fail("match", fmt.Sprint(m))
			}
			out = append(out, mesh.StringMatch{Kind: k, Value: text})
		}
	}
	return out
}
