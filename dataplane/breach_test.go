// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"crypto/tls"
	"errors"
	"io"
	"testing"
	"time"

	"golang.org/x/net/http2"

	"github.com/ztunnel-go/ztunnel/internal/certs/certstest"
	"github.com/ztunnel-go/ztunnel/internal/identity"
	"github.com/ztunnel-go/ztunnel/internal/mtls"
)

// A peer that floods is told to calm down and counted, and another peer's
// tunnel hears nothing of it.
func TestATunnelThatFloodsIsEndedAndCounted(t *testing.T) {
	n := newLAN(t)
	w := member("server", "10.0.0.2")
	n.put(w)
	server := n.start(w)
	server.app(8080, echo)
	stream, err := open(t, n.tunnel("somebody", "10.0.0.9"), "10.0.0.2:8080")
	if err != nil {
		t.Fatal(err)
	}
	flood := tls.Client(n.from("10.0.0.8", serverIP+":15008"), mtls.Client(n.ca.Bundle("spiffe://cluster.local/ns/ns/sa/mallory"),
		[]identity.ID{certstest.ID(t, "spiffe://cluster.local/ns/ns/sa/server")}, mtls.Options{}))
	defer flood.Close()
	frames := http2.NewFramer(flood, flood)
	if _, err := io.WriteString(flood, http2.ClientPreface); err != nil {
		t.Fatal(err)
	}
	if err := frames.WriteSettings(); err != nil {
		t.Fatal(err)
	}
	// All that is sent the server reads, and nothing is in the way of its last
	// word.
	const more, budget = 100, 1000
	for range budget + more {
		if err := frames.WritePing(true, [8]byte{}); err != nil {
			break
		}
	}
	count := func() float64 { return server.count("ztunnel_tunnel_breaches_total", "code=ENHANCE_YOUR_CALM") }
	for deadline := time.Now().Add(patience); count() != 1; {
		switch err := frames.WritePing(true, [8]byte{}); { // the budget refills with time
		case time.Now().After(deadline):
			t.Fatalf("counted %v", count())
		case err != nil:
			time.Sleep(time.Millisecond)
		}
	}
	for {
		f, err := frames.ReadFrame()
		if err != nil {
			if !errors.Is(err, io.EOF) {
				t.Logf("the last word was lost: %v", err) // TCP resets what was sent into a closed socket
			}
			break
		}
		if g, ok := f.(*http2.GoAwayFrame); ok && g.ErrCode != http2.ErrCodeEnhanceYourCalm {
			t.Errorf("got %v", g)
		}
	}
	sayIn(t, stream, "still here")
}
