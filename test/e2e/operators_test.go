// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/ztunnel-go/ztunnel/test/netlab"
	"github.com/ztunnel-go/ztunnel/test/rig"
)

// TestWhatOperatorsSee has known connections made and holds both nodes' metrics
// and access lines to what contract 12 and 14.4 say of them, series for series
// and line for line.
func TestWhatOperatorsSee(t *testing.T) {
	w := newWorld(t)
	since1, since2 := w.p1.Output.Mark(), w.p2.Output.Mark()
	w.knownConnections(t)
	t.Run("metrics", func(t *testing.T) {
		w.traffic(t, w.p1, wantAtSource())
		w.traffic(t, w.p2, wantAtDestination())
	})
	t.Run("access lines", func(t *testing.T) {
		w.accessLines(t, w.p1, since1, "access_source.txt")
		w.accessLines(t, w.p2, since2, "access_destination.txt")
	})
	t.Run("pods", func(t *testing.T) {
		for uid, pod := range w.pods(t, w.p1) {
			// The sweep may be put off; the test connections are made in any case.
			if len(pod.Checks) < 4 || pod.Capture != "ebpf" || pod.Error != "" {
				t.Errorf("%s: %+v", uid, pod)
			}
			for _, c := range pod.Checks {
				if age, err := time.ParseDuration(c.Age); c.Result != "ok" || err != nil || age < 0 || age > time.Minute {
					t.Errorf("%s: %+v", uid, c)
				}
			}
		}
	})
}

// knownConnections are: one that ends well, one to a closed port, one that
// policy refuses, one by a stranger, and one that is open still.
func (w *world) knownConnections(t *testing.T) {
	t.Helper()
	say := func(from *netlab.Host, to netip.AddrPort, n int) *net.TCPConn {
		c := w.dial(t, from, to)
		echo(t, c, make([]byte, n))
		return c
	}
	service := at(serviceVIPs()[0], 7)
	end := func(c *net.TCPConn) {
		must(t, c.CloseWrite())
		if rest, err := io.ReadAll(c); err != nil || len(rest) > 0 {
			t.Fatalf("%d bytes more, %v", len(rest), err)
		}
		c.Close()
	}
	end(say(w.a.Host, service, 5))
	if err := refused(w.a.Host, w.b.Addr(portClosed), []byte("hello")); err == nil {
		t.Fatal("a closed port answered")
	}
	end(say(w.stranger.Host, w.b.Addr(portEcho), 4))
	w.policies(&rig.Policy{Name: "p", Namespace: "default", Scope: "Namespace", Action: "Deny",
		Rules: [][][]rig.Match{{{{DestinationPorts: []uint16{portSink}}}}}})
	if err := refused(w.a.Host, w.b.Addr(portSink), []byte("hello")); err == nil {
		t.Fatal("policy let it through")
	}
	say(w.a.Host, service, 1000)
}

// The labels of an end (contract 12.3).
func endLabels(side, name, principal string) string {
	namespace, version, cluster := "default", "v1", "lab"
	if name == "unknown" {
		namespace, version, cluster = name, name, name
	}
	return fmt.Sprintf(`%[1]s_workload="%[2]s",%[1]s_canonical_service="%[2]s",%[1]s_canonical_revision="%[4]s",`+
		`%[1]s_workload_namespace="%[3]s",%[1]s_principal="%[6]s",%[1]s_app="%[2]s",%[1]s_version="%[4]s",%[1]s_cluster="%[5]s"`,
		side, name, namespace, version, cluster, principal)
}

// set is a label set; service is whether the client meant b's service.
func set(reporter, source string, service bool, flag string) string {
	const principal = "spiffe://" + rig.TrustDomain + "/ns/default/sa/"
	sourcePrincipal, security := principal+source, "mutual_tls"
	if source == "unknown" {
		sourcePrincipal, security = "unknown", "unknown"
	}
	meant := `destination_service="unknown",destination_service_namespace="unknown",destination_service_name="unknown"`
	if service {
		meant = `destination_service="` + serviceName + `",destination_service_namespace="default",destination_service_name="b"`
	}
	return `reporter="` + reporter + `",` + endLabels("source", source, sourcePrincipal) + "," + meant + "," +
		endLabels("destination", "b", principal+"b") + `,request_protocol="tcp",response_flags="` + flag +
		`",connection_security_policy="` + security + `",source_region="unknown",source_zone="unknown",` +
		`destination_region="unknown",destination_zone="unknown"`
}

func opened(set string, n, received, sent int) []string {
	return []string{
		fmt.Sprintf("istio_tcp_connections_opened_total{%s} %d\n", set, n),
		fmt.Sprintf("istio_tcp_received_bytes_total{%s} %d\n", set, received),
		fmt.Sprintf("istio_tcp_sent_bytes_total{%s} %d\n", set, sent),
	}
}

func closed(set string, n int) []string {
	return []string{fmt.Sprintf("istio_tcp_connections_closed_total{%s} %d\n", set, n)}
}

func failed(set string, n int) []string {
	return append(closed(set, n), fmt.Sprintf("istio_tcp_connections_failed_total{%s} %d\n", set, n))
}

func wantAtSource() []string {
	return slices.Concat(
		opened(set("source", "a", true, "-"), 2, 1005, 1005), closed(set("source", "a", true, "-"), 1),
		opened(set("source", "a", false, "-"), 2, 0, 0), failed(set("source", "a", false, "CONNECT"), 2),
	)
}

func wantAtDestination() []string {
	return slices.Concat(
		opened(set("destination", "a", true, "-"), 3, 1005, 1005), closed(set("destination", "a", true, "-"), 1),
		opened(set("destination", "a", false, "-"), 1, 0, 0), failed(set("destination", "a", false, "CONNECT"), 1),
		failed(set("destination", "a", true, "DENY"), 1),
		opened(set("destination", "unknown", true, "-"), 1, 4, 4), closed(set("destination", "unknown", true, "-"), 1),
	)
}

// traffic waits until a proxy's traffic series are those, and no others.
func (w *world) traffic(t *testing.T, p *rig.Proxy, want []string) {
	t.Helper()
	slices.Sort(want)
	w.eventually(t, func() error {
		_, scrape, err := p.Get(t.Context(), "15020/metrics")
		if err != nil {
			return err
		}
		var got []string
		for line := range strings.Lines(scrape) {
			if regexp.MustCompile(`^istio_tcp_(connections|received|sent)`).MatchString(line) {
				got = append(got, line)
			}
		}
		slices.Sort(got)
		if !slices.Equal(got, want) {
			return fmt.Errorf("%s has\n%swant\n%s", p.Node().Name(), strings.Join(got, ""), strings.Join(want, ""))
		}
		return nil
	})
}

// accessLines waits until a proxy has printed the access lines of a file, which
// is written by hand from contract 14.4, in any order, and no others. Addresses are names there, ports of clients P and durations D.
func (w *world) accessLines(t *testing.T, p *rig.Proxy, since int, file string) {
	t.Helper()
	want, err := os.ReadFile("testdata/" + file)
	must(t, err)
	names := strings.NewReplacer(w.a.IPv4.String()+":", "a:", w.b.IPv4.String()+":", "b:", w.stranger.IPv4.String()+":", "stranger:")
	wanted := strings.Split(strings.TrimSpace(string(want)), "\n")
	slices.Sort(wanted)
	w.eventually(t, func() error {
		var got []string
		for _, line := range p.Output.Lines(since) {
			_, line, _ = strings.Cut(line, "\t")
			if level, rest, _ := strings.Cut(line, "\t"); strings.HasPrefix(rest, "access\t") {
				line = names.Replace(level + " " + strings.TrimPrefix(rest, "access\t"))
				line = regexp.MustCompile(`(src\.addr=\w+):\d+`).ReplaceAllString(line, "$1:P")
				got = append(got, strings.ReplaceAll(regexp.MustCompile(`duration="\d+ms"`).ReplaceAllString(line, "D"), "\t", " "))
			}
		}
		slices.Sort(got)
		if !slices.Equal(got, wanted) {
			return fmt.Errorf("%s has\n%s\nwant\n%s", p.Node().Name(), strings.Join(got, "\n"), strings.Join(wanted, "\n"))
		}
		return nil
	})
}

// TestAStdoutThatNobodyReads goes on with connections while the log's pipe is
// full, counts the lines that are lost, and tells of them afterwards.
func TestAStdoutThatNobodyReads(t *testing.T) {
	w := newWorld(t, rig.Options{Env: map[string]string{"RUST_LOG": "debug"}})
	open := w.dial(t, w.a.Host, at(serviceVIPs()[0], 7))
	echo(t, open, []byte("before"))
	since := w.p1.Output.Mark()
	release := sync.OnceFunc(w.p1.Output.Hold())
	defer release()
	lost := func() bool {
		_, scrape, err := w.p1.Get(t.Context(), "15020/metrics")
		must(t, err)
		return !strings.Contains(scrape, "\nztunnel_log_lines_lost_total 0\n")
	}
	for end := time.Now().Add(3 * patience); !lost(); {
		if time.Now().After(end) {
			t.Fatal("the log takes line after line")
		}
		w.talk(t)
	}
	echo(t, open, []byte("while nobody reads"))
	echo(t, w.dial(t, w.a.Host, at(serviceVIPs()[0], 7)), []byte("a new one"))
	release()
	w.logged(t, w.p1, since, "\twarn\tlogs\tlog lines were lost: their reader did not keep up\tlines=")
}

// talk makes node1's proxy log many lines.
func (w *world) talk(t *testing.T) {
	t.Helper()
	client := w.n1.HTTPClient()
	client.Transport.(*http.Transport).DisableKeepAlives = false
	defer client.CloseIdleConnections()
	var all sync.WaitGroup
	for range 4 {
		all.Go(func() {
			for range 500 {
				resp, err := client.Post("http://127.0.0.1:15000/logging?level=debug", "", nil)
				if err != nil {
					t.Error(err)
					return
				}
				_, _ = io.Copy(io.Discard, resp.Body) // what it says is of no interest
				resp.Body.Close()
			}
		})
	}
	all.Wait()
}

// TestAFloodOfThePagesDisturbsNobody has a pod take all connections it can get
// to the ports of metrics and readiness, and use them as badly as it can.
func TestAFloodOfThePagesDisturbsNobody(t *testing.T) {
	w := newWorld(t)
	open := w.dial(t, w.a.Host, at(serviceVIPs()[0], 7))
	for i := range 300 {
		c, err := w.stranger.Dial(t.Context(), "tcp", at(w.n1.IPv4, uint16(15020+i%2)).String())
		if err != nil {
			continue // refused: there is no room
		}
		t.Cleanup(func() { c.Close() })
		switch i % 3 {
		case 0: // says nothing
		case 1:
			_, _ = io.WriteString(c, "GET /metrics HTTP/1.1\r\nHo") // may be refused by now
		case 2:
			_, _ = io.WriteString(c, strings.Repeat("GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n", 50)) // and reads nothing
		}
		if i%50 == 0 {
			echo(t, open, []byte("meanwhile"))
			echo(t, w.dial(t, w.a.Host, at(serviceVIPs()[0], 7)), []byte("a new one"))
			w.ready(w.p1)
		}
	}
	_, scrape, err := w.p1.Get(t.Context(), "15020/metrics")
	must(t, err)
	for _, component := range []string{"stats", "readiness"} {
		zero := `ztunnel_http_connections_refused_total{component="` + component + `"} 0`
		if strings.Contains(scrape, zero+"\n") || !strings.Contains(scrape, strings.TrimSuffix(zero, "0")) {
			t.Errorf("nothing was refused by %s", component)
		}
	}
}
