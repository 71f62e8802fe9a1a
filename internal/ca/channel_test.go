// SPDX-License-Identifier: Apache-2.0

package ca_test

import (
	"context"
	"net"
	"sync/atomic"
	"testing"
	"time"

	"github.com/ztunnel-go/ztunnel/internal/ca"
	"github.com/ztunnel-go/ztunnel/internal/ca/catest"
	"github.com/ztunnel-go/ztunnel/internal/certs/certstest"
	"github.com/ztunnel-go/ztunnel/internal/control"
)

// counted counts the connections that cfg's client makes.
func (s *istiod) counted(cfg *ca.IstiodConfig) *atomic.Int32 {
	var n atomic.Int32
	cfg.Channel.DialContext = func(ctx context.Context, address string) (net.Conn, error) {
		n.Add(1)
		return s.dial(ctx, address)
	}
	return &n
}

func TestTheTokenIsReadForEachCallAsItIs(t *testing.T) {
	s := newIstiod(t)
	cfg := s.config()
	token := fileOf(t, "istio-token", "one")
	cfg.Channel.Token = control.Token{File: token}
	c := openIstiod(t, cfg)
	c.get()
	overwrite(t, token, "two")
	c.get()
	for i, want := range []string{"Bearer one", "Bearer two"} {
		if got := s.Requests()[i].Header.Get("authorization"); len(got) != 1 || got[0] != want {
			t.Errorf("call %d: authorization %q, want %q", i, got, want)
		}
	}
	const begin = "signing gRPC error (The request does not have valid authentication credentials): "
	overwrite(t, token, "")
	c.failsWith(begin, "token file exists, but was empty")
	overwrite(t, token, "three\n")
	c.failsWith(begin, "")
	if n := len(s.Requests()); n != 2 {
		t.Errorf("%d calls arrived, want 2", n)
	}
}

func TestChangedRootsMakeANewChannel(t *testing.T) {
	s := newIstiod(t)
	first, second := catest.PEM(s.authority.Root()), catest.PEM(certstest.Issuer(t, time.Hour).Root())
	cfg := s.config()
	roots := fileOf(t, "root-cert.pem", first)
	cfg.Channel.Roots = control.Roots{File: roots}
	dials := s.counted(&cfg)
	c := openIstiod(t, cfg)
	for range 3 {
		c.get()
	}
	if n := dials.Load(); n != 1 {
		t.Errorf("%d connections while the file did not change", n)
	}

	overwrite(t, roots, second)
	c.failsWith("signing gRPC error (The service is currently unavailable): ", "")
	overwrite(t, roots, second+first)
	c.get()
	if n := dials.Load(); n < 3 {
		t.Errorf("%d connections, want a new one for each change", n)
	}
}

// A half-written file, or none, is no reason to lose the authority.
func TestUnusableRootsLeaveTheChannel(t *testing.T) {
	s := newIstiod(t)
	cfg := s.config()
	good := catest.PEM(s.authority.Root())
	roots := fileOf(t, "root-cert.pem", good)
	cfg.Channel.Roots = control.Roots{File: roots}
	dials := s.counted(&cfg)
	c := openIstiod(t, cfg)
	c.get()
	overwrite(t, roots, "-----BEGIN CERTIFICATE-----\n")
	c.get()
	c.get()
	c.said("WARN", "keeping the previous channel")
	if n := dials.Load(); n != 1 {
		t.Errorf("%d connections, want the first alone", n)
	}
	overwrite(t, roots, good) // tried again, since the file is not the one in use
	c.get()
	if n := dials.Load(); n != 2 {
		t.Errorf("%d connections, want a second", n)
	}
}

func TestGivenRootsAreNeverLookedAtAgain(t *testing.T) {
	s := newIstiod(t)
	cfg := s.config()
	dials := s.counted(&cfg)
	c := openIstiod(t, cfg)
	for range 5 {
		c.get()
	}
	if n := dials.Load(); n != 1 {
		t.Errorf("%d connections", n)
	}
}

func TestACallUnderWayKeepsItsChannel(t *testing.T) {
	s := newIstiod(t)
	cfg := s.config()
	roots := fileOf(t, "root-cert.pem", catest.PEM(s.authority.Root()))
	cfg.Channel.Roots = control.Roots{File: roots}
	c := openIstiod(t, cfg)
	arrived, pass := make(chan struct{}), make(chan struct{})
	var first atomic.Bool
	s.Answers(func(ctx context.Context, r catest.Request) ([]string, error) {
		if first.CompareAndSwap(false, true) {
			close(arrived)
			<-pass
		}
		return s.Sign(ctx, r)
	})
	result := make(chan error, 1)
	go func() {
		_, err := c.Issue(t.Context(), certstest.ID(t, wanted))
		result <- err
	}()
	<-arrived
	overwrite(t, roots, catest.PEM(s.authority.Root()))
	c.get() // by a new channel
	close(pass)
	if err := <-result; err != nil {
		t.Errorf("the call that was under way: %v", err)
	}
}

// gRPC would pause between its attempts to connect, up to two minutes, and
// answer meanwhile with the last failure.
func TestEachRetryTriesAnew(t *testing.T) {
	s := newIstiod(t)
	c := openIstiod(t, s.config())
	c.get()
	s.stop()
	for range 4 {
		c.failsWith("signing gRPC error (The service is currently unavailable): ", "")
	}
	s.start()
	c.get()
}

func TestTheServerMustProveItsName(t *testing.T) {
	s := newIstiod(t)
	s.stop()
	s.cert = s.authority.Server("istiod-canary.istio-system.svc")
	s.start()
	openIstiod(t, s.config()).failsWith("signing gRPC error (The service is currently unavailable): ", `"`)

	cfg := s.config()
	cfg.Channel.AltHostname = "istiod-canary.istio-system.svc"
	openIstiod(t, cfg).get()
}
