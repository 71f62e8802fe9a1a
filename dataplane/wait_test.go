// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/ztunnel-go/ztunnel/internal/identity"
	"github.com/ztunnel-go/ztunnel/internal/mesh"
)

func waitingLong(c *Config) { c.WorkloadWait = patience }

// keptOut refuses everybody, to whoever names it.
func keptOut() *mesh.Policy {
	return &mesh.Policy{Name: "late", Namespace: "ns", Scope: mesh.ScopeWorkloadSelector, Action: mesh.Allow}
}

func naming(policies ...string) func(*mesh.Workload) {
	return func(w *mesh.Workload) { w.AuthorizationPolicies = policies }
}

// hear sends a byte and returns what comes back.
func hear(c net.Conn) string {
	if _, err := c.Write([]byte("x")); err != nil {
		return ""
	}
	b := make([]byte, 1)
	k, _ := c.Read(b) // an error is silence
	return string(b[:k])
}

func TestAPolicyThatComesLateIsWaitedFor(t *testing.T) {
	for _, way := range []string{"tunnel", "plaintext"} {
		t.Run(way, func(t *testing.T) {
			n := newLAN(t)
			n.put(member("client", "10.0.0.1"), member("server", "10.0.0.2", naming("ns/late")))
			client := n.start(member("client", "10.0.0.1"))
			server := n.start(member("server", "10.0.0.2"), waitingLong)
			server.app(80, echo)
			heard := make(chan string, 1)
			var c net.Conn
			if way == "plaintext" {
				c = n.from("10.0.0.9", "10.0.0.2:80")
			} else {
				c = client.connect("10.0.0.2:80")
			}
			go func() { heard <- hear(c) }()
			eventually(t, "a connection that waits", func() bool { return server.Waiting().Policy == 1 })
			n.put(keptOut())
			if got := <-heard; got != "" {
				t.Errorf("heard %q past the policy", got)
			}
			server.out.await("connection closed due to policy rejection: allow policies exist, but none allowed")
			if w := server.Waiting(); w != (Waiting{}) {
				t.Errorf("waiting %+v", w)
			}
		})
	}
}

func TestAPolicyThatNeverComesIsWaitedForOnce(t *testing.T) {
	n := newLAN(t)
	n.put(member("client", "10.0.0.1"), member("server", "10.0.0.2", naming("ns/never")))
	client := n.start(member("client", "10.0.0.1"))
	server := n.start(member("server", "10.0.0.2"), func(c *Config) { c.WorkloadWait = 300 * time.Millisecond })
	server.app(80, echo)
	began := time.Now()
	say(t, client.connect("10.0.0.2:80"), "hello")
	if took := time.Since(began); took < 300*time.Millisecond {
		t.Errorf("let in after %v", took)
	}
	server.out.await("skipping unknown policy ns/never")
	for range 3 {
		say(t, client.connect("10.0.0.2:80"), "hello")
	}
	if w := server.Waiting(); w.Expired != 1 {
		t.Errorf("%d waits in vain, want one for all", w.Expired)
	}
	if got := server.count("ztunnel_unknown_policies_total"); got != 4 {
		t.Errorf("%v counted, want 4", got)
	}
	if got := server.count("ztunnel_wait_timeouts_total", "what=policy"); got != 1 {
		t.Errorf("%v waits counted", got)
	}
}

// A workload that stops naming a policy need not have it.
func TestAPolicyThatIsNoLongerNamedIsNotWaitedFor(t *testing.T) {
	n := newLAN(t)
	n.put(member("client", "10.0.0.1"), member("server", "10.0.0.2", naming("ns/gone")))
	client := n.start(member("client", "10.0.0.1"))
	server := n.start(member("server", "10.0.0.2"), waitingLong)
	server.app(80, echo)
	c := client.connect("10.0.0.2:80")
	eventually(t, "a connection that waits", func() bool { return server.Waiting().Policy == 1 })
	n.put(member("server", "10.0.0.2"))
	say(t, c, "hello")
	if got := server.count("ztunnel_unknown_policies_total"); got != 0 {
		t.Errorf("%v counted", got)
	}
}

// Who waits holds up nobody: not others of the same tunnel, nor the end.
func TestAWaitForAPolicyHoldsUpNobody(t *testing.T) {
	n := newLAN(t)
	n.put(member("client", "10.0.0.1"), member("server", "10.0.0.2"))
	client := n.start(member("client", "10.0.0.1"))
	server := n.start(member("server", "10.0.0.2"), func(c *Config) { c.WorkloadWait = time.Hour })
	server.app(80, echo)
	open := client.connect("10.0.0.2:80")
	say(t, open, "before")
	n.put(member("server", "10.0.0.2", naming("ns/late")))
	client.connect("10.0.0.2:80")
	plain := n.from("10.0.0.9", "10.0.0.2:80")
	eventually(t, "two that wait", func() bool { return server.Waiting().Policy == 2 })
	say(t, open, "meanwhile")
	server.Stop(0)
	wantReset(t, plain)
}

func TestTheFirstConnectionsOfAPodWaitForItsState(t *testing.T) {
	n := newLAN(t)
	n.put(member("server", "10.0.0.2"))
	server := n.start(member("server", "10.0.0.2"))
	server.app(80, echo)
	client := n.start(member("client", "10.0.0.1"), waitingLong)
	c := client.connect("10.0.0.2:80")
	eventually(t, "a connection that waits", func() bool { return client.Waiting().Workload == 1 })
	n.put(member("client", "10.0.0.1"))
	say(t, c, "hello")
	if w := client.Waiting(); w != (Waiting{}) {
		t.Errorf("waiting %+v", w)
	}
}

func TestTheFirstConnectionsOfAPodWaitForItsCertificate(t *testing.T) {
	n := newLAN(t)
	n.put(member("client", "10.0.0.1"), member("server", "10.0.0.2"))
	server := n.start(member("server", "10.0.0.2"))
	server.app(80, echo)
	sign := make(chan struct{})
	n.ca.Before(func(ctx context.Context, id identity.ID) error {
		if id.ServiceAccount() != "client" {
			return nil
		}
		select {
		case <-sign:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	})
	client := n.start(member("client", "10.0.0.1"), func(c *Config) { c.WorkloadWait = 500 * time.Millisecond })
	wantReset(t, client.connect("10.0.0.2:80"))
	client.out.await("identity error: timed out waiting for the certificate of spiffe://cluster.local/ns/ns/sa/client")
	c := client.connect("10.0.0.2:80")
	eventually(t, "a connection that waits", func() bool { return client.Waiting().Certificate == 1 })
	close(sign)
	say(t, c, "hello")
	if w := client.Waiting(); w.Certificate != 0 || w.Expired != 1 {
		t.Errorf("waiting %+v", w)
	}
}

// A teller is a control plane that is asked for names. What it knows of one it
// puts into the mesh; err is what it says instead.
type teller struct {
	mu    sync.Mutex
	asked []string
	knows map[string]func()
	err   error
	mute  bool
}

func (a *teller) demand(ctx context.Context, name string) error {
	a.mu.Lock()
	a.asked = append(a.asked, name)
	tell, err, mute := a.knows[name], a.err, a.mute
	a.mu.Unlock()
	if mute {
		<-ctx.Done()
		return fmt.Errorf("demand of %q: %w", name, ctx.Err())
	}
	if tell != nil {
		tell()
	}
	return err
}

func (a *teller) all() string {
	a.mu.Lock()
	defer a.mu.Unlock()
	return strings.Join(a.asked, " ")
}

func (n *lan) onDemand() *teller {
	a := &teller{knows: map[string]func(){}}
	n.demand = a.demand
	return a
}

func TestOnDemandTheControlPlaneIsAskedFirst(t *testing.T) {
	n := newLAN(t)
	server := n.start(member("server", "10.0.0.2"))
	server.app(80, echo)
	n.outside("10.9.9.9:80", echo)
	plane := n.onDemand()
	plane.knows["/10.0.0.2"] = func() { n.put(member("server", "10.0.0.2")) }
	plane.knows["c1//Pod/ns/client"] = func() { n.put(member("client", "10.0.0.1")) }
	client := n.start(member("client", "10.0.0.1"), waitingLong, func(c *Config) { c.ClusterID = "c1" })
	say(t, client.connect("10.0.0.2:80"), "hello")
	if got := client.count("istio_tcp_connections_opened_total", "connection_security_policy=mutual_tls", "reporter=source"); got != 1 {
		t.Errorf("%v through a tunnel", got)
	}
	say(t, client.connect("10.9.9.9:80"), "hello")
	if got, want := plane.all(), "c1//Pod/ns/client /10.0.0.2 /10.9.9.9"; got != want {
		t.Errorf("asked for %q, want %q", got, want)
	}
}

// What the control plane has not spoken of may be of the mesh: never plaintext.
func TestOnDemandNothingGoesOutUntilThereIsAnAnswer(t *testing.T) {
	n := newLAN(t)
	n.put(member("client", "10.0.0.1"))
	n.outside("10.9.9.9:80", echo)
	plane := n.onDemand()
	plane.mute = true
	client := n.start(member("client", "10.0.0.1"), func(c *Config) { c.WorkloadWait = 200 * time.Millisecond })
	wantReset(t, client.connect("10.9.9.9:80"))
	client.out.await("timed out waiting for '/10.9.9.9' from xds")
	if got := client.count("ztunnel_wait_timeouts_total", "what=answer"); got != 1 {
		t.Errorf("%v counted", got)
	}
	plane.mu.Lock()
	plane.mute, plane.err = false, errors.New("too many names are being asked for")
	plane.mu.Unlock()
	wantReset(t, client.connect("10.9.9.9:80"))
	client.out.await("too many names are being asked for")
}

func TestOnDemandOnePodAsksForSoMuchAtOnce(t *testing.T) {
	n := newLAN(t)
	n.put(member("client", "10.0.0.1"))
	plane := n.onDemand()
	plane.mute = true
	client := n.start(member("client", "10.0.0.1"), func(c *Config) { c.WorkloadWait = time.Hour })
	for i := range maxInquiries {
		client.connect(fmt.Sprintf("10.8.%d.%d:80", i/200, i%200+1))
	}
	eventually(t, "all to wait", func() bool { return client.Waiting().Answer == maxInquiries })
	wantReset(t, client.connect("10.9.9.9:80"))
	client.out.await(errTooManyInquiries.Error())
	client.Stop(0)
}

// Requests by name, and from whom, are asked about as well.
func TestOnDemandInbound(t *testing.T) {
	n := newLAN(t)
	n.put(member("server", "10.0.0.2"))
	plane := n.onDemand()
	plane.knows["/10.0.0.9"] = func() { n.put(member("peer", "10.0.0.9")) }
	server := n.start(member("server", "10.0.0.2"), waitingLong)
	server.app(80, echo)
	say(t, n.from("10.0.0.9", "10.0.0.2:80"), "hello")
	if got := server.count("istio_tcp_connections_opened_total", "reporter=destination", "source_canonical_service=peer"); got != 1 {
		t.Errorf("%v from the peer", got)
	}
	// An answer that does not come holds a connection up a moment only.
	plane.mu.Lock()
	plane.mute = true
	plane.mu.Unlock()
	say(t, n.from("10.0.0.8", "10.0.0.2:80"), "hello")
}
