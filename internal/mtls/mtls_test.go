// SPDX-License-Identifier: Apache-2.0

//go:debug fips140=on

package mtls_test

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/ztunnel-go/ztunnel/internal/certs"
	"github.com/ztunnel-go/ztunnel/internal/certs/certstest"
	"github.com/ztunnel-go/ztunnel/internal/identity"
	"github.com/ztunnel-go/ztunnel/internal/mtls"
	"github.com/ztunnel-go/ztunnel/test/leak"
)

const (
	clientURI = "spiffe://cluster.local/ns/default/sa/client"
	serverURI = "spiffe://cluster.local/ns/default/sa/server"
)

// expect is the list of identities a client goes out to meet.
func expect(t *testing.T, uris ...string) []identity.ID {
	t.Helper()
	var ids []identity.ID
	for _, uri := range uris {
		ids = append(ids, certstest.ID(t, uri))
	}
	return ids
}

// pair returns the two ends of a loopback TCP connection. A pipe will not do:
// it has no buffer, and an alert nobody reads yet would block its sender.
func pair(t *testing.T) (client, server net.Conn) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if client, err = net.Dial("tcp", l.Addr().String()); err != nil {
		t.Fatal(err)
	}
	if server, err = l.Accept(); err != nil {
		t.Fatal(err)
	}
	for _, c := range []net.Conn{client, server} {
		t.Cleanup(func() { c.Close() })
		if err := c.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
			t.Fatal(err)
		}
	}
	return client, server
}

type outcome struct {
	client, server       tls.ConnectionState
	clientErr, serverErr error
}

// shake runs a whole handshake with one byte each way: with TLS 1.3 a client
// learns only by reading that the server refused its certificate.
func shake(t *testing.T, client, server *tls.Config) outcome {
	t.Helper()
	a, b := pair(t)
	var o outcome
	done := make(chan struct{})
	go func() {
		defer close(done)
		s := tls.Server(b, server)
		o.serverErr = swap(s)
		o.server = s.ConnectionState()
		b.Close()
	}()
	c := tls.Client(a, client)
	o.clientErr = swap(c)
	o.client = c.ConnectionState()
	a.Close()
	<-done
	return o
}

func swap(c *tls.Conn) error {
	if err := c.Handshake(); err != nil {
		return err
	}
	if _, err := c.Write([]byte{1}); err != nil {
		return err
	}
	_, err := io.ReadFull(c, make([]byte, 1))
	return err
}

func TestTwoWorkloadsMeet(t *testing.T) {
	leak.Check(t)
	ca := certstest.Issuer(t, time.Hour)
	for _, tc := range []struct {
		name    string
		client  *certs.Bundle
		server  *certs.Bundle
		opts    mtls.Options
		version uint16
	}{
		{"a leaf each", ca.Bundle(clientURI), ca.Bundle(serverURI), mtls.Options{}, tls.VersionTLS13},
		{"an intermediate each", ca.Intermediate(clientURI), ca.Intermediate(serverURI), mtls.Options{}, tls.VersionTLS13},
		{"1.2 allowed", ca.Bundle(clientURI), ca.Bundle(serverURI), mtls.Options{TLS12: true}, tls.VersionTLS13},
		{"post-quantum only", ca.Bundle(clientURI), ca.Bundle(serverURI), mtls.Options{PQC: true}, tls.VersionTLS13},
	} {
		t.Run(tc.name, func(t *testing.T) {
			o := shake(t, mtls.Client(tc.client, expect(t, "spiffe://cluster.local/ns/x/sa/other", serverURI), tc.opts), mtls.Server(tc.server, tc.opts))
			if o.clientErr != nil || o.serverErr != nil {
				t.Fatalf("client: %v; server: %v", o.clientErr, o.serverErr)
			}
			if id, ok := mtls.PeerIdentity(o.server); !ok || id.String() != clientURI {
				t.Errorf("the server met %v", id)
			}
			if id, ok := mtls.PeerIdentity(o.client); !ok || id.String() != serverURI {
				t.Errorf("the client met %v", id)
			}
			if o.client.NegotiatedProtocol != "h2" || o.client.Version != tc.version {
				t.Errorf("agreed on %q, %x", o.client.NegotiatedProtocol, o.client.Version)
			}
			if o.client.CurveID != tls.X25519MLKEM768 {
				t.Errorf("key exchange is %v", o.client.CurveID)
			}
		})
	}
}

func TestRefusesThePeer(t *testing.T) {
	leak.Check(t)
	ca, other := certstest.Issuer(t, time.Hour), certstest.Issuer(t, time.Hour)
	changed := func(uri string, change func(*x509.Certificate)) *certs.Bundle {
		ca.Change(change)
		defer ca.Change(nil)
		return ca.Bundle(uri)
	}
	expired := func(c *x509.Certificate) {
		c.NotBefore, c.NotAfter = time.Now().Add(-2*time.Hour), time.Now().Add(-time.Hour)
	}
	future := func(c *x509.Certificate) { c.NotBefore = time.Now().Add(time.Minute) }
	nameless := func(c *x509.Certificate) { c.URIs = nil; c.DNSNames = []string{"server.default"} }
	onlyClient := func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth} }
	onlyServer := func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth} }
	good := ca.Bundle(clientURI)

	for _, tc := range []struct {
		name           string
		client, server *certs.Bundle
		byServer       bool   // who refuses
		err            string // part of the refuser's error
		alert          string // part of the other's
	}{
		{"server of another name", good, ca.Bundle("spiffe://cluster.local/ns/default/sa/evil"), false,
			"identity verification error: peer did not present the expected SAN (" + serverURI + "), got spiffe://cluster.local/ns/default/sa/evil", "bad certificate"},
		{"server of another trust domain", good, ca.Bundle("spiffe://else.where/ns/default/sa/server"), false,
			"did not present the expected SAN", "bad certificate"},
		{"server without a name", good, changed(serverURI, nameless), false,
			"did not present the expected SAN (" + serverURI + "), got ", "bad certificate"},
		{"server expired", good, changed(serverURI, expired), false, "expired", "bad certificate"},
		{"server not yet valid", good, changed(serverURI, future), false, "not yet valid", "bad certificate"},
		{"server of another root", good, other.Bundle(serverURI), false, "unknown authority", "bad certificate"},
		{"server with a client's certificate", good, changed(serverURI, onlyClient), false, "incompatible key usage", "bad certificate"},

		{"client of another trust domain", ca.Bundle("spiffe://else.where/ns/default/sa/client"), ca.Bundle(serverURI), true,
			"identity verification error: peer did not present the expected trustdomain (cluster.local), got spiffe://else.where/ns/default/sa/client", "bad certificate"},
		{"client without a name", changed(clientURI, nameless), ca.Bundle(serverURI), true,
			"peer did not present the expected trustdomain (cluster.local), got ", "bad certificate"},
		{"client expired", changed(clientURI, expired), ca.Bundle(serverURI), true, "expired", "expired certificate"},
		{"client not yet valid", changed(clientURI, future), ca.Bundle(serverURI), true, "not yet valid", "expired certificate"},
		{"client with a server's certificate", changed(clientURI, onlyServer), ca.Bundle(serverURI), true, "incompatible key usage", "bad certificate"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			o := shake(t, mtls.Client(tc.client, expect(t, serverURI), mtls.Options{}), mtls.Server(tc.server, mtls.Options{}))
			refuser, refused := o.clientErr, o.serverErr
			if tc.byServer {
				refuser, refused = refused, refuser
			}
			if refuser == nil || !strings.Contains(refuser.Error(), tc.err) {
				t.Errorf("refused with %v, want %q", refuser, tc.err)
			}
			if refused == nil || !strings.Contains(refused.Error(), tc.alert) {
				t.Errorf("the refused side saw %v, want the alert %q", refused, tc.alert)
			}
		})
	}
}

// With 1.2 allowed a peer that knows no more is met and checked like any other.
func TestAPeerOfTLS12IsCheckedToo(t *testing.T) {
	leak.Check(t)
	ca := certstest.Issuer(t, time.Hour)
	opts := mtls.Options{TLS12: true}
	for _, tc := range []struct {
		client, server string
		ok             bool
	}{
		{clientURI, serverURI, true},
		{"spiffe://else.where/ns/default/sa/client", serverURI, false},
		{clientURI, clientURI, false},
	} {
		client := mtls.Client(ca.Bundle(tc.client), expect(t, serverURI), opts)
		client.MaxVersion = tls.VersionTLS12
		o := shake(t, client, mtls.Server(ca.Bundle(tc.server), opts))
		if ok := o.clientErr == nil && o.serverErr == nil; ok != tc.ok {
			t.Errorf("%s to %s: client: %v; server: %v", tc.client, tc.server, o.clientErr, o.serverErr)
		}
		if tc.ok && o.server.Version != tls.VersionTLS12 {
			t.Errorf("version %04x", o.server.Version)
		}
	}
}

func TestRefusesAClientOfAnotherRoot(t *testing.T) {
	leak.Check(t)
	ca, other := certstest.Issuer(t, time.Hour), certstest.Issuer(t, time.Hour)
	other.AlsoTrust(ca.Root()) // the client has no objection
	o := shake(t, mtls.Client(other.Bundle(clientURI), expect(t, serverURI), mtls.Options{}), mtls.Server(ca.Bundle(serverURI), mtls.Options{}))
	var unknown x509.UnknownAuthorityError
	if !errors.As(o.serverErr, &unknown) {
		t.Errorf("server: %v", o.serverErr)
	}
	if o.clientErr == nil || !strings.Contains(o.clientErr.Error(), "unknown certificate authority") {
		t.Errorf("client: %v", o.clientErr)
	}
}

func TestRefusesAClientWithoutACertificate(t *testing.T) {
	leak.Check(t)
	ca := certstest.Issuer(t, time.Hour)
	client := mtls.Client(ca.Bundle(clientURI), expect(t, serverURI), mtls.Options{})
	client.GetClientCertificate = nil
	o := shake(t, client, mtls.Server(ca.Bundle(serverURI), mtls.Options{}))
	if o.serverErr == nil || o.clientErr == nil || !strings.Contains(o.clientErr.Error(), "certificate required") {
		t.Errorf("client: %v; server: %v", o.clientErr, o.serverErr)
	}
}

func TestErrorsAreTyped(t *testing.T) {
	leak.Check(t)
	ca := certstest.Issuer(t, time.Hour)
	o := shake(t, mtls.Client(ca.Bundle(clientURI), expect(t, clientURI), mtls.Options{}), mtls.Server(ca.Bundle(serverURI), mtls.Options{}))
	var san *mtls.SANMismatchError
	if !errors.As(o.clientErr, &san) || san.Want[0].String() != clientURI || san.Got[0].String() != serverURI {
		t.Errorf("client: %v", o.clientErr)
	}
	o = shake(t, mtls.Client(ca.Bundle("spiffe://b/ns/c/sa/d"), expect(t, serverURI), mtls.Options{}), mtls.Server(ca.Bundle(serverURI), mtls.Options{}))
	var td *mtls.TrustDomainMismatchError
	if !errors.As(o.serverErr, &td) || td.Want != "cluster.local" {
		t.Errorf("server: %v", o.serverErr)
	}
}

func TestExpectingNobodyMeetsNobody(t *testing.T) {
	leak.Check(t)
	ca := certstest.Issuer(t, time.Hour)
	o := shake(t, mtls.Client(ca.Bundle(clientURI), nil, mtls.Options{}), mtls.Server(ca.Bundle(serverURI), mtls.Options{}))
	if o.clientErr == nil {
		t.Error("a client that expects nobody was content")
	}
}

// Both ends trust two roots and come from different ones: the state of a mesh
// whose root is being changed.
func TestTwoRootsVerifyBoth(t *testing.T) {
	leak.Check(t)
	was, will := certstest.Issuer(t, time.Hour), certstest.Issuer(t, time.Hour)
	was.AlsoTrust(will.Root())
	will.AlsoTrust(was.Root())
	for _, tc := range []struct{ client, server *certstest.Authority }{{was, will}, {will, was}, {was, was}, {will, will}} {
		o := shake(t, mtls.Client(tc.client.Bundle(clientURI), expect(t, serverURI), mtls.Options{}), mtls.Server(tc.server.Bundle(serverURI), mtls.Options{}))
		if o.clientErr != nil || o.serverErr != nil {
			t.Errorf("client: %v; server: %v", o.clientErr, o.serverErr)
		}
	}
}
