// SPDX-License-Identifier: Apache-2.0

package mtls_test

import (
	"crypto/tls"
	"errors"
	"slices"
	"testing"
	"time"

	"github.com/ztunnel-go/ztunnel/internal/certs/certstest"
	"github.com/ztunnel-go/ztunnel/internal/identity"
	"github.com/ztunnel-go/ztunnel/internal/mtls"
	"github.com/ztunnel-go/ztunnel/test/leak"
)

// A ticketed server and client hand out and redeem tickets, which ours never
// do: the checks must hold all the same.
func ticketed(server *tls.Config) *tls.Config {
	server.SessionTicketsDisabled = false
	server.SetSessionTicketKeys([][32]byte{{1}})
	return server
}

func redeeming(client *tls.Config, cache tls.ClientSessionCache) *tls.Config {
	client.ClientSessionCache = cache
	client.ServerName = "the key under which the session is kept"
	return client
}

func TestAResumedSessionIsCheckedAgain(t *testing.T) {
	leak.Check(t)
	ca := certstest.Issuer(t, time.Hour)
	client, server := ca.Bundle(clientURI), ca.Bundle(serverURI)
	elsewhere := ca.Bundle("spiffe://else.where/ns/default/sa/server")

	for _, tc := range []struct {
		name   string
		expect []identity.ID
		server *tls.Config
		check  func(o outcome) bool
	}{
		{"nothing has changed", expect(t, serverURI), mtls.Server(server, mtls.Options{}), func(o outcome) bool {
			id, ok := mtls.PeerIdentity(o.server)
			return o.clientErr == nil && o.serverErr == nil && o.client.DidResume && ok && id.String() == clientURI
		}},
		{"the client expects another", expect(t, clientURI), mtls.Server(server, mtls.Options{}), func(o outcome) bool {
			_, ok := errors.AsType[*mtls.SANMismatchError](o.clientErr)
			return ok
		}},
		{"the server has another trust domain", expect(t, serverURI), mtls.Server(elsewhere, mtls.Options{}), func(o outcome) bool {
			_, ok := errors.AsType[*mtls.TrustDomainMismatchError](o.serverErr)
			return ok
		}},
		{"the server no longer trusts the root", expect(t, serverURI), mtls.Server(certstest.Issuer(t, time.Hour).Bundle(serverURI), mtls.Options{}),
			func(o outcome) bool { return o.clientErr != nil && o.serverErr != nil }},
	} {
		t.Run(tc.name, func(t *testing.T) {
			cache := tls.NewLRUClientSessionCache(1)
			o := shake(t, redeeming(mtls.Client(client, expect(t, serverURI), mtls.Options{}), cache), ticketed(mtls.Server(server, mtls.Options{})))
			if o.clientErr != nil || o.serverErr != nil {
				t.Fatalf("first: client: %v; server: %v", o.clientErr, o.serverErr)
			}
			o = shake(t, redeeming(mtls.Client(client, tc.expect, mtls.Options{}), cache), ticketed(tc.server))
			if !tc.check(o) {
				t.Errorf("second: client: %v; server: %v; resumed: %v", o.clientErr, o.serverErr, o.client.DidResume)
			}
		})
	}
}

func TestACertificateThatExpiredSinceIsNotResumed(t *testing.T) {
	leak.Check(t)
	ca := certstest.Issuer(t, time.Hour)
	client, server := ca.Bundle(clientURI), ca.Bundle(serverURI)
	cache := tls.NewLRUClientSessionCache(1)
	for _, late := range []time.Duration{0, 2 * time.Hour} {
		c, s := redeeming(mtls.Client(client, expect(t, serverURI), mtls.Options{}), cache), ticketed(mtls.Server(server, mtls.Options{}))
		c.Time = func() time.Time { return time.Now().Add(late) }
		s.Time = c.Time
		if o := shake(t, c, s); (o.clientErr == nil) != (late == 0) || (o.serverErr == nil) != (late == 0) {
			t.Errorf("after %v: client: %v; server: %v", late, o.clientErr, o.serverErr)
		}
	}
}

// Ours hand out no ticket, so that no work is spent on what nobody redeems.
func TestOursDoNotResume(t *testing.T) {
	leak.Check(t)
	ca := certstest.Issuer(t, time.Hour)
	client, server := ca.Bundle(clientURI), ca.Bundle(serverURI)
	cache := tls.NewLRUClientSessionCache(1)
	shared := mtls.Server(server, mtls.Options{})
	var resumed []bool
	for range 2 {
		o := shake(t, redeeming(mtls.Client(client, expect(t, serverURI), mtls.Options{}), cache), shared)
		if o.clientErr != nil || o.serverErr != nil {
			t.Fatalf("client: %v; server: %v", o.clientErr, o.serverErr)
		}
		resumed = append(resumed, o.client.DidResume)
	}
	if slices.Contains(resumed, true) {
		t.Error("a session was resumed")
	}
}
