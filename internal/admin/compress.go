// SPDX-License-Identifier: Apache-2.0

package admin

import (
	"compress/gzip"
	"compress/zlib"
	"io"
	"net/http"
	"strconv"
	"strings"
)

// compress answers through the coding that the client likes best of those we
// have, gzip and deflate, and says so in the header. The caller closes the
// writer, which may be w itself. What is written must be long enough to be
// worth it.
func compress(w http.ResponseWriter, r *http.Request) io.WriteCloser {
	w.Header().Set("Vary", "accept-encoding")
	switch coding := bestCoding(r.Header.Values("Accept-Encoding")); coding {
	case "gzip":
		w.Header().Set("Content-Encoding", coding)
		return gzip.NewWriter(w)
	case "deflate": // which in HTTP is zlib (RFC 9110 8.4.1.2)
		w.Header().Set("Content-Encoding", coding)
		return zlib.NewWriter(w)
	default:
		return nopCloser{w}
	}
}

type nopCloser struct{ io.Writer }

func (nopCloser) Close() error { return nil }

// bestCoding picks by weight (RFC 9110 12.5.3), gzip of equals; empty means as
// it is. A weight of 0 forbids, and one that is malformed counts as 0.
func bestCoding(accept []string) string {
	best, bestWeight := "", 0.0
	for element := range strings.SplitSeq(strings.Join(accept, ","), ",") {
		coding, params, _ := strings.Cut(element, ";")
		coding = strings.ToLower(strings.TrimSpace(coding))
		if coding == "x-gzip" {
			coding = "gzip" // the same thing (RFC 9110 8.4.1.3)
		}
		if coding != "gzip" && coding != "deflate" {
			continue
		}
		weight := weightOf(params)
		if weight > bestWeight || weight == bestWeight && weight > 0 && coding == "gzip" {
			best, bestWeight = coding, weight
		}
	}
	return best
}

func weightOf(params string) float64 {
	value, found := strings.CutPrefix(strings.ToLower(strings.TrimSpace(params)), "q=")
	if !found {
		return 1
	}
	weight, err := strconv.ParseFloat(value, 64)
	if err != nil || !(weight >= 0 && weight <= 1) { // NaN is neither
		return 0
	}
	return weight
}
