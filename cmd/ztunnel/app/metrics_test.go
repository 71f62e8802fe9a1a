// SPDX-License-Identifier: Apache-2.0

package app

import (
	"bytes"
	"context"
	"errors"
	"net"
	"net/netip"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/miekg/dns"

	"github.com/ztunnel-go/ztunnel/dataplane/reason"
	"github.com/ztunnel-go/ztunnel/dataplane/report"
	"github.com/ztunnel-go/ztunnel/dnsproxy"
	"github.com/ztunnel-go/ztunnel/internal/logs"
	"github.com/ztunnel-go/ztunnel/internal/mesh"
	"github.com/ztunnel-go/ztunnel/internal/revocation"
	"github.com/ztunnel-go/ztunnel/test/leak"
	"github.com/ztunnel-go/ztunnel/xds/delta"
)

// testdata/metrics.txt is written by hand from contract 12.2 and 12.3: every
// family with its type, unit, labels in order and value, after what happen
// does. Help is in no contract; what depends on the machine is V.
func TestEveryMetricIsTheContracts(t *testing.T) {
	leak.Check(t)
	e := everyMetric()
	happen(t, e)
	var scrape bytes.Buffer
	if err := e.registry.Expose(&scrape); err != nil {
		t.Fatal(err)
	}
	want, err := os.ReadFile("testdata/metrics.txt")
	if err != nil {
		t.Fatal(err)
	}
	got := slices.Collect(strings.Lines(machineless(scrape.String())))
	for i, line := range slices.Collect(strings.Lines(string(want))) {
		if i >= len(got) || got[i] != line {
			t.Fatalf("line %d of testdata/metrics.txt:\n%sgot:\n%s", i+1, line, strings.Join(got[min(i, len(got)):], ""))
		}
	}
	if !strings.HasSuffix(scrape.String(), "\n# EOF\n") {
		t.Error("it does not end with # EOF")
	}
}

// machineless leaves out help and what depends on the machine.
func machineless(scrape string) string {
	scrape = regexp.MustCompile(`(?m)^# HELP .*\n`).ReplaceAllString(scrape, "")
	scrape = regexp.MustCompile(`(?m)^((process|go)_\S+) .*$`).ReplaceAllString(scrape, "$1 V")
	return regexp.MustCompile(`(?m)^(istio_dns_upstream_request_duration_seconds_(sum|bucket).*) \S+$`).ReplaceAllString(scrape, "$1 V")
}

// happen is a connection that ended well, one that policy refused, one with a
// stranger that is open still, and something of all the rest.
func happen(t *testing.T, e everyCollector) {
	client := &mesh.Workload{
		UID: "c", Name: "client-1", Namespace: "a", TrustDomain: "cluster.local", ServiceAccount: "sa-c",
		WorkloadName: "client", CanonicalName: "client-app", CanonicalRevision: "v1", ClusterID: "c1",
		Locality: mesh.Locality{Region: "r1", Zone: "z1"},
	}
	server := &mesh.Workload{
		UID: "s", Name: "server-1", Namespace: "b", TrustDomain: "cluster.local", ServiceAccount: "sa-s",
		WorkloadName: "server", CanonicalName: "server-app", CanonicalRevision: "v2", ClusterID: "c2",
	}
	log, err := logs.New(logs.Config{Output: &bytes.Buffer{}, Filter: "off"})
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	r := report.New(e.report, log.Logger())
	r.SocketOpened(report.Source)
	r.SocketOpened(report.Destination)
	r.SocketClosed(report.Destination)
	tunnel := report.Params{
		Reporter: report.Source, Src: netip.MustParseAddrPort("10.0.0.1:4000"), Dst: netip.MustParseAddrPort("10.0.0.2:15008"),
		HBONEAddr: "10.0.0.2:80", Source: client, Destination: server,
		Service:   &mesh.Service{Name: "web", Namespace: "b", Hostname: "web.b.svc.cluster.local"},
		MutualTLS: true, SourceIdentity: client.Identity(),
	}
	ended := r.Open(tunnel)
	ended.AddReceived(100)
	ended.AddReceived(1)
	ended.AddSent(7)
	ended.Close(reason.Ended, nil)
	tunnel.Reporter, tunnel.Service = report.Destination, nil
	r.Open(tunnel).Close(reason.PolicyDenied, errors.New("refused"))
	r.Open(report.Params{Reporter: report.Source, Src: tunnel.Src, Dst: netip.MustParseAddrPort("192.0.2.1:80")}).AddReceived(5)
	r.HostLookup(client, "db.example", true)

	e.xds.Message("type.googleapis.com/istio.workload.Address", 30)
	e.xds.Message("type.googleapis.com/istio.workload.Address", 12)
	e.xds.Terminated(delta.Reconnect)
	e.revoked.Rejected(revocation.Destination)
	e.revoked.Untracked(revocation.Source)
	e.pods.SetActive(2)
	e.pods.SetPending(1)
	e.pods.Started()
	e.pods.Stopped()
	ask(t, e.dns, client)
}

// ask sends one query, which goes upstream, where nobody can be reached.
func ask(t *testing.T, m *dnsproxy.Metrics, client *mesh.Workload) {
	pc, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := dnsproxy.New(dnsproxy.Config{
		View:     mesh.NewStore().View(),
		Client:   func(context.Context) (*mesh.Workload, error) { return client, nil },
		Upstream: dnsproxy.Upstream{Nameservers: []netip.AddrPort{netip.MustParseAddrPort("192.0.2.53:53")}, Attempts: 1},
		Dial: func(context.Context, string, netip.AddrPort) (net.Conn, error) {
			return nil, errors.New("nobody is there")
		},
		Metrics: m,
	})
	defer s.Close()
	if err := s.Serve([]net.PacketConn{pc}, nil); err != nil {
		t.Fatal(err)
	}
	c := dns.Client{Timeout: patience}
	if _, _, err := c.Exchange(new(dns.Msg).SetQuestion("www.example.", dns.TypeA), pc.LocalAddr().String()); err != nil {
		t.Fatal(err)
	}
}

// The names are those that ztunnel's README calls core, and istio_build.
func TestHelpSaysUnstableOfAllButTheCore(t *testing.T) {
	core := []string{
		"istio_build", "istio_tcp_connections_opened_total", "istio_tcp_connections_closed_total",
		"istio_tcp_received_bytes_total", "istio_tcp_sent_bytes_total",
	}
	for _, f := range MetricFamilies() {
		isCore := slices.Contains(core, f.Name)
		if unstable := strings.Contains(f.Help, "(unstable)"); unstable == isCore || f.Core != isCore {
			t.Errorf("%s: core %v, help %q", f.Name, f.Core, f.Help)
		}
	}
}

// A family that the catalogue does not have would come last in the scrape,
// with its labels in the order of the alphabet.
func TestTheCatalogueHasEveryFamilyWithItsLabels(t *testing.T) {
	e := everyMetric()
	happen(t, e)
	var scrape bytes.Buffer
	if err := e.registry.Expose(&scrape); err != nil {
		t.Fatal(err)
	}
	for _, f := range e.registry.Families() {
		base := strings.TrimSuffix(f.Name, "_total")
		if f.Kind != "counter" {
			base = f.Name
		}
		if f.Ours && !strings.Contains(scrape.String(), "# TYPE "+base+" ") {
			continue // nothing of it happened
		}
		if !strings.Contains(scrape.String(), "# TYPE "+base+" "+string(f.Kind)+"\n") {
			t.Errorf("%s is no %s, or has no series after all that happened: internal/metrics/catalogue.go", f.Name, f.Kind)
		}
		for _, l := range f.Labels {
			if !regexp.MustCompile(`(?m)^` + base + `\w*\{(.*,)?` + l + `="`).MatchString(scrape.String()) {
				t.Errorf("%s has no label %s", f.Name, l)
			}
		}
	}
}

// checkMetrics wants a node to export nothing that the page does not have.
func (r *running) checkMetrics() {
	r.t.Helper()
	known := map[string]bool{}
	for _, f := range MetricFamilies() {
		known[f.Name] = true
	}
	_, scrape := r.ask("GET", r.cfg.StatsPort, "/metrics")
	for _, m := range regexp.MustCompile(`(?m)^# TYPE (\S+) `).FindAllStringSubmatch(scrape, -1) {
		if !known[m[1]] && !known[m[1]+"_total"] {
			r.t.Errorf("%s is exported, and not in MetricFamilies", m[1])
		}
	}
}
