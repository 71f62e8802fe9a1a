// SPDX-License-Identifier: Apache-2.0

package metrics

import (
	"bytes"
	"errors"
	"math"
	"os"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
)

// expose returns the text without the families of the process, whose values no
// golden can know.
func expose(t *testing.T, r *Registry) string {
	t.Helper()
	var b bytes.Buffer
	if err := r.Expose(&b); err != nil {
		t.Fatal(err)
	}
	var kept strings.Builder
	for line := range strings.Lines(b.String()) {
		if !strings.Contains(line, "process_") && !strings.Contains(line, "go_") {
			kept.WriteString(line)
		}
	}
	return kept.String()
}

func golden(t *testing.T, name, got string) {
	t.Helper()
	want, err := os.ReadFile("testdata/" + name)
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("got:\n%s\nwant:\n%s", got, want)
	}
}

func TestTheScrapeIsTheContracts(t *testing.T) {
	r := New("1.29.0")
	pods := r.Pods()
	pods.SetActive(2)
	pods.SetActive(3)
	pods.SetPending(1)
	pods.Started()
	pods.Started()
	pods.Stopped()
	r.EmbeddedCA()
	r.Capture(func() []CaptureCount {
		return []CaptureCount{
			{"connect4", "refused: \"bound\"\\\n", 7},
			{"connect4", "refused: \"bound\"\\\n", 1}, // the same name twice is one series
		}
	})

	dns := []string{"source_canonical_service", "source_canonical_revision", "request_query_type", "request_protocol"}
	requests := prometheus.NewCounterVec(prometheus.CounterOpts{Name: "istio_dns_requests_total", Help: "DNS requests."}, dns)
	requests.WithLabelValues("app", "v1", "a", "udp").Inc()
	duration := prometheus.NewHistogramVec(prometheus.HistogramOpts{
		Name: "istio_dns_upstream_request_duration_seconds", Help: "Upstream time",
		Buckets: []float64{0.0005, 1, 5},
	}, dns)
	duration.WithLabelValues("app", "v1", "a", "udp").Observe(0.25)
	duration.WithLabelValues("app", "v1", "a", "udp").Observe(9)
	empty := prometheus.NewCounterVec(prometheus.CounterOpts{Name: "istio_dns_upstream_failures_total", Help: "x"}, dns)
	bytesTotal := prometheus.NewCounterVec(prometheus.CounterOpts{Name: "istio_xds_message_bytes_total", Help: "Bytes"}, []string{"url"})
	bytesTotal.WithLabelValues("t").Add(0)
	fraction := prometheus.NewGauge(prometheus.GaugeOpts{Name: "a_fraction", Help: "Not of the contract"})
	fraction.Set(0.5)
	r.Registerer().MustRegister(requests, duration, empty, bytesTotal, fraction)

	golden(t, "scrape.txt", expose(t, r))
}

func TestProcessFamiliesComeFirst(t *testing.T) {
	var b bytes.Buffer
	if err := New("unknown").Expose(&b); err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(b.String(), "\n")
	for i, want := range []string{
		"# HELP process_open_fds ", "# TYPE process_open_fds gauge", "process_open_fds ",
		"# HELP process_max_fds ", "# TYPE process_max_fds gauge", "process_max_fds ",
		"# HELP process_start_time_seconds ", "# TYPE process_start_time_seconds gauge", "process_start_time_seconds ",
		"# HELP process_cpu_seconds ", "# TYPE process_cpu_seconds counter", "process_cpu_seconds_total ",
		"# HELP process_resident_memory_bytes ", "# TYPE process_resident_memory_bytes gauge", "process_resident_memory_bytes ",
		"# HELP go_sched_gomaxprocs_threads ",
	} {
		if !strings.HasPrefix(lines[i], want) || strings.HasSuffix(lines[i], " 0") {
			t.Errorf("line %d is %q, want %q…", i, lines[i], want)
		}
	}
}

func TestContentType(t *testing.T) {
	const open, plain = "application/openmetrics-text;charset=utf-8;version=1.0.0", "text/plain; charset=utf-8"
	for _, tc := range []struct {
		accept []string
		want   string
	}{
		{nil, plain},
		{[]string{""}, plain},
		{[]string{"*/*"}, plain},
		{[]string{"application/openmetrics-text"}, open},
		{[]string{"text/plain;q=0.5,Application/OpenMetrics-Text;version=1.0.0;q=0"}, open},
		{[]string{"text/plain, application/openmetrics-text"}, plain}, // not trimmed
		{[]string{"text/plain", "application/openmetrics-text; version=1"}, open},
		{[]string{"application/openmetrics-text ;version=1"}, plain},
		{[]string{"application/openmetrics-text-2"}, plain},
	} {
		if got := ContentType(tc.accept); got != tc.want {
			t.Errorf("%q: %s", tc.accept, got)
		}
	}
}

func TestNumbers(t *testing.T) {
	for v, want := range map[float64]string{
		0: "0", 5: "5", -3: "-3", 1 << 40: "1099511627776", 0.5: "0.5", 1e300: "1e+300", math.Inf(1): "+Inf",
		math.Inf(-1): "-Inf",
	} {
		if got := number(v); got != want {
			t.Errorf("number(%v) = %s, want %s", v, got, want)
		}
	}
	if got := number(math.NaN()); got != "NaN" {
		t.Error(got)
	}
	if got := float(1); got != "1.0" {
		t.Error(got)
	}
}

// broken is a collector of which one series cannot be collected.
type broken struct{ desc *prometheus.Desc }

func (b broken) Describe(ch chan<- *prometheus.Desc) { ch <- b.desc }

func (b broken) Collect(ch chan<- prometheus.Metric) {
	ch <- prometheus.NewInvalidMetric(b.desc, errors.New("no such map"))
}

func TestABrokenCollectorDoesNotHideTheOthers(t *testing.T) {
	r := New("unknown")
	r.Registerer().MustRegister(broken{prometheus.NewDesc("x", "x", nil, nil)})
	var b bytes.Buffer
	err := r.Expose(&b)
	if err == nil || !strings.Contains(err.Error(), "no such map") {
		t.Errorf("err = %v", err)
	}
	if got := b.String(); !strings.Contains(got, "istio_build{") || !strings.HasSuffix(got, "# EOF\n") {
		t.Error(got)
	}
}

type full struct{}

func (full) Write([]byte) (int, error) { return 0, errors.New("gone") }

func TestAWriteErrorIsReturned(t *testing.T) {
	if err := New("unknown").Expose(full{}); err == nil {
		t.Error("nil")
	}
}
