// SPDX-License-Identifier: Apache-2.0

package admin

import (
	"compress/gzip"
	"compress/zlib"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/andybalholm/brotli"
	"github.com/klauspost/compress/zstd"

	"github.com/ztunnel-go/ztunnel/test/leak"
)

func TestBestCoding(t *testing.T) {
	for _, tc := range []struct {
		accept []string
		want   string
	}{
		{nil, "identity"},
		{[]string{""}, "identity"},
		{[]string{"identity"}, "identity"},
		{[]string{"identity, gzip;q=0.5"}, "identity"},
		{[]string{"compress, br, zstd"}, "zstd"},
		{[]string{"gzip, deflate, br"}, "br"},
		{[]string{"zstd;q=0.5, gzip"}, "gzip"},
		{[]string{"*"}, "zstd"},
		{[]string{"*, zstd;q=0"}, "br"},
		{[]string{"*;q=0"}, "identity"},
		{[]string{"gzip"}, "gzip"},
		{[]string{"X-Gzip"}, "gzip"},
		{[]string{"deflate, gzip"}, "gzip"},
		{[]string{"deflate", "gzip;q=0.9"}, "deflate"},
		{[]string{"gzip;q=0, deflate ; q=0.1"}, "deflate"},
		{[]string{"gzip;q=0"}, "identity"},
		{[]string{"gzip;q=x, gzip;q=2, gzip;q=-1, gzip;q=NaN"}, "identity"},
		{[]string{"gzip;"}, "gzip"},
	} {
		if got := bestCoding(tc.accept).name; got != tc.want {
			t.Errorf("%q: %q, want %q", tc.accept, got, tc.want)
		}
	}
}

func TestStatsAreCompressed(t *testing.T) {
	leak.Check(t) // no coding may keep goroutines
	body := strings.Repeat("# a body that is long enough for several blocks\n", 20_000) + "# EOF\n"
	h := Stats(exposition{body: body}, func([]string) string { return "t" }, quietLogger())
	for coding, open := range map[string]func(io.Reader) (io.Reader, error){
		"":        func(r io.Reader) (io.Reader, error) { return r, nil },
		"gzip":    func(r io.Reader) (io.Reader, error) { return gzip.NewReader(r) },
		"deflate": func(r io.Reader) (io.Reader, error) { return zlib.NewReader(r) },
		"br":      func(r io.Reader) (io.Reader, error) { return brotli.NewReader(r), nil },
		"zstd": func(r io.Reader) (io.Reader, error) {
			d, err := zstd.NewReader(r, zstd.WithDecoderConcurrency(1))
			if err == nil {
				t.Cleanup(d.Close)
			}
			return d, err
		},
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
			t.Errorf("%q: %d bytes, %v", coding, len(got), err)
		}
	}
}

func FuzzAcceptEncoding(f *testing.F) {
	for _, s := range []string{"", "gzip", "br;q=0.5, zstd;q=1.0", "*;q=0, identity", "gzip;q=NaN,x-gzip;q=1e-9", ";,;q=", "*"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		for _, accept := range []string{s, s[:len(s)/2]} {
			if c := bestCoding([]string{accept}); c.name == "" || c.start == nil {
				t.Errorf("%q leads nowhere", accept)
			}
		}
	})
}

func TestEveryPrefixOfAnAcceptEncodingIsUnderstood(t *testing.T) {
	const whole = "gzip;q=0.5, br;q=0.9, *;q=0.1, identity;q=0"
	for i := range len(whole) + 1 {
		if c := bestCoding([]string{whole[:i]}); c.start == nil {
			t.Errorf("%q leads nowhere", whole[:i])
		}
	}
}
