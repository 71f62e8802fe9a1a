// SPDX-License-Identifier: Apache-2.0

package report

import (
	"github.com/ztunnel-go/ztunnel/dataplane/reason"
	"github.com/ztunnel-go/ztunnel/internal/identity"
	"github.com/ztunnel-go/ztunnel/internal/mesh"
)

// An end is what labels tell of one side of a connection. Empty fields are
// unknown.
type end struct {
	workload, canonicalService, canonicalRevision, namespace, app, version, cluster, region, zone string
}

// endOf describes a workload or, if there is none, what a peer's baggage says.
// A known workload overrides baggage also where its fields are empty
// (contract 12.4).
func endOf(w *mesh.Workload, b *Baggage) end {
	switch {
	case w != nil:
		return end{
			workload:          w.WorkloadName,
			canonicalService:  w.CanonicalName,
			canonicalRevision: w.CanonicalRevision,
			namespace:         w.Namespace,
			app:               w.CanonicalName,
			version:           w.CanonicalRevision,
			cluster:           w.ClusterID,
			region:            w.Locality.Region,
			zone:              w.Locality.Zone,
		}
	case b != nil:
		return end{
			workload:          b.Workload,
			canonicalService:  b.Service,
			canonicalRevision: b.Revision,
			namespace:         b.Namespace,
			app:               b.Workload, // not the service: a quirk of the reference that dashboards have learned (contract 12.4)
			version:           b.Revision,
			cluster:           b.Cluster,
			region:            b.Region,
			zone:              b.Zone,
		}
	default:
		return end{}
	}
}

// destinationOf describes the destination; an inner tunnel's baggage comes
// before the workload, which there is only the gateway (contract 12.4, double
// HBONE).
func destinationOf(p *Params) end {
	if p.DestinationBaggage != nil {
		return endOf(nil, p.DestinationBaggage)
	}
	return endOf(p.Destination, nil)
}

func destinationIdentity(p *Params) identity.ID {
	if p.DestinationIdentity.IsZero() && p.Destination != nil {
		return p.Destination.Identity()
	}
	return p.DestinationIdentity
}

// labels are the traffic labels of contract 12.3. They are comparable, so that
// they find their series by one lookup. Empty fields mean unknown.
type labels struct {
	reporter                               Side
	source, destination                    end
	sourcePrincipal, destinationPrincipal  string
	service, serviceNamespace, serviceName string
	flag                                   reason.Flag
	mutualTLS, located                     bool
}

func labelsOf(p *Params, flag reason.Flag) labels {
	l := labels{
		reporter:    p.Reporter,
		source:      endOf(p.Source, p.SourceBaggage),
		destination: destinationOf(p),
		flag:        flag,
		mutualTLS:   p.MutualTLS,
		located: p.Source != nil || p.SourceBaggage != nil ||
			p.Destination != nil || p.DestinationBaggage != nil,
		destinationPrincipal: destinationIdentity(p).String(),
	}
	if p.MutualTLS {
		l.sourcePrincipal = p.SourceIdentity.String()
	}
	if p.Service != nil {
		l.service, l.serviceNamespace, l.serviceName = p.Service.Hostname, p.Service.Namespace, p.Service.Name
	}
	return l
}

// each calls yield for every label in the order of contract 12.3.
func (l *labels) each(yield func(name, value string)) {
	known := func(name, value string) { yield(name, orUnknown(value)) }
	yield("reporter", l.reporter.String())
	l.source.each("source_", l.sourcePrincipal, known)
	known("destination_service", l.service)
	known("destination_service_namespace", l.serviceNamespace)
	known("destination_service_name", l.serviceName)
	l.destination.each("destination_", l.destinationPrincipal, known)
	yield("request_protocol", "tcp")
	yield("response_flags", string(l.flag))
	if l.mutualTLS {
		yield("connection_security_policy", "mutual_tls")
	} else {
		yield("connection_security_policy", "unknown")
	}
	if l.located {
		known("source_region", l.source.region)
		known("source_zone", l.source.zone)
		known("destination_region", l.destination.region)
		known("destination_zone", l.destination.zone)
	}
}

// each calls yield for the labels of one end, without its place.
func (e *end) each(side, principal string, yield func(name, value string)) {
	yield(side+"workload", e.workload)
	yield(side+"canonical_service", e.canonicalService)
	yield(side+"canonical_revision", e.canonicalRevision)
	yield(side+"workload_namespace", e.namespace)
	yield(side+"principal", principal)
	yield(side+"app", e.app)
	yield(side+"version", e.version)
	yield(side+"cluster", e.cluster)
}

func orUnknown(value string) string {
	if value == "" {
		return "unknown"
	}
	return value
}
