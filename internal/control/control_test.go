// SPDX-License-Identifier: Apache-2.0

package control

import (
	"context"
	"crypto/tls"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/emptypb"

	"github.com/ztunnel-go/ztunnel/test/fakeistiod"
	"github.com/ztunnel-go/ztunnel/test/leak"
	"github.com/ztunnel-go/ztunnel/test/privileged"
)

// call makes some call and returns what stopped it before the server could
// answer: nothing, if the server was reached.
func call(t *testing.T, cfg Config) string {
	t.Helper()
	conn, err := Dial(cfg)
	if err != nil {
		return err.Error()
	}
	defer conn.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	err = conn.Invoke(ctx, "/no.such.Service/Method", &emptypb.Empty{}, &emptypb.Empty{})
	if err != nil && strings.Contains(err.Error(), "unknown service") {
		return ""
	}
	if err == nil {
		t.Fatal("a service that is not there answered")
	}
	return err.Error()
}

func configOf(srv *fakeistiod.Server) Config {
	return Config{Address: srv.Address(), Roots: Roots{Inline: srv.RootPEM()}}
}

func TestWhomWeTrust(t *testing.T) {
	leak.Check(t)
	srv := fakeistiod.Start(t, fakeistiod.Options{Hosts: []string{"127.0.0.1"}})
	named := fakeistiod.Start(t, fakeistiod.Options{Hosts: []string{"istiod.example"}})
	other := fakeistiod.Start(t, fakeistiod.Options{})
	file := filepath.Join(t.TempDir(), "root.pem")
	if err := os.WriteFile(file, []byte(srv.RootPEM()), 0o600); err != nil {
		t.Fatal(err)
	}
	with := func(srv *fakeistiod.Server, change func(*Config)) Config {
		c := configOf(srv)
		change(&c)
		return c
	}
	for _, tc := range []struct {
		name string
		cfg  Config
		want string // part of the error; empty: all is well
	}{
		{"inline", configOf(srv), ""},
		{"file", with(srv, func(c *Config) { c.Roots = Roots{File: file, Inline: "not looked at"} }), ""},
		{"another root", with(srv, func(c *Config) { c.Roots.Inline = other.RootPEM() }), "unknown authority"},
		{"no root", with(srv, func(c *Config) { c.Roots.Inline = "" }), "no certificate"},
		{"a path that was none", with(srv, func(c *Config) { c.Roots.Inline = "./var/root.pem" }), "was no file when the process started"},
		{"a file that is gone", with(srv, func(c *Config) { c.Roots = Roots{File: file + "x"} }), "no such file"},
		{"the system's", with(srv, func(c *Config) { c.Roots = Roots{System: true} }), "x509: certificate signed by unknown authority"},
		{"another name", configOf(named), "doesn't contain any IP SANs"},
		{"the alternate name", with(named, func(c *Config) { c.AltHostname = "istiod.example" }), ""},
		{"the first name, with an alternate", with(srv, func(c *Config) { c.AltHostname = "istiod.example" }), ""},
		{"neither name", with(named, func(c *Config) { c.AltHostname = "other.example" }), "nor for the alternate name other.example"},
		{"the alternate name of another root", with(named, func(c *Config) {
			c.AltHostname, c.Roots.Inline = "istiod.example", other.RootPEM()
		}), "unknown authority"},
		{"an alternate name that is none", with(srv, func(c *Config) { c.AltHostname = "a b" }), "invalid dns name"},
		{"http", with(srv, func(c *Config) { c.Address = strings.Replace(c.Address, "https", "http", 1) }), "must be https"},
		{"no host", with(srv, func(c *Config) { c.Address = "https://:15012" }), "no host"},
		{"1.2 allowed", with(srv, func(c *Config) { c.TLS12 = true }), ""},
		{"post-quantum alone", with(srv, func(c *Config) { c.PQC = true }), ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			got := call(t, tc.cfg)
			if tc.want == "" && got != "" || !strings.Contains(got, tc.want) {
				t.Errorf("got %q, want %q", got, tc.want)
			}
		})
	}
}

func TestTheServerIsToldItsHost(t *testing.T) {
	leak.Check(t)
	for _, tc := range []struct{ address, sni, dialled string }{
		{"https://istiod.example:15012", "istiod.example", "istiod.example:15012"},
		{"https://istiod.example", "istiod.example", "istiod.example:443"},
		{"https://127.0.0.1:15012", "", "127.0.0.1:15012"}, // addresses are no names: RFC 6066 3
		{"https://[::1]:15012", "", "[::1]:15012"},
	} {
		for _, alt := range []string{"", "other.example"} {
			got := make(chan string, 1)
			dialled := ""
			cfg := Config{Address: tc.address, AltHostname: alt}
			cfg.Roots.Inline = fakeistiod.Start(t, fakeistiod.Options{}).RootPEM()
			cfg.DialContext = func(_ context.Context, address string) (net.Conn, error) {
				dialled = address
				a, b := net.Pipe()
				go func() { // ends as the handshake fails
					defer b.Close()
					_ = tls.Server(b, &tls.Config{GetConfigForClient: func(h *tls.ClientHelloInfo) (*tls.Config, error) {
						got <- h.ServerName + " " + strings.Join(h.SupportedProtos, ",") + " " + versions(h.SupportedVersions)
						return nil, context.Canceled
					}}).Handshake()
				}()
				return a, nil
			}
			call(t, cfg)
			if hello := <-got; hello != tc.sni+" h2 304" || dialled != tc.dialled {
				t.Errorf("%s: hello %q, dialled %q", tc.address, hello, dialled)
			}
		}
	}
}

func versions(list []uint16) string {
	var out []string
	for _, v := range list {
		if v <= tls.VersionTLS13 { // not those that are made up to keep servers tolerant
			out = append(out, strconv.FormatUint(uint64(v), 16))
		}
	}
	return strings.Join(out, ",")
}

func TestSuitesOfTLS12(t *testing.T) {
	cfg := Config{Address: "https://x", TLS12: true, Roots: Roots{System: true}}
	c, err := cfg.TLS()
	if err != nil {
		privileged.Lacking(t, err) // the system's roots
	}
	if want := []uint16{0xc02c, 0xc02b, 0xc030, 0xc02f}; c.MinVersion != tls.VersionTLS12 || !slices.Equal(c.CipherSuites, want) {
		t.Errorf("from %x, suites %x", c.MinVersion, c.CipherSuites)
	}
}

func TestToken(t *testing.T) {
	file := filepath.Join(t.TempDir(), "token")
	cfg := Config{ClusterID: "c1", Headers: []Header{{"x-a", "1"}, {"x-b", "2"}}, Token: Token{File: file}}
	for _, tc := range []struct{ content, want, err string }{
		{"t1", "Bearer t1", ""},
		{"t2", "Bearer t2", ""},
		{" t ", "Bearer  t ", ""}, // byte for byte
		{"", "", "token file exists, but was empty"},
		{"t\n", "", "not a legal header value"},
	} {
		if err := os.WriteFile(file, []byte(tc.content), 0o600); err != nil {
			t.Fatal(err)
		}
		md, err := cfg.Metadata()
		switch {
		case tc.err != "" && (err == nil || !strings.Contains(err.Error(), tc.err)):
			t.Errorf("%q: %v, want %s", tc.content, err, tc.err)
		case tc.err == "" && (err != nil || md["authorization"] != tc.want || md["clusterid"] != "c1" || md["x-a"] != "1" || md["x-b"] != "2"):
			t.Errorf("%q: %v, %v", tc.content, md, err)
		}
	}
	if err := os.Remove(file); err != nil {
		t.Fatal(err)
	}
	if _, err := cfg.Metadata(); err == nil {
		t.Error("a token file that is gone is no error")
	}
	cfg.Token = Token{Literal: "lit"}
	if md, err := cfg.Metadata(); err != nil || md["authorization"] != "Bearer lit" {
		t.Errorf("literal: %v, %v", md, err)
	}
	cfg.Token = Token{}
	if md, err := cfg.Metadata(); err != nil || len(md) != 2 {
		t.Errorf("without a token: %v, %v", md, err)
	}
}

func TestDNSNames(t *testing.T) {
	for name, want := range map[string]bool{
		"istiod": true, "istiod.istio-system.svc": true, "a_b.example.": true, "x": true, strings.Repeat("a", 63): true,
		"": false, ".": false, "a..b": false, "-a": false, "a-": false, "a b": false, "10.0.0.1": false, "::1": false,
		strings.Repeat("a", 64): false, strings.Repeat("a.", 127): false, "ü": false,
	} {
		if got := isDNSName(name); got != want {
			t.Errorf("%q: %v", name, got)
		}
	}
}

func TestCallsCarryTheMetadata(t *testing.T) {
	leak.Check(t)
	tokens := make(chan string, 1)
	srv := fakeistiod.Start(t, fakeistiod.Options{Token: func(token string) error { tokens <- token; return nil }})
	cfg := configOf(srv)
	cfg.Token.Literal = "t1"
	conn, err := Dial(cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	_, err = conn.NewStream(ctx, &grpc.StreamDesc{ServerStreams: true, ClientStreams: true},
		"/envoy.service.discovery.v3.AggregatedDiscoveryService/DeltaAggregatedResources")
	if err != nil {
		t.Fatal(err)
	}
	if got := <-tokens; got != "t1" {
		t.Errorf("token %q", got)
	}
}
