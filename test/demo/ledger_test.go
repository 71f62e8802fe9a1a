// SPDX-License-Identifier: Apache-2.0

package main

import (
	"slices"
	"strings"
	"testing"
)

const aScrape = `# HELP istio_tcp_connections_opened The total number of TCP connections opened.
# TYPE istio_tcp_connections_opened counter
istio_tcp_connections_opened_total{reporter="source",source_workload="client",source_cluster="lab",response_flags="-"} 3
istio_tcp_connections_opened_total{reporter="source",source_workload="client",source_cluster="other",response_flags="-"} 4
# HELP istio_tcp_sent_bytes The size of total bytes sent during response in case of a TCP connection.
# TYPE istio_tcp_sent_bytes counter
istio_tcp_sent_bytes_total{reporter="source",source_workload="client",response_flags="-"} 1073741824
# TYPE istio_tcp_sockets_open gauge
istio_tcp_sockets_open{reporter="source"} 0
# EOF
`

func TestParseScrape(t *testing.T) {
	labels := []string{"reporter", "source_workload"}
	got, err := parseScrape("n", aScrape, []string{opened, sent}, labels)
	if err != nil {
		t.Fatal(err)
	}
	want := map[series]int64{
		{"n", opened, "reporter=source,source_workload=client"}: 7, // series that differ elsewhere add up
		{"n", sent, "reporter=source,source_workload=client"}:   1 << 30,
	}
	if d := differences(want, got); len(d) > 0 {
		t.Error(strings.Join(d, "\n"))
	}
	for _, bad := range []string{"istio_tcp_sent_bytes_total{", "istio_tcp_sent_bytes_total 1.5\n", "istio_tcp_sent_bytes_total -1\n"} {
		if _, err := parseScrape("n", bad, []string{sent}, nil); err == nil {
			t.Errorf("%q was taken", bad)
		}
	}
}

func TestDifferences(t *testing.T) {
	a, b, c := series{"n", "a", ""}, series{"n", "b", ""}, series{"n", "c", ""}
	want := map[series]int64{a: 1, b: 2}
	if d := differences(want, map[series]int64{a: 1, b: 2}); len(d) > 0 {
		t.Errorf("equal, but %v", d)
	}
	got := differences(want, map[series]int64{a: 2, c: 0})
	for i, part := range []string{"a{} is 2, want 1", "b{} is missing, want 2", "c{} is 0, and nobody did that"} {
		if len(got) != 3 || !strings.Contains(got[i], part) {
			t.Errorf("%v, want %q among them", got, part)
		}
	}
	if len(want) != 2 {
		t.Error("want was changed")
	}
}

func TestLedger(t *testing.T) {
	l := newLedger()
	v := view{node: "n", reporter: "source", source: "client", destination: "server"}
	l.connection(v, noFlags, 10, 20)
	l.connection(v, noFlags, 1, 2)
	l.connection(v, "DENY", 0, 0)
	want := map[series]int64{
		{"n", opened, v.labels(noFlags)}:   3,
		{"n", received, v.labels(noFlags)}: 11,
		{"n", sent, v.labels(noFlags)}:     22,
		{"n", closed, v.labels(noFlags)}:   2,
		{"n", closed, v.labels("DENY")}:    1,
		{"n", failed, v.labels("DENY")}:    1,
	}
	if d := differences(want, l.total()); len(d) > 0 {
		t.Error(strings.Join(d, "\n"))
	}
}

// TestLabelsAreThoseOfTheScrape holds the two lists together: the labels that
// are kept of a scrape and those that the ledger writes.
func TestLabelsAreThoseOfTheScrape(t *testing.T) {
	l := newLedger()
	l.query("n", asked, "a", "udp", "client")
	var query string
	for s := range l.total() {
		query = s.labels
	}
	for text, names := range map[string][]string{view{}.labels(noFlags): trafficLabels(), query: dnsLabels()} {
		var kept []string
		for part := range strings.SplitSeq(text, ",") {
			name, _, _ := strings.Cut(part, "=")
			kept = append(kept, name)
		}
		slices.Sort(names)
		if !slices.Equal(kept, names) {
			t.Errorf("the ledger has %v, the scrape %v", kept, names)
		}
	}
}

func TestViews(t *testing.T) {
	mesh := func(node string) *pod { return &pod{node: node, known: true, captured: true} }
	stranger, legacy := &pod{node: "1"}, &pod{node: "2", known: true}
	for _, tc := range []struct {
		name     string
		from     *pod
		to       *pod
		reporter string // of each view, with its node
		security string
	}{
		{"in the mesh", mesh("1"), mesh("2"), "1 source, 2 destination", "mutual_tls"},
		{"on one node", mesh("2"), mesh("2"), "2 source, 2 destination", "mutual_tls"},
		{"to nobody known", mesh("1"), nil, "1 source", unknown},
		{"to a pod out of the mesh", mesh("1"), legacy, "1 source", unknown},
		{"from a pod out of the mesh", stranger, mesh("2"), "2 destination", unknown},
		{"not ours at all", stranger, legacy, "", ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var got []string
			for _, v := range views(tc.from, target{pod: tc.to}) {
				got = append(got, v.node+" "+v.reporter)
				if v.security != tc.security {
					t.Errorf("%s says %s", v.reporter, v.security)
				}
			}
			if s := strings.Join(got, ", "); s != tc.reporter {
				t.Errorf("views of %q, want %q", s, tc.reporter)
			}
		})
	}
}
