// SPDX-License-Identifier: Apache-2.0

package explain

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/ztunnel-go/ztunnel/internal/mesh"
)

// splitPort takes the port off a destination; 0: there is none. An IPv6
// address with a port stands in brackets.
func splitPort(s string) (host string, port uint16, err error) {
	if _, err := netip.ParseAddr(s); err == nil {
		return s, 0, nil
	}
	i := strings.LastIndexByte(s, ':')
	if i < 0 {
		return s, 0, nil
	}
	n, err := strconv.ParseUint(s[i+1:], 10, 16)
	if err != nil || n == 0 {
		return "", 0, fmt.Errorf("%q has no port behind its last colon", s)
	}
	return strings.TrimSuffix(strings.TrimPrefix(s[:i], "["), "]"), uint16(n), nil
}

// find finds who is meant. client is who asks for a destination, nil for the
// client itself: services are none.
func (q Question) find(name string, client *mesh.Workload) (End, error) {
	e := End{Asked: name}
	addr, err := netip.ParseAddr(name)
	switch {
	case err == nil:
		addr = addr.Unmap()
		e.is(q.View.WorkloadAt(mesh.NetworkAddr{Network: q.Network, Addr: addr}))
		if svc := q.View.AnyServiceByVIP(mesh.NetworkAddr{Network: q.Network, Addr: addr}); e.workload == nil && svc != nil {
			e.Service = svc.Key().String()
		}
		e.Addr = netip.AddrPortFrom(addr, 0)
		return e, nil
	case name == "":
		return e, fmt.Errorf("%w is named %q", errNotFound, name)
	}
	pods, services := q.named(name, client)
	switch {
	case len(pods) == 1:
		return e, e.at(pods[0])
	case len(pods) > 1:
		return e, fmt.Errorf("several pods are named %q: %s; ask for one by its address", name, uids(pods))
	case len(services) > 1:
		return e, fmt.Errorf("several services are named %q: put the namespace before it, %v or %v", name, services[0].Key(), services[1].Key())
	case len(services) == 1:
		return e, e.ofService(services[0], q.Network)
	}
	return e, fmt.Errorf("%w is named %q: there is no pod of this namespace/name or hostname, and no service", errNotFound, name)
}

// named are the pods and services with a name.
func (q Question) named(name string, client *mesh.Workload) ([]*mesh.Workload, []*mesh.Service) {
	namespace, short, qualified := strings.Cut(name, "/")
	if !qualified {
		namespace, short = "", name
	}
	var pods []*mesh.Workload
	for _, w := range q.View.Workloads() {
		own := w.UID == name || w.Namespace == namespace && w.Name == short && qualified || w.Hostname == name && name != ""
		if own {
			pods = append(pods, w)
		}
	}
	var services []*mesh.Service
	for _, svc := range q.View.Services() {
		if (svc.Hostname == short || svc.Name == short && qualified) && (!qualified || svc.Namespace == namespace) {
			services = append(services, svc)
		}
	}
	if client != nil && len(services) > 1 { // the client's own namespace comes first, as for its DNS
		i := slices.IndexFunc(services, func(s *mesh.Service) bool { return s.Namespace == client.Namespace })
		if i >= 0 {
			services = services[i : i+1]
		}
	}
	return pods, services
}

func uids(pods []*mesh.Workload) string {
	var all []string
	for _, w := range pods {
		all = append(all, fmt.Sprintf("%s %v", w.UID, w.IPs))
	}
	return strings.Join(all, ", ")
}

// is notes whose address it is; nil: nobody's.
func (e *End) is(w *mesh.Workload) {
	if w == nil {
		return
	}
	e.workload, e.Workload, e.Node = w, w.UID, w.Node
	if id := w.Identity(); !id.IsZero() {
		e.Identity = id.String()
	}
}

func (e *End) at(w *mesh.Workload) error {
	if len(w.IPs) == 0 {
		return fmt.Errorf("%s has no address, only the hostname %q: ask for a service that it is in", w.UID, w.Hostname)
	}
	e.is(w)
	e.Addr = netip.AddrPortFrom(w.IPs[0], 0)
	return nil
}

// ofService takes its first address in the network.
func (e *End) ofService(svc *mesh.Service, network string) error {
	e.Service = svc.Key().String()
	for _, vip := range svc.VIPs {
		if vip.Network == network {
			e.Addr = netip.AddrPortFrom(vip.Addr, 0)
			return nil
		}
	}
	return fmt.Errorf("the service %v has no address in network %q: ask for one of its pods", svc.Key(), network)
}

// givePort completes a destination: with none given, it is the lowest port of
// the service, or the one at which a service leads to the pod.
func (q Question) givePort(to *End, port uint16) {
	if port == 0 {
		port = q.usualPort(*to)
		to.Note = fmt.Sprintf("no port was named: taken for %d", port)
	}
	to.Addr = netip.AddrPortFrom(to.Addr.Addr(), port)
}

func (q Question) usualPort(to End) uint16 {
	const web = 80
	var ports []uint16
	if key, ok := mesh.ParseNamespacedHostname(to.Service); ok && to.Service != "" {
		if svc := q.View.Service(key); svc != nil {
			for port := range svc.Ports {
				ports = append(ports, port)
			}
		}
	}
	if w := to.workload; w != nil {
		for _, byService := range w.Services {
			for _, target := range byService {
				if target != 0 {
					ports = append(ports, target)
				}
			}
		}
	}
	if len(ports) == 0 {
		return web
	}
	return slices.Min(ports)
}
