// SPDX-License-Identifier: Apache-2.0

package admin

import (
	"bytes"
	"compress/gzip"
	"io"
	"net/http"
	"runtime/pprof"
	"testing"
)

func TestProfiles(t *testing.T) {
	h := Pages{Logger: quietLogger()}.Handler()
	const off = "heap profiling not active; activate with /debug/pprof/heap/profiling?activate=true"
	for _, tc := range []struct {
		path   string
		status int
		body   string // empty: a profile
	}{
		{"/profile?seconds=0", 400, "invalid seconds value; expected 1-300\n"},
		{"/profile?seconds=301", 400, "invalid seconds value; expected 1-300\n"},
		{"/profile?seconds=", 400, "invalid seconds value; expected 1-300\n"},
		{"/profile?seconds=1&frequency=0", 400, "invalid frequency value; expected 1-1000\n"},
		{"/profile?seconds=1&frequency=1001", 400, "invalid frequency value; expected 1-1000\n"},
		{"/profile?seconds=1", 200, ""},
		{"/profile?seconds=1&frequency=50", 200, ""},
		{"/heap", 200, ""},
		{"/allocs", 200, ""},
		{"/goroutine", 200, ""},
		{"/heap/profiling", 200, "heap profiling active: true\n"},
		{"/heap/profiling?activate=false", 200, "heap profiling active: false\n"},
		{"/heap", 500, off},
		{"/heap/profiling?activate=x", 400, "invalid activate value \"x\"; expected true or false\n"},
		{"/heap/profiling?activate=", 400, "invalid activate value \"\"; expected true or false\n"},
		{"/heap/profiling?activate=true", 200, "heap profiling active: true\n"},
		{"/heap", 200, ""},
		{"/", 404, ""},
	} {
		got := get(h, http.MethodPost, "/debug/pprof"+tc.path)
		if got.Code != tc.status || tc.body != "" && got.Body.String() != tc.body {
			t.Errorf("%s: %d %.200q", tc.path, got.Code, got.Body)
		}
		if tc.status == 200 && tc.body == "" {
			if types := got.Header()["Content-Type"]; len(types) != 0 {
				t.Errorf("%s: content type %q", tc.path, types)
			}
			isProfile(t, tc.path, got.Body.Bytes())
		}
	}
}

// isProfile looks for the compressed form that pprof reads.
func isProfile(t *testing.T, path string, body []byte) {
	t.Helper()
	z, err := gzip.NewReader(bytes.NewReader(body))
	if err != nil {
		t.Errorf("%s: %v", path, err)
		return
	}
	if text, err := io.ReadAll(z); err != nil || !bytes.Contains(text, []byte("count")) {
		t.Errorf("%s: %d bytes, %v", path, len(text), err)
	}
}

func TestTwoProfilesAtATimeAreOneTooMany(t *testing.T) {
	var first bytes.Buffer
	if err := startCPU(&first, usualFrequency); err != nil {
		t.Fatal(err)
	}
	got := get(Pages{Logger: quietLogger()}.Handler(), http.MethodGet, "/debug/pprof/profile?seconds=1")
	pprof.StopCPUProfile()
	if got.Code != 500 || got.Body.String() != "cpu profiling already in use" {
		t.Errorf("%d %q", got.Code, got.Body)
	}
}
