// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
)

// A series is one line of a scrape: the node that said it, its name, and those
// of its labels that the demo looks at, in the order of their names.
type series struct{ node, name, labels string }

func (s series) String() string { return s.node + " " + s.name + "{" + s.labels + "}" }

// labelled puts labels as a series has them.
func labelled(labels map[string]string) string {
	var parts []string
	for _, k := range slices.Sorted(maps.Keys(labels)) {
		parts = append(parts, k+"="+labels[k])
	}
	return strings.Join(parts, ",")
}

// A ledger is what the clients know that the proxies must have counted.
type ledger struct {
	mu     sync.Mutex
	counts map[series]int64 // guarded by mu
}

func newLedger() *ledger { return &ledger{counts: map[series]int64{}} }

func (l *ledger) add(s series, n int64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.counts[s] += n // also zero: the proxies show a series from its first connection on
}

func (l *ledger) total() map[series]int64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return maps.Clone(l.counts)
}

// Families of the scrape, as the ledger keeps them.
const (
	opened   = "istio_tcp_connections_opened_total"
	closed   = "istio_tcp_connections_closed_total"
	failed   = "istio_tcp_connections_failed_total"
	received = "istio_tcp_received_bytes_total" // client to server, on both sides
	sent     = "istio_tcp_sent_bytes_total"     // server to client
	asked    = "istio_dns_requests_total"
	upstream = "istio_dns_upstream_requests_total"
	unmet    = "istio_dns_upstream_failures_total"
)

func trafficFamilies() []string { return []string{opened, closed, failed, received, sent} }
func dnsFamilies() []string     { return []string{asked, upstream, unmet} }

// The labels that the ledger keeps of each family; see view.labels and query.
func trafficLabels() []string {
	return []string{
		"reporter", "source_workload", "source_principal", "destination_workload", "destination_principal",
		"destination_service", "connection_security_policy", "response_flags",
	}
}

func dnsLabels() []string {
	return []string{"request_query_type", "request_protocol", "source_canonical_service"}
}

// A view is a connection as one of the two proxies reports it.
type view struct {
	node, reporter                    string
	source, sourcePrincipal           string
	destination, destinationPrincipal string
	service, security                 string
}

// labels are those of a series of the view. flags is "-" for all but the end
// of a connection that failed.
func (v view) labels(flags string) string {
	return labelled(map[string]string{
		"reporter":                   v.reporter,
		"source_workload":            v.source,
		"source_principal":           v.sourcePrincipal,
		"destination_workload":       v.destination,
		"destination_principal":      v.destinationPrincipal,
		"destination_service":        v.service,
		"connection_security_policy": v.security,
		"response_flags":             flags,
	})
}

// noFlags is what a connection has that ended well.
const noFlags = "-"

// connection enters one that has ended, with the client's bytes.
func (l *ledger) connection(v view, flags string, out, in int64) {
	l.add(series{v.node, opened, v.labels(noFlags)}, 1)
	l.add(series{v.node, received, v.labels(noFlags)}, out)
	l.add(series{v.node, sent, v.labels(noFlags)}, in)
	l.add(series{v.node, closed, v.labels(flags)}, 1)
	if flags != noFlags {
		l.add(series{v.node, failed, v.labels(flags)}, 1)
	}
}

// query enters a question to the DNS of a pod.
func (l *ledger) query(node, name, kind, network, source string) {
	l.add(series{node, name, labelled(map[string]string{
		"request_query_type":       kind,
		"request_protocol":         network,
		"source_canonical_service": source,
	})}, 1)
}

// differences tells how got is not want, a line for each series.
func differences(want, got map[series]int64) []string {
	all := maps.Clone(want)
	maps.Copy(all, got)
	var out []string
	for s := range all {
		w, expected := want[s]
		g, there := got[s]
		switch {
		case !there:
			out = append(out, fmt.Sprintf("%v is missing, want %d", s, w))
		case !expected:
			out = append(out, fmt.Sprintf("%v is %d, and nobody did that", s, g))
		case w != g:
			out = append(out, fmt.Sprintf("%v is %d, want %d", s, g, w))
		}
	}
	slices.Sort(out)
	return out
}
