// SPDX-License-Identifier: Apache-2.0

package admin

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/ztunnel-go/ztunnel/test/leak"
)

func quietLogger() *slog.Logger { return slog.New(slog.DiscardHandler) }

// serve starts a server on a loopback port and returns its address.
func serve(t *testing.T, h http.Handler) netip.AddrPort {
	t.Helper()
	leak.Check(t)
	s, err := Listen("admin", []netip.AddrPort{netip.MustParseAddrPort("127.0.0.1:0")}, quietLogger())
	if err != nil {
		t.Fatal(err)
	}
	s.Serve(h)
	t.Cleanup(func() {
		if err := s.Shutdown(context.Background()); err != nil {
			t.Error(err)
		}
	})
	return s.Addrs()[0]
}

// exchange sends bytes and returns everything until the server closes. It
// half-closes first when asked to.
func exchange(t *testing.T, addr netip.AddrPort, send string, halfClose bool) string {
	t.Helper()
	got, err := talk(addr, send, halfClose)
	if err != nil {
		t.Fatalf("after %q: %v", got, err)
	}
	return regexp.MustCompile(`(?i)date: [^\r]+ GMT`).ReplaceAllString(got, "date: D")
}

func talk(addr netip.AddrPort, send string, halfClose bool) (string, error) {
	c, err := net.DialTCP("tcp", nil, net.TCPAddrFromAddrPort(addr))
	if err != nil {
		return "", err
	}
	defer c.Close()
	if _, err := io.WriteString(c, send); err != nil {
		return "", err
	}
	if halfClose {
		if err := c.CloseWrite(); err != nil {
			return "", err
		}
	}
	if err := c.SetReadDeadline(time.Now().Add(10 * time.Second)); err != nil {
		return "", err
	}
	got, err := io.ReadAll(c)
	if err != nil && isReset(err) {
		err = nil
	}
	return string(got), err
}

func isReset(err error) bool { return strings.Contains(err.Error(), "connection reset") }

func hello() http.Handler {
	return paths{"/hello": func(w http.ResponseWriter, _ *http.Request) { text(w, http.StatusOK, "hello\n") }}
}

func TestManners(t *testing.T) {
	addr := serve(t, hello())
	const bad = "HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\nconnection: close\r\ndate: D\r\n\r\n"
	for _, tc := range []struct {
		name, send string
		halfClose  bool
		want       string
	}{
		{"a page", "GET /hello?a=b HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", false,
			"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\ndate: D\r\nContent-Length: 6\r\nConnection: close\r\n\r\nhello\n"},
		{"half-closed", "GET /hello HTTP/1.0\r\n\r\n", true,
			"HTTP/1.0 200 OK\r\nContent-Type: text/plain\r\ndate: D\r\nContent-Length: 6\r\n\r\nhello\n"},
		{"no such page", "GET /hello/ HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", false,
			"HTTP/1.1 404 Not Found\r\ndate: D\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"},
		{"the path as it is", "GET //hello HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", false,
			"HTTP/1.1 404 Not Found\r\ndate: D\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"},
		{"no HTTP at all", "hello\r\n\r\n", false, bad},
		{"no version", "GET /hello\r\n\r\n", false, bad},
		{"TLS", "\x16\x03\x01\x00\x05hello\r\n\r\n", false, bad},
		{"a bad header", "GET /hello HTTP/1.1\r\nHost: x\r\nb ad: x\r\n\r\n", false, bad},
		{"the preface of HTTP/2", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", false, ""},
		{"a header beyond 8 KiB", "GET /hello HTTP/1.1\r\nHost: x\r\na: " + strings.Repeat("a", 9<<10) + "\r\n\r\n", false,
			"HTTP/1.1 431 Request Header Fields Too Large\r\ncontent-length: 0\r\nconnection: close\r\ndate: D\r\n\r\n"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			got := exchange(t, addr, tc.send, tc.halfClose)
			got = regexp.MustCompile(`(?m)^Date: `).ReplaceAllString(got, "date: ")
			if got != tc.want {
				t.Errorf("got  %q\nwant %q", got, tc.want)
			}
		})
	}
}

func TestQuietConnectionsAreClosed(t *testing.T) {
	addr := serve(t, hello())
	for name, send := range map[string]string{
		"fresh":       "",
		"half header": "GET /hello HTTP/1.1\r\nHo",
		"idle":        "GET /hello HTTP/1.1\r\nHost: x\r\n\r\n",
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			start := time.Now()
			got := exchange(t, addr, send, false)
			if took := time.Since(start); took < quiet*9/10 || took > 3*quiet {
				t.Errorf("closed after %v", took)
			}
			if answered := strings.HasSuffix(got, "hello\n"); answered != (name == "idle") {
				t.Errorf("%q", got)
			}
			if name == "fresh" && got != "" {
				t.Errorf("%q", got)
			}
		})
	}
}

func TestShutdownLetsRequestsFinish(t *testing.T) {
	leak.Check(t)
	entered, finish := make(chan struct{}), make(chan struct{})
	var out bytes.Buffer
	s, err := Listen("stats", []netip.AddrPort{netip.MustParseAddrPort("127.0.0.1:0")}, slog.New(slog.NewTextHandler(&out, nil)))
	if err != nil {
		t.Fatal(err)
	}
	s.Serve(paths{"/": func(w http.ResponseWriter, _ *http.Request) {
		close(entered)
		<-finish
		text(w, http.StatusOK, "done")
	}})
	addr := s.Addrs()[0]
	answer := make(chan string)
	go func() {
		got, _ := talk(addr, "GET / HTTP/1.1\r\nHost: x\r\n\r\n", false)
		answer <- got
	}()
	<-entered
	down := make(chan error)
	go func() { down <- s.Shutdown(context.Background()) }()
	for { // the listener closes at once
		c, err := net.Dial("tcp", addr.String())
		if err != nil {
			break
		}
		c.Close()
		time.Sleep(time.Millisecond)
	}
	close(finish)
	if got := <-answer; !strings.HasSuffix(got, "done") {
		t.Errorf("%q", got)
	}
	if err := <-down; err != nil {
		t.Error(err)
	}
	if got := out.String(); !strings.Contains(got, `msg="listener established" address=`+addr.String()+" component=stats") ||
		!strings.Contains(got, `msg="listener drained" address=`+addr.String()+" component=stats") {
		t.Error(got)
	}
}

func TestShutdownInsistsWhenItsContextEnds(t *testing.T) {
	leak.Check(t)
	entered := make(chan struct{})
	s, err := Listen("admin", []netip.AddrPort{netip.MustParseAddrPort("127.0.0.1:0")}, quietLogger())
	if err != nil {
		t.Fatal(err)
	}
	s.Serve(paths{"/": func(_ http.ResponseWriter, r *http.Request) {
		close(entered)
		<-r.Context().Done()
	}})
	go talk(s.Addrs()[0], "GET / HTTP/1.1\r\nHost: x\r\n\r\n", false)
	<-entered
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if err := s.Shutdown(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("Shutdown = %v", err)
	}
	if err := s.Shutdown(context.Background()); !errors.Is(err, context.Canceled) {
		t.Errorf("the second Shutdown = %v", err)
	}
}

func TestAllAddressesAreBoundOrNone(t *testing.T) {
	leak.Check(t)
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	_, err = Listen("admin", []netip.AddrPort{
		netip.MustParseAddrPort("127.0.0.1:0"),
		netip.MustParseAddrPort(taken.Addr().String()),
	}, quietLogger())
	if err == nil || !strings.HasPrefix(err.Error(), "admin server starts: ") {
		t.Errorf("err = %v", err)
	}
	s, err := Listen("admin", []netip.AddrPort{netip.MustParseAddrPort("127.0.0.1:0")}, quietLogger())
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Shutdown(context.Background()); err != nil { // before Serve
		t.Error(err)
	}
}

func TestReadiness(t *testing.T) {
	var out bytes.Buffer
	tasks := NewTasks(slog.New(slog.NewTextHandler(&out, nil)))
	h := Readiness(tasks)
	state, proxy := tasks.Register(TaskState), tasks.Register(TaskProxy)
	inpod := tasks.Register(TaskInPod)
	for _, tc := range []struct {
		do     func()
		status int
		body   string
	}{
		{func() {}, 500, "not ready, pending: proxy, state manager, workload proxy manager\n"},
		{state.Done, 500, "not ready, pending: proxy, workload proxy manager\n"},
		{func() { proxy.Done(); proxy.Done(); inpod.Done() }, 200, "ready\n"},
		{inpod.Pending, 500, "not ready, pending: workload proxy manager\n"},
		{func() {
			inpod.Explain(func() []string { return []string{"ns/p: Up: outbound canary: refused", "and 3 more"} })
		},
			500, "not ready, pending: workload proxy manager\nns/p: Up: outbound canary: refused\nand 3 more\n"},
		{inpod.Done, 200, "ready\n"},
	} {
		tc.do()
		got := get(h, http.MethodGet, "/healthz/ready")
		if got.Code != tc.status || got.Body.String() != tc.body {
			t.Errorf("%d %q, want %d %q", got.Code, got.Body, tc.status, tc.body)
		}
	}
	for _, line := range []string{
		`Task 'state manager' complete \([^)]+\), still awaiting 2 tasks`,
		`Task 'workload proxy manager' complete \([^)]+\), marking server ready`,
	} {
		if !regexp.MustCompile(line).MatchString(out.String()) {
			t.Errorf("no %s in %s", line, out.String())
		}
	}
	if got := get(h, http.MethodPost, "/healthz/ready"); got.Code != 405 || got.Body.Len() != 0 {
		t.Errorf("POST: %d %q", got.Code, got.Body)
	}
	if got := get(h, http.MethodGet, "/"); got.Code != 404 || got.Body.Len() != 0 {
		t.Errorf("/: %d %q", got.Code, got.Body)
	}
}

type exposition struct {
	body string
	err  error
}

func (e exposition) Expose(w io.Writer) error {
	if _, err := io.WriteString(w, e.body); err != nil {
		return err
	}
	return e.err
}

func TestStats(t *testing.T) {
	var out bytes.Buffer
	accepted := func(accept []string) string { return fmt.Sprintf("type/%d", len(accept)) }
	h := Stats(exposition{"# EOF\n", errors.New("no such map")}, accepted, slog.New(slog.NewTextHandler(&out, nil)))
	for _, path := range []string{"/metrics", "/stats/prometheus?x=y"} {
		for _, method := range []string{http.MethodGet, http.MethodPost} {
			got := get(h, method, path)
			if got.Code != 200 || got.Body.String() != "# EOF\n" || got.Header().Get("Content-Type") != "type/0" ||
				got.Header().Get("Vary") != "accept-encoding" {
				t.Errorf("%s %s: %d %q %v", method, path, got.Code, got.Body, got.Header())
			}
		}
	}
	if !strings.Contains(out.String(), "no such map") {
		t.Errorf("the log has %q", out.String())
	}
	if got := get(h, http.MethodGet, "/stats"); got.Code != 404 {
		t.Errorf("/stats: %d", got.Code)
	}
}
