// SPDX-License-Identifier: Apache-2.0

package xds

import (
	"slices"
	"strings"

	"github.com/ztunnel-go/ztunnel/internal/mesh"
)

func parseService(v *value) *StaticService {
	s := &StaticService{Service: &mesh.Service{}}
	v.object(strict, []string{"namespace", "hostname"}, func(field string, f *value) bool {
		return readServiceName(s.Service, field, f) || readServiceReach(s, field, f)
	})
	return s
}

func readServiceName(svc *mesh.Service, field string, f *value) bool {
	switch field {
	case "name":
		svc.Name = f.text()
	case "namespace":
		svc.Namespace = f.text()
	case "hostname":
		svc.Hostname = f.text()
	case "subjectAltNames":
		svc.SubjectAltNames = f.texts()
	case "canonical":
		svc.Canonical = f.flag()
	case "visibility":
		svc.Visibility = oneOf(f, mesh.Public, mesh.NamespaceOnly)
	default:
		return false
	}
	return true
}

func readServiceReach(s *StaticService, field string, f *value) bool {
	svc := s.Service
	switch field {
	case "vips":
		svc.VIPs = collect(f, parseVIP)
	case "cidrVips":
		svc.CIDRVIPs = collect(f, parseRange)
	case "ports":
		svc.Ports = f.ports()
	case "waypoint":
		svc.Waypoint = parseGateway(f)
	case "weightedWaypoints":
		svc.WeightedWaypoints = collect(f, parseWeighted)
	case "loadBalancer":
		svc.LoadBalancer = parseBalancer(f)
	case "ipFamilies":
		if !f.null() {
			families := oneOf(f, mesh.DualStack, mesh.IPv4Only, mesh.IPv6Only)
			svc.IPFamilies = &families
		}
	case "endpoints":
		s.Endpoints = parseEndpoints(f)
	default:
		return false
	}
	return true
}

// parseVIP reads network/address; the network may be empty, the slash may not
// be missing.
func parseVIP(v *value) mesh.NetworkAddr {
	network, ip, ok := strings.Cut(v.text(), "/")
	if !ok {
		v.fail(v.node, "invalid address `%s`, expected `network/address`", v.node.Value)
		return mesh.NetworkAddr{}
	}
	return mesh.NetworkAddr{Network: network, Addr: v.parseIP(ip)}
}

func parseRange(v *value) (p mesh.NetworkPrefix) {
	v.object(lenient, []string{"cidr"}, func(field string, f *value) bool {
		switch field {
		case "network":
			p.Network = f.text()
		case "cidr":
			p.Prefix = f.prefix()
		default:
			return false
		}
		return true
	})
	return p
}

func parseWeighted(v *value) (w mesh.WeightedWaypoint) {
	v.object(strict, []string{"destination", "weight"}, func(field string, f *value) bool {
		switch field {
		case "destination":
			if g := parseGateway(f); g != nil {
				w.Destination = *g
			} else {
				f.wrongType("a map")
			}
		case "weight":
			w.Weight = uint32(f.number(32))
		default:
			return false
		}
		return true
	})
	return w
}

func parseBalancer(v *value) *mesh.LoadBalancer {
	if v.null() {
		return nil
	}
	lb := &mesh.LoadBalancer{}
	v.object(strict, nil, func(field string, f *value) bool {
		switch field {
		case "routingPreferences":
			lb.Preferences = collect(f, func(e *value) mesh.Scope {
				return oneOf(e, mesh.ScopeRegion, mesh.ScopeZone, mesh.ScopeSubzone, mesh.ScopeNode, mesh.ScopeCluster, mesh.ScopeNetwork)
			})
		case "mode":
			lb.Mode = oneOf(f, mesh.BalanceStandard, mesh.BalanceStrict, mesh.BalanceFailover, mesh.BalancePassthrough)
		case "healthPolicy":
			lb.HealthPolicy = oneOf(f, mesh.OnlyHealthy, mesh.AllowAll)
		default:
			return false
		}
		return true
	})
	return lb
}

// parseEndpoints reads endpoints by UID, sorted by it.
func parseEndpoints(v *value) []mesh.Endpoint {
	byUID := map[string]mesh.Endpoint{}
	v.table(func(key, val *value) {
		ep := mesh.Endpoint{WorkloadUID: key.text(), Ports: map[uint16]uint16{}}
		val.object(strict, nil, func(field string, f *value) bool {
			switch field {
			case "workloadUid":
				ep.WorkloadUID = f.text()
			case "port":
				ep.Ports = f.ports()
			case "status":
				ep.Status = oneOf(f, mesh.Healthy, mesh.Unhealthy)
			default:
				return false
			}
			return true
		})
		byUID[ep.WorkloadUID] = ep
	})
	out := make([]mesh.Endpoint, 0, len(byUID))
	for _, ep := range byUID {
		out = append(out, ep)
	}
	slices.SortFunc(out, func(a, b mesh.Endpoint) int { return strings.Compare(a.WorkloadUID, b.WorkloadUID) })
	return out
}
