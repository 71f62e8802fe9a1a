// SPDX-License-Identifier: Apache-2.0

package admin

import (
	"log/slog"
	"net/http"
)

// A LogFilter is what /logging shows and changes; logs.Log is one.
type LogFilter interface {
	Filter() string              // in canonical form
	Append(clauses string) error // later clauses win
	Reset()                      // to the filter of the start
}

const loggingHelp = `usage: POST /logging                               show the filter in force
usage: POST /logging?level=<level>                 change the level of everything
usage: POST /logging?level=<target>=<level>,...    change the level of some targets, such as access or ztunnel::proxy
usage: POST /logging?reset                         return to the filter of the start
levels: off, error, warn, info, debug, trace
`

// logging implements contract 13.5. The body is ignored: parameters come in
// the query alone.
func logging(f LogFilter, logger *slog.Logger) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		if r.Method != http.MethodPost {
			text(w, http.StatusMethodNotAllowed, "Invalid HTTP method\n "+loggingHelp)
			return
		}
		query := r.URL.Query()
		reset, level := query.Has("reset"), query.Get("level")
		if reset {
			f.Reset()
		}
		if level != "" {
			if err := f.Append(level); err != nil {
				text(w, http.StatusBadRequest, "Invalid level provided: "+level+"\n"+loggingHelp)
				return
			}
		}
		now := f.Filter()
		if reset || level != "" {
			logger.Info("new log filter is " + now)
		}
		text(w, http.StatusOK, "current log level is "+now+"\n")
	}
}
