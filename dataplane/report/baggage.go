// SPDX-License-Identifier: Apache-2.0

package report

import (
	"strings"

	"github.com/ztunnel-go/ztunnel/internal/mesh"
)

// Baggage is what a proxy tells its peer of the workload it speaks for
// (contract 4.5):
//
//	k8s.cluster.name=<cluster>,k8s.namespace.name=<namespace>,
//	k8s.<type>.name=<workload>,service.name=<service>,service.version=<revision>,
//	cloud.region=<region>,cloud.availability_zone=<zone>
//
// in this order, without the members that are empty. Values are not escaped,
// on either side. Empty fields are unknown.
type Baggage struct {
	Cluster, Namespace string
	WorkloadType       mesh.WorkloadType
	Workload           string
	Service, Revision  string // canonical name and revision
	Region, Zone       string
}

// BaggageOf describes a workload.
func BaggageOf(w *mesh.Workload) Baggage {
	return Baggage{
		Cluster:      w.ClusterID,
		Namespace:    w.Namespace,
		WorkloadType: w.WorkloadType,
		Workload:     w.WorkloadName,
		Service:      w.CanonicalName,
		Revision:     w.CanonicalRevision,
		Region:       w.Locality.Region,
		Zone:         w.Locality.Zone,
	}
}

// String is the header's value; it is empty if nothing is known.
func (b Baggage) String() string {
	members := [...]struct{ key, value string }{
		{keyCluster, b.Cluster},
		{keyNamespace, b.Namespace},
		{workloadKey(b.WorkloadType), b.Workload},
		{keyService, b.Service},
		{keyRevision, b.Revision},
		{keyRegion, b.Region},
		{keyZone, b.Zone},
	}
	var s strings.Builder
	for _, m := range members {
		if m.value == "" {
			continue
		}
		if s.Len() > 0 {
			s.WriteByte(',')
		}
		s.WriteString(m.key)
		s.WriteByte('=')
		s.WriteString(m.value)
	}
	return s.String()
}

// maxBaggage is how much of a value counts, in bytes: no name in Kubernetes is
// longer (a DNS name, RFC 1123), and a peer must not fill our labels.
const maxBaggage = 253

const (
	keyCluster    = "k8s.cluster.name"
	keyNamespace  = "k8s.namespace.name"
	keyDeployment = "k8s.deployment.name"
	keyCronJob    = "k8s.cronjob.name"
	keyPod        = "k8s.pod.name"
	keyJob        = "k8s.job.name"
	keyService    = "service.name"
	keyRevision   = "service.version"
	keyRegion     = "cloud.region"
	keyZone       = "cloud.availability_zone"
)

func workloadKey(t mesh.WorkloadType) string {
	switch t {
	case mesh.CronJob:
		return keyCronJob
	case mesh.Pod:
		return keyPod
	case mesh.Job:
		return keyJob
	default:
		return keyDeployment
	}
}

// ParseBaggage reads the values of all baggage headers of a request. Of
// members that occur twice the later counts; unknown ones are ignored. ok is
// false, and everything dropped, when a value holds anything but visible
// ASCII, or when there is no header (contract 12.4).
func ParseBaggage(headers []string) (b Baggage, ok bool) {
	for _, h := range headers {
		if !visible(h) {
			return Baggage{}, false
		}
	}
	for _, h := range headers {
		for member := range strings.SplitSeq(h, ",") {
			key, value, _ := strings.Cut(member, "=")
			value, _, _ = strings.Cut(value, "=") // what follows a second = is ignored
			b.set(key, value[:min(len(value), maxBaggage)])
		}
	}
	return b, len(headers) > 0
}

func (b *Baggage) set(key, value string) {
	switch key {
	case keyCluster:
		b.Cluster = value
	case keyNamespace:
		b.Namespace = value
	case keyDeployment:
		b.WorkloadType, b.Workload = mesh.Deployment, value
	case keyCronJob:
		b.WorkloadType, b.Workload = mesh.CronJob, value
	case keyPod:
		b.WorkloadType, b.Workload = mesh.Pod, value
	case keyJob:
		b.WorkloadType, b.Workload = mesh.Job, value
	case keyService:
		b.Service = value
	case keyRevision:
		b.Revision = value
	case keyRegion:
		b.Region = value
	case keyZone:
		b.Zone = value
	}
}

// visible reports whether s is what an HTTP header value may be as text:
// printable ASCII, spaces and tabs.
func visible(s string) bool {
	for i := range len(s) {
		if c := s[i]; (c < ' ' && c != '\t') || c > '~' {
			return false
		}
	}
	return true
}
