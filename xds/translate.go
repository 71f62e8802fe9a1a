// SPDX-License-Identifier: Apache-2.0

package xds

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/ztunnel-go/ztunnel/internal/mesh"
	"github.com/ztunnel-go/ztunnel/xds/pb/workloadpb"
)

// What an empty field of a workload means (contract 8.8). The cluster is
// this word whatever cluster we are in.
const (
	defaultTrustDomain    = "cluster.local"
	defaultServiceAccount = "default"
	defaultCluster        = "Kubernetes"
	defaultCapacity       = 1
)

// A translator turns messages into mesh values. It remembers strings and small
// values that it has seen, so that a hundred thousand workloads of one mesh
// share the names of its namespaces, nodes and services. Not for concurrent
// use.
type translator struct{ known shared }

// workload converts a workload, or says what is wrong with it.
func (t *translator) workload(p *workloadpb.Workload) (*mesh.Workload, error) {
	k := &t.known
	w := &mesh.Workload{
		UID:               p.GetUid(),
		Name:              p.GetName(),
		Namespace:         k.text(p.GetNamespace()),
		TrustDomain:       k.text(orElse(p.GetTrustDomain(), defaultTrustDomain)),
		ServiceAccount:    k.text(orElse(p.GetServiceAccount(), defaultServiceAccount)),
		Network:           k.text(p.GetNetwork()),
		Node:              k.text(p.GetNode()),
		Hostname:          k.text(p.GetHostname()),
		NativeTunnel:      p.GetNativeTunnel(),
		WorkloadName:      k.text(p.GetWorkloadName()),
		WorkloadType:      workloadType(p.GetWorkloadType()),
		CanonicalName:     k.text(p.GetCanonicalName()),
		CanonicalRevision: k.text(p.GetCanonicalRevision()),
		ClusterID:         k.text(orElse(p.GetClusterId(), defaultCluster)),
		Locality: mesh.Locality{
			Region:  k.text(p.GetLocality().GetRegion()),
			Zone:    k.text(p.GetLocality().GetZone()),
			Subzone: k.text(p.GetLocality().GetSubzone()),
		},
		Capacity:              defaultCapacity,
		AuthorizationPolicies: k.list(p.GetAuthorizationPolicies()),
	}
	if p.GetCapacity() != nil {
		w.Capacity = p.GetCapacity().GetValue()
	}
	if err := workloadEnums(w, p); err != nil {
		return nil, err
	}
	if err := t.places(w, p); err != nil {
		return nil, err
	}
	return w, nil
}

// places converts where a workload is, what stands before it, and what it is
// a member of.
func (t *translator) places(w *mesh.Workload, p *workloadpb.Workload) (err error) {
	if w.IPs, err = addresses(p.GetAddresses()); err != nil {
		return err
	}
	if w.Waypoint, err = t.gateway(p.GetWaypoint()); err != nil {
		return err
	}
	if w.NetworkGateway, err = t.gateway(p.GetNetworkGateway()); err != nil {
		return err
	}
	if w.ApplicationTunnel, err = applicationTunnel(p.GetApplicationTunnel()); err != nil {
		return err
	}
	w.Services, err = t.memberships(p.GetServices())
	return err
}

// workloadEnums converts those enumerations of which an unknown number would
// be a guess about how to reach the workload.
func workloadEnums(w *mesh.Workload, p *workloadpb.Workload) error {
	switch p.GetTunnelProtocol() {
	case workloadpb.TunnelProtocol_NONE:
		w.Protocol = mesh.TCP
	case workloadpb.TunnelProtocol_HBONE:
		w.Protocol = mesh.HBONE
	case workloadpb.TunnelProtocol_LEGACY_ISTIO_MTLS:
		return errors.New("unknown enum: unsupported tunnel protocol: legacy istio mtls")
	default:
		return unknownEnum(p.GetTunnelProtocol())
	}
	switch p.GetNetworkMode() {
	case workloadpb.NetworkMode_STANDARD:
		w.NetworkMode = mesh.Standard
	case workloadpb.NetworkMode_HOST_NETWORK:
		w.NetworkMode = mesh.HostNetwork
	default:
		return unknownEnum(p.GetNetworkMode())
	}
	switch p.GetStatus() {
	case workloadpb.WorkloadStatus_HEALTHY:
		w.Status = mesh.Healthy
	case workloadpb.WorkloadStatus_UNHEALTHY:
		w.Status = mesh.Unhealthy
	default:
		return unknownEnum(p.GetStatus())
	}
	return nil
}

func unknownEnum[E ~int32](number E) error {
	return fmt.Errorf("unknown enum: unknown enumeration value %d", int32(number))
}

// workloadType takes an unknown kind of owner for a deployment: it is shown,
// and decides nothing.
func workloadType(t workloadpb.WorkloadType) mesh.WorkloadType {
	switch t {
	case workloadpb.WorkloadType_CRONJOB:
		return mesh.CronJob
	case workloadpb.WorkloadType_POD:
		return mesh.Pod
	case workloadpb.WorkloadType_JOB:
		return mesh.Job
	default:
		return mesh.Deployment
	}
}

func applicationTunnel(p *workloadpb.ApplicationTunnel) (*mesh.ApplicationTunnel, error) {
	if p == nil {
		return nil, nil
	}
	a := &mesh.ApplicationTunnel{Port: uint16(p.GetPort())}
	switch p.GetProtocol() {
	case workloadpb.ApplicationTunnel_NONE:
		a.Kind = mesh.TunnelNone
	case workloadpb.ApplicationTunnel_PROXY:
		a.Kind = mesh.TunnelProxy
	default:
		return nil, unknownEnum(p.GetProtocol())
	}
	return a, nil
}

// memberships converts the services of a workload. Replicas have the same
// ones, so equal maps are shared.
func (t *translator) memberships(p map[string]*workloadpb.PortList) (map[mesh.NamespacedHostname]map[uint16]uint16, error) {
	if len(p) == 0 {
		return nil, nil
	}
	names := make([]string, 0, len(p))
	for name := range p {
		names = append(names, name)
	}
	slices.Sort(names) // of several errors the same one is told each time
	out := make(map[mesh.NamespacedHostname]map[uint16]uint16, len(p))
	for _, name := range names {
		key, ok := mesh.ParseNamespacedHostname(name)
		if !ok {
			return nil, fmt.Errorf("failed to parse namespaced hostname: %s", name)
		}
		key = mesh.NamespacedHostname{Namespace: t.known.text(key.Namespace), Hostname: t.known.text(key.Hostname)}
		out[key] = ports(p[name].GetPorts())
	}
	return t.known.memberships(names[0], out), nil
}

// ports converts a list of ports. Numbers are cut to 16 bits, and of two
// entries for a port the later wins (contract 8.8).
func ports(list []*workloadpb.Port) map[uint16]uint16 {
	out := make(map[uint16]uint16, len(list))
	for _, p := range list {
		out[uint16(p.GetServicePort())] = uint16(p.GetTargetPort())
	}
	return out
}

// gateway converts a waypoint or network gateway; nil stays nil.
func (t *translator) gateway(p *workloadpb.GatewayAddress) (*mesh.GatewayAddress, error) {
	if p == nil {
		return nil, nil
	}
	g := mesh.GatewayAddress{HBONEMTLSPort: uint16(p.GetHboneMtlsPort())}
	switch d := p.GetDestination().(type) {
	case *workloadpb.GatewayAddress_Hostname:
		g.Hostname = mesh.NamespacedHostname{
			Namespace: t.known.text(d.Hostname.GetNamespace()),
			Hostname:  t.known.text(d.Hostname.GetHostname()),
		}
	case *workloadpb.GatewayAddress_Address:
		ip, err := address(d.Address.GetAddress())
		if err != nil {
			return nil, err
		}
		g.Address = mesh.NetworkAddr{Network: t.known.text(d.Address.GetNetwork()), Addr: ip}
	default:
		return nil, errors.New("nonempty gateway address is missing address")
	}
	return t.known.gateway(g), nil
}

func addresses(list [][]byte) ([]netip.Addr, error) {
	var out []netip.Addr
	for _, b := range list {
		ip, err := address(b)
		if err != nil {
			return nil, err
		}
		if out == nil {
			out = make([]netip.Addr, 0, len(list))
		}
		out = append(out, ip)
	}
	return out, nil
}

// address reads the four or sixteen bytes of an address.
func address(b []byte) (netip.Addr, error) {
	ip, ok := netip.AddrFromSlice(b)
	if !ok {
		return netip.Addr{}, fmt.Errorf("failed to parse address, had %d bytes", len(b))
	}
	// Connections are known by plain IPv4 addresses, whatever socket they
	// came through.
	return ip.Unmap(), nil
}

// prefix reads the bytes of an address and the length of a prefix.
func prefix(b []byte, bits uint32) (netip.Prefix, error) {
	whole, ok := netip.AddrFromSlice(b)
	if !ok {
		return netip.Prefix{}, fmt.Errorf("failed to parse address, had %d bytes", len(b))
	}
	if bits > uint32(whole.BitLen()) {
		return netip.Prefix{}, fmt.Errorf("invalid prefix length %d for an address of %d bytes", bits, len(b))
	}
	if mapped := uint32(128 - 32); whole.Is4In6() && bits >= mapped {
		whole, bits = whole.Unmap(), bits-mapped
	}
	return netip.PrefixFrom(whole, int(bits)).Masked(), nil
}

func orElse(s, other string) string {
	if s == "" {
		return other
	}
	return s
}
