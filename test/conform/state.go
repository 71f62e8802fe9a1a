// SPDX-License-Identifier: Apache-2.0

package conform

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"

	"go.yaml.in/yaml/v3"

	"github.com/ztunnel-go/ztunnel/test/fakeistiod"
)

// A State is the mesh of a scenario, in the words of local state files
// (contract 8.9) with three more: "pod: b" stands for the usual description of
// that pod, which other keys change; "without" takes what is usual away; and
// "{b}" is an address, as in steps.
type State struct {
	Without   []string        `yaml:"without"`
	Workloads []*workloadText `yaml:"workloads"`
	Services  []*serviceText  `yaml:"services"`
	Policies  []*policyText   `yaml:"policies"`

	text string
}

type workloadText struct {
	Pod                   string                       `yaml:"pod"`
	UID                   string                       `yaml:"uid"`
	Name                  string                       `yaml:"name"`
	Namespace             string                       `yaml:"namespace"`
	ServiceAccount        string                       `yaml:"serviceAccount"`
	TrustDomain           string                       `yaml:"trustDomain"`
	IPs                   *[]string                    `yaml:"workloadIps"`
	Protocol              string                       `yaml:"protocol"`
	NetworkMode           string                       `yaml:"networkMode"`
	Network               string                       `yaml:"network"`
	Node                  string                       `yaml:"node"`
	Hostname              string                       `yaml:"hostname"`
	Waypoint              *gatewayText                 `yaml:"waypoint"`
	NetworkGateway        *gatewayText                 `yaml:"networkGateway"`
	WorkloadName          string                       `yaml:"workloadName"`
	WorkloadType          string                       `yaml:"workloadType"`
	CanonicalName         string                       `yaml:"canonicalName"`
	CanonicalRevision     string                       `yaml:"canonicalRevision"`
	NativeTunnel          bool                         `yaml:"nativeTunnel"`
	ApplicationTunnel     *tunnelText                  `yaml:"applicationTunnel"`
	AuthorizationPolicies []string                     `yaml:"authorizationPolicies"`
	Status                string                       `yaml:"status"`
	ClusterID             string                       `yaml:"clusterId"`
	Locality              localityText                 `yaml:"locality"`
	Capacity              *uint32                      `yaml:"capacity"`
	Services              map[string]map[uint32]uint32 `yaml:"services"`
}

type gatewayText struct {
	Destination string `yaml:"destination"`
	Port        uint32 `yaml:"hboneMtlsPort"`
}

type tunnelText struct {
	Protocol string `yaml:"protocol"`
	Port     uint32 `yaml:"port"`
}

type localityText struct {
	Region  string `yaml:"region"`
	Zone    string `yaml:"zone"`
	Subzone string `yaml:"subzone"`
}

type serviceText struct {
	Name            string            `yaml:"name"`
	Namespace       string            `yaml:"namespace"`
	Hostname        string            `yaml:"hostname"`
	VIPs            []string          `yaml:"vips"`
	CIDRVIPs        []cidrText        `yaml:"cidrVips"`
	Ports           map[uint32]uint32 `yaml:"ports"`
	SubjectAltNames []string          `yaml:"subjectAltNames"`
	Waypoint        *gatewayText      `yaml:"waypoint"`
	LoadBalancer    *balancerText     `yaml:"loadBalancer"`
	IPFamilies      string            `yaml:"ipFamilies"`
	Canonical       bool              `yaml:"canonical"`
	Visibility      string            `yaml:"visibility"`
}

type cidrText struct {
	Network string `yaml:"network"`
	CIDR    string `yaml:"cidr"`
}

type balancerText struct {
	Preferences  []string `yaml:"routingPreferences"`
	Mode         string   `yaml:"mode"`
	HealthPolicy string   `yaml:"healthPolicy"`
}

type policyText struct {
	Name      string          `yaml:"name"`
	Namespace string          `yaml:"namespace"`
	Scope     string          `yaml:"scope"`
	Action    string          `yaml:"action"`
	DryRun    bool            `yaml:"dryRun"`
	Rules     [][][]matchText `yaml:"rules"`
}

type matchText struct {
	Namespaces          []stringText  `yaml:"namespaces"`
	NotNamespaces       []stringText  `yaml:"notNamespaces"`
	Principals          []stringText  `yaml:"principals"`
	NotPrincipals       []stringText  `yaml:"notPrincipals"`
	SourceIPs           []string      `yaml:"sourceIps"`
	NotSourceIPs        []string      `yaml:"notSourceIps"`
	DestinationIPs      []string      `yaml:"destinationIps"`
	NotDestinationIPs   []string      `yaml:"notDestinationIps"`
	DestinationPorts    []uint32      `yaml:"destinationPorts"`
	NotDestinationPorts []uint32      `yaml:"notDestinationPorts"`
	ServiceAccounts     []accountText `yaml:"serviceAccounts"`
	NotServiceAccounts  []accountText `yaml:"notServiceAccounts"`
}

type accountText struct {
	Namespace      string `yaml:"namespace"`
	ServiceAccount string `yaml:"serviceAccount"`
}

// stringText is {Exact: s}, {Prefix: s}, {Suffix: s} or {Presence: []}.
type stringText struct {
	Exact    *string   `yaml:"Exact"`
	Prefix   *string   `yaml:"Prefix"`
	Suffix   *string   `yaml:"Suffix"`
	Presence *[]string `yaml:"Presence"`
}

// parseState reads the lines below "state:". What it does not know it refuses.
func parseState(text string) (*State, error) {
	s := &State{text: text}
	d := yaml.NewDecoder(bytes.NewReader([]byte(text)))
	d.KnownFields(true)
	if err := d.Decode(s); err != nil && !errors.Is(err, io.EOF) {
		return nil, fmt.Errorf("state: %w", err)
	}
	for _, w := range s.Workloads {
		if w == nil || (w.Pod == "") == (w.UID == "") {
			return nil, errors.New("state: a workload has either a pod or a uid")
		}
		if w.Pod != "" && !slices.Contains(pods(), w.Pod) {
			return nil, fmt.Errorf("state: there is no pod %q", w.Pod)
		}
	}
	if slices.Contains(s.Services, nil) || slices.Contains(s.Policies, nil) {
		return nil, errors.New("state: an empty element")
	}
	// Whatever else is wrong is found before anything runs.
	_, err := s.resources(func(text string) (string, error) { return knownVariables().Replace(text), nil })
	return s, err
}

// usual is the mesh of a scenario that says nothing else: three pods, and the
// service b with its echo server.
func usual() *State {
	return &State{
		Workloads: []*workloadText{{Pod: "a"}, {Pod: "b", Services: map[string]map[uint32]uint32{"default/" + usualService: {80: echoPort}}}, {Pod: "c"}},
		Services: []*serviceText{{
			Name: "b", Namespace: "default", Hostname: usualService,
			VIPs: []string{"/10.96.0.1", "/fd96::1"}, Ports: map[uint32]uint32{80: echoPort},
		}},
	}
}

const usualService = "b.default.svc.cluster.local"

// complete fills in what "pod" stands for.
func (w *workloadText) complete() *workloadText {
	if w.Pod == "" {
		return w
	}
	c := *w
	or := func(field *string, value string) {
		if *field == "" {
			*field = value
		}
	}
	or(&c.UID, uidOf(w.Pod))
	or(&c.Name, w.Pod)
	or(&c.Namespace, namespaceOf(w.Pod))
	or(&c.ServiceAccount, w.Pod)
	or(&c.TrustDomain, trustDomain)
	or(&c.Protocol, "HBONE")
	or(&c.Node, nodeOf(w.Pod))
	or(&c.WorkloadName, w.Pod)
	or(&c.WorkloadType, "pod")
	or(&c.CanonicalName, w.Pod)
	or(&c.CanonicalRevision, "v1")
	or(&c.ClusterID, "lab")
	if c.IPs == nil {
		c.IPs = &[]string{"{" + w.Pod + "}", "{" + w.Pod + "6}"}
	}
	return &c
}

// resources are the usual mesh with s over it, as the control plane pushes it.
// expand puts addresses in the place of variables.
func (s *State) resources(expand func(string) (string, error)) (map[string]fakeistiod.Resource, error) {
	b := &builder{expand: expand, out: map[string]fakeistiod.Resource{}}
	base := usual()
	for _, w := range slices.Concat(base.Workloads, s.Workloads) {
		b.workload(w.complete())
	}
	for _, svc := range slices.Concat(base.Services, s.Services) {
		b.service(svc)
	}
	for _, p := range s.Policies {
		b.policy(p)
	}
	for _, name := range s.Without {
		if _, ok := b.out[name]; !ok && b.err == nil {
			b.err = fmt.Errorf("state: without %q, which is not there: there are %q", name, slices.Sorted(maps.Keys(b.out)))
		}
		delete(b.out, name)
	}
	return b.out, b.err
}
