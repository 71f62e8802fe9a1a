// SPDX-License-Identifier: Apache-2.0

package istiod

import (
	"cmp"
	"fmt"
	"net/netip"
	"strings"

	"github.com/ztunnel-go/ztunnel/test/netlab"
)

// Kubernetes and Istio objects, with what istiod reads of them.

// namespaceYAML is a namespace. That of istiod names the cluster's network.
func namespaceYAML(name, network string) string {
	return fmt.Sprintf(`apiVersion: v1
kind: Namespace
metadata:
  name: %s
  labels: {topology.istio.io/network: %q}
`, name, network)
}

// nodeYAML is a node in a zone of the region "lab".
func nodeYAML(n *netlab.Node, zone string) string {
	return fmt.Sprintf(`apiVersion: v1
kind: Node
metadata:
  name: %s
  labels:
    topology.kubernetes.io/region: lab
    topology.kubernetes.io/zone: %s
status:
  addresses:
  - {type: InternalIP, address: %s}
`, n.Name(), zone, n.IPv4)
}

// A podSpec is a pod as the API server knows it.
type podSpec struct {
	name, namespace, account string
	node                     string
	ips                      []netip.Addr
	app                      string // the label; empty: name
	labels                   map[string]string
	plain                    bool // not in the mesh
	unready                  bool
}

// uid is the pod's uid: Kubernetes gives every pod another.
func (p podSpec) uid() string { return "uid-" + p.namespace + "-" + p.name }

func (p podSpec) yaml() string {
	var b strings.Builder
	fmt.Fprintf(&b, "apiVersion: v1\nkind: Pod\nmetadata:\n  name: %s\n  namespace: %s\n  uid: %s\n", p.name, p.namespace, p.uid())
	fmt.Fprintf(&b, "  labels:\n    app: %s\n", cmp.Or(p.app, p.name))
	for name, value := range p.labels {
		fmt.Fprintf(&b, "    %s: %q\n", name, value)
	}
	if !p.plain {
		b.WriteString("  annotations:\n    ambient.istio.io/redirection: enabled\n")
	}
	fmt.Fprintf(&b, "spec:\n  serviceAccountName: %s\n  nodeName: %s\n  containers:\n  - name: app\n", p.account, p.node)
	fmt.Fprintf(&b, "status:\n  phase: Running\n  podIP: %s\n  podIPs:\n", p.ips[0])
	for _, ip := range p.ips {
		fmt.Fprintf(&b, "  - ip: %q\n", ip)
	}
	fmt.Fprintf(&b, "  conditions:\n  - {type: Ready, status: %q}\n", map[bool]string{true: "False", false: "True"}[p.unready])
	return b.String()
}

// serviceYAML selects pods by their label app. Without vips it is headless.
func serviceYAML(name, namespace, app string, extra string, vips ...string) string {
	ip := "None"
	list := ""
	if len(vips) > 0 {
		ip, list = vips[0], "  clusterIPs: ["+`"`+strings.Join(vips, `", "`)+`"`+"]\n"
	}
	return fmt.Sprintf(`apiVersion: v1
kind: Service
metadata:
  name: %s
  namespace: %s
%sspec:
  clusterIP: %q
%s  selector: {app: %s}
  ports:
  - {name: http, port: 80, targetPort: %d, protocol: TCP}
  - {name: tcp-echo, port: 7, targetPort: %d, protocol: TCP}
`, name, namespace, extra, ip, list, app, portHTTP, portEcho)
}

func strictYAML(namespace string) string {
	return fmt.Sprintf(`apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata:
  name: strict
  namespace: %s
spec:
  mtls: {mode: STRICT}
`, namespace)
}

// policyYAML decides about clients of a service account at the pods of an app,
// or with none at all of the namespace.
func policyYAML(name, namespace, app, action, principal string) string {
	selector := ""
	if app != "" {
		selector = fmt.Sprintf("  selector:\n    matchLabels: {app: %s}\n", app)
	}
	return fmt.Sprintf(`apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata:
  name: %s
  namespace: %s
spec:
%s  action: %s
  rules:
  - from:
    - source: {principals: [%q]}
`, name, namespace, selector, action, principal)
}

// serviceEntryYAML is a service outside the cluster at port 80.
func serviceEntryYAML(name, namespace, host, vip, resolution string, endpoints ...string) string {
	var b strings.Builder
	fmt.Fprintf(&b, `apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata:
  name: %s
  namespace: %s
spec:
  hosts: [%s]
  addresses: [%q]
  location: MESH_EXTERNAL
  resolution: %s
  ports:
  - {number: 80, name: http, protocol: TCP, targetPort: %d}
`, name, namespace, host, vip, resolution, portHTTP)
	if len(endpoints) > 0 {
		b.WriteString("  endpoints:\n")
	}
	for _, e := range endpoints {
		fmt.Fprintf(&b, "  - {address: %q}\n", e)
	}
	return b.String()
}

// gatewayClassYAML and waypointYAML make a waypoint of a service, which is for
// "service", "workload" or "all" traffic.
const gatewayClassYAML = `apiVersion: gateway.networking.k8s.io/v1
kind: GatewayClass
metadata:
  name: istio-waypoint
spec:
  controllerName: istio.io/mesh-controller
`

func waypointYAML(name, namespace, traffic, hostname string) string {
	return fmt.Sprintf(`apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata:
  name: %s
  namespace: %s
  labels: {istio.io/waypoint-for: %s}
spec:
  gatewayClassName: istio-waypoint
  listeners:
  - {name: mesh, port: 15008, protocol: HBONE}
status:
  addresses:
  - {type: Hostname, value: %s}
`, name, namespace, traffic, hostname)
}

// waypointServiceYAML is how istiod's deployment controller makes a waypoint's
// service.
func waypointServiceYAML(name, namespace, vip string) string {
	return fmt.Sprintf(`apiVersion: v1
kind: Service
metadata:
  name: %s
  namespace: %s
  labels:
    gateway.istio.io/managed: istio.io-mesh-controller
    gateway.networking.k8s.io/gateway-name: %s
spec:
  clusterIP: %q
  clusterIPs: [%q]
  selector: {gateway.networking.k8s.io/gateway-name: %s}
  ports:
  - {name: mesh, port: 15008, targetPort: 15008, protocol: TCP, appProtocol: hbone}
`, name, namespace, name, vip, vip, name)
}

// meshConfigYAML has services with a label span clusters.
const (
	meshConfigYAML = `apiVersion: v1
kind: ConfigMap
metadata:
  name: istio
  namespace: istio-system
data:
  mesh: |
    serviceScopeConfigs:
    - servicesSelector:
        matchExpressions:
        - {key: istio.io/global, operator: In, values: ["true"]}
      scope: GLOBAL
`
	globalLabel = "  labels: {istio.io/global: \"true\"}\n"
)

// elsewhereYAML is a pod as another cluster, in another network, knows it.
func elsewhereYAML(p *pod, network string) string {
	return fmt.Sprintf(`apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata:
  name: %s
  namespace: %s
  annotations: {ambient.istio.io/redirection: enabled}
  labels: {app: %s}
spec:
  address: %s
  network: %s
  serviceAccount: %s
  labels: {app: %s}
`, p.spec.name, p.spec.namespace, p.spec.name, p.IPv4, network, p.spec.account, p.spec.name)
}

// remoteGatewayYAML is the way into another network.
func remoteGatewayYAML(gate *pod, network string) string {
	return fmt.Sprintf(`apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata:
  name: %s
  namespace: %s
  labels: {topology.istio.io/network: %s}
  annotations: {gateway.istio.io/service-account: %s}
spec:
  gatewayClassName: istio-remote
  listeners:
  - {name: cross-network, port: %d, protocol: HBONE}
status:
  addresses:
  - {type: IPAddress, value: %s}
`, gate.spec.name, gate.spec.namespace, network, gate.spec.account, portHBONE, gate.IPv4)
}
