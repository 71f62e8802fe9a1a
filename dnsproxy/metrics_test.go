// SPDX-License-Identifier: Apache-2.0

package dnsproxy

import (
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"
	"github.com/ztunnel-go/ztunnel/internal/metrics"
)

func TestExposition(t *testing.T) {
	reg := metrics.New("test")
	m := NewMetrics(reg.Registerer())
	l := labelsOf(client(), dns.TypeSRV, "udp")
	m.request(l)
	m.forwarded(l, 5*time.Millisecond, errUnknownClient)
	var b strings.Builder
	if err := reg.Expose(&b); err != nil {
		t.Fatal(err)
	}
	_, got, _ := strings.Cut(b.String(), "# HELP istio_dns")
	const labels = `request_query_type="srv",request_protocol="udp",source_canonical_service="clients",source_canonical_revision="v1"`
	want := strings.ReplaceAll(`_requests Total number of DNS requests (unstable).
# TYPE istio_dns_requests counter
istio_dns_requests_total{L} 1
# HELP istio_dns_upstream_requests Total number of DNS requests forwarded to upstream (unstable).
# TYPE istio_dns_upstream_requests counter
istio_dns_upstream_requests_total{L} 1
# HELP istio_dns_upstream_failures Total number of DNS requests that failed upstream (unstable).
# TYPE istio_dns_upstream_failures counter
istio_dns_upstream_failures_total{L} 1
# HELP istio_dns_upstream_request_duration_seconds Time until upstream answered a DNS request (unstable).
# TYPE istio_dns_upstream_request_duration_seconds histogram
# UNIT istio_dns_upstream_request_duration_seconds seconds
istio_dns_upstream_request_duration_seconds_sum{L} 0.005
istio_dns_upstream_request_duration_seconds_count{L} 1
istio_dns_upstream_request_duration_seconds_bucket{L,le="0.0005"} 0
istio_dns_upstream_request_duration_seconds_bucket{L,le="0.001"} 0
istio_dns_upstream_request_duration_seconds_bucket{L,le="0.01"} 1
istio_dns_upstream_request_duration_seconds_bucket{L,le="0.1"} 1
istio_dns_upstream_request_duration_seconds_bucket{L,le="1.0"} 1
istio_dns_upstream_request_duration_seconds_bucket{L,le="5.0"} 1
istio_dns_upstream_request_duration_seconds_bucket{L,le="+Inf"} 1
# EOF
`, "{L", "{"+labels)
	if got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
}
