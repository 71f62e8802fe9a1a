// SPDX-License-Identifier: Apache-2.0

package xds

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"strings"

	"go.yaml.in/yaml/v3"

	"github.com/ztunnel-go/ztunnel/internal/mesh"
)

const (
	strict  = false
	lenient = true
)

// defaultHBONEPort is where waypoints and gateways listen unless the file says
// otherwise (contract 2.1).
const defaultHBONEPort = 15008

// ParseLocal reads a local state document: YAML, or JSON, which is YAML too
// (contract 8.9). name is the file's, and stands in errors with line and
// column. Unknown fields are refused, but for those of policy matches,
// localities and CIDR VIPs, which only warn.
//
// An empty document is refused: it is more likely to be a file that somebody
// is about to write than the wish for an empty mesh, which is `{}`.
func ParseLocal(name string, data []byte) (*Static, error) {
	return parseText(name, string(data))
}

func parseText(name, text string) (*Static, error) {
	if s, err, ok := parsePlain(name, text); ok {
		return s, err
	}
	return parseTree(name, []byte(text))
}

// parseTree reads a document by the long road, which knows all of YAML.
func parseTree(name string, data []byte) (*Static, error) {
	var doc yaml.Node
	dec := yaml.NewDecoder(bytes.NewReader(plainJSON(data)))
	if err := dec.Decode(&doc); errors.Is(err, io.EOF) {
		return nil, fmt.Errorf("the document is empty at line 1 column 1 of %s", name)
	} else if err != nil {
		return nil, placed(err, name)
	}
	if err := dec.Decode(new(yaml.Node)); !errors.Is(err, io.EOF) {
		if err != nil {
			return nil, placed(err, name)
		}
		return nil, fmt.Errorf("more than one document in %s", name)
	}
	if len(doc.Content) != 1 {
		return nil, fmt.Errorf("the document is empty at line 1 column 1 of %s", name)
	}
	return parseStatic(&value{r: &reader{name: name, budget: budgetFor(len(data))}, node: doc.Content[0]})
}

// placed puts the line of a YAML error where ours have it.
func placed(err error, name string) error {
	if text, ok := strings.CutPrefix(err.Error(), "yaml: line "); ok {
		if line, text, ok := strings.Cut(text, ": "); ok {
			return fmt.Errorf("%s at line %s of %s", text, line, name)
		}
	}
	return fmt.Errorf("%v at line 1 of %s", err, name)
}

func parseStatic(v *value) (*Static, error) {
	p := newSections(v)
	v.object(strict, nil, func(field string, f *value) bool {
		if !p.section(field) {
			return false
		}
		f.list(p.element)
		return true
	})
	return p.finish()
}

func parseWorkload(v *value) *mesh.Workload {
	w := &mesh.Workload{Capacity: 1}
	v.object(strict, []string{"namespace", "workloadIps", "services"}, func(field string, f *value) bool {
		return readWorkloadName(w, field, f) || readWorkloadPlace(w, field, f) || readWorkloadReach(w, field, f)
	})
	w.Name = v.r.shared.Suffix(w.UID, w.Name)
	return w
}

func readWorkloadName(w *mesh.Workload, field string, f *value) bool {
	switch field {
	case "uid":
		w.UID = strings.Clone(f.raw())
	case "name":
		w.Name = f.raw() // parseWorkload makes it its own
	case "namespace":
		w.Namespace = f.text()
	case "serviceAccount":
		w.ServiceAccount = f.text()
	case "trustDomain":
		w.TrustDomain = f.text()
	case "workloadName":
		w.WorkloadName = f.text()
	case "workloadType":
		w.WorkloadType = oneOf(f, mesh.Deployment, mesh.CronJob, mesh.Pod, mesh.Job)
	case "canonicalName":
		w.CanonicalName = f.text()
	case "canonicalRevision":
		w.CanonicalRevision = f.text()
	case "authorizationPolicies":
		w.AuthorizationPolicies = f.texts()
	default:
		return false
	}
	return true
}

func readWorkloadPlace(w *mesh.Workload, field string, f *value) bool {
	switch field {
	case "network":
		w.Network = f.text()
	case "node":
		w.Node = f.text()
	case "clusterId":
		w.ClusterID = f.text()
	case "locality":
		w.Locality = parseLocality(f)
	case "capacity":
		w.Capacity = uint32(f.number(32))
	case "status":
		w.Status = oneOf(f, mesh.Healthy, mesh.Unhealthy)
	case "services":
		w.Services = parseMemberships(f)
	default:
		return false
	}
	return true
}

func readWorkloadReach(w *mesh.Workload, field string, f *value) bool {
	switch field {
	case "workloadIps":
		w.IPs = collect(f, (*value).ip)
	case "hostname":
		w.Hostname = f.text()
	case "protocol":
		w.Protocol = oneOf(f, mesh.TCP, mesh.HBONE)
	case "networkMode":
		w.NetworkMode = oneOf(f, mesh.Standard, mesh.HostNetwork)
	case "nativeTunnel":
		w.NativeTunnel = f.flag()
	case "waypoint":
		w.Waypoint = parseGateway(f)
	case "networkGateway":
		w.NetworkGateway = parseGateway(f)
	case "applicationTunnel":
		w.ApplicationTunnel = parseTunnel(f)
	default:
		return false
	}
	return true
}

func parseLocality(v *value) (l mesh.Locality) {
	v.object(lenient, nil, func(field string, f *value) bool {
		switch field {
		case "region":
			l.Region = f.text()
		case "zone":
			l.Zone = f.text()
		case "subzone":
			l.Subzone = f.text()
		default:
			return false
		}
		return true
	})
	return l
}

func parseMemberships(v *value) map[mesh.NamespacedHostname]map[uint16]uint16 {
	r := v.r
	r.groups = r.groups[:0]
	v.table(func(key, val *value) {
		name, ok := mesh.ParseNamespacedHostname(key.text())
		if !ok {
			key.fail(key.node, "failed to parse namespaced hostname: %s", key.node.Value)
		}
		r.groups = append(r.groups, mesh.Membership{Service: name, Ports: val.ports()})
	})
	return r.shared.Services(r.groups)
}

func parseTunnel(v *value) *mesh.ApplicationTunnel {
	if v.null() {
		return nil
	}
	t := &mesh.ApplicationTunnel{}
	v.object(strict, []string{"protocol"}, func(field string, f *value) bool {
		switch field {
		case "protocol":
			t.Kind = oneOf(f, mesh.TunnelNone, mesh.TunnelProxy)
		case "port":
			if !f.null() {
				t.Port = f.port()
			}
		default:
			return false
		}
		return true
	})
	return t
}

// parseGateway reads a waypoint or network gateway, or nil for null.
func parseGateway(v *value) *mesh.GatewayAddress {
	if v.null() {
		return nil
	}
	var g mesh.GatewayAddress
	g.HBONEMTLSPort = defaultHBONEPort
	v.object(strict, []string{"destination"}, func(field string, f *value) bool {
		switch field {
		case "destination":
			f.readDestination(&g)
		case "hboneMtlsPort":
			g.HBONEMTLSPort = f.port()
		default:
			return false
		}
		return true
	})
	return v.r.shared.Gateway(g)
}

// readDestination reads namespace/hostname, or network/address where what
// follows the slash is an address.
func (v *value) readDestination(g *mesh.GatewayAddress) {
	s := v.text()
	before, after, ok := strings.Cut(s, "/")
	if ip, err := netip.ParseAddr(after); ok && err == nil && ip.Zone() == "" {
		g.Address = mesh.NetworkAddr{Network: before, Addr: ip.Unmap()}
		return
	}
	name, ok := mesh.ParseNamespacedHostname(s)
	if !ok || name.Hostname == "" {
		v.fail(v.node, "invalid gateway destination `%s`, expected `namespace/hostname` or `network/address`", s)
	}
	g.Hostname = name
}
