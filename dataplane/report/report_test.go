// SPDX-License-Identifier: Apache-2.0

package report

import (
	"bytes"
	"errors"
	"net/netip"
	"os"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/ztunnel-go/ztunnel/dataplane/reason"
	"github.com/ztunnel-go/ztunnel/internal/identity"
	"github.com/ztunnel-go/ztunnel/internal/logs"
	"github.com/ztunnel-go/ztunnel/internal/mesh"
	"github.com/ztunnel-go/ztunnel/internal/metrics"
	"github.com/ztunnel-go/ztunnel/test/leak"
)

// A bench is a reporter whose lines and series can be looked at.
type bench struct {
	*Reporter
	t        *testing.T
	registry *metrics.Registry
	log      *logs.Log
	out      *bytes.Buffer
}

func newBench(t *testing.T, filter string) *bench {
	t.Helper()
	leak.Check(t)
	b := &bench{t: t, registry: metrics.New("unknown"), out: &bytes.Buffer{}}
	log, err := logs.New(logs.Config{Output: b.out, Filter: filter})
	if err != nil {
		t.Fatal(err)
	}
	b.log = log
	t.Cleanup(func() { log.Close() })
	b.Reporter = New(NewMetrics(b.registry), logs.Span(log.Logger(), "proxy"))
	return b
}

// lines are the access lines so far, without time and duration.
func (b *bench) lines() string {
	b.t.Helper()
	if err := b.log.Close(); err != nil {
		b.t.Fatal(err)
	}
	text := regexp.MustCompile(`(?m)^[^\t]+\t`).ReplaceAllString(b.out.String(), "")
	return regexp.MustCompile(`duration="\d+ms"`).ReplaceAllString(text, `duration="0ms"`)
}

// series are the traffic series, sorted, since their order is arbitrary.
func (b *bench) series() string {
	b.t.Helper()
	var text bytes.Buffer
	if err := b.registry.Expose(&text); err != nil {
		b.t.Fatal(err)
	}
	var kept []string
	for line := range strings.Lines(text.String()) {
		if strings.HasPrefix(line, "istio_tcp_") || strings.HasPrefix(line, "istio_on_demand_") {
			kept = append(kept, line)
		}
	}
	slices.Sort(kept)
	return strings.Join(kept, "")
}

func addrPort(s string) netip.AddrPort { return netip.MustParseAddrPort(s) }

func client() *mesh.Workload {
	return &mesh.Workload{
		UID: "c", Name: "client-1", Namespace: "a", TrustDomain: "cluster.local", ServiceAccount: "sa-c",
		WorkloadName: "client", CanonicalName: "client-app", CanonicalRevision: "v1", ClusterID: "c1",
		Locality: mesh.Locality{Region: "r1", Zone: "z1"},
	}
}

func server() *mesh.Workload {
	return &mesh.Workload{
		UID: "s", Name: "server-1", Namespace: "b", TrustDomain: "cluster.local", ServiceAccount: "sa-s",
		WorkloadName: "server", CanonicalName: "server-app", CanonicalRevision: "v2", ClusterID: "c2",
	}
}

func service() *mesh.Service {
	return &mesh.Service{Name: "web", Namespace: "b", Hostname: "web.b.svc.cluster.local"}
}

// outbound is a connection through a tunnel as its source sees it.
func outbound() Params {
	return Params{
		Reporter: Source,
		Src:      addrPort("10.0.0.1:4000"), Dst: addrPort("10.0.0.2:15008"), HBONEAddr: "10.0.0.2:80",
		Source: client(), Destination: server(), Service: service(),
		MutualTLS: true, SourceIdentity: client().Identity(),
	}
}

// inbound is the same connection at its destination.
func inbound() Params {
	p := outbound()
	p.Reporter = Destination
	p.Dst = addrPort("10.0.0.2:15008")
	return p
}

func TestAccessLines(t *testing.T) {
	const (
		src  = `src.addr=10.0.0.1:4000 src.workload="client-1" src.namespace="a" src.identity="spiffe://cluster.local/ns/a/sa/sa-c" src.cluster="c1"`
		dst  = `dst.addr=10.0.0.2:15008 dst.hbone_addr=10.0.0.2:80 dst.service="web.b.svc.cluster.local" dst.workload="server-1" dst.namespace="b" dst.identity="spiffe://cluster.local/ns/b/sa/sa-s" dst.cluster="c2"`
		out  = ` direction="outbound"`
		in   = ` direction="inbound"`
		took = ` duration="0ms"`
	)
	plain := func(p Params) Params {
		p.MutualTLS, p.HBONEAddr, p.SourceIdentity = false, "", identity.ID{}
		p.Dst = addrPort("[2001:db8::2]:80")
		return p
	}
	inner, err := identity.New("other", "far", "sa")
	if err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		name string
		run  func(*bench)
		want string
	}{
		{"the source sends", func(b *bench) {
			c := b.Open(outbound())
			c.AddReceived(100)
			c.AddSent(7)
			c.Close(reason.Ended, nil)
			c.Close(reason.ConnectRefused, errors.New("twice"))
		}, "debug\taccess\tconnection opened\t" + src + " " + dst + out +
			"\ninfo\taccess\tconnection complete\t" + src + " " + dst + out + " bytes_sent=100 bytes_recv=7" + took + "\n"},
		{"the destination answers", func(b *bench) {
			c := b.Open(inbound())
			c.AddReceived(100)
			c.AddSent(7)
			c.Close(reason.Ended, nil)
		}, "debug\taccess\tconnection opened\t" + src + " " + dst + in +
			"\ninfo\taccess\tconnection complete\t" + src + " " + dst + in + " bytes_sent=7 bytes_recv=100" + took + "\n"},
		{"plaintext has no identities, an error is one", func(b *bench) {
			b.Open(plain(inbound())).Close(reason.ConnectRefused, errors.New(`connection failed: "x"`))
		}, func() string {
			both := `src.addr=10.0.0.1:4000 src.workload="client-1" src.namespace="a" src.cluster="c1" dst.addr=[2001:db8::2]:80 dst.service="web.b.svc.cluster.local" dst.workload="server-1" dst.namespace="b" dst.cluster="c2"` + in
			return "debug\taccess\tconnection opened\t" + both + "\nerror\taccess\tconnection complete\t" + both +
				" bytes_sent=0 bytes_recv=0" + took + ` error="connection failed: \"x\""` + "\n"
		}()},
		{"a stranger", func(b *bench) {
			p := plain(outbound())
			p.Destination, p.Service = nil, nil
			b.Open(p)
		}, "debug\taccess\tconnection opened\t" + `src.addr=10.0.0.1:4000 src.workload="client-1" src.namespace="a" src.cluster="c1" dst.addr=[2001:db8::2]:80` + out + "\n"},
		{"a source known by its baggage alone", func(b *bench) {
			p := inbound()
			p.Source = nil
			p.SourceBaggage = &Baggage{Cluster: "c9", Workload: "w9", Service: "svc9"}
			b.Open(p)
		}, "debug\taccess\tconnection opened\t" + `src.addr=10.0.0.1:4000 src.workload="svc9" src.identity="spiffe://cluster.local/ns/a/sa/sa-c" src.cluster="c9" ` + dst + in + "\n"},
		{"a destination beyond a gateway", func(b *bench) {
			p := outbound()
			p.DestinationBaggage = &Baggage{Namespace: "far", Workload: "w"}
			p.DestinationIdentity = inner
			p.HBONEAddr = "web.b.svc.cluster.local:80"
			b.Open(p)
		}, "debug\taccess\tconnection opened\t" + src + ` dst.addr=10.0.0.2:15008 dst.hbone_addr=web.b.svc.cluster.local:80 dst.service="web.b.svc.cluster.local" dst.workload="w" dst.namespace="far" dst.identity="spiffe://other/ns/far/sa/sa"` + out + "\n"},
		{"early denies", func(b *bench) {
			b.Denied(Early{Reporter: Destination, Src: addrPort("10.0.0.1:4000"), Dst: addrPort("10.0.0.2:80"), Err: errors.New("attempted recursive call to ourselves")})
			b.Denied(Early{Reporter: Source, Src: addrPort("10.0.0.1:4000"), Err: errors.New("x")})
		}, "warn\taccess\tconnection failed\t" + `src.addr=10.0.0.1:4000 dst.addr=10.0.0.2:80 direction="inbound" error="attempted recursive call to ourselves"` +
			"\nwarn\taccess\tconnection failed\t" + `src.addr=10.0.0.1:4000 direction="outbound" error="x"` + "\n"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			b := newBench(t, "debug")
			tc.run(b)
			if got := b.lines(); got != tc.want {
				t.Errorf("got:\n%s\nwant:\n%s", got, tc.want)
			}
		})
	}
}

func TestTheReasonIsOnLinesThatAreAskedForIt(t *testing.T) {
	b := newBench(t, "info")
	r := b.Reporter.With(Extras{Reasons: true})
	r.Open(inbound()).Close(reason.PolicyDenied, errors.New("x"))
	r.Open(inbound()).Close(reason.Reset, nil)
	r.Denied(Early{Src: addrPort("10.0.0.1:4000"), Why: reason.NoService, Err: errors.New("x")})
	lines := strings.Split(b.lines(), "\n")
	for i, want := range []string{`error="x" reason="policy_denied"`, `ms" reason="reset"`, `error="x" reason="no_service"`} {
		if i >= len(lines) || !strings.HasSuffix(lines[i], want) {
			t.Errorf("line %d of %q does not end with %s", i, lines, want)
		}
	}
}

func TestEveryEndIsCountedByItsReason(t *testing.T) {
	b := newBench(t, "off")
	b.Open(inbound()).Close(reason.Ended, nil)
	b.Open(inbound()).Close(reason.Unknown, errors.New("x"))
	b.Denied(Early{Why: reason.NoService, Err: errors.New("x")})
	b.Refused(Source, reason.NoService)
	var text bytes.Buffer
	if err := b.registry.Expose(&text); err != nil {
		t.Fatal(err)
	}
	var got []string
	for line := range strings.Lines(text.String()) {
		if strings.HasPrefix(line, "ztunnel_ends_total{") {
			got = append(got, strings.TrimSpace(line))
		}
	}
	want := []string{
		`ztunnel_ends_total{reporter="source",reason="no_service"} 2`,
		`ztunnel_ends_total{reporter="destination",reason="unknown"} 1`,
	}
	if !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestNothingIsLoggedBelowTheLevel(t *testing.T) {
	b := newBench(t, "error")
	b.Open(outbound()).Close(reason.Ended, nil)
	b.Open(outbound()).Close(reason.Ended, errors.New("x"))
	if got := strings.Count(b.lines(), "\n"); got != 1 {
		t.Errorf("%d lines:\n%s", got, b.out)
	}
}

func TestSeries(t *testing.T) {
	fromBaggage := inbound()
	fromBaggage.Source = nil
	fromBaggage.SourceBaggage = &Baggage{Cluster: "c9", Namespace: "n9", Workload: "w9", Service: "svc9", Revision: "v9", Region: "r9", Zone: "z9"}
	stranger := Params{Reporter: Source, Src: addrPort("10.0.0.1:1"), Dst: addrPort("192.0.2.1:80")}
	overridden := inbound()
	overridden.Source = &mesh.Workload{Namespace: "a"} // empty fields override baggage too
	overridden.SourceBaggage = fromBaggage.SourceBaggage
	plaintext := inbound()
	plaintext.MutualTLS = false // and the identity that was left in does not count

	for _, tc := range []struct {
		name string // also of the golden
		run  func(*bench)
	}{
		{"outbound", func(b *bench) {
			c := b.Open(outbound())
			c.AddReceived(100)
			c.AddSent(7)
			c.AddReceived(1)
			c.Close(reason.Ended, nil)
			b.Open(outbound()) // stays open
		}},
		{"opened", func(b *bench) { b.Open(outbound()) }},
		{"denied", func(b *bench) { b.Open(inbound()).Close(reason.PolicyDenied, errors.New("x")) }},
		{"drained", func(b *bench) { b.Open(stranger).Close(reason.Drained, errors.New("x")) }},
		{"baggage", func(b *bench) { b.Open(fromBaggage) }},
		{"overridden", func(b *bench) { b.Open(overridden) }},
		{"plaintext", func(b *bench) { b.Open(plaintext) }},
		{"early", func(b *bench) { b.Denied(Early{Src: stranger.Src, Err: errors.New("x")}) }},
		{"lookup", func(b *bench) { b.HostLookup(client(), "db.example", false) }},
		{"asked", func(b *bench) {
			b.HostLookup(client(), "db.example", true)
			b.HostLookup(client(), "db.example", false)
		}},
		{"sockets", func(b *bench) {
			b.SocketOpened(Destination)
			b.SocketOpened(Destination)
			b.SocketClosed(Destination)
			b.SocketOpened(Source)
			b.SocketClosed(Source)
		}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			b := newBench(t, "off")
			tc.run(b)
			want, err := os.ReadFile("testdata/" + tc.name + ".txt")
			if err != nil {
				t.Fatal(err)
			}
			if got := b.series(); got != string(want) {
				t.Errorf("got:\n%s\nwant:\n%s", got, want)
			}
		})
	}
}

func TestCountsFromManyGoroutinesAreExact(t *testing.T) {
	b := newBench(t, "off")
	const workers, each = 8, 1000
	var wg sync.WaitGroup
	for range workers {
		wg.Go(func() {
			c := b.Open(outbound())
			for range each {
				c.AddSent(3)
				c.AddReceived(2)
			}
			if c.Sent() != 3*each || c.Received() != 2*each {
				t.Errorf("sent %d, received %d", c.Sent(), c.Received())
			}
			c.Close(reason.Ended, nil)
		})
	}
	wg.Wait()
	got := b.series()
	for _, want := range []string{"opened_total{", "closed_total{", "sent_bytes_total{", "received_bytes_total{"} {
		value := map[string]string{"opened_total{": " 8\n", "closed_total{": " 8\n", "sent_bytes_total{": " 24000\n", "received_bytes_total{": " 16000\n"}[want]
		if !regexp.MustCompile(regexp.QuoteMeta(want) + `.*` + value).MatchString(got) {
			t.Errorf("no %s…%q in\n%s", want, value, got)
		}
	}
}
