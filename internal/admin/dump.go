// SPDX-License-Identifier: Apache-2.0

package admin

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/http"
	"net/netip"
	"time"

	"github.com/ztunnel-go/ztunnel/internal/mesh"
)

// A Dump is what /config_dump shows: functions, since each answer is of its
// moment. Those that are nil show nothing.
type Dump struct {
	// View is the mesh.
	View mesh.View
	// Certificates lists the identities, sorted.
	Certificates func() []Certificate
	// Config and Version are values that encoding/json knows how to write;
	// their keys are sorted here.
	Config, Version func() any
	// Static is the content of the local state file.
	Static func() Static
	// Pods lists the enrolled pods; nil in dedicated mode, which has none.
	Pods func() []Pod
	// Warnings are what an operator must not miss, such as the embedded CA. The
	// key warnings, which the reference has not, appears only with one.
	Warnings func() []string
}

// A Certificate is the state of one identity.
type Certificate struct {
	Identity string
	// State is Available, Initializing, or Unavailable: <error>.
	State string
	// Chain (the leaf first) and Roots are empty unless Available.
	Chain, Roots []CertificateInfo
}

// CertificateInfo describes one certificate of a chain.
type CertificateInfo struct {
	PEM                   string
	SerialNumber          string // decimal
	ValidFrom, Expiration time.Time
}

// A Static is what the local state file holds.
type Static struct {
	Workloads []*mesh.Workload
	Services  []StaticService
	Policies  []*mesh.Policy
}

// A StaticService is a service and the endpoints that it lists itself.
type StaticService struct {
	Service   *mesh.Service
	Endpoints []mesh.Endpoint
}

// A Pod is an enrolled pod.
type Pod struct {
	UID, Name, Namespace, ServiceAccount string
	State                                string       // Up, Pending or Draining
	Connections                          *Connections // nil while there is no proxy

	// Capture says how the pod is captured (ebpf or istio-cni) and Health what
	// is wrong with that, if anything. Both may be empty; the reference has
	// neither.
	Capture, Health string
}

// Connections are the open connections of a pod. Equal ones are shown once.
type Connections struct {
	Inbound  []InboundConnection
	Outbound []OutboundConnection
}

// An InboundConnection is one to the pod.
type InboundConnection struct {
	Src, ActualDst netip.AddrPort
	OriginalDst    string // the host that the client named; empty: none
	Protocol       string // HBONE or TCP
}

// An OutboundConnection is one from the pod.
type OutboundConnection struct {
	Src, ActualDst, OriginalDst netip.AddrPort
	Protocol                    string // TCP, HBONE or DOUBLEHBONE
}

// The JSON types here and in the other dump files list their fields in the
// order of their names, since encoding/json keeps the order of fields and the
// contract wants keys sorted (13.4). A test walks a full dump to prove it.

type dumpJSON struct {
	Certificates   []certificateJSON                  `json:"certificates"`
	Config         any                                `json:"config"`
	Policies       []policyJSON                       `json:"policies"`
	Services       []serviceJSON                      `json:"services"`
	StagedServices map[string]map[string]endpointJSON `json:"stagedServices"`
	StaticConfig   staticJSON                         `json:"staticConfig"`
	Version        any                                `json:"version"`
	Warnings       []string                           `json:"warnings,omitempty"`
	WorkloadState  map[string]podJSON                 `json:"workloadState,omitzero"`
	Workloads      []workloadJSON                     `json:"workloads"`
}

func (d Dump) serve(w http.ResponseWriter, _ *http.Request) {
	out, err := d.gather()
	if err != nil {
		text(w, http.StatusInternalServerError, err.Error())
		return
	}
	writeJSON(w, out)
}

func (d Dump) gather() (*dumpJSON, error) {
	out := &dumpJSON{
		Certificates:   []certificateJSON{},
		Policies:       []policyJSON{},
		Services:       []serviceJSON{},
		StagedServices: map[string]map[string]endpointJSON{},
		Workloads:      []workloadJSON{},
		StaticConfig:   dumpStatic(Static{}),
	}
	var err error
	if out.Config, err = sorted(d.Config); err != nil {
		return nil, fmt.Errorf("dump config: %w", err)
	}
	if out.Version, err = sorted(d.Version); err != nil {
		return nil, fmt.Errorf("dump version: %w", err)
	}
	if d.Certificates != nil {
		out.Certificates = list(d.Certificates(), dumpCertificate)
	}
	if d.Static != nil {
		out.StaticConfig = dumpStatic(d.Static())
	}
	if d.Pods != nil {
		out.WorkloadState = map[string]podJSON{}
		for _, p := range d.Pods() {
			out.WorkloadState[p.UID] = dumpPod(p)
		}
	}
	if d.Warnings != nil {
		out.Warnings = d.Warnings()
	}
	d.gatherMesh(out)
	return out, nil
}

func (d Dump) gatherMesh(out *dumpJSON) {
	if d.View == (mesh.View{}) {
		return
	}
	for _, w := range d.View.Workloads() {
		out.Workloads = append(out.Workloads, dumpWorkload(w))
	}
	for _, s := range d.View.Services() {
		var endpoints []mesh.Endpoint
		d.View.Endpoints(s.Key(), func(ep mesh.Endpoint, _ *mesh.Workload) bool {
			endpoints = append(endpoints, ep)
			return true
		})
		out.Services = append(out.Services, dumpService(s, endpoints))
	}
	for key, endpoints := range d.View.StagedEndpoints() {
		out.StagedServices[key.String()] = dumpEndpoints(endpoints)
	}
	for _, p := range d.View.Policies() {
		out.Policies = append(out.Policies, dumpPolicy(p.Policy))
	}
}

// writeJSON answers with v, indented by two spaces and without a newline at
// the end.
func writeJSON(w http.ResponseWriter, v any) {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	e.SetIndent("", "  ")
	if err := e.Encode(v); err != nil {
		text(w, http.StatusInternalServerError, err.Error())
		return
	}
	w.Header().Set("Content-Type", "application/json")
	writeWhole(w, bytes.TrimRight(b.Bytes(), "\n"))
}

// sorted turns what a function returns into values whose keys encoding/json
// sorts, which it does for maps alone. Nothing becomes null.
func sorted(value func() any) (any, error) {
	if value == nil {
		return nil, nil
	}
	raw, err := json.Marshal(value())
	if err != nil {
		return nil, err
	}
	d := json.NewDecoder(bytes.NewReader(raw))
	d.UseNumber() // a float would spoil large numbers
	var out any
	err = d.Decode(&out)
	return out, err
}

// list maps a slice to one that is written as [] when it is empty.
func list[A, B any](in []A, f func(A) B) []B {
	out := make([]B, 0, len(in))
	for _, v := range in {
		out = append(out, f(v))
	}
	return out
}

type certificateJSON struct {
	CertChain []certificateInfoJSON `json:"certChain"`
	Identity  string                `json:"identity"`
	RootCerts []certificateInfoJSON `json:"rootCerts"`
	State     string                `json:"state"`
}

type certificateInfoJSON struct {
	ExpirationTime string `json:"expirationTime"`
	PEM            string `json:"pem"` // base64 of the PEM text
	SerialNumber   string `json:"serialNumber"`
	ValidFrom      string `json:"validFrom"`
}

func dumpCertificate(c Certificate) certificateJSON {
	return certificateJSON{
		CertChain: list(c.Chain, dumpCertificateInfo),
		Identity:  c.Identity,
		RootCerts: list(c.Roots, dumpCertificateInfo),
		State:     c.State,
	}
}

func dumpCertificateInfo(c CertificateInfo) certificateInfoJSON {
	return certificateInfoJSON{
		ExpirationTime: c.Expiration.UTC().Format(time.RFC3339),
		PEM:            base64.StdEncoding.EncodeToString([]byte(c.PEM)),
		SerialNumber:   c.SerialNumber,
		ValidFrom:      c.ValidFrom.UTC().Format(time.RFC3339),
	}
}

type podJSON struct {
	Capture     *captureJSON     `json:"capture,omitempty"`
	Connections *connectionsJSON `json:"connections,omitempty"`
	Info        infoJSON         `json:"info"`
	State       string           `json:"state"`
}

type captureJSON struct {
	Health string `json:"health,omitempty"`
	Tier   string `json:"tier,omitempty"`
}

type infoJSON struct {
	Name           string `json:"name"`
	Namespace      string `json:"namespace"`
	ServiceAccount string `json:"serviceAccount"`
}

type connectionsJSON struct {
	Inbound  []connectionJSON `json:"inbound"`
	Outbound []connectionJSON `json:"outbound"`
}

// A connectionJSON compares by what it shows, for which the pointer that null
// needs would be in the way: originalDst stays raw.
type connectionJSON struct {
	ActualDst   string  `json:"actualDst"`
	OriginalDst textual `json:"originalDst"`
	Protocol    string  `json:"protocol"`
	Src         string  `json:"src"`
}

// textual is a string that is null when it is empty.
type textual string

// MarshalJSON implements [json.Marshaler].
func (t textual) MarshalJSON() ([]byte, error) {
	if t == "" {
		return []byte("null"), nil
	}
	return json.Marshal(string(t))
}

func dumpPod(p Pod) podJSON {
	out := podJSON{Info: infoJSON{p.Name, p.Namespace, p.ServiceAccount}, State: p.State}
	if p.Capture != "" || p.Health != "" {
		out.Capture = &captureJSON{p.Health, p.Capture}
	}
	if p.Connections == nil {
		return out
	}
	out.Connections = &connectionsJSON{
		Inbound: set(p.Connections.Inbound, func(c InboundConnection) connectionJSON {
			return connectionJSON{c.ActualDst.String(), textual(c.OriginalDst), c.Protocol, c.Src.String()}
		}),
		Outbound: set(p.Connections.Outbound, func(c OutboundConnection) connectionJSON {
			return connectionJSON{c.ActualDst.String(), textual(c.OriginalDst.String()), c.Protocol, c.Src.String()}
		}),
	}
	return out
}

// set is list without what has been there before.
func set[A any, B comparable](in []A, f func(A) B) []B {
	seen := make(map[B]bool, len(in))
	out := make([]B, 0, len(in))
	for _, v := range in {
		if b := f(v); !seen[b] {
			seen[b] = true
			out = append(out, b)
		}
	}
	return out
}

// stringsOf renders values by their String method.
func stringsOf[T interface{ String() string }](in []T) []string {
	return list(in, T.String)
}
