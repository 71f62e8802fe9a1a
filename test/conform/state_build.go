// SPDX-License-Identifier: Apache-2.0

package conform

import (
	"cmp"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"google.golang.org/protobuf/types/known/emptypb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/ztunnel-go/ztunnel/test/fakeistiod"
	"github.com/ztunnel-go/ztunnel/xds/pb/securitypb"
	"github.com/ztunnel-go/ztunnel/xds/pb/workloadpb"
)

// A builder makes resources out of texts, and keeps the first error.
type builder struct {
	expand func(string) (string, error)
	out    map[string]fakeistiod.Resource // by name
	err    error
}

func (b *builder) fail(format string, args ...any) {
	if b.err == nil {
		b.err = fmt.Errorf("state: "+format, args...)
	}
}

func (b *builder) string(s string) string {
	out, err := b.expand(s)
	if err != nil {
		b.fail("%w", err)
	}
	return out
}

func (b *builder) strings(all []string) []string {
	var out []string
	for _, s := range all {
		out = append(out, b.string(s))
	}
	return out
}

func (b *builder) ip(s string) netip.Addr {
	a, err := netip.ParseAddr(b.string(s))
	if err != nil {
		b.fail("%w", err)
	}
	return a
}

// enum finds a value by the local file's word for it, which is the protocol's
// without capitals and underscores. The empty word is def.
func enum[E ~int32](b *builder, word string, values map[string]int32, def E) E {
	if word == "" {
		return def
	}
	for name, v := range values {
		if strings.EqualFold(strings.ReplaceAll(name, "_", ""), word) {
			return E(v)
		}
	}
	b.fail("%q is none of %q", word, slices.Sorted(maps.Keys(values)))
	return def
}

func (b *builder) workload(w *workloadText) {
	out := &workloadpb.Workload{
		Uid: w.UID, Name: w.Name, Namespace: w.Namespace, ServiceAccount: w.ServiceAccount, TrustDomain: w.TrustDomain,
		Network: w.Network, Node: w.Node, Hostname: w.Hostname, WorkloadName: w.WorkloadName, CanonicalName: w.CanonicalName,
		CanonicalRevision: w.CanonicalRevision, NativeTunnel: w.NativeTunnel, AuthorizationPolicies: w.AuthorizationPolicies,
		ClusterId: w.ClusterID, Waypoint: b.gateway(w.Waypoint), NetworkGateway: b.gateway(w.NetworkGateway),
		TunnelProtocol: workloadpb.TunnelProtocol_NONE,
		WorkloadType:   enum(b, w.WorkloadType, workloadpb.WorkloadType_value, workloadpb.WorkloadType_DEPLOYMENT),
		Status:         enum(b, w.Status, workloadpb.WorkloadStatus_value, workloadpb.WorkloadStatus_HEALTHY),
		NetworkMode:    enum(b, w.NetworkMode, workloadpb.NetworkMode_value, workloadpb.NetworkMode_STANDARD),
		Services:       map[string]*workloadpb.PortList{},
	}
	if w.Protocol != "TCP" { // which the protocol calls NONE
		out.TunnelProtocol = enum(b, w.Protocol, workloadpb.TunnelProtocol_value, workloadpb.TunnelProtocol_NONE)
	}
	if w.IPs != nil {
		for _, ip := range *w.IPs {
			out.Addresses = append(out.Addresses, b.ip(ip).AsSlice())
		}
	}
	if t := w.ApplicationTunnel; t != nil {
		out.ApplicationTunnel = &workloadpb.ApplicationTunnel{Port: t.Port,
			Protocol: enum(b, t.Protocol, workloadpb.ApplicationTunnel_Protocol_value, workloadpb.ApplicationTunnel_NONE)}
	}
	if l := w.Locality; l != (localityText{}) {
		out.Locality = &workloadpb.Locality{Region: l.Region, Zone: l.Zone, Subzone: l.Subzone}
	}
	if w.Capacity != nil {
		out.Capacity = wrapperspb.UInt32(*w.Capacity)
	}
	for name, p := range w.Services {
		out.Services[name] = &workloadpb.PortList{Ports: ports(p)}
	}
	b.out[w.UID] = fakeistiod.Workload(out)
}

func ports(p map[uint32]uint32) []*workloadpb.Port {
	var out []*workloadpb.Port
	for _, port := range slices.Sorted(maps.Keys(p)) {
		out = append(out, &workloadpb.Port{ServicePort: port, TargetPort: p[port]})
	}
	return out
}

// networkAddress reads network/ip.
func (b *builder) networkAddress(s string) *workloadpb.NetworkAddress {
	network, ip, ok := strings.Cut(b.string(s), "/")
	if !ok {
		b.fail("%q is not network/ip", s)
	}
	return &workloadpb.NetworkAddress{Network: network, Address: b.ip(ip).AsSlice()}
}

// gateway reads namespace/hostname or network/ip.
func (b *builder) gateway(g *gatewayText) *workloadpb.GatewayAddress {
	if g == nil {
		return nil
	}
	out := &workloadpb.GatewayAddress{HboneMtlsPort: cmp.Or(g.Port, 15008)}
	before, after, _ := strings.Cut(b.string(g.Destination), "/")
	if _, err := netip.ParseAddr(after); err == nil {
		out.Destination = &workloadpb.GatewayAddress_Address{Address: b.networkAddress(g.Destination)}
	} else {
		out.Destination = &workloadpb.GatewayAddress_Hostname{Hostname: &workloadpb.NamespacedHostname{Namespace: before, Hostname: after}}
	}
	return out
}

func (b *builder) service(s *serviceText) {
	out := &workloadpb.Service{
		Name: s.Name, Namespace: s.Namespace, Hostname: s.Hostname, Ports: ports(s.Ports), SubjectAltNames: b.strings(s.SubjectAltNames),
		Waypoint: b.gateway(s.Waypoint), Canonical: s.Canonical,
		IpFamilies: enum(b, map[string]string{"IPv4": "IPV4ONLY", "IPv6": "IPV6ONLY"}[s.IPFamilies]+
			map[bool]string{true: s.IPFamilies}[s.IPFamilies == "Dual"], workloadpb.IPFamilies_value, workloadpb.IPFamilies_AUTOMATIC),
		Visibility: enum(b, s.Visibility, workloadpb.Service_Visibility_value, workloadpb.Service_PUBLIC),
	}
	for _, vip := range s.VIPs {
		out.Addresses = append(out.Addresses, b.networkAddress(vip))
	}
	for _, c := range s.CIDRVIPs {
		p, err := netip.ParsePrefix(c.CIDR)
		if err != nil {
			b.fail("%w", err)
			return
		}
		bits := uint32(p.Bits())
		out.Addresses = append(out.Addresses, &workloadpb.NetworkAddress{Network: c.Network, Address: p.Addr().AsSlice(), Length: &bits})
	}
	if l := s.LoadBalancer; l != nil {
		out.LoadBalancing = &workloadpb.LoadBalancing{
			HealthPolicy: enum(b, l.HealthPolicy, workloadpb.LoadBalancing_HealthPolicy_value, workloadpb.LoadBalancing_ONLY_HEALTHY),
		}
		if l.Mode != "Standard" {
			out.LoadBalancing.Mode = enum(b, l.Mode, workloadpb.LoadBalancing_Mode_value, workloadpb.LoadBalancing_UNSPECIFIED_MODE)
		}
		for _, scope := range l.Preferences {
			out.LoadBalancing.RoutingPreference = append(out.LoadBalancing.RoutingPreference,
				enum(b, scope, workloadpb.LoadBalancing_Scope_value, workloadpb.LoadBalancing_UNSPECIFIED_SCOPE))
		}
	}
	r := fakeistiod.Service(out)
	b.out[r.Name] = r
}

func (b *builder) policy(p *policyText) {
	out := &securitypb.Authorization{
		Name: p.Name, Namespace: p.Namespace, DryRun: p.DryRun,
		Scope:  enum(b, p.Scope, securitypb.Scope_value, securitypb.Scope_GLOBAL),
		Action: enum(b, p.Action, securitypb.Action_value, securitypb.Action_ALLOW),
	}
	for _, rule := range p.Rules {
		r := &securitypb.Rule{}
		for _, clause := range rule {
			c := &securitypb.Clause{}
			for _, m := range clause {
				c.Matches = append(c.Matches, b.match(m))
			}
			r.Clauses = append(r.Clauses, c)
		}
		out.Rules = append(out.Rules, r)
	}
	r := fakeistiod.Policy(out)
	b.out[r.Name] = r
}

func (b *builder) match(m matchText) *securitypb.Match {
	return &securitypb.Match{
		Namespaces: stringMatches(m.Namespaces), NotNamespaces: stringMatches(m.NotNamespaces),
		Principals: stringMatches(m.Principals), NotPrincipals: stringMatches(m.NotPrincipals),
		SourceIps: b.cidrs(m.SourceIPs), NotSourceIps: b.cidrs(m.NotSourceIPs),
		DestinationIps: b.cidrs(m.DestinationIPs), NotDestinationIps: b.cidrs(m.NotDestinationIPs),
		DestinationPorts: m.DestinationPorts, NotDestinationPorts: m.NotDestinationPorts,
		ServiceAccounts: accounts(m.ServiceAccounts), NotServiceAccounts: accounts(m.NotServiceAccounts),
	}
}

func stringMatches(all []stringText) []*securitypb.StringMatch {
	var out []*securitypb.StringMatch
	for _, s := range all {
		m := &securitypb.StringMatch{}
		switch {
		case s.Exact != nil:
			m.MatchType = &securitypb.StringMatch_Exact{Exact: *s.Exact}
		case s.Prefix != nil:
			m.MatchType = &securitypb.StringMatch_Prefix{Prefix: *s.Prefix}
		case s.Suffix != nil:
			m.MatchType = &securitypb.StringMatch_Suffix{Suffix: *s.Suffix}
		case s.Presence != nil:
			m.MatchType = &securitypb.StringMatch_Presence{Presence: &emptypb.Empty{}}
		}
		out = append(out, m)
	}
	return out
}

func accounts(all []accountText) []*securitypb.ServiceAccountMatch {
	var out []*securitypb.ServiceAccountMatch
	for _, a := range all {
		out = append(out, &securitypb.ServiceAccountMatch{Namespace: a.Namespace, ServiceAccount: a.ServiceAccount})
	}
	return out
}

func (b *builder) cidrs(all []string) []*securitypb.Address {
	var out []*securitypb.Address
	for _, s := range all {
		p, err := netip.ParsePrefix(b.string(s))
		if err != nil {
			b.fail("%w", err)
			continue
		}
		out = append(out, &securitypb.Address{Address: p.Addr().AsSlice(), Length: uint32(p.Bits())})
	}
	return out
}
