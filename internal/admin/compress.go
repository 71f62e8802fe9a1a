// SPDX-License-Identifier: Apache-2.0

package admin

import (
	"compress/gzip"
	"compress/zlib"
	"io"
	"net/http"
	"strconv"
	"strings"

	"github.com/andybalholm/brotli"
	"github.com/klauspost/compress/zstd"
)

// brotliLevel and the fastest levels of the others: a scrape has many bytes,
// which repeat much, and the node's processors are the pods'.
const brotliLevel = 2

// codings are those that we have (contract 12.1). Of equals the last is taken,
// as the reference does.
func codings() []coding {
	return []coding{
		{"identity", func(w io.Writer) (io.WriteCloser, error) { return nopCloser{w}, nil }},
		{"deflate", func(w io.Writer) (io.WriteCloser, error) { // which in HTTP is zlib (RFC 9110 8.4.1.2)
			return zlib.NewWriterLevel(w, zlib.BestSpeed)
		}},
		{"gzip", func(w io.Writer) (io.WriteCloser, error) { return gzip.NewWriterLevel(w, gzip.BestSpeed) }},
		{"br", func(w io.Writer) (io.WriteCloser, error) { return brotli.NewWriterLevel(w, brotliLevel), nil }},
		{"zstd", func(w io.Writer) (io.WriteCloser, error) {
			// Without goroutines of its own, which nobody would wait for.
			return zstd.NewWriter(w, zstd.WithEncoderLevel(zstd.SpeedFastest),
				zstd.WithEncoderConcurrency(1), zstd.WithLowerEncoderMem(true))
		}},
	}
}

// A coding is one way to compress.
type coding struct {
	name  string
	start func(io.Writer) (io.WriteCloser, error)
}

// compress answers through the coding that the client likes best of those we
// have, and says so in the header. The caller closes the writer, which may be
// w itself. What is written must be long enough to be worth it.
func compress(w http.ResponseWriter, r *http.Request) io.WriteCloser {
	w.Header().Set("Vary", "accept-encoding")
	best := bestCoding(r.Header.Values("Accept-Encoding"))
	body, err := best.start(w)
	if err != nil { // an option that a library does not know; a test would have told
		return nopCloser{w}
	}
	if best.name != "identity" {
		w.Header().Set("Content-Encoding", best.name)
	}
	return body
}

type nopCloser struct{ io.Writer }

func (nopCloser) Close() error { return nil }

// bestCoding picks by weight (RFC 9110 12.5.3); * stands for all that are not
// named. A weight of 0 forbids, and one that is malformed counts as 0. Where
// nothing is left the answer is as it is: better than none.
func bestCoding(accept []string) coding {
	weights := map[string]float64{}
	for element := range strings.SplitSeq(strings.Join(accept, ","), ",") {
		name, params, _ := strings.Cut(element, ";")
		name = strings.ToLower(strings.TrimSpace(name))
		if name == "x-gzip" {
			name = "gzip" // the same thing (RFC 9110 8.4.1.3)
		}
		weights[name] = max(weights[name], weightOf(params))
	}
	all := codings()
	best, most := all[0], 0.0
	for _, c := range all {
		weight, named := weights[c.name]
		if !named {
			weight = weights["*"]
		}
		if weight > 0 && weight >= most {
			best, most = c, weight
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
