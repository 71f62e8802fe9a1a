// SPDX-License-Identifier: Apache-2.0

package admin

import (
	"compress/gzip"
	"compress/zlib"
	"io"
	"net/http"
	"net/http/httptest"
	"testing"
)

func TestBestCoding(t *testing.T) {
	for _, tc := range []struct {
		accept []string
		want   string
	}{
		{nil, ""},
		{[]string{""}, ""},
		{[]string{"identity"}, ""},
		{[]string{"br, zstd"}, ""},
		{[]string{"gzip"}, "gzip"},
		{[]string{"X-Gzip"}, "gzip"},
		{[]string{"deflate, gzip"}, "gzip"},
		{[]string{"deflate", "gzip;q=0.9"}, "deflate"},
		{[]string{"gzip;q=0, deflate ; q=0.1"}, "deflate"},
		{[]string{"gzip;q=0"}, ""},
		{[]string{"gzip;q=x, gzip;q=2, gzip;q=-1, gzip;q=NaN"}, ""},
		{[]string{"gzip;"}, "gzip"},
	} {
		if got := bestCoding(tc.accept); got != tc.want {
			t.Errorf("%q: %q, want %q", tc.accept, got, tc.want)
		}
	}
}

func TestStatsAreCompressed(t *testing.T) {
	const body = "# a body that is long enough to be worth it\n# EOF\n"
	h := Stats(exposition{body: body}, func([]string) string { return "t" }, quietLogger())
	for coding, open := range map[string]func(io.Reader) (io.Reader, error){
		"":        func(r io.Reader) (io.Reader, error) { return r, nil },
		"gzip":    func(r io.Reader) (io.Reader, error) { return gzip.NewReader(r) },
		"deflate": func(r io.Reader) (io.Reader, error) { return zlib.NewReader(r) },
	} {
		r := httptest.NewRequest(http.MethodGet, "/metrics", nil)
		r.Header.Set("Accept-Encoding", coding)
		w := httptest.NewRecorder()
		h.ServeHTTP(w, r)
		if got := w.Header().Get("Content-Encoding"); got != coding {
			t.Errorf("%q: coding %q", coding, got)
		}
		plain, err := open(w.Body)
		if err != nil {
			t.Fatal(err)
		}
		got, err := io.ReadAll(plain)
		if err != nil || string(got) != body {
			t.Errorf("%q: %q, %v", coding, got, err)
		}
	}
}
