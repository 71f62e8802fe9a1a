// SPDX-License-Identifier: Apache-2.0

// Package admin is the node proxy's three HTTP servers: admin (15000),
// metrics (15020) and readiness (15021), as operators, istioctl and kubelet
// know them (contract 13).
//
// What they show is handed in as values and functions; it asks no other room
// and changes nothing but the log filter and, when told, the life of the
// process. It renders internal/mesh values in the shape that istioctl reads.
// It imports internal/mesh and the standard library, and is the only package
// that serves net/http.
package admin

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"sync"
	"time"
)

const (
	// quiet is how long a connection may send nothing, be it new or between
	// two requests, and how long a request's header may take (contract 13).
	quiet = 2 * time.Second

	// maxHeader bounds a request's header. net/http reads 4 KiB beyond it
	// before it refuses, which makes the 8 KiB of the contract.
	maxHeader = 4 << 10
)

// A Server is one of the three. [Listen] binds it, [Server.Serve] starts it,
// [Server.Shutdown] ends it.
type Server struct {
	component string
	log       *slog.Logger
	listeners []net.Listener
	gate      *gate
	http      *http.Server
	loops     sync.WaitGroup // one accept loop to a listener; ends when it is closed
	stop      sync.Once
	err       error // of stop
}

// Listen binds all addresses or none. Connections wait in the kernel until
// Serve. component is admin, stats or readiness, as it is logged.
func Listen(component string, addrs []netip.AddrPort, logger *slog.Logger) (*Server, error) {
	s := &Server{component: component, log: logger, gate: newGate()}
	var cfg net.ListenConfig
	cfg.SetMultipathTCP(false)
	for _, addr := range addrs {
		l, err := cfg.Listen(context.Background(), "tcp", addr.String())
		if err != nil {
			s.closeListeners()
			return nil, fmt.Errorf("%s server starts: %w", component, err)
		}
		s.listeners = append(s.listeners, l)
	}
	return s, nil
}

// Addrs are the bound addresses, in the order they were asked for. A server on
// a Unix socket has none.
func (s *Server) Addrs() []netip.AddrPort {
	var addrs []netip.AddrPort
	for _, l := range s.listeners {
		if addr, ok := l.Addr().(*net.TCPAddr); ok {
			addrs = append(addrs, addr.AddrPort())
		}
	}
	return addrs
}

// Refused is how many connections found no room so far.
func (s *Server) Refused() uint64 { return s.gate.refused.Load() }

// Serve starts to answer with h and returns. It is called once.
func (s *Server) Serve(h http.Handler) {
	s.http = &http.Server{
		Handler:           strict{h},
		ReadHeaderTimeout: quiet,
		IdleTimeout:       quiet,
		MaxHeaderBytes:    maxHeader,
		Protocols:         new(http.Protocols),
		ErrorLog:          slog.NewLogLogger(s.log.Handler(), slog.LevelDebug),
	}
	s.http.Protocols.SetHTTP1(true)
	for _, l := range s.listeners {
		s.log.Info("listener established", slog.Any("address", l.Addr()), slog.String("component", s.component))
		s.loops.Go(func() {
			if err := s.http.Serve(gated{l, s.gate}); !errors.Is(err, http.ErrServerClosed) {
				s.log.Error("listener failed", slog.String("component", s.component), slog.Any("error", err))
			}
		})
	}
}

// Shutdown closes the listeners at once and waits for requests in flight until
// ctx ends; then it cuts them off. Later calls return what the first did.
func (s *Server) Shutdown(ctx context.Context) error {
	s.stop.Do(func() {
		if s.http == nil {
			s.closeListeners()
			return
		}
		if s.err = s.http.Shutdown(ctx); s.err != nil {
			s.http.Close()
		}
		s.loops.Wait()
		for _, l := range s.listeners {
			s.log.Info("listener drained", slog.Any("address", l.Addr()), slog.String("component", s.component))
		}
	})
	return s.err
}

func (s *Server) closeListeners() {
	for _, l := range s.listeners {
		l.Close()
	}
}

// strict answers as the reference does where net/http has its own ideas.
type strict struct{ next http.Handler }

func (s strict) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.ProtoMajor != 1 {
		// The preface of HTTP/2, which net/http hands on as a request. The
		// connection closes without a word (contract 13).
		panic(http.ErrAbortHandler)
	}
	if r.Body != http.NoBody {
		// Nobody reads it, but net/http, to find the next request behind it.
		_ = http.NewResponseController(w).SetReadDeadline(time.Now().Add(quiet)) // has one: only tests serve without a connection
	}
	s.next.ServeHTTP(w, r)
}

// cannedEnd is what stands behind the status line of the answers that net/http
// writes by itself, to what it cannot read as a request, and of no other, since
// handlers here never send this content type with this order.
const cannedEnd = "\r\nContent-Type: text/plain; charset=utf-8\r\nConnection: close\r\n\r\n"

// plainError replaces such an answer. It carries a text, and the contract wants
// none: `HTTP/1.1 400 Bad Request`, content-length 0, connection: close.
func plainError(b []byte) (answer []byte, is bool) {
	status, _, ok := bytes.Cut(b[:min(len(b), 256)], []byte(cannedEnd))
	if !ok || !bytes.HasPrefix(status, []byte("HTTP/1.1 ")) || bytes.Contains(status, []byte("\r\n")) {
		return nil, false
	}
	// What net/http adds to the reason ("400 Bad Request: missing Host") goes too.
	status, _, _ = bytes.Cut(status, []byte(": "))
	return fmt.Appendf(nil, "%s\r\ncontent-length: 0\r\nconnection: close\r\ndate: %s\r\n\r\n",
		status, time.Now().UTC().Format(http.TimeFormat)), true
}

// text answers in plain text; the contract has no charset.
func text(w http.ResponseWriter, status int, body string) {
	w.Header().Set("Content-Type", "text/plain")
	w.WriteHeader(status)
	w.Write([]byte(body)) // an error is the client's, who is gone
}

// paths answers by the exact path; all else is 404 and empty.
type paths map[string]http.HandlerFunc

func (p paths) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if h := p[r.URL.EscapedPath()]; h != nil {
		h(w, r)
		return
	}
	w.WriteHeader(http.StatusNotFound)
}
