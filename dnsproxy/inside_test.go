// SPDX-License-Identifier: Apache-2.0

package dnsproxy

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/miekg/dns"
	"github.com/ztunnel-go/ztunnel/internal/mesh"
	"github.com/ztunnel-go/ztunnel/test/leak"
)

func TestAddressesAreFoundAsIfAskedForByUDP(t *testing.T) {
	leak.Check(t)
	both := store([]*mesh.Service{service("ns1/a", "1.1.1.1", "2001:db8::1"), service("ns1/only4", "1.1.1.2")})
	up := fakeUpstream(t, world)
	r := start(t, Config{View: both.View(), IPv6: true, Upstream: up.config()})
	for _, c := range []struct {
		name, want string
		v6         bool
		err        string
	}{
		{name: "a", want: "1.1.1.1"},
		{name: "A.", want: "1.1.1.1"},
		{name: "a", v6: true, want: "2001:db8::1"},
		{name: "only4", v6: true, err: "dns response had no valid IP addresses"},
		{name: "www.example.org", want: "192.0.2.1"},
		{name: "nobody.invalid", err: "answered NXDOMAIN"},
		{name: "two..dots", err: `ask for "two..dots": dns: bad rdata`},
	} {
		got, err := r.server.Resolve(t.Context(), c.name, c.v6)
		switch {
		case c.err == "" && (err != nil || got.String() != c.want):
			t.Errorf("%s: %v, %v; want %s", c.name, got, err, c.want)
		case c.err != "" && (err == nil || c.err != err.Error()):
			t.Errorf("%s: %v, %v; want error %q", c.name, got, err, c.err)
		}
	}
	counts := r.counts()
	for series, want := range map[string]float64{
		"istio_dns_requests_total udp,a,v1,clients":          4, // a name that is none asks nobody
		"istio_dns_requests_total udp,aaaa,v1,clients":       2,
		"istio_dns_upstream_requests_total udp,a,v1,clients": 2,
	} {
		if counts[series] != want {
			t.Errorf("%s is %v, want %v", series, counts[series], want)
		}
	}
}

func TestALookUpEndsWithWhoWaitsAndWithTheServer(t *testing.T) {
	leak.Check(t)
	silent := make(chan struct{})
	up := fakeUpstream(t, func(q *dns.Msg, tcp bool) *dns.Msg {
		<-silent
		return world(q, tcp)
	})
	t.Cleanup(func() { close(silent) }) // before upstream ends
	r := start(t, Config{Upstream: up.config()})
	short, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if got, err := r.server.Resolve(short, "www.example.org", false); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("%v, %v", got, err)
	}
	result := make(chan error, 1)
	go func() { // ends when the server closes
		_, err := r.server.Resolve(t.Context(), "other.example.org", false)
		result <- err
	}()
	poll(t, func() bool { return r.server.packets.Load() == 1 })
	r.server.Close()
	if err := <-result; !errors.Is(err, errEnding) {
		t.Error(err)
	}
	if _, err := r.server.Resolve(t.Context(), "www.example.org", false); !errors.Is(err, errEnding) {
		t.Error(err)
	}
}

func TestNamesAreLookedUpUntilTheDrain(t *testing.T) {
	leak.Check(t)
	r := start(t, Config{View: lookupStore().View(), Upstream: fakeUpstream(t, world).config()})
	r.server.Quiet()
	if c, err := net.Dial("tcp", r.tcp.String()); err == nil {
		c.Close()
		t.Error("a connection was accepted")
	}
	if got, err := r.server.Resolve(t.Context(), "www.example.org", false); err != nil || got != netip.MustParseAddr("192.0.2.1") {
		t.Errorf("%v, %v", got, err)
	}
	if err := r.server.Drain(t.Context()); err != nil {
		t.Error(err)
	}
	if got, err := r.server.Resolve(t.Context(), "www.example.org", false); !errors.Is(err, errEnding) {
		t.Errorf("after the drain: %v, %v", got, err)
	}
}
