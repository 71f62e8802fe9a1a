// SPDX-License-Identifier: Apache-2.0

package rig

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"os"

	"github.com/ztunnel-go/ztunnel/test/netlab"
)

// A State is the content of a local state file (contract 8.9), as far as tests
// need it. Every node of a mesh is given the same.
type State struct {
	Workloads []*Workload `json:"workloads,omitempty"`
	Services  []*Service  `json:"services,omitempty"`
	Policies  []*Policy   `json:"policies,omitempty"`
}

// A Workload is one pod of a [State].
type Workload struct {
	UID                   string                       `json:"uid"`
	Name                  string                       `json:"name"`
	Namespace             string                       `json:"namespace"`
	ServiceAccount        string                       `json:"serviceAccount"`
	TrustDomain           string                       `json:"trustDomain"`
	IPs                   []netip.Addr                 `json:"workloadIps"`
	Hostname              string                       `json:"hostname,omitempty"` // to be looked up, without IPs
	Protocol              string                       `json:"protocol"`           // HBONE or TCP
	Node                  string                       `json:"node"`
	WorkloadName          string                       `json:"workloadName"`
	WorkloadType          string                       `json:"workloadType"`
	CanonicalName         string                       `json:"canonicalName"`
	CanonicalRevision     string                       `json:"canonicalRevision"`
	ClusterID             string                       `json:"clusterId"`
	AuthorizationPolicies []string                     `json:"authorizationPolicies,omitempty"` // "namespace/name"
	Services              map[string]map[uint16]uint16 `json:"services"`                        // "namespace/hostname": service port to target port
}

// A Service is one service of a [State].
type Service struct {
	Name      string            `json:"name"`
	Namespace string            `json:"namespace"`
	Hostname  string            `json:"hostname"`
	VIPs      []string          `json:"vips"` // "network/ip"
	Ports     map[uint16]uint16 `json:"ports"`
}

// A Policy is one authorization policy of a [State]. Rules hold clauses, and
// those matches.
type Policy struct {
	Name      string      `json:"name"`
	Namespace string      `json:"namespace"`
	Scope     string      `json:"scope"`  // Global, Namespace or WorkloadSelector
	Action    string      `json:"action"` // Allow or Deny
	DryRun    bool        `json:"dryRun"`
	Rules     [][][]Match `json:"rules"`
}

// A Match is one match of a policy; every field that is there must hold.
type Match struct {
	Principals          []StringMatch `json:"principals,omitempty"` // without spiffe://
	NotPrincipals       []StringMatch `json:"notPrincipals,omitempty"`
	Namespaces          []StringMatch `json:"namespaces,omitempty"`
	NotNamespaces       []StringMatch `json:"notNamespaces,omitempty"`
	DestinationPorts    []uint16      `json:"destinationPorts,omitempty"`
	NotDestinationPorts []uint16      `json:"notDestinationPorts,omitempty"`
	SourceIPs           []string      `json:"sourceIps,omitempty"` // CIDRs
}

// A StringMatch is Exact, Prefix or Suffix with a string, or Presence.
type StringMatch map[string]any

// Exact matches one string.
func Exact(s string) StringMatch { return StringMatch{"Exact": s} }

// Presence matches every string but the empty one.
func Presence() StringMatch { return StringMatch{"Presence": []string{}} }

// TrustDomain is that of every workload made here.
const TrustDomain = "cluster.local"

// WorkloadOf describes a pod of a lab: its own workload, speaking HBONE, named
// and certified after the pod.
func WorkloadOf(p *netlab.Pod, namespace string) *Workload {
	w := &Workload{
		UID: UID(p.Name()), Name: p.Name(), Namespace: namespace, ServiceAccount: p.Name(), TrustDomain: TrustDomain,
		Protocol: "HBONE", Node: p.Node().Name(), WorkloadName: p.Name(), WorkloadType: "pod",
		CanonicalName: p.Name(), CanonicalRevision: "v1", ClusterID: "lab", Services: map[string]map[uint16]uint16{},
	}
	for _, a := range []netip.Addr{p.IPv4, p.IPv6} {
		if a.IsValid() {
			w.IPs = append(w.IPs, a)
		}
	}
	return w
}

// UID is what a state file calls the workload of a pod.
func UID(pod string) string { return "lab//Pod/" + pod }

// Principal is the identity of a workload made by [WorkloadOf], as policies
// write it.
func Principal(namespace, account string) string {
	return fmt.Sprintf("%s/ns/%s/sa/%s", TrustDomain, namespace, account)
}

// Join makes workloads endpoints of s.
func (s *Service) Join(workloads ...*Workload) *Service {
	for _, w := range workloads {
		w.Services[s.Namespace+"/"+s.Hostname] = s.Ports
	}
	return s
}

// Strict refuses connections without an identity to the namespace's pods, as
// istiod writes PeerAuthentication STRICT.
func Strict(namespace string) *Policy {
	return &Policy{
		Name: "strict", Namespace: namespace, Scope: "Namespace", Action: "Deny",
		Rules: [][][]Match{{{{NotPrincipals: []StringMatch{Presence()}}}}},
	}
}

// write puts the state in place of the file's content, all of it at once.
func (s State) write(path string) error {
	// JSON is YAML, for a reader of local state files too.
	data, err := json.MarshalIndent(s, "", "  ")
	if err != nil {
		return fmt.Errorf("write state: %w", err)
	}
	if err := os.WriteFile(path+".new", data, 0o600); err != nil {
		return fmt.Errorf("write state: %w", err)
	}
	return os.Rename(path+".new", path)
}
