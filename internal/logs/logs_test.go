// SPDX-License-Identifier: Apache-2.0

package logs

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/ztunnel-go/ztunnel/test/leak"
)

// at is the time of the observed line in contract 14.2.
var at = time.Date(2026, 11, 22, 4, 51, 8, 686232999, time.UTC)

// record logs one line at a known time, which slog's own methods cannot.
func record(t *testing.T, l *slog.Logger, level slog.Level, message string, attrs ...slog.Attr) {
	t.Helper()
	if !l.Handler().Enabled(t.Context(), level) {
		return
	}
	r := slog.NewRecord(at, level, message, 0)
	r.AddAttrs(attrs...)
	if err := l.Handler().Handle(t.Context(), r); err != nil {
		t.Fatal(err)
	}
}

func accessAttrs() []slog.Attr {
	return []slog.Attr{
		slog.Any("src.addr", netip.MustParseAddrPort("127.0.0.1:41998")),
		slog.String("src.workload", "local"),
		slog.String("src.namespace", "default"),
		slog.String("src.identity", "spiffe://cluster.local/ns/default/sa/default"),
		slog.String("src.cluster", "c1"),
		slog.Any("dst.addr", netip.MustParseAddrPort("10.0.0.2:15008")),
		slog.Any("dst.hbone_addr", Bare("10.0.0.2:8080")),
		slog.String("dst.workload", "peer"),
		slog.String("dst.namespace", "default"),
		slog.String("dst.identity", "spiffe://cluster.local/ns/default/sa/peer"),
		slog.String("dst.cluster", "c1"),
		slog.String("direction", "outbound"),
		slog.Uint64("bytes_sent", 5),
		slog.Uint64("bytes_recv", 5),
		slog.String("duration", "85ms"),
	}
}

func TestLines(t *testing.T) {
	const stamp = "2026-11-22T04:51:08.686232Z"
	for _, tc := range []struct {
		name        string
		log         func(*testing.T, *slog.Logger)
		plain, json string
	}{
		{
			"the access line of contract 14.2",
			func(t *testing.T, l *slog.Logger) {
				l = Span(l, "outbound", slog.String("id", "1")) // an access line shows none
				record(t, Target(l, "access"), slog.LevelInfo, "connection complete", accessAttrs()...)
			},
			stamp + "\tinfo\taccess\tconnection complete\t" + `src.addr=127.0.0.1:41998 src.workload="local" src.namespace="default" src.identity="spiffe://cluster.local/ns/default/sa/default" src.cluster="c1" dst.addr=10.0.0.2:15008 dst.hbone_addr=10.0.0.2:8080 dst.workload="peer" dst.namespace="default" dst.identity="spiffe://cluster.local/ns/default/sa/peer" dst.cluster="c1" direction="outbound" bytes_sent=5 bytes_recv=5 duration="85ms"`,
			`{"level":"info","time":"` + stamp + `","scope":"access","message":"connection complete","src.addr":"127.0.0.1:41998","src.workload":"local","src.namespace":"default","src.identity":"spiffe://cluster.local/ns/default/sa/default","src.cluster":"c1","dst.addr":"10.0.0.2:15008","dst.hbone_addr":"10.0.0.2:8080","dst.workload":"peer","dst.namespace":"default","dst.identity":"spiffe://cluster.local/ns/default/sa/peer","dst.cluster":"c1","direction":"outbound","bytes_sent":5,"bytes_recv":5,"duration":"85ms"}`,
		},
		{
			"a message alone is followed by a tab",
			func(t *testing.T, l *slog.Logger) { record(t, Target(l, "app"), slog.LevelWarn, "hello") },
			stamp + "\twarn\tapp\thello\t",
			`{"level":"warn","time":"` + stamp + `","scope":"ztunnel::app","message":"hello"}`,
		},
		{
			"neither message nor fields",
			func(t *testing.T, l *slog.Logger) { record(t, l, slog.LevelError, "") },
			stamp + "\terror\tztunnel",
			`{"level":"error","time":"` + stamp + `","scope":"ztunnel"}`,
		},
		{
			"fields and no message",
			func(t *testing.T, l *slog.Logger) {
				record(t, Target(l, "dns"), slog.LevelInfo, "", slog.String("query", "A"), slog.Any("domain", Bare("a.")))
			},
			stamp + "\tinfo\tdns\t" + `query="A" domain=a.`,
			`{"level":"info","time":"` + stamp + `","scope":"dns","query":"A","domain":"a."}`,
		},
		{
			"spans from the root to the leaf",
			func(t *testing.T, l *slog.Logger) {
				l = Span(Target(l, "proxy::inbound"), "proxy", slog.Any("wl", Bare("ns/pod")))
				l = Span(Span(l, "accept"), "inbound", slog.Any("id", Bare("ab")), slog.Int("n", 1))
				record(t, l.With("a", 1), slog.LevelInfo, "m", slog.Bool("b", true))
			},
			stamp + "\tinfo\tproxy::inbound:proxy{wl=ns/pod}:accept:inbound{id=ab n=1}\tm\ta=1 b=true",
			`{"level":"info","time":"` + stamp + `","scope":"ztunnel::proxy::inbound","message":"m","a":1,"b":true,"proxy":{"wl":"ns/pod"},"accept":{},"inbound":{"id":"ab","n":1}}`,
		},
		{
			"values that try to break the line",
			func(t *testing.T, l *slog.Logger) {
				record(t, l, slog.LevelInfo, "a\nb", slog.String("s", "q\"\\\n\t\x00\x1bé"), slog.Any("e", errors.New("x\r\ny")))
			},
			stamp + "\tinfo\tztunnel\t" + `a\nb` + "\t" + `s="q\"\\\n\t\0\u{1b}é" e=x\r\ny`,
			`{"level":"info","time":"` + stamp + `","scope":"ztunnel","message":"a\nb","s":"q\"\\\n\t\u0000\u001bé","e":"x\r\ny"}`,
		},
		{
			"groups, nothing, durations and floats",
			func(t *testing.T, l *slog.Logger) {
				l = slog.New(l.Handler().WithGroup("g").WithGroup(""))
				record(t, l, slog.LevelInfo, "m", slog.Any("nil", nil), slog.Duration("d", 1500*time.Microsecond),
					slog.Group("h", slog.Float64("f", 0.5)), slog.Time("at", at))
			},
			stamp + "\tinfo\tztunnel\tm\tg.d=1.5ms g.h.f=0.5 g.at=" + stamp,
			`{"level":"info","time":"` + stamp + `","scope":"ztunnel","message":"m","g.d":"1.5ms","g.h.f":0.5,"g.at":"` + stamp + `"}`,
		},
	} {
		for _, asJSON := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s/json=%v", tc.name, asJSON), func(t *testing.T) {
				leak.Check(t)
				var out bytes.Buffer
				l, err := New(Config{Output: &out, JSON: asJSON})
				if err != nil {
					t.Fatal(err)
				}
				tc.log(t, l.Logger())
				if err := l.Close(); err != nil {
					t.Fatal(err)
				}
				want := tc.plain
				if asJSON {
					want = tc.json
				}
				if got := out.String(); got != want+"\n" {
					t.Errorf("got  %q\nwant %q", got, want+"\n")
				}
			})
		}
	}
}

func TestFilters(t *testing.T) {
	for _, tc := range []struct{ in, want string }{
		{"info", "info"},
		{"", ""},
		{"ztunnel::proxy=debug,warn,access=OFF", "ztunnel::proxy=debug,access=off,warn"},
		{"a=info,a=debug", "a=debug"},
		{"b=info,a=debug", "b=info,a=debug"},
		{"access", "access=trace"},
		{"5,x=0", "x=off,trace"},
		{"a=b=c", ""}, {"a=loud", ""}, {"=info", ""}, {"a[s]=info", ""}, {"a b", ""},
	} {
		f, err := parseFilter(tc.in)
		if tc.want == "" {
			if err == nil {
				t.Errorf("%q was taken as %v", tc.in, f)
			}
			continue
		}
		if err != nil || f.String() != tc.want {
			t.Errorf("%q: %v, %v; want %s", tc.in, f, err, tc.want)
		}
	}
}

func TestFilterLevels(t *testing.T) {
	f, err := parseFilter("ztunnel::proxy=debug,ztunnel=warn,access=off")
	if err != nil {
		t.Fatal(err)
	}
	for target, want := range map[string]slog.Level{
		"ztunnel::proxy::inbound": slog.LevelDebug,
		"ztunnel::proxyfactory":   slog.LevelDebug, // plain prefix
		"ztunnel::app":            slog.LevelWarn,
		"access":                  levelOff,
		"dns":                     levelOff, // nothing matches
	} {
		if got := f.level(target); got != want {
			t.Errorf("%s: %v, want %v", target, got, want)
		}
	}
}

func TestLevelChangesAtRunTime(t *testing.T) {
	leak.Check(t)
	var out bytes.Buffer
	l, err := New(Config{Output: &out, Filter: "ztunnel::xds=error,info"})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	const start = "hickory_server::server=off,ztunnel::xds=error,info"
	if got := l.Filter(); got != start {
		t.Errorf("Filter = %q", got)
	}
	log := Target(l.Logger(), "access")
	if log.Enabled(t.Context(), slog.LevelDebug) {
		t.Error("debug is enabled")
	}
	if err := l.Append("access=debug,ztunnel::xds=trace"); err != nil {
		t.Fatal(err)
	}
	if got, want := l.Filter(), "hickory_server::server=off,ztunnel::xds=trace,access=debug,info"; got != want {
		t.Errorf("Filter = %q, want %q", got, want)
	}
	if !log.Enabled(t.Context(), slog.LevelDebug) || log.Enabled(t.Context(), LevelTrace) {
		t.Error("access is not at debug")
	}
	for _, bad := range []string{"", "Info", "access", "access:debug", "info,", "access=DEBUG", "x=y=info", "=info"} {
		if err := l.Append(bad); err == nil {
			t.Errorf("%q was taken", bad)
		}
	}
	l.Reset()
	if got := l.Filter(); got != start {
		t.Errorf("after Reset: %q", got)
	}
}

func TestABadFilterIsAnError(t *testing.T) {
	if _, err := New(Config{Output: &bytes.Buffer{}, Filter: "a=b=c"}); err == nil || !strings.Contains(err.Error(), "a=b=c") {
		t.Errorf("err = %v", err)
	}
}

func TestForeignHandlersArePassedThrough(t *testing.T) {
	var out bytes.Buffer
	l := slog.New(slog.NewTextHandler(&out, nil))
	Span(Target(l, "app"), "proxy", slog.String("wl", "a")).Info("m")
	if !strings.Contains(out.String(), "proxy.wl=a") {
		t.Error(out.String())
	}
}

// A gate is an output that is stuck until it is opened.
type gate struct {
	open    chan struct{}
	reached chan struct{} // holds one when a Write waits
	mu      sync.Mutex
	buf     bytes.Buffer // guarded by mu
}

func (g *gate) Write(p []byte) (int, error) {
	select {
	case g.reached <- struct{}{}:
	default:
	}
	<-g.open
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.buf.Write(p)
}

// stuckLog is a log whose output takes nothing until its gate opens, with one
// line in its hands.
func stuckLog(t *testing.T) (*Log, *gate) {
	t.Helper()
	g := &gate{open: make(chan struct{}), reached: make(chan struct{}, 1)}
	l, err := New(Config{Output: g})
	if err != nil {
		t.Fatal(err)
	}
	l.Logger().Info("first")
	<-g.reached // a line that is out of the queue may still be joined by the next ones
	return l, g
}

func TestAStuckOutputHoldsNobodyUpAndWhatIsLostIsTold(t *testing.T) {
	leak.Check(t)
	l, g := stuckLog(t)
	l.out.grace = time.Minute
	const workers, each = 4, queueLines / 2
	var wg sync.WaitGroup
	for range workers {
		wg.Go(func() {
			for i := range each {
				l.Logger().Info("m", "i", i)
			}
		})
	}
	wg.Wait() // while nothing is read
	const want = workers*each - queueLines
	if got := l.Lost(); got != want {
		t.Errorf("%d lines are lost, want %d", got, want)
	}
	close(g.open)
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	text := g.buf.String()
	if got := strings.Count(text, "\tm\t"); got != queueLines {
		t.Errorf("%d lines came, want %d", got, queueLines)
	}
	notice := fmt.Sprintf("\twarn\tlogs\tlog lines were lost: their reader did not keep up\tlines=%d\n", want)
	if strings.Count(text, notice) != 1 || strings.Count(text, "were lost") != 1 {
		t.Errorf("what was lost is not told of once: %q", text[len(text)-200:])
	}
}

func TestAStuckOutputIsBoundedInBytes(t *testing.T) {
	leak.Check(t)
	l, g := stuckLog(t)
	l.out.grace = time.Minute // the machine may be busy, and this one does move
	l.out.limit = 16 << 10
	long := strings.Repeat("x", 1<<10)
	for range 20 {
		l.Logger().Info(long)
	}
	if got := l.Lost(); got != 5 { // of 16 KiB, less the lines' beginnings
		t.Errorf("%d lines are lost", got)
	}
	close(g.open)
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if got := l.out.queued.Load(); got != 0 {
		t.Errorf("%d bytes are still counted", got)
	}
}

func TestAProcessEndsThoughNobodyReads(t *testing.T) {
	l, g := stuckLog(t)
	l.out.grace = 10 * time.Millisecond
	l.Logger().Info("second")
	if err := l.Close(); err == nil || err.Error() != "the log's output takes nothing: 1 lines are lost" {
		t.Errorf("Close = %v", err)
	}
	l.Logger().Info("third") // returns
	if got := l.Lost(); got != 2 {
		t.Errorf("%d lines are lost", got)
	}
	close(g.open)
	<-l.out.done
}

func TestAllThatWasLoggedIsWrittenAtTheEnd(t *testing.T) {
	leak.Check(t)
	var out bytes.Buffer
	l, err := New(Config{Output: &out})
	if err != nil {
		t.Fatal(err)
	}
	for range 1000 {
		l.Logger().Info("m")
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if got := strings.Count(out.String(), "\n"); got != 1000 {
		t.Errorf("%d lines", got)
	}
}

func TestLinesAfterCloseAreWrittenAtOnce(t *testing.T) {
	leak.Check(t)
	var out bytes.Buffer
	l, err := New(Config{Output: &out})
	if err != nil {
		t.Fatal(err)
	}
	l.Logger().Info("before")
	if err := errors.Join(l.Close(), l.Close()); err != nil {
		t.Fatal(err)
	}
	l.Logger().Info("after")
	if got := out.String(); !strings.Contains(got, "before") || !strings.Contains(got, "after") {
		t.Errorf("%q", got)
	}
}

// A failing output fails a number of times and writes at most one byte at a
// time.
type failing struct {
	left int
	buf  bytes.Buffer
}

func (f *failing) Write(p []byte) (int, error) {
	if f.left > 0 {
		f.left--
		return 0, errors.New("disk full")
	}
	return f.buf.Write(p[:1])
}

func TestAFailingOutputIsReportedAndTriedAgain(t *testing.T) {
	leak.Check(t)
	out := &failing{left: 1}
	l, err := New(Config{Output: out})
	if err != nil {
		t.Fatal(err)
	}
	l.Logger().Info("lost")
	for len(l.out.queue) > 0 {
		time.Sleep(time.Millisecond)
	}
	if err := l.Close(); err == nil || err.Error() != "disk full" {
		t.Errorf("Close = %v", err)
	}
	if err := l.Logger().Handler().Handle(context.Background(), slog.NewRecord(at, slog.LevelInfo, "kept", 0)); err != nil {
		t.Errorf("Handle = %v", err)
	}
	if !strings.Contains(out.buf.String(), "kept") {
		t.Errorf("%q", out.buf.String())
	}
}

func FuzzFilter(f *testing.F) {
	for _, s := range []string{"info", "a=b", "ztunnel::proxy=debug,warn", "=", ",", "a=b=c", "hickory_server::server=off,info"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		parsed, err := parseFilter(s)
		if err != nil {
			return
		}
		again, err := parseFilter(parsed.String())
		if err != nil || again.String() != parsed.String() {
			t.Errorf("%q prints as %q, which reads as %v, %v", s, parsed, again, err)
		}
	})
}

func TestEveryPrefixOfAFilterIsTakenOrRefused(t *testing.T) {
	const whole = "hickory_server::server=off,ztunnel::proxy=debug,access=info,warn"
	for i := range len(whole) {
		if f, err := parseFilter(whole[:i]); err == nil && f.String() == "" {
			t.Errorf("%q gives an empty filter", whole[:i])
		}
	}
}
