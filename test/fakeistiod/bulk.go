// SPDX-License-Identifier: Apache-2.0

package fakeistiod

import (
	"fmt"

	"github.com/ztunnel-go/ztunnel/xds/pb/workloadpb"
)

const (
	bulkNamespaces = 200
	bulkNodes      = 2000
)

func bulkNamespace(app int) string { return fmt.Sprint("ns-", app%bulkNamespaces) }

// BulkUID is the uid of a workload of [Bulk].
func BulkUID(i, services int) string {
	return fmt.Sprintf("cluster1//v1/Pod/%s/pod-%d", bulkNamespace(i%services), i)
}

// BulkService is the name of a service of [Bulk]: namespace/hostname.
func BulkService(app int) string {
	return fmt.Sprintf("%s/app-%d.example", bulkNamespace(app), app)
}

// Bulk makes a large mesh: replicas of applications, each with a service.
// There must be a service at least.
func Bulk(workloads, services int) []Resource {
	out := make([]Resource, 0, workloads+services)
	ports := []*workloadpb.Port{{ServicePort: 80, TargetPort: 8080}}
	for i := range workloads {
		app := i % services
		name := fmt.Sprint("app-", app)
		out = append(out, Workload(&workloadpb.Workload{
			Uid: BulkUID(i, services), Name: fmt.Sprint("pod-", i), Namespace: bulkNamespace(app), Node: fmt.Sprint("node-", i%bulkNodes),
			Addresses: [][]byte{{10, byte(i >> 16), byte(i >> 8), byte(i)}}, TunnelProtocol: workloadpb.TunnelProtocol_HBONE,
			TrustDomain: "cluster.local", ServiceAccount: fmt.Sprint("sa-", app), ClusterId: "cluster1", Network: "network1",
			CanonicalName: name, CanonicalRevision: "v1", WorkloadName: name,
			Locality: &workloadpb.Locality{Region: "region", Zone: fmt.Sprint("zone-", i%3)},
			Services: map[string]*workloadpb.PortList{BulkService(app): {Ports: ports}},
		}))
	}
	for i := range services {
		out = append(out, Service(&workloadpb.Service{
			Name: fmt.Sprint("app-", i), Namespace: bulkNamespace(i), Hostname: fmt.Sprintf("app-%d.example", i),
			Addresses: []*workloadpb.NetworkAddress{{Network: "network1", Address: []byte{172, 16 + byte(i>>16), byte(i >> 8), byte(i)}}},
			Ports:     ports,
		}))
	}
	return out
}
