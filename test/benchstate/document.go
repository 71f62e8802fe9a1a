// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"fmt"
	"io"
	"net/netip"
	"os"
)

// A scale is the size of a mesh.
type scale struct {
	Workloads int `json:"workloads"`
	Services  int `json:"services"`
}

const (
	namespaces = 100
	nodes      = 500
)

// A member is one workload in words, and the service that it is behind: named
// as Kubernetes and Istio name them.
type member struct {
	i, service int
}

func (m member) namespace() string { return fmt.Sprintf("team-%02d", m.service%namespaces) }
func (m member) app() string       { return fmt.Sprintf("app-%05d", m.service) }
func (m member) hostname() string {
	return fmt.Sprintf("%s.%s.svc.cluster.local", m.app(), m.namespace())
}
func (m member) name() string {
	return fmt.Sprintf("%s-%08x-%05x", m.app(), uint32(m.service)*2654435761, m.i)
}
func (m member) uid() string { return "cluster1//Pod/" + m.namespace() + "/" + m.name() }
func (m member) node() string {
	return fmt.Sprintf("ip-10-0-%d-%d.internal", m.i%nodes/250, m.i%nodes%250)
}
func (m member) zone() string { return fmt.Sprintf("region-1%c", 'a'+m.i%3) }
func (m member) ip() netip.Addr {
	return netip.AddrFrom4([4]byte{10, 4 + byte(m.i>>16), byte(m.i >> 8), byte(m.i)})
}
func vip(service int) netip.Addr {
	return netip.AddrFrom4([4]byte{10, 240, byte(service >> 8), byte(service)})
}

// A form is one way to write a document down.
type form struct {
	Name                                   string
	head, workload, between, service, foot string
	separator                              string
}

// forms are the two that people write: YAML in block style, and JSON.
func forms() []form {
	return []form{
		{
			Name: "yaml",
			head: "workloads:\n",
			workload: `- uid: %s
  name: %s
  namespace: %s
  serviceAccount: %s
  trustDomain: cluster.local
  workloadIps: ["%s"]
  protocol: HBONE
  network: ""
  node: %s
  workloadName: %s
  workloadType: deployment
  canonicalName: %s
  canonicalRevision: v1
  clusterId: cluster1
  locality: {region: region-1, zone: %s}
  status: Healthy
  services:
    "%s":
      80: 8080
      443: 8443
`,
			between: "services:\n",
			service: `- name: %s
  namespace: %s
  hostname: %s
  vips: ["/%s"]
  ports:
    80: 8080
    443: 8443
  subjectAltNames: []
`,
		},
		{
			Name: "json",
			head: `{"workloads":[` + "\n",
			workload: `{"uid":"%s","name":"%s","namespace":"%s","serviceAccount":"%s","trustDomain":"cluster.local","workloadIps":["%s"],` +
				`"protocol":"HBONE","network":"","node":"%s","workloadName":"%s","workloadType":"deployment","canonicalName":"%s",` +
				`"canonicalRevision":"v1","clusterId":"cluster1","locality":{"region":"region-1","zone":"%s"},"status":"Healthy",` +
				`"services":{"%s":{"80":8080,"443":8443}}}`,
			between:   "\n],\"services\":[\n",
			service:   `{"name":"%s","namespace":"%s","hostname":"%s","vips":["/%s"],"ports":{"80":8080,"443":8443},"subjectAltNames":[]}`,
			foot:      "\n]}\n",
			separator: ",\n",
		},
	}
}

// write makes a document of this size at path.
func (f form) write(path string, of scale) error {
	file, err := os.Create(path)
	if err != nil {
		return err
	}
	defer file.Close()
	w := bufio.NewWriter(file)
	f.print(w, of)
	if err := w.Flush(); err != nil {
		return err
	}
	return file.Close()
}

func (f form) print(w io.Writer, of scale) {
	fmt.Fprint(w, f.head)
	for i := range of.Workloads {
		if i > 0 {
			fmt.Fprint(w, f.separator)
		}
		m := member{i, i % of.Services}
		fmt.Fprintf(w, f.workload, m.uid(), m.name(), m.namespace(), m.app(), m.ip(), m.node(), m.app(), m.app(), m.zone(),
			m.namespace()+"/"+m.hostname())
	}
	fmt.Fprint(w, f.between)
	for i := range of.Services {
		if i > 0 {
			fmt.Fprint(w, f.separator)
		}
		m := member{0, i}
		fmt.Fprintf(w, f.service, m.app(), m.namespace(), m.hostname(), vip(i))
	}
	fmt.Fprint(w, f.foot)
}
