// SPDX-License-Identifier: Apache-2.0

package main

import (
	"net/netip"

	"github.com/ztunnel-go/ztunnel/test/rig"
)

// policies are those that the demo switches.
type policies struct {
	noGuests bool // deny the guest's identity
	strict   bool // deny callers without identity, as mode STRICT does
}

// state is what both proxies know of the mesh.
func (d *demo) state(p policies) rig.State {
	a := fixed()
	server := service(serverName, serverPorts(), a.server4, a.server6)
	legacy := service(legacyName, map[uint16]uint16{portWeb: targetWeb}, a.legacy4)
	s := rig.State{Services: []*rig.Service{server, legacy}}
	for _, pod := range d.pods() {
		if !pod.known {
			continue
		}
		w := rig.WorkloadOf(pod.Pod, namespace)
		if !pod.captured {
			w.Protocol = "TCP"
		}
		switch pod {
		case d.server:
			server.Join(w)
		case d.legacy:
			legacy.Join(w)
		}
		s.Workloads = append(s.Workloads, w)
	}
	if p.noGuests {
		s.Policies = append(s.Policies, &rig.Policy{
			Name: "no-guests", Namespace: namespace, Scope: "Namespace", Action: "Deny",
			Rules: [][][]rig.Match{{{{Principals: []rig.StringMatch{rig.Exact(rig.Principal(namespace, "guest"))}}}}},
		})
	}
	if p.strict {
		s.Policies = append(s.Policies, rig.Strict(namespace))
	}
	return s
}

func serverPorts() map[uint16]uint16 {
	return map[uint16]uint16{portWeb: targetWeb, portEcho: targetEcho, portSink: targetSink, portSource: targetSource}
}

func service(hostname string, ports map[uint16]uint16, vips ...netip.Addr) *rig.Service {
	s := &rig.Service{Name: hostname[:len(hostname)-len(suffix)], Namespace: namespace, Hostname: hostname, Ports: ports}
	for _, v := range vips {
		s.VIPs = append(s.VIPs, "/"+v.String()) // in the network without a name
	}
	return s
}

// principal is the identity of a pod.
func principal(name string) string { return "spiffe://" + rig.Principal(namespace, name) }
