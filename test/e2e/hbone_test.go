// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/net/http2"

	"github.com/ztunnel-go/ztunnel/internal/ca"
	"github.com/ztunnel-go/ztunnel/internal/certs"
	"github.com/ztunnel-go/ztunnel/internal/identity"
	"github.com/ztunnel-go/ztunnel/test/netlab"
	"github.com/ztunnel-go/ztunnel/test/rig"
)

// certificate has an authority of the mesh certify somebody.
func (w *world) certificate(t *testing.T, authority, id string, ttl time.Duration) *certs.Bundle {
	t.Helper()
	a, err := ca.OpenEmbedded(w.mesh.CADir(authority), ttl)
	must(t, err)
	parsed, err := identity.Parse(id)
	must(t, err)
	b, err := a.Issue(t.Context(), parsed)
	must(t, err)
	return b
}

// stock is TLS as anybody would configure it, with a certificate.
func stock(b *certs.Bundle) *tls.Config {
	return &tls.Config{
		Certificates: []tls.Certificate{*b.TLS()},
		NextProtos:   []string{"h2"},
		ClientAuth:   tls.RequireAndVerifyClientCert, ClientCAs: b.RootPool(),
		// Names in these certificates are URIs, which crypto/tls checks for nobody.
		InsecureSkipVerify: true,
		VerifyConnection: func(s tls.ConnectionState) error {
			opts := x509.VerifyOptions{Roots: b.RootPool(), KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}}
			_, err := s.PeerCertificates[0].Verify(opts)
			return err
		},
	}
}

// handshake dials a pod's 15008 and completes TLS; the error is of either side.
func handshake(t *testing.T, from *netlab.Host, to netip.AddrPort, cfg *tls.Config) (*tls.Conn, error) {
	t.Helper()
	c, err := from.Dial(t.Context(), "tcp", to.String())
	must(t, err)
	conn := tls.Client(ready(t, c), cfg)
	t.Cleanup(func() { conn.Close() })
	if err := conn.HandshakeContext(t.Context()); err != nil {
		return nil, err
	}
	return conn, nil
}

// TestStockClient has x/net/http2 and crypto/tls, from a pod that nobody has
// enrolled, open tunnels of its own to b.
func TestStockClient(t *testing.T) {
	w := newWorld(t)
	w.policies(rig.Strict("default"))
	bundle := w.certificate(t, rig.DefaultCA, "spiffe://cluster.local/ns/default/sa/stock", 0)
	for _, pod := range []netip.Addr{w.b.IPv4, w.b.IPv6} {
		conn, err := handshake(t, w.stranger.Host, at(pod, 15008), stock(bundle))
		must(t, err)
		if id := conn.ConnectionState().PeerCertificates[0].URIs[0].String(); id != "spiffe://cluster.local/ns/default/sa/b" {
			t.Errorf("b is certified as %s", id)
		}
		client, err := new(http2.Transport).NewClientConn(conn)
		must(t, err)
		defer client.Close()

		t.Run("echo "+pod.String(), func(t *testing.T) {
			since := w.p2.Output.Mark()
			s, resp := connect(t, client, at(pod, portEcho).String())
			if resp.StatusCode != http.StatusOK || !strings.Contains(resp.Header.Get("baggage"), "k8s.pod.name=b") {
				t.Fatalf("CONNECT: %s %v", resp.Status, resp.Header)
			}
			echo(t, s, []byte("hello"))
			echo(t, s, bytes.Repeat([]byte("more"), 1<<16))
			must(t, s.w.Close())
			if rest, err := io.ReadAll(s); err != nil || len(rest) > 0 {
				t.Errorf("at the end: %q, %v", rest, err)
			}
			w.logged(t, w.p2, since, "\tinfo\taccess\tconnection complete", `direction="inbound"`,
				`src.identity="spiffe://cluster.local/ns/default/sa/stock"`, "dst.hbone_addr="+at(pod, portEcho).String(),
				fmt.Sprintf("src.addr=%s", conn.LocalAddr()))
		})
		for _, tc := range []struct {
			authority string
			status    int
		}{
			{at(w.c.IPv4, portEcho).String(), http.StatusBadRequest},      // not b's
			{at(pod, 15008).String(), http.StatusServiceUnavailable},      // ourselves
			{at(pod, portClosed).String(), http.StatusServiceUnavailable}, // nobody
			{"nobody.default.svc.cluster.local:80", http.StatusServiceUnavailable},
		} {
			_, resp := connect(t, client, tc.authority)
			if resp.StatusCode != tc.status {
				t.Errorf("CONNECT %s: %s, want %d", tc.authority, resp.Status, tc.status)
			}
		}
	}
}

// A stream is one CONNECT of a stock client.
type stream struct {
	io.Reader
	w *io.PipeWriter
}

func (s stream) Write(b []byte) (int, error) { return s.w.Write(b) }

func connect(t *testing.T, client *http2.ClientConn, authority string) (stream, *http.Response) {
	t.Helper()
	r, w := io.Pipe()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	t.Cleanup(cancel)
	req := (&http.Request{
		Method: http.MethodConnect, URL: &url.URL{Host: authority}, Host: authority, Header: http.Header{}, Body: r,
	}).WithContext(ctx)
	resp, err := client.RoundTrip(req)
	must(t, err)
	t.Cleanup(func() {
		w.Close()
		resp.Body.Close()
	})
	return stream{resp.Body, w}, resp
}

// TestRefusedClients come to 15008 with certificates that must not do, or none.
func TestRefusedClients(t *testing.T) {
	w := newWorld(t)
	const id = "spiffe://cluster.local/ns/default/sa/stock"
	good := w.certificate(t, rig.DefaultCA, id, 0)
	anonymous := stock(good)
	anonymous.Certificates = nil
	other := stock(good)
	foreign := w.certificate(t, "other", id, 0).TLS()
	// Else crypto/tls would leave it out, since b does not ask for such.
	other.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return foreign, nil }
	old := stock(good)
	old.MaxVersion = tls.VersionTLS12
	for name, tc := range map[string]struct {
		cfg *tls.Config
		log string
	}{
		"no certificate":     {anonymous, "didn't provide a certificate"},
		"other root":         {other, "certificate signed by unknown authority"},
		"other trust domain": {stock(w.certificate(t, rig.DefaultCA, "spiffe://else.where/ns/default/sa/stock", 0)), "peer did not present the expected trustdomain (cluster.local), got spiffe://else.where/ns/default/sa/stock"},
		"expired":            {stock(w.certificate(t, rig.DefaultCA, id, time.Millisecond)), "expired"},
		"TLS 1.2":            {old, "unsupported versions"},
	} {
		t.Run(name, func(t *testing.T) {
			since := w.p2.Output.Mark()
			conn, err := handshake(t, w.stranger.Host, w.b.Addr(15008), tc.cfg)
			if err == nil { // TLS 1.3 clients are done before they are judged
				_, err = conn.Read(make([]byte, 1))
			}
			if err == nil || isTimeout(err) || !strings.Contains(err.Error(), "remote error: tls:") {
				t.Errorf("the client saw %v, want an alert", err)
			}
			w.logged(t, w.p2, since, "\twarn\taccess\tconnection failed", `direction="inbound"`, "tls handshake error", tc.log)
		})
	}
	must(t, refused(w.a.Host, w.b.Addr(portEcho), []byte("others are served")))
}

// TestOtherRoot runs the server's node with an authority of its own. Nobody in
// the client's pod gets through, and the logs say why.
func TestOtherRoot(t *testing.T) {
	w := plan(t)
	w.p1 = w.start(w.n1, rig.Options{})
	w.p2 = w.start(w.n2, rig.Options{Env: map[string]string{"EMBEDDED_CA_DIR": w.mesh.CADir("other")}})
	w.enrol(w.p1, w.a, w.c)
	w.enrol(w.p2, w.b)
	w.ready(w.p1, w.p2)
	secret := w.watch(t, w.a, w.b)
	if err := refused(w.a.Host, w.b.Addr(portEcho), secret.marker); !wasReset(err) {
		t.Errorf("the client saw %v, want a reset", err)
	}
	w.logged(t, w.p1, 0, "\terror\taccess\tconnection complete", `direction="outbound"`, "dst.hbone_addr="+w.b.Addr(portEcho).String(),
		`error="io error: `, "certificate signed by unknown authority")
	w.logged(t, w.p2, 0, "\twarn\taccess\tconnection failed", `direction="inbound"`, "tls handshake error")
	secret.kept(t)
}

// TestStockServer has pods of the mesh call a node that runs x/net/http2 and
// crypto/tls on 15008. Its certificate decides.
func TestStockServer(t *testing.T) {
	w := newWorld(t)
	w.state.Workloads = append(w.state.Workloads, rig.WorkloadOf(w.stranger, "default"))
	must(t, w.mesh.Apply(w.patience(), w.state))
	echoServer := w.echoHTTP2(t, w.certificate(t, rig.DefaultCA, "spiffe://cluster.local/ns/default/sa/stranger", 0))
	secret := w.watch(t, w.a, w.stranger)
	c := w.dial(t, w.a.Host, w.stranger.Addr(1234))
	echo(t, c, secret.marker)
	must(t, c.CloseWrite())
	if err := ended(c); !errors.Is(err, io.EOF) {
		t.Errorf("at the end: %v", err)
	}
	want := map[string]string{
		":authority": w.stranger.Addr(1234).String(),
		"baggage":    "k8s.cluster.name=lab,k8s.namespace.name=default,k8s.pod.name=a,service.name=a,service.version=v1",
		"forwarded":  fmt.Sprintf("for=%q", c.LocalAddr()),
		"peer":       "spiffe://cluster.local/ns/default/sa/a",
	}
	got := echoServer.take(t)
	for name, value := range want {
		if got[name] != value {
			t.Errorf("%s is %q, want %q", name, got[name], value)
		}
	}
	if len(got["traceparent"]) != 55 {
		t.Errorf("traceparent is %q", got["traceparent"])
	}
	echoServer.close()
	secret.kept(t)

	since := w.p1.Output.Mark()
	w.echoHTTP2(t, w.certificate(t, rig.DefaultCA, "spiffe://cluster.local/ns/default/sa/evil", 0))
	if err := refused(w.c.Host, w.stranger.Addr(1234), []byte("hello")); !wasReset(err) {
		t.Errorf("the client saw %v, want a reset", err)
	}
	w.logged(t, w.p1, since, `direction="outbound"`, "identity verification error: peer did not present the expected SAN "+
		"(spiffe://cluster.local/ns/default/sa/stranger), got spiffe://cluster.local/ns/default/sa/evil")
}

// An http2Server echoes CONNECT streams and remembers their headers.
type http2Server struct {
	l       net.Listener
	seen    chan map[string]string
	serving sync.WaitGroup
	once    sync.Once
	mu      sync.Mutex
	conns   []net.Conn // guarded by mu
}

func (w *world) echoHTTP2(t *testing.T, b *certs.Bundle) *http2Server {
	t.Helper()
	l, err := w.stranger.Listen("tcp", ":15008")
	must(t, err)
	const many = 16
	s := &http2Server{l: tls.NewListener(l, stock(b)), seen: make(chan map[string]string, many)}
	t.Cleanup(s.close)
	s.serving.Go(func() {
		for {
			c, err := s.l.Accept()
			if err != nil {
				return
			}
			s.mu.Lock()
			s.conns = append(s.conns, c)
			s.mu.Unlock()
			s.serving.Go(func() { s.serve(c.(*tls.Conn)) })
		}
	})
	return s
}

func (s *http2Server) serve(c *tls.Conn) {
	defer c.Close()
	if c.Handshake() != nil {
		return
	}
	new(http2.Server).ServeConn(c, &http2.ServeConnOpts{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h := map[string]string{":authority": r.Host, "peer": c.ConnectionState().PeerCertificates[0].URIs[0].String()}
		for name := range r.Header {
			h[strings.ToLower(name)] = r.Header.Get(name)
		}
		s.seen <- h
		w.WriteHeader(http.StatusOK)
		_ = http.NewResponseController(w).Flush()
		b := make([]byte, 1024)
		for {
			n, err := r.Body.Read(b)
			_, _ = w.Write(b[:n])
			_ = http.NewResponseController(w).Flush()
			if err != nil {
				return
			}
		}
	})})
}

// take is the headers of the next request.
func (s *http2Server) take(t *testing.T) map[string]string {
	t.Helper()
	select {
	case h := <-s.seen:
		return h
	case <-time.After(patience):
		t.Fatal("no request came")
		return nil
	}
}

func (s *http2Server) close() {
	s.once.Do(func() {
		s.l.Close()
		s.mu.Lock()
		for _, c := range s.conns {
			c.Close()
		}
		s.mu.Unlock()
		s.serving.Wait()
	})
}
