// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/ztunnel-go/ztunnel/test/leak"
	"github.com/ztunnel-go/ztunnel/test/netlab"
)

func TestMain(m *testing.M) {
	generate()
	os.Exit(m.Run())
}

func TestAHistogramIsTrueToThreePerCent(t *testing.T) {
	for _, n := range []int64{0, 1, 31, 32, 33, 63, 64, 65, 1000, 999_999, 1 << 40, 1<<62 + 12345} {
		low, high := least(slot(n)), least(slot(n)+1)
		if low > n || n >= high || float64(high-low) > float64(n)*0.032+1 {
			t.Errorf("%d is counted with %d to %d", n, low, high)
		}
	}
	for i := range len(histogram{}.counts) / 2 {
		if slot(least(i)) != i {
			t.Errorf("slot %d begins with %d, which belongs to %d", i, least(i), slot(least(i)))
		}
	}
}

func TestQuantiles(t *testing.T) {
	var a, b histogram
	for i := range int64(1000) {
		a.note(10)
		b.note(1000 * (i + 1))
	}
	a.add(&b)
	for _, tc := range []struct {
		part     float64
		min, max int64
	}{{0.49, 10, 10}, {0.75, 480_000, 500_000}, {0.99, 960_000, 980_000}} {
		if got := a.quantile(tc.part); got < tc.min || got > tc.max {
			t.Errorf("quantile %v is %d", tc.part, got)
		}
	}
	if got := (&histogram{}).quantile(0.5); got != 0 {
		t.Errorf("of nothing: %d", got)
	}
}

func TestMediansAndRatiosAreOfTheSameLab(t *testing.T) {
	var r rows
	c := cell{name: "x", unit: "k/s", job: job{Kind: trips}}
	for _, in := range []struct {
		who              string
		plain, rate, p50 []float64
	}{
		{"ours", []float64{100, 300, 200}, []float64{50, 10, 20}, []float64{5, 5, 6}},
		{"peer", []float64{80, 80, 80}, []float64{40, 40, 40}, []float64{10, 10, 10}},
	} {
		for i := range in.plain {
			r.add(c, sample{Who: plainName, In: in.who, Rate: in.plain[i]}, sample{Who: in.who, In: in.who, Rate: in.rate[i], P50: in.p50[i]})
		}
	}
	if r.failures() != nil {
		t.Error("nothing has failed")
	}
	r.fail(c, "peer: it hangs")
	if r.failures() == nil {
		t.Error("something has failed")
	}
	subjects := []subject{{Name: "ours"}, {Name: "peer"}}
	r.sum(subjects)
	x := r[0]
	if len(r) != 1 || x.Median["ours"].Rate != 20 || x.Median["ours"].P50 != 5 || x.OfPlain["ours"] != 0.1 || x.OfPlain["peer"] != 0.5 || x.OfPeer != 0.5 {
		t.Errorf("%+v", x)
	}
	for _, markdown := range []bool{true, false} {
		var out strings.Builder
		if err := (report{Subjects: subjects, Rows: r}).show(&out, markdown); err != nil {
			t.Fatal(err)
		}
		for _, want := range []string{"x, k/s", "ours:peer", "p50, µs", "0.50", "(1 FAILED)"} {
			if !strings.Contains(out.String(), want) {
				t.Errorf("no %q in\n%s", want, out.String())
			}
		}
		if got := strings.Contains(out.String(), "| p50, µs | "); got != markdown {
			t.Errorf("markdown %v:\n%s", markdown, out.String())
		}
	}
}

func TestReadsWhatProcessesSay(t *testing.T) {
	if n, err := statusBytes("Name:\tx\nVmRSS:\t  12 kB\nRssAnon:\t 3 kB\n", "RssAnon:"); n != 3<<10 || err != nil {
		t.Errorf("%d, %v", n, err)
	}
	if _, err := statusBytes("Name:\tx\n", "VmRSS:"); err == nil {
		t.Error("there is no VmRSS")
	}
	page := "# HELP go_memory_heap_bytes x\ngo_memory_heap_bytes 1.5e+06\ngo_memory_bytes 7\n"
	if n, ok := metric(page, "go_memory_heap_bytes"); n != 1_500_000 || !ok {
		t.Errorf("%d, %v", n, ok)
	}
	if _, ok := metric(page, "go_memory"); ok {
		t.Error("half a name")
	}
	before, err := cpuTime(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(10 * time.Second); ; { // burns
		now, err := cpuTime(os.Getpid())
		if err != nil || time.Now().After(deadline) {
			t.Fatalf("%v of %v used: %v", now, before, err)
		}
		if now > before {
			return
		}
	}
}

func TestAsksAProperQuestion(t *testing.T) {
	want := "\x01\x02\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x03far\x05bench\x00\x00\x01\x00\x01"
	if got := string(appendQuery(nil, 0x102, "far.bench")); got != want {
		t.Errorf("%q", got)
	}
}

// What every load does through the proxy it does here without.
func TestEveryLoadRuns(t *testing.T) {
	leak.Check(t)
	lab := netlab.NewTest(t)
	node, err := lab.Node("node")
	if err != nil {
		t.Fatal(err)
	}
	from, err := node.Pod("from")
	if err != nil {
		t.Fatal(err)
	}
	to, err := node.Pod("to")
	if err != nil {
		t.Fatal(err)
	}
	server, err := serveIn(to)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(server.stop)
	b := &bench{options: options{idle: 50}}
	for _, c := range b.cells() {
		j := c.job
		j.To, j.From, j.Duration = netip.AddrPortFrom(to.IPv4, j.To.Port()), netip.Prefix{}, 50*time.Millisecond
		var o outcome
		var err error
		calls := 0
		call := func() error { calls++; return nil }
		for o.Ops == 0 && err == nil && j.Duration < time.Minute { // a machine under load may do nothing for a while
			calls = 0
			o, err = load(context.Background(), from, j, call, call)
			j.Duration *= 10
		}
		if err != nil || o.Ops == 0 || o.Nanos == 0 || calls != 2 {
			t.Errorf("%s: %+v, %d calls, %v", c.name, o, calls, err)
		}
		if rated := j.Kind != bulk && j.Kind != idle; rated && (o.P50 == 0 || o.P99 < o.P50) {
			t.Errorf("%s: half in %d ns, 99%% in %d", c.name, o.P50, o.P99)
		}
	}
	nobody := job{Kind: trips, To: to.Addr(1), Threads: 2, Size: 1, Duration: time.Millisecond}
	if _, err := load(context.Background(), from, nobody, func() error { return nil }, func() error { return nil }); err == nil || !strings.Contains(err.Error(), "connection refused") {
		t.Errorf("where nobody listens: %v", err)
	}
}
