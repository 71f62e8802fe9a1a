// SPDX-License-Identifier: Apache-2.0

package ca_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"

	"github.com/ztunnel-go/ztunnel/internal/ca"
	"github.com/ztunnel-go/ztunnel/internal/ca/catest"
	"github.com/ztunnel-go/ztunnel/internal/certs"
	"github.com/ztunnel-go/ztunnel/internal/certs/certstest"
	"github.com/ztunnel-go/ztunnel/internal/control"
	"github.com/ztunnel-go/ztunnel/test/leak"
)

const (
	istiodName = "istiod.istio-system.svc"
	wanted     = "spiffe://cluster.local/ns/default/sa/httpbin"
)

// An istiod is the certificate service behind a listener, and what a client
// needs to be told about it.
type istiod struct {
	*catest.Service
	t         *testing.T
	authority *certstest.Authority
	cert      tls.Certificate // set before Start
	address   string          // host:port of the listener
	stop      func()          // ends the listener, and waits
}

// newIstiod starts a service on loopback whose certificate says istiodName.
func newIstiod(t *testing.T) *istiod {
	t.Helper()
	leak.Check(t)
	authority := certstest.Issuer(t, time.Hour)
	s := &istiod{
		Service: catest.New(authority), t: t, authority: authority,
		cert: authority.Server(istiodName), address: "127.0.0.1:0",
	}
	s.start()
	return s
}

// start listens, at the same address as before if there was one.
func (s *istiod) start() {
	s.t.Helper()
	l, err := net.Listen("tcp", s.address)
	if err != nil {
		s.t.Fatal(err)
	}
	s.address = l.Addr().String()
	server := grpc.NewServer(grpc.Creds(credentials.NewTLS(&tls.Config{
		Certificates: []tls.Certificate{s.cert}, MinVersion: tls.VersionTLS13,
	})))
	s.Register(server)
	var done sync.WaitGroup
	done.Go(func() { _ = server.Serve(l) })
	s.stop = func() { server.Stop(); done.Wait() }
	s.t.Cleanup(s.stop)
}

// config is how a client in shared mode finds s.
func (s *istiod) config() ca.IstiodConfig {
	return ca.IstiodConfig{
		Impersonate: true,
		Channel: control.Config{
			Address:     "https://" + istiodName + ":15012",
			Roots:       control.Roots{Inline: catest.PEM(s.authority.Root())},
			DialContext: s.dial,
		},
	}
}

// dial stands in for DNS.
func (s *istiod) dial(ctx context.Context, address string) (net.Conn, error) {
	if want := istiodName + ":15012"; address != want {
		s.t.Errorf("dialled %q, want %q", address, want)
	}
	var d net.Dialer
	return d.DialContext(ctx, "tcp", s.address)
}

// A client is what is tested, with its log.
type client struct {
	*ca.Istiod
	t   *testing.T
	log *record
}

func openIstiod(t *testing.T, cfg ca.IstiodConfig) *client {
	t.Helper()
	log := new(record)
	cfg.Logger = slog.New(slog.NewTextHandler(log, nil))
	c, err := ca.OpenIstiod(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return &client{c, t, log}
}

func (c *client) get() *certs.Bundle {
	c.t.Helper()
	b, err := c.Issue(c.t.Context(), certstest.ID(c.t, wanted))
	if err != nil {
		c.t.Fatal(err)
	}
	return b
}

// fails asks, and wants an error of exactly this text.
func (c *client) fails(text string) {
	c.t.Helper()
	_, err := c.Issue(c.t.Context(), certstest.ID(c.t, wanted))
	if err == nil || err.Error() != text {
		c.t.Errorf("error %v, want %q", err, text)
	}
}

// failsWith asks, and wants an error that begins and ends so.
func (c *client) failsWith(begin, end string) {
	c.t.Helper()
	_, err := c.Issue(c.t.Context(), certstest.ID(c.t, wanted))
	if err == nil || !strings.HasPrefix(err.Error(), begin) || !strings.HasSuffix(err.Error(), end) {
		c.t.Errorf("error %v, want %q ... %q", err, begin, end)
	}
}

func (c *client) said(level, text string) {
	c.t.Helper()
	if got := c.log.String(); !strings.Contains(got, "level="+level) || !strings.Contains(got, text) {
		c.t.Errorf("the log is %q, want %s with %q", got, level, text)
	}
}

// A record is a log that may be read while it is written.
type record struct {
	mu   sync.Mutex
	text bytes.Buffer // guarded by mu
}

func (r *record) Write(p []byte) (int, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.text.Write(p)
}

func (r *record) String() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.text.String()
}

// fileOf is a file with text in a directory of its own.
func fileOf(t *testing.T, name, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	overwrite(t, path, text)
	return path
}

// overwrite puts a new file in the place of path, as a ConfigMap's is.
func overwrite(t *testing.T, path, text string) {
	t.Helper()
	next := path + ".next"
	if err := os.WriteFile(next, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(next, path); err != nil {
		t.Fatal(err)
	}
}

func serials(cs []*x509.Certificate) string {
	var s []string
	for _, c := range cs {
		s = append(s, c.SerialNumber.String())
	}
	return strings.Join(s, " ")
}
