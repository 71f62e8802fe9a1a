// SPDX-License-Identifier: Apache-2.0

package admin

import (
	"bytes"
	"errors"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"testing"

	"github.com/ztunnel-go/ztunnel/internal/logs"
)

// get asks a handler without a socket between.
func get(h http.Handler, method, target string) *httptest.ResponseRecorder {
	w := httptest.NewRecorder()
	h.ServeHTTP(w, httptest.NewRequest(method, target, nil))
	return w
}

func TestPages(t *testing.T) {
	quits := 0
	p := Pages{
		Shutdown: func() { quits++ },
		Route: func(src netip.Addr, dst netip.AddrPort) ([]string, error) {
			if dst.Port() == 1 {
				return []string{"a step"}, errors.New("no healthy upstream")
			}
			return []string{src.String() + " to " + dst.String(), "direct"}, nil
		},
		Explain: func(from, to string) (any, error) {
			if to == "" {
				return nil, errors.New("nobody is named \"\"")
			}
			return map[string]string{"from": from, "to": to}, nil
		},
		Live:   func() any { return map[string]int{"n": 1} },
		BPF:    func() any { return func() {} }, // has no JSON
		Logger: quietLogger(),
	}
	h := p.Handler()
	for _, tc := range []struct {
		method, target string
		status         int
		body           string
	}{
		{"GET", "/quitquitquit", 405, ""},
		{"POST", "/quitquitquit", 200, "shutdown now\n"},
		{"GET", "/debug/route?src=10.0.0.1&dst=10.0.0.2:80", 200, "10.0.0.1 to 10.0.0.2:80\ndirect\n"},
		{"GET", "/debug/route?src=::ffff:10.0.0.1&dst=[::ffff:10.0.0.2]:80", 200, "10.0.0.1 to 10.0.0.2:80\ndirect\n"},
		{"GET", "/debug/route?src=10.0.0.1&dst=10.0.0.2:1", 200, "a step\nerror: no healthy upstream\n"},
		{"GET", "/debug/route?dst=10.0.0.2:1", 400, "invalid src: ParseAddr(\"\"): unable to parse IP\n"},
		{"GET", "/debug/route?src=10.0.0.1&dst=10.0.0.2", 400, "invalid dst: not an ip:port\n"},
		{"GET", "/debug/explain?src=ns/a&dst=b:80", 200, "{\n  \"from\": \"ns/a\",\n  \"to\": \"b:80\"\n}"},
		{"GET", "/debug/explain?src=ns/a", 400, "nobody is named \"\"\n"},
		{"GET", "/debug/live", 200, "{\n  \"n\": 1\n}"},
		{"GET", "/debug/bpf", 500, "json: unsupported type: func()"},
		{"GET", "/debug/pods", 404, ""},
		{"GET", "/logging", 404, ""},
		{"GET", "/config_dump/", 404, ""},
		{"GET", "/%2fconfig_dump", 404, ""},
	} {
		got := get(h, tc.method, tc.target)
		if got.Code != tc.status || got.Body.String() != tc.body {
			t.Errorf("%s %s: %d %q, want %d %q", tc.method, tc.target, got.Code, got.Body, tc.status, tc.body)
		}
	}
	if quits != 1 {
		t.Errorf("asked to quit %d times", quits)
	}
	first := get(h, "POST", "/")
	if first.Code != 200 || first.Header().Get("Content-Type") != "text/html; charset=utf-8" {
		t.Errorf("/: %d %v", first.Code, first.Header())
	}
	for _, path := range []string{"/config_dump", "/quitquitquit", "/debug/route", "/debug/live", "/debug/bpf"} {
		if !strings.Contains(first.Body.String(), `<a href="`+path+`">`) {
			t.Errorf("the first page has no %s", path)
		}
	}
}

func TestLogging(t *testing.T) {
	log, err := logs.New(logs.Config{Output: &bytes.Buffer{}})
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	var out bytes.Buffer
	h := Pages{Log: log, Logger: slog.New(slog.NewTextHandler(&out, nil))}.Handler()
	const start = "current log level is hickory_server::server=off,info\n"
	for _, tc := range []struct {
		method, query string
		status        int
		body, logged  string
	}{
		{"POST", "", 200, start, ""},
		{"POST", "?level=", 200, start, ""},
		{"POST", "?level=access=debug,warn", 200, "current log level is hickory_server::server=off,access=debug,warn\n", "new log filter is hickory_server::server=off,access=debug,warn"},
		{"POST", "?level=ztunnel::proxy=trace", 200, "current log level is hickory_server::server=off,ztunnel::proxy=trace,access=debug,warn\n", "new log filter is"},
		{"POST", "?level=access:debug", 400, "Invalid level provided: access:debug\n" + loggingHelp, ""},
		{"POST", "?level=access", 400, "Invalid level provided: access\n" + loggingHelp, ""},
		{"POST", "?level=INFO", 400, "Invalid level provided: INFO\n" + loggingHelp, ""},
		{"GET", "?level=info", 405, "Invalid HTTP method\n " + loggingHelp, ""},
		{"POST", "?reset&level=error", 200, "current log level is hickory_server::server=off,error\n", "new log filter is"},
		{"POST", "?reset", 200, start, "new log filter is"},
	} {
		out.Reset()
		got := get(h, tc.method, "/logging"+tc.query)
		if got.Code != tc.status || got.Body.String() != tc.body || got.Header().Get("Content-Type") != "text/plain" {
			t.Errorf("%s %s: %d %q", tc.method, tc.query, got.Code, got.Body)
		}
		if (tc.logged == "") != (out.Len() == 0) || !strings.Contains(out.String(), tc.logged) {
			t.Errorf("%s %s logged %q", tc.method, tc.query, out.String())
		}
	}
}
