// SPDX-License-Identifier: Apache-2.0

package report

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/ztunnel-go/ztunnel/dataplane/reason"
	"github.com/ztunnel-go/ztunnel/internal/metrics"
)

// from is an inbound connection from a client that calls itself name.
func from(name string) Params {
	p := inbound()
	p.Source, p.SourceBaggage = nil, &Baggage{Workload: name}
	return p
}

// clocked is a bench whose table looks at a clock of ours.
func clocked(t *testing.T) (*bench, func(time.Duration)) {
	b := newBench(t, "off")
	now := time.Unix(1_700_000_000, 0)
	b.metrics.traffic.now = func() time.Time { return now }
	return b, func(d time.Duration) { now = now.Add(d) }
}

func TestManyLabelSetsAreFoldedAndNothingIsLost(t *testing.T) {
	b, _ := clocked(t)
	const beyond = 5
	open := make([]*Conn, 0, maxSets+beyond)
	for i := range maxSets + beyond {
		open = append(open, b.Open(from(fmt.Sprintf("w%d", i))))
	}
	for _, c := range open {
		c.AddSent(3)
		c.Close(reason.Ended, nil)
	}
	if got := len(b.metrics.traffic.list()); got != maxSets+1 {
		t.Errorf("%d sets", got)
	}
	var sent, opened, closed uint64
	for _, s := range b.metrics.traffic.list() {
		sent, opened, closed = sent+s.sent.Load(), opened+s.opened.Load(), closed+s.closed.Load()
	}
	if all := uint64(len(open)); sent != 3*all || opened != all || closed != all {
		t.Errorf("sent %d, opened %d, closed %d of %d", sent, opened, closed, all)
	}
	var scrape bytes.Buffer
	if err := b.registry.Expose(&scrape); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		`istio_tcp_connections_opened_total{reporter="destination",source_workload="overflow",`,
		`destination_workload="overflow"`,
		`response_flags="-",connection_security_policy="mutual_tls",source_region="overflow",source_zone="overflow",destination_region="overflow",destination_zone="overflow"} 5` + "\n",
		"\nztunnel_metrics_folded_total 5\n",
	} {
		if !strings.Contains(scrape.String(), want) {
			t.Errorf("no %s", want)
		}
	}
}

func TestIdleLabelSetsGoWhenThereAreMany(t *testing.T) {
	b, pass := clocked(t)
	held := b.Open(from("held"))
	for i := range keepSets - 1 {
		b.Open(from(fmt.Sprintf("w%d", i))).Close(reason.Ended, nil)
	}
	pass(2 * keepIdle)
	if got := len(b.metrics.traffic.list()); got != keepSets {
		t.Fatalf("%d sets: none may go while there is room", got)
	}
	before := b.metrics.traffic.list() // a scrape in the middle
	b.Open(from("new")).Close(reason.Ended, nil)
	if got := len(b.metrics.traffic.list()); got != 2 {
		t.Errorf("%d sets, want the one that is open and the new one", got)
	}
	if len(before) != keepSets || before[1].opened.Load() != 1 {
		t.Error("a scrape under way has lost series")
	}
	held.AddSent(7)
	held.Close(reason.ConnectRefused, errors.New("x"))
	if got := b.series(); !strings.Contains(got, `source_workload="held"`) || !strings.Contains(got, `response_flags="CONNECT"`) {
		t.Error("the open connection's series is gone")
	}
}

// stuck is a reader of metrics who has gone to sleep: its first write does not
// return until release is closed.
type stuck struct {
	entered, release chan struct{}
	once             sync.Once
}

func (s *stuck) Write(p []byte) (int, error) {
	s.once.Do(func() { close(s.entered); <-s.release })
	return len(p), nil
}

func TestAScrapeThatStandsStillHoldsNobodyUp(t *testing.T) {
	b, pass := clocked(t)
	for i := range keepSets - 1 {
		b.Open(from(fmt.Sprintf("w%d", i))).Close(reason.Ended, nil)
	}
	reader := &stuck{entered: make(chan struct{}), release: make(chan struct{})}
	scraped := make(chan error)
	go func() { scraped <- b.registry.Expose(reader) }()
	<-reader.entered
	pass(2 * keepIdle)
	c := b.Open(from("during")) // a new label set, which also drops idle ones
	c.AddSent(1)
	c.Close(reason.PolicyDenied, errors.New("x")) // and another
	b.SocketOpened(Destination)
	b.HostLookup(client(), "db.example", true)
	var other bytes.Buffer
	if err := b.registry.Expose(&other); err != nil || !strings.Contains(other.String(), `source_workload="during"`) {
		t.Errorf("another scrape: %v", err)
	}
	close(reader.release)
	if err := <-scraped; err != nil {
		t.Error(err)
	}
}

func TestLookedUpNamesAreBounded(t *testing.T) {
	b := newBench(t, "off")
	for i := range maxLookups + 10 {
		b.HostLookup(client(), fmt.Sprintf("h%d.example", i), true)
	}
	got := b.series()
	if n := strings.Count(got, "istio_on_demand_dns_total{"); n != maxLookups+1 {
		t.Errorf("%d series", n)
	}
	if !strings.Contains(got, `hostname="overflow"} 10`+"\n") {
		t.Error("what did not fit is not counted")
	}
}

func TestBaggageValuesAreCut(t *testing.T) {
	long := strings.Repeat("x", 10_000)
	got, ok := ParseBaggage([]string{"k8s.cluster.name=" + long})
	if !ok || len(got.Cluster) != maxBaggage {
		t.Errorf("%d bytes, %v", len(got.Cluster), ok)
	}
}

func BenchmarkScrapeOfTenThousandSeries(b *testing.B) {
	registry := metrics.New("unknown")
	m := NewMetrics(registry)
	for i := range 2_500 {
		p := from(fmt.Sprintf("w%d", i))
		s := m.traffic.take(labelsOf(&p, reason.FlagNone))
		s.opened.Add(1)
		s.closed.Add(1)
	}
	b.ReportAllocs()
	for b.Loop() {
		if err := registry.Expose(io.Discard); err != nil {
			b.Fatal(err)
		}
	}
}
