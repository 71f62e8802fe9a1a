// SPDX-License-Identifier: Apache-2.0

package admin

import (
	"errors"
	"io"
	"log/slog"
	"net/http"
)

// An Exposition is where the metrics come from; internal/metrics has one.
type Exposition interface {
	// Expose writes all metrics. It writes what it can also when it returns
	// an error.
	Expose(io.Writer) error
}

// Stats serves the metrics (contract 12.1). contentType chooses the media type
// by the values of the Accept headers. The body is compressed as the client
// asks.
func Stats(e Exposition, contentType func(accept []string) string, logger *slog.Logger) http.Handler {
	scrape := func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", contentType(r.Header.Values("Accept")))
		body := compress(w, r)
		err := e.Expose(body)
		if err = errors.Join(err, body.Close()); err != nil && r.Context().Err() == nil {
			logger.Warn("metrics are incomplete", slog.Any("error", err))
		}
	}
	return paths{"/metrics": scrape, "/stats/prometheus": scrape}
}
