// SPDX-License-Identifier: Apache-2.0

package fake

import (
	"net/http/httptest"
	"strings"

	"github.com/miekg/dns"

	"github.com/ztunnel-go/ztunnel/dataplane/hbone"
	"github.com/ztunnel-go/ztunnel/internal/certs"
)

// A Fault is one thing that the model does wrong.
type Fault struct {
	// Name says what, in words.
	Name string
	// By is the scenario that has to fail.
	By string

	page       func(q pageRequest, a *httptest.ResponseRecorder)
	line       func(line string) string
	dns        func(m *dns.Msg)
	settings   hbone.Settings
	maxStreams int
	exit       int
	account    string // that certificates are for, whoever asks

	uncaptured, noBaggage, oldTLS, ownPorts, quietPolicy, readyEarly, deaf bool
	noFIN, softReset, hardEnd, corrupt                                     bool
}

// NoFault is a model that does everything right.
func NoFault() Fault { return Fault{Name: "none"} }

func (f Fault) issuer(i certs.Issuer) certs.Issuer {
	if f.account != "" {
		return renamer{i, f.account}
	}
	return i
}

// onPage makes a fault of one page.
func onPage(port, path string, do func(q pageRequest, a *httptest.ResponseRecorder)) func(pageRequest, *httptest.ResponseRecorder) {
	return func(q pageRequest, a *httptest.ResponseRecorder) {
		if q.port == port && (path == "" || q.path == path) {
			do(q, a)
		}
	}
}

// inMetrics replaces a text of the metrics page.
func inMetrics(old, with string) func(pageRequest, *httptest.ResponseRecorder) {
	return onPage("15020", "", func(_ pageRequest, a *httptest.ResponseRecorder) { replace(a, old, with) })
}

// inDump replaces a text of the dump.
func inDump(old, with string) func(pageRequest, *httptest.ResponseRecorder) {
	return onPage("15000", "/config_dump", func(_ pageRequest, a *httptest.ResponseRecorder) { replace(a, old, with) })
}

// inLines replaces a text in lines that contain another.
func inLines(where, old, with string) func(string) string {
	return func(line string) string {
		if strings.Contains(line, where) {
			return strings.ReplaceAll(line, old, with)
		}
		return line
	}
}

// without loses lines with a text.
func without(text string) func(string) string {
	return func(line string) string {
		if strings.Contains(line, text) {
			return ""
		}
		return line
	}
}

// Faults are all that there are. Each changes one thing.
func Faults() []Fault {
	var all []Fault
	for _, some := range [][]Fault{pageFaults(), metricFaults(), lineFaults(), dnsFaults(), trafficFaults()} {
		all = append(all, some...)
	}
	return all
}

func pageFaults() []Fault {
	status := func(code int) func(pageRequest, *httptest.ResponseRecorder) {
		return func(_ pageRequest, a *httptest.ResponseRecorder) { a.Code = code }
	}
	return []Fault{
		{Name: "readiness has another body", By: "ready-says-ready", page: onPage("15021", "/healthz/ready", func(_ pageRequest, a *httptest.ResponseRecorder) { replace(a, "ready\n", "ok\n") })},
		{Name: "readiness answers POST", By: "ready-is-asked-by-get", page: onPage("15021", "/healthz/ready", status(200))},
		{Name: "readiness answers every path", By: "ready-has-one-page", page: onPage("15021", "", status(200))},
		{Name: "readiness is there before the agent", By: "ready-not-without-an-agent", readyEarly: true},
		{Name: "readiness stays when the agent goes", By: "ready-lost-with-the-agent", readyEarly: true},
		{Name: "an unknown admin page is not 404", By: "admin-unknown-path", page: onPage("15000", "/nothing", status(200))},
		{Name: "quitquitquit answers otherwise", By: "admin-quitquitquit-ends-the-process", page: onPage("15000", "/quitquitquit", func(_ pageRequest, a *httptest.ResponseRecorder) { replace(a, "shutdown now\n", "bye\n") })},
		{Name: "the dump is called text", By: "dump-is-json", page: onPage("15000", "/config_dump", func(_ pageRequest, a *httptest.ResponseRecorder) { a.Header().Set("Content-Type", "text/plain") })},
		{Name: "the dump spells a key otherwise", By: "dump-of-a-workload", page: inDump(`"workloadIps"`, `"workloadIPs"`)},
		{Name: "the dump loses live connections", By: "dump-of-live-connections", page: inDump(`"HBONE",`+"\n", `"TCP",`+"\n")},
		{Name: "the dump has another word for up", By: "dump-of-pods", page: inDump(`"Up"`, `"Running"`)},
		{Name: "the log level is not told", By: "logging-tells-its-level", page: onPage("15000", "/logging", func(_ pageRequest, a *httptest.ResponseRecorder) { replace(a, "hickory_server::server=off,", "") })},
		{Name: "a level that is none is taken", By: "logging-refuses-what-it-does-not-know", page: onPage("15000", "/logging", status(200))},
	}
}

func metricFaults() []Fault {
	return []Fault{
		{Name: "metrics have no end", By: "metrics-end-with-eof", page: inMetrics("# EOF\n", "")},
		{Name: "TYPE lines have the counter's suffix", By: "metrics-names-of-counters", page: inMetrics("# TYPE istio_tcp_connections_opened ", "# TYPE istio_tcp_connections_opened_total ")},
		{Name: "metrics are OpenMetrics for everybody", By: "metrics-type-is-plain-text", page: onPage("15020", "", func(_ pageRequest, a *httptest.ResponseRecorder) {
			a.Header().Set("Content-Type", "application/openmetrics-text;charset=utf-8;version=1.0.0")
		})},
		{Name: "metrics do not vary", By: "metrics-vary-by-encoding", page: onPage("15020", "", func(_ pageRequest, a *httptest.ResponseRecorder) { a.Header().Del("Vary") })},
		{Name: "a label is missing", By: "metrics-labels-of-traffic", page: inMetrics(`request_protocol="tcp",`, "")},
		{Name: "labels have another order", By: "metrics-labels-of-traffic", page: inMetrics(`source_app="a",source_version="v1"`, `source_version="v1",source_app="a"`)},
		{Name: "the principal is missing", By: "metrics-of-a-tunnelled-connection", page: inMetrics(`source_principal="spiffe://cluster.local/ns/default/sa/a"`, `source_principal="unknown"`)},
		{Name: "a connection is counted twice", By: "metrics-closed-when-closed", page: onPage("15020", "", func(_ pageRequest, a *httptest.ResponseRecorder) { double(a, "istio_tcp_connections_opened_total") })},
		{Name: "closed is counted at once", By: "metrics-closed-when-closed", page: onPage("15020", "", func(_ pageRequest, a *httptest.ResponseRecorder) {
			replace(a, "istio_tcp_connections_closed", "istio_tcp_connections_shut")
			replace(a, "istio_tcp_connections_opened", "istio_tcp_connections_closed")
		})},
		{Name: "sent and received are exchanged", By: "metrics-of-bytes", page: onPage("15020", "", func(_ pageRequest, a *httptest.ResponseRecorder) {
			replace(a, "istio_tcp_sent_bytes", "istio_tcp_x_bytes")
			replace(a, "istio_tcp_received_bytes", "istio_tcp_sent_bytes")
			replace(a, "istio_tcp_x_bytes", "istio_tcp_received_bytes")
		})},
		{Name: "open sockets are not counted", By: "metrics-of-open-sockets", page: inMetrics("istio_tcp_sockets_open", "istio_tcp_sockets")},
		{Name: "a refusal has another flag", By: "metrics-of-a-refusal", page: inMetrics(`response_flags="DENY"`, `response_flags="CONNECT"`)},
		{Name: "metrics of pods have another prefix", By: "metrics-of-pods", page: inMetrics("workload_manager_", "istio_workload_manager_")},
		{Name: "DNS is counted under another protocol", By: "metrics-of-dns", page: inMetrics(`request_protocol="udp"`, `request_protocol="UDP"`)},
		{Name: "the build has no tag", By: "metrics-of-the-build", page: inMetrics(`,tag="unknown"`, "")},
	}
}

func lineFaults() []Fault {
	const done = "connection complete"
	swap := func(line string) string {
		if strings.Contains(line, done) {
			return swapFields(line, "dst.addr", "dst.hbone_addr")
		}
		return line
	}
	drop := func(key string) func(string) string {
		return func(line string) string {
			if strings.Contains(line, done) {
				return dropField(line, key)
			}
			return line
		}
	}
	return []Fault{
		{Name: "access lines have another order", By: "access-outbound-fields", line: swap},
		{Name: "access lines lack the duration", By: "access-outbound-fields", line: drop("duration")},
		{Name: "access lines lack the service", By: "access-outbound-values", line: drop("dst.service")},
		{Name: "access lines are lost", By: "access-inbound-values", line: without(done)},
		{Name: "access lines have another level", By: "access-outbound-values", line: inLines(done, "\tinfo\t", "\tdebug\t")},
		{Name: "access lines have another target", By: "access-outbound-values", line: inLines(done, "\taccess\t", "\tproxy\t")},
		{Name: "strings are not quoted", By: "access-outbound-values", line: inLines(done, `src.workload="a"`, `src.workload=a`)},
		{Name: "times have no fraction", By: "access-outbound-values", line: func(line string) string {
			if i := strings.IndexByte(line, '.'); i == 19 {
				return line[:i] + line[i+7:]
			}
			return line
		}},
		{Name: "a refusal does not name the policy", By: "access-refused-by-policy", line: inLines(done, "explicitly denied by: default/p", "denied")},
		{Name: "an early denial is an error", By: "access-early-denial-fields", line: inLines("connection failed", "\twarn\t", "\terror\t")},
		{Name: "the end is not logged", By: "admin-quitquitquit-ends-the-process", line: without("shutdown complete")},
		{Name: "JSON has another key for the target", By: "logs-in-json", line: inLines(`"level"`, `"scope"`, `"target"`)},
	}
}

func dnsFaults() []Fault {
	return []Fault{
		{Name: "DNS has another TTL", By: "dns-service-address", dns: func(m *dns.Msg) {
			for _, rr := range m.Answer {
				rr.Header().Ttl = 60
			}
		}},
		{Name: "DNS is not authoritative", By: "dns-service-address", dns: func(m *dns.Msg) { m.Authoritative = false }},
		{Name: "DNS is authoritative for all", By: "dns-forwarded", dns: func(m *dns.Msg) { m.Authoritative = true }},
		{Name: "DNS says NXDOMAIN for an empty answer", By: "dns-known-names-are-never-nxdomain", dns: func(m *dns.Msg) {
			if len(m.Answer) == 0 {
				m.Rcode = dns.RcodeNameError
			}
		}},
		{Name: "DNS answers in the question's case", By: "dns-names-in-capitals", dns: func(m *dns.Msg) {
			for _, rr := range m.Answer {
				rr.Header().Name = m.Question[0].Name
			}
		}},
		{Name: "DNS always sends OPT", By: "dns-edns-is-echoed", dns: func(m *dns.Msg) {
			if m.IsEdns0() == nil {
				m.SetEdns0(1232, false)
			}
		}},
		{Name: "DNS leaves the CNAME out", By: "dns-search-domains", dns: func(m *dns.Msg) {
			if len(m.Answer) > 1 && m.Answer[0].Header().Rrtype == dns.TypeCNAME {
				m.Answer = m.Answer[1:]
			}
		}},
		{Name: "DNS loses an endpoint", By: "dns-headless-service", dns: func(m *dns.Msg) {
			if len(m.Answer) > 1 {
				m.Answer = m.Answer[1:]
			}
		}},
	}
}

func trafficFaults() []Fault {
	return []Fault{
		{Name: "pods are not captured: plaintext is sent", By: "route-pod-by-address", uncaptured: true},
		{Name: "FIN is swallowed", By: "hbone-half-close-outbound", noFIN: true},
		{Name: "a reset becomes an end", By: "hbone-reset-arrives", softReset: true},
		{Name: "an end becomes a reset", By: "hbone-half-close-by-the-server", hardEnd: true},
		{Name: "bytes are changed", By: "hbone-large-data-in-both-directions", corrupt: true},
		{Name: "certificates are for somebody else", By: "inbound-tunnel-by-hand", account: "mallory"},
		{Name: "answers have no baggage", By: "inbound-tunnel-by-hand", noBaggage: true},
		{Name: "TLS 1.2 is taken", By: "inbound-tls-12", oldTLS: true},
		{Name: "the proxy's own ports may be asked for", By: "inbound-own-ports", ownPorts: true},
		{Name: "settings have another window", By: "inbound-server-settings", settings: hbone.Settings{StreamWindow: 65536}},
		{Name: "settings allow more streams", By: "inbound-server-settings", settings: hbone.Settings{MaxStreams: 1000}},
		{Name: "the client's frames are larger", By: "hbone-client-settings", settings: hbone.Settings{MaxFrameSize: 1 << 21}},
		{Name: "decisions are not logged", By: "logs-of-rbac-decisions", quietPolicy: true},
		{Name: "another exit code", By: "admin-quitquitquit-ends-the-process", exit: 3},
		{Name: "an exit code where the agent broke the protocol", By: "zds-add-without-info", exit: 2},
		{Name: "SIGTERM is not heard", By: "life-term-drains", deaf: true},
		{Name: "the deadline's warning is missing", By: "life-deadline-of-the-drain", line: without("drain duration expired")},
	}
}
