// SPDX-License-Identifier: Apache-2.0

package hbone

import (
	"context"
	"crypto/tls"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"testing"

	"golang.org/x/net/http2"

	"github.com/ztunnel-go/ztunnel/test/leak"
)

// Interoperation with x/net's own HTTP/2, which is nobody's proxy.

func TestAStockClientConnectsThroughOurServer(t *testing.T) {
	baggage := "k8s.namespace.name=b"
	asked := make(chan *Connect, 10)
	r := newRig(t, func(c *Connect) {
		asked <- c
		switch c.Authority {
		case "10.0.0.1:80":
			s, err := c.Accept(&baggage)
			if err != nil {
				t.Error(err)
				return
			}
			io.Copy(s, s)
			io.WriteString(s, "after your end")
			s.CloseWrite()
		default:
			c.Reject(401)
		}
	})
	tr := &http2.Transport{TLSClientConfig: r.clientTLS()}
	defer tr.CloseIdleConnections()
	connect := func(authority string, body io.Reader) *http.Response {
		t.Helper()
		req, err := http.NewRequestWithContext(within(t), http.MethodConnect, "https://"+r.addr.String(), body)
		if err != nil {
			t.Fatal(err)
		}
		req.Host = authority
		req.Header.Set("Baggage", "k8s.namespace.name=a")
		resp, err := tr.RoundTrip(req)
		if err != nil {
			t.Fatal(err)
		}
		return resp
	}
	pr, pw := io.Pipe()
	resp := connect("10.0.0.1:80", pr)
	if resp.StatusCode != 200 || resp.Header.Get("Baggage") != baggage || len(resp.Header) != 1 {
		t.Fatalf("answer %v %v", resp.StatusCode, resp.Header)
	}
	io.WriteString(pw, "hello")
	got := make([]byte, 5)
	if _, err := io.ReadFull(resp.Body, got); err != nil || string(got) != "hello" {
		t.Fatalf("%q, %v", got, err)
	}
	pw.Close()
	rest, err := io.ReadAll(resp.Body)
	if err != nil || string(rest) != "after your end" {
		t.Fatalf("%q, %v", rest, err)
	}
	c := <-asked
	if c.Method != "CONNECT" || c.Identity != r.client.Identity() ||
		strings.Join(c.Header("baggage"), "|") != "k8s.namespace.name=a" || !c.Peer.IsValid() || c.Local != r.addr {
		t.Errorf("request %+v", c)
	}
	resp = connect("10.0.0.2:80", http.NoBody)
	if body, err := io.ReadAll(resp.Body); resp.StatusCode != 401 || len(body) != 0 || err != nil {
		t.Errorf("answer %v, body %q, %v", resp.StatusCode, body, err)
	}
	if n := len(r.accepted()); n != 1 {
		t.Errorf("%d tunnels", n)
	}
}

// stockServer is an http.Server with TLS and client certificates.
func stockServer(t *testing.T, cfg *tls.Config, h http.HandlerFunc) netip.AddrPort {
	t.Helper()
	l, err := tls.Listen("tcp", "127.0.0.1:0", cfg)
	if err != nil {
		t.Fatal(err)
	}
	srv := &http.Server{Handler: h}
	if err := http2.ConfigureServer(srv, &http2.Server{}); err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() { defer close(done); srv.Serve(l) }()
	t.Cleanup(func() { srv.Close(); <-done })
	return netip.MustParseAddrPort(l.Addr().String())
}

func TestOurClientConnectsThroughAStockServer(t *testing.T) {
	leak.Check(t)
	r := newRig(t, echo)
	headers := make(chan http.Header, 10)
	addr := stockServer(t, r.serverTLS(), func(w http.ResponseWriter, q *http.Request) {
		if q.Method != http.MethodConnect || q.Host != "10.0.0.1:80" {
			w.WriteHeader(http.StatusServiceUnavailable)
			return
		}
		headers <- q.Header
		w.Header().Set("Baggage", "from=stock")
		w.WriteHeader(200)
		f := w.(http.Flusher)
		f.Flush()
		buf := make([]byte, 1<<10)
		for {
			n, err := q.Body.Read(buf)
			w.Write(buf[:n])
			f.Flush()
			if err != nil {
				break
			}
		}
		io.WriteString(w, "bye")
	})
	p := r.pool(func(c *PoolConfig) {
		c.Dial = func(ctx context.Context, _ Key) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "tcp", addr.String())
		}
	})
	network := ""
	s, resp, err := p.Open(within(t), r.key(), Request{
		Authority: "10.0.0.1:80", Forwarded: `for="10.1.1.1:5"`, TraceParent: "00-1-2-00", ForwardedNetwork: &network,
	})
	if err != nil {
		t.Fatal(err)
	}
	if resp.Status != 200 || resp.Baggage != "from=stock" {
		t.Errorf("answer %+v", resp)
	}
	h := <-headers
	if h.Get("Forwarded") != `for="10.1.1.1:5"` || h.Get("Traceparent") != "00-1-2-00" ||
		len(h.Values("Baggage")) != 1 || len(h.Values("X-Forwarded-Network")) != 1 {
		t.Errorf("headers %v", h)
	}
	// Enough for several windows of the stock server's.
	const size = 3 << 20
	sent := strings.Repeat("0123456789abcdef", size/16)
	go func() {
		io.WriteString(s, sent)
		s.CloseWrite()
	}()
	got, err := io.ReadAll(s)
	if err != nil || string(got) != sent+"bye" {
		t.Fatalf("%d bytes back, %v", len(got), err)
	}
	s.Close()

	_, _, err = p.Open(within(t), r.key(), Request{Authority: "10.0.0.9:80"})
	if status, ok := err.(*StatusError); !ok || status.Code != 503 || err.Error() != "http status: 503 Service Unavailable" {
		t.Errorf("got %v", err)
	}
}
