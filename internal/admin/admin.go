// SPDX-License-Identifier: Apache-2.0

package admin

import (
	"fmt"
	"html"
	"log/slog"
	"net/http"
	"net/netip"
	"slices"
	"strings"
)

// Pages are what the admin server (15000) shows and does (contract 13.3, and
// some /debug pages of ours). A page whose function is nil is not there.
type Pages struct {
	Dump Dump

	// Log is behind /logging.
	Log LogFilter

	// Shutdown begins the end of the process and returns at once. It may be
	// called more than once.
	Shutdown func()

	// Route explains in lines of text where a connection from src to dst
	// would go. Its error is shown to the caller as it is.
	Route func(src netip.Addr, dst netip.AddrPort) ([]string, error)

	// Explain says what would become of a connection between two ends that
	// people name, as a value to show as JSON. Its error is the caller's.
	Explain func(from, to string) (any, error)

	// Live, Pods and BPF return values to show as JSON: open connections,
	// enrolled pods, the state of capture.
	Live, Pods, BPF func() any

	Logger *slog.Logger
}

// A page is one line of the table on the first page.
type page struct {
	path, about string
	handler     http.HandlerFunc
}

// Handler serves the pages.
func (p Pages) Handler() http.Handler {
	pages := []page{{"/config_dump", "everything the proxy knows, as JSON", few(maxDumps, p.Dump.serve)}}
	pages = append(pages, new(profiler).pages()...)
	add := func(there bool, path, about string, h http.HandlerFunc) {
		if there {
			pages = append(pages, page{path, about, h})
		}
	}
	add(p.Log != nil, "/logging", "POST: show or change what is logged", logging(p.Log, p.Logger))
	add(p.Shutdown != nil, "/quitquitquit", "POST: drain and exit", p.quit)
	add(p.Route != nil, "/debug/route", "?src=&lt;pod ip&gt;&amp;dst=&lt;ip:port&gt;: where a connection would go, and why", p.route)
	add(p.Explain != nil, "/debug/explain", "?src=&lt;namespace/pod&gt;&amp;dst=&lt;name:port&gt;: what would become of a connection, as JSON", p.explain)
	add(p.Live != nil, "/debug/live", "open connections", show(p.Live))
	add(p.Pods != nil, "/debug/pods", "enrolled pods", show(p.Pods))
	add(p.BPF != nil, "/debug/bpf", "the capture programs", show(p.BPF))

	all := paths{"/": dashboard(pages)}
	for _, page := range pages {
		all[page.path] = page.handler
	}
	return all
}

func dashboard(pages []page) http.HandlerFunc {
	var b strings.Builder
	b.WriteString("<!DOCTYPE html>\n<html>\n<head><title>ztunnel</title></head>\n<body>\n<h1>ztunnel</h1>\n<table>\n")
	for _, p := range pages {
		path := html.EscapeString(p.path)
		fmt.Fprintf(&b, "<tr><td><a href=\"%s\">%s</a></td><td>%s</td></tr>\n", path, path, p.about)
	}
	b.WriteString("</table>\n</body>\n</html>\n")
	body := []byte(b.String())
	return func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/html; charset=utf-8")
		w.Write(body)
	}
}

func (p Pages) quit(w http.ResponseWriter, r *http.Request) {
	if r.Method != http.MethodPost {
		w.WriteHeader(http.StatusMethodNotAllowed)
		return
	}
	text(w, http.StatusOK, "shutdown now\n")
	p.Shutdown()
}

func (p Pages) route(w http.ResponseWriter, r *http.Request) {
	query := r.URL.Query()
	src, err := netip.ParseAddr(query.Get("src"))
	if err != nil {
		text(w, http.StatusBadRequest, fmt.Sprintf("invalid src: %v\n", err))
		return
	}
	dst, err := netip.ParseAddrPort(query.Get("dst"))
	if err != nil {
		text(w, http.StatusBadRequest, fmt.Sprintf("invalid dst: %v\n", err))
		return
	}
	lines, err := p.Route(src.Unmap(), netip.AddrPortFrom(dst.Addr().Unmap(), dst.Port()))
	lines = slices.Clip(lines)
	if err != nil {
		lines = append(lines, "error: "+err.Error())
	}
	text(w, http.StatusOK, strings.Join(lines, "\n")+"\n")
}

func (p Pages) explain(w http.ResponseWriter, r *http.Request) {
	query := r.URL.Query()
	answer, err := p.Explain(query.Get("src"), query.Get("dst"))
	if err != nil {
		text(w, http.StatusBadRequest, err.Error()+"\n")
		return
	}
	writeJSON(w, answer)
}

// show answers with a value as JSON.
func show(value func() any) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) { writeJSON(w, value()) }
}
