// SPDX-License-Identifier: Apache-2.0

package top

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/gdamore/tcell/v2"

	"github.com/ztunnel-go/ztunnel/test/leak"
)

// patience bounds whatever is waited for.
const patience = 20 * time.Second

// A proxy answers as one would, and its counters grow.
type proxy struct {
	asked  atomic.Int64
	broken atomic.Bool
}

func (p *proxy) admin(_ context.Context, page string) ([]byte, error) {
	switch page {
	case "/debug/pods":
		return []byte(`[{"uid":"u1","name":"a","namespace":"ns"}]`), nil
	case "/debug/live":
		return []byte(`{"u1":{
			"inbound":[{"src":"10.0.0.2:5","actualDst":"10.0.0.1:80","service":"web.ns","protocol":"HBONE","identity":"spiffe://td/ns/ns/sa/b","opened":"2026-11-22T00:00:00Z"}],
			"outbound":[{"src":"10.0.0.1:6","originalDst":"10.96.0.1:80","actualDst":"10.0.0.3:15008","protocol":"HBONE","opened":"2026-11-22T00:00:01Z"},
				{"src":"10.0.0.1:7","originalDst":"192.0.2.1:443","actualDst":"192.0.2.1:443","protocol":"TCP","opened":"2026-11-22T00:00:02Z"}]},
			"u2":{"inbound":null,"outbound":null}}`), nil
	}
	return nil, errors.New("404")
}

func (p *proxy) stats(context.Context, string) ([]byte, error) {
	if p.broken.Load() {
		return nil, errors.New("it is \x1b gone")
	}
	n := p.asked.Add(1)
	const labels = `{reporter="source",source_workload="a",source_workload_namespace="ns",destination_workload="b",destination_workload_namespace="ns",connection_security_policy="mutual_tls",response_flags="-"}`
	return fmt.Appendf(nil, `istio_tcp_connections_opened_total%s %d
istio_tcp_connections_closed_total%s %d
istio_tcp_sent_bytes_total%s %d
istio_tcp_connections_opened_total{reporter="source",source_workload="a",source_workload_namespace="ns",destination_workload="unknown",connection_security_policy="unknown"} 1
ztunnel_ends_total{reporter="destination",reason="connect_refused"} 4
ztunnel_ends_total{reporter="destination",reason="policy_denied"} %d
istio_dns_requests_total{request_query_type="A",request_protocol="udp",source_canonical_service="a"} %d
ztunnel_dns_cache_total{result="hit"} 2
`, labels, 10*n, labels, 10*n-2, labels, 5000*n, n, n), nil
}

func (p *proxy) config() Config {
	return Config{Admin: p.admin, Stats: p.stats, Place: "here", Interval: leastInterval}
}

func TestOnceTellsEverything(t *testing.T) {
	leak.Check(t)
	var out strings.Builder
	if err := Once(t.Context(), new(proxy).config(), &out); err != nil {
		t.Fatal(err)
	}
	rest := out.String()
	for _, want := range []string{
		"here", "pods 1  open 3  new ", "CONNECTIONS", "POD   DIR  FROM        TO",
		"ns/a  in   10.0.0.2:5  10.0.0.1:80 for web.ns", "HBONE  spiffe://td/ns/ns/sa/b",
		"ns/a  out  10.0.0.1:6  10.96.0.1:80 via 10.0.0.3:15008", "ns/a  out  10.0.0.1:7  192.0.2.1:443", "TCP",
		"TRAFFIC", "source   ns/a  ns/b", "mutual_tls  2", "10 kB", "source   ns/a  outside",
		"VERDICTS", "policy_denied", "connect_refused  destination  4      0/s", "DNS", "asked", "a A udp", "cache",
	} {
		_, after, found := strings.Cut(rest, want)
		if !found {
			t.Fatalf("no %q, after what comes before, in\n%s", want, out.String())
		}
		rest = after
	}
}

func TestOnceSaysWhatIsWrong(t *testing.T) {
	p := &proxy{}
	p.broken.Store(true)
	if err := Once(t.Context(), p.config(), new(strings.Builder)); err == nil || !strings.Contains(err.Error(), "gone") {
		t.Error(err)
	}
	for page, text := range map[string]string{"/debug/live": "{", "/debug/pods": "{}"} {
		cfg := new(proxy).config()
		cfg.Admin = func(ctx context.Context, asked string) ([]byte, error) {
			if asked == page {
				return []byte(text), nil
			}
			return new(proxy).admin(ctx, asked)
		}
		if err := Once(t.Context(), cfg, new(strings.Builder)); err == nil || !strings.Contains(err.Error(), "read "+page) {
			t.Errorf("%s: %v", page, err)
		}
	}
}

func TestRatesOfCountersThatBeganAnew(t *testing.T) {
	old, now := series{name: "a", value: 100}, series{name: "a", value: 4}
	r := rates{before: sample{series: []series{old}}.index(), since: 2 * time.Second}
	if got := r.perSecond(r.more(now), count); got != "2/s" {
		t.Errorf("%s", got)
	}
	if got := (rates{}).perSecond(4, count); got != "-" {
		t.Errorf("without a sample before: %s", got)
	}
	for v, want := range map[float64]string{0: "0 B", 999: "999 B", 1500: "1.5 kB", 2e6: "2 MB", 3e9: "3 GB", 4e12: "4.0 TB"} {
		if got := size(v); got != want {
			t.Errorf("%v is %s, want %s", v, got, want)
		}
	}
}

// A window is a screen that is none. What was shown last is kept by whoever
// shows it: the library's own copy is not for two.
type window struct {
	t *testing.T
	tcell.SimulationScreen
	last *atomic.Value // string
}

func (w window) Show() {
	w.SimulationScreen.Show()
	cells, width, height := w.GetContents()
	var b strings.Builder
	for y := range height {
		for x := range width {
			if runes := cells[y*width+x].Runes; len(runes) > 0 {
				b.WriteRune(runes[0])
			}
		}
		b.WriteByte('\n')
	}
	w.last.Store(b.String())
}

func (w window) text() string {
	text, _ := w.last.Load().(string)
	return text
}

func (w window) shows(want string) {
	w.t.Helper()
	for end := time.Now().Add(patience); !strings.Contains(w.text(), want); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			w.t.Fatalf("no %q in\n%s", want, w.text())
		}
	}
}

func open(t *testing.T, height int) window {
	t.Helper()
	w := window{t, tcell.NewSimulationScreen("UTF-8"), new(atomic.Value)}
	if err := w.Init(); err != nil {
		t.Fatal(err)
	}
	w.SetSize(160, height)
	t.Cleanup(w.Fini)
	return w
}

func TestKeys(t *testing.T) {
	leak.Check(t)
	w, p := open(t, 5), &proxy{}
	done := make(chan error, 1)
	go func() { done <- run(t.Context(), p.config(), w) }()
	press := func(k tcell.Key, r rune) { w.InjectKey(k, r, tcell.ModNone) }
	w.shows("10.0.0.2:5") // two of the three rows fit
	if strings.Contains(w.text(), "192.0.2.1") {
		t.Error("a row beyond the window")
	}
	press(tcell.KeyPgDn, 0)
	w.shows("192.0.2.1:443")
	press(tcell.KeyUp, 0)
	w.shows("10.0.0.2:5")
	press(tcell.KeyTab, 0)
	w.shows("mutual_tls")
	press(tcell.KeyRune, '3')
	w.shows("policy_denied")
	press(tcell.KeyRight, 0)
	w.shows("cache")
	press(tcell.KeyRight, 0)
	w.shows("10.0.0.2:5")
	press(tcell.KeyLeft, 0)
	w.shows("cache")
	press(tcell.KeyRune, ' ')
	w.shows("PAUSED")
	p.broken.Store(true)
	w.shows("CANNOT LOOK: it is ? gone")
	w.shows("cache") // what was last seen stays
	press(tcell.KeyRune, 'q')
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func TestItEndsWithItsContext(t *testing.T) {
	leak.Check(t)
	w := open(t, 24)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- run(ctx, new(proxy).config(), w) }()
	w.shows("pods 1")
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}
