// SPDX-License-Identifier: Apache-2.0

package report

import (
	"bytes"
	"errors"
	"os"
	"regexp"
	"testing"
	"time"

	"github.com/ztunnel-go/ztunnel/dataplane/reason"
	"github.com/ztunnel-go/ztunnel/internal/identity"
	"github.com/ztunnel-go/ztunnel/internal/logs"
	"github.com/ztunnel-go/ztunnel/internal/metrics"
)

// The files are written by hand from contract 14.2 to 14.4. Times and durations
// are T and 0ms there.
func TestAccessLinesInBothFormats(t *testing.T) {
	for file, json := range map[string]bool{"access.txt": false, "access.json": true} {
		t.Run(file, func(t *testing.T) {
			var out bytes.Buffer
			log, err := logs.New(logs.Config{Output: &out, JSON: json, Filter: "access=debug"})
			if err != nil {
				t.Fatal(err)
			}
			every(New(NewMetrics(metrics.New("unknown")), log.Logger()))
			if err := log.Close(); err != nil {
				t.Fatal(err)
			}
			want, err := os.ReadFile("testdata/" + file)
			if err != nil {
				t.Fatal(err)
			}
			got := regexp.MustCompile(`\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z`).ReplaceAllString(out.String(), "T")
			got = regexp.MustCompile(`"\d+ms"`).ReplaceAllString(got, `"0ms"`)
			if got != string(want) {
				t.Errorf("got:\n%s\nwant:\n%s", got, want)
			}
		})
	}
}

// The file has what TestAccessLinesInBothFormats has for a connection that has
// ended well, with all that can be asked for.
func TestAccessLinesWithExtras(t *testing.T) {
	b := newBench(t, "access=info")
	c := b.Reporter.With(Extras{Reasons: true, TCPInfo: true}).Open(outbound())
	c.Ended(Ends{
		First: "upstream", Upstream: End{How: "rst"},
		Client: End{How: "open", Known: true, SRTT: 1500 * time.Microsecond, MinRTT: time.Millisecond, Retransmits: 3, Lost: 1},
	})
	c.Close(reason.CopyFailed, errors.New("x"))
	want, err := os.ReadFile("testdata/access_extras.txt")
	if err != nil {
		t.Fatal(err)
	}
	if got := regexp.MustCompile(`"\d+ms"`).ReplaceAllString(b.lines(), `"0ms"`); got != string(want) {
		t.Errorf("got:\n%s\nwant:\n%s", got, want)
	}
}

// every is a connection of each kind that has a line of its own: a tunnel seen
// from both sides, plaintext that failed, a stranger, and an early deny.
func every(r *Reporter) {
	c := r.Open(outbound())
	c.AddReceived(100)
	c.AddSent(7)
	c.Close(reason.Ended, nil)
	c = r.Open(inbound())
	c.AddReceived(100)
	c.AddSent(7)
	c.Close(reason.PolicyDenied, errors.New("connection closed due to policy rejection: explicitly denied by: b/p"))
	plain := inbound()
	plain.MutualTLS, plain.HBONEAddr, plain.SourceIdentity, plain.Source = false, "", identity.ID{}, nil
	plain.Dst = addrPort("[2001:db8::2]:80")
	r.Open(plain).Close(reason.Ended, nil)
	r.Open(Params{Reporter: Source, Src: addrPort("10.0.0.1:4000"), Dst: addrPort("192.0.2.1:80")}).Close(reason.ConnectRefused, errors.New("x: \"y\""))
	r.Denied(Early{Reporter: Destination, Src: addrPort("10.0.0.1:4000"), Dst: addrPort("10.0.0.2:15001"), Err: errors.New("attempted recursive call to ourselves")})
}
