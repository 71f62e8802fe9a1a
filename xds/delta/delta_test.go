// SPDX-License-Identifier: Apache-2.0

package delta

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/ztunnel-go/ztunnel/internal/control"
	"github.com/ztunnel-go/ztunnel/test/fakeistiod"
	"github.com/ztunnel-go/ztunnel/test/leak"
)

const (
	addresses = fakeistiod.AddressType
	policies  = fakeistiod.AuthorizationType
)

// rig is a client whose handlers keep payloads as text. A payload "bad" is
// rejected, "closed" is rejected and held.
type rig struct {
	*Client
	log    lines
	counts counts

	mu   sync.Mutex
	held map[string]string
	gone []string
}

func (g *rig) handle(updates []Resource, removed []string) (rejected []Rejection) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, r := range updates {
		switch p := string(r.Payload); p {
		case "bad", "closed":
			rejected = append(rejected, Rejection{r.Name, "is " + p, p == "closed"})
		default:
			g.held[r.Name] = p
		}
	}
	for _, n := range removed {
		g.gone = append(g.gone, n)
		delete(g.held, n)
	}
	return rejected
}

// age makes answers to demands older than they need be.
func (g *rig) age(url string) {
	g.Client.mu.Lock()
	defer g.Client.mu.Unlock()
	m := &g.topics[url].answers
	for e := m.order.Front(); e != nil; e = e.Next() {
		a := e.Value.(answer)
		a.at = a.at.Add(-time.Hour)
		e.Value = a
	}
}

func (g *rig) has(name, payload string) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.held[name] == payload
}

func configOf(srv *fakeistiod.Server) Config {
	md, _ := structpb.NewStruct(map[string]any{"NAME": "z"})
	return Config{
		Control: control.Config{Address: srv.Address(), Roots: control.Roots{Inline: srv.RootPEM()}},
		Node:    Node{ID: "ztunnel~1.1.1.1~z.ns~ns.svc.cluster.local", Metadata: md},
		Types:   []Type{{URL: addresses}, {URL: policies}},
	}
}

func start(t *testing.T, srv *fakeistiod.Server, change func(*Config)) *rig {
	t.Helper()
	g := &rig{held: map[string]string{}}
	cfg := configOf(srv)
	if change != nil {
		change(&cfg)
	}
	for i := range cfg.Types {
		cfg.Types[i].Handle = g.handle
	}
	cfg.Observer = &g.counts
	g.Client = Open(cfg, g.log.logger())
	t.Cleanup(func() { g.Close() })
	return g
}

func onDemand(c *Config) { c.Types[0].OnDemand = true }

func res(url, name, payload string) fakeistiod.Resource {
	return fakeistiod.Resource{Type: url, Name: name, Payload: []byte(payload)}
}

func (g *rig) isReady() bool {
	select {
	case <-g.Ready():
		return true
	default:
		return false
	}
}

// requests waits for n requests of a stream.
func requests(t *testing.T, srv *fakeistiod.Server, stream, n int) []fakeistiod.Request {
	t.Helper()
	var got []fakeistiod.Request
	eventually(t, fmt.Sprintf("%d requests on stream %d", n, stream), func() bool {
		got = nil
		for _, r := range srv.Requests() {
			if r.Stream == stream {
				got = append(got, r)
			}
		}
		return len(got) >= n
	})
	return got
}

func TestTheFirstRequestsNameTheNodeTwice(t *testing.T) {
	leak.Check(t)
	srv := fakeistiod.Start(t, fakeistiod.Options{})
	start(t, srv, func(c *Config) {
		c.Control.Token = control.Token{Literal: "secret"}
		c.Control.ClusterID = "c1"
		c.Control.Headers = []control.Header{{Name: "x-extra", Value: "yes"}}
	})
	got := requests(t, srv, 1, 4)
	for i, url := range []string{addresses, policies} {
		r := got[i]
		if r.GetTypeUrl() != url || r.GetNode().GetId() != "ztunnel~1.1.1.1~z.ns~ns.svc.cluster.local" ||
			r.GetNode().GetMetadata().GetFields()["NAME"].GetStringValue() != "z" {
			t.Errorf("request %d: %v", i, r)
		}
		if len(r.GetResourceNamesSubscribe())+len(r.GetResourceNamesUnsubscribe())+len(r.GetInitialResourceVersions()) != 0 {
			t.Errorf("request %d names resources: %v", i, r)
		}
	}
	for _, r := range got[2:4] {
		if r.GetNode() != nil || r.GetResponseNonce() == "" || r.GetErrorDetail() != nil {
			t.Errorf("answer: %v", r)
		}
	}
	for name, want := range map[string]string{"authorization": "Bearer secret", "clusterid": "c1", "x-extra": "yes"} {
		if v := got[0].Metadata.Get(name); len(v) != 1 || v[0] != want {
			t.Errorf("metadata %s: %q", name, v)
		}
	}
}

func TestOnDemandSubscribesToNothing(t *testing.T) {
	leak.Check(t)
	srv := fakeistiod.Start(t, fakeistiod.Options{})
	g := start(t, srv, onDemand)
	got := requests(t, srv, 1, 3)
	star := []string{"*"}
	if a := got[0]; !slices.Equal(a.GetResourceNamesSubscribe(), star) || !slices.Equal(a.GetResourceNamesUnsubscribe(), star) {
		t.Errorf("addresses: %v", a)
	}
	if p := got[1]; p.GetResourceNamesSubscribe() != nil || p.GetResourceNamesUnsubscribe() != nil {
		t.Errorf("policies: %v", p)
	}
	eventually(t, "ready with policies alone", g.isReady)
}

func TestReadyWhenEachTypeWasTakenWhole(t *testing.T) {
	leak.Check(t)
	next := make(chan struct{})
	srv := fakeistiod.Start(t, fakeistiod.Options{Script: func(st *fakeistiod.Stream) error {
		if err := st.Greet(); err != nil {
			return err
		}
		for i, r := range []fakeistiod.Resource{res(addresses, "a", "1"), res(policies, "p", "bad"), res(policies, "p", "2")} {
			select {
			case next <- struct{}{}:
			case <-st.Done():
				return nil
			}
			if _, err := st.Push(fmt.Sprint(i), []fakeistiod.Resource{r}); err != nil {
				return err
			}
		}
		<-st.Done()
		return nil
	}})
	g := start(t, srv, nil)
	for i := range 3 {
		<-next
		if g.isReady() {
			t.Fatalf("ready before push %d", i)
		}
		requests(t, srv, 1, 2+i+1)
	}
	eventually(t, "ready", g.isReady)
}

func TestBadResourcesAreRefusedByNameAndGoodOnesTaken(t *testing.T) {
	leak.Check(t)
	srv := fakeistiod.Start(t, fakeistiod.Options{})
	srv.World.Put(res(addresses, "a", "1"), res(addresses, "b", "bad"), res(addresses, "c", "3"), res(addresses, "d", "bad"))
	g := start(t, srv, nil)
	eventually(t, "good resources", func() bool { return g.has("a", "1") && g.has("c", "3") })
	var nack *fakeistiod.Request
	for _, r := range requests(t, srv, 1, 4) {
		if r.GetErrorDetail() != nil {
			nack = &r
		}
	}
	if nack == nil || nack.GetErrorDetail().GetMessage() != "b: is bad; d: is bad" || nack.GetErrorDetail().GetCode() != 0 || nack.GetResponseNonce() == "" {
		t.Errorf("refusal: %v", nack)
	}
	if !g.log.has("level=WARN", "b: is bad; d: is bad") {
		t.Errorf("log: %s", g.log.String())
	}
}

func TestAnUnknownTypeIsAcknowledged(t *testing.T) {
	leak.Check(t)
	answers := make(chan string, 1)
	srv := fakeistiod.Start(t, fakeistiod.Options{Script: func(st *fakeistiod.Stream) error {
		if err := st.Greet(); err != nil {
			return err
		}
		a, err := st.Push("n7", []fakeistiod.Resource{res("type.googleapis.com/other", "x", "1234")})
		if err != nil {
			return err
		}
		answers <- fmt.Sprint(a.GetTypeUrl(), " ", a.GetResponseNonce(), " ", a.GetErrorDetail())
		<-st.Done()
		return nil
	}})
	g := start(t, srv, nil)
	if got := <-answers; got != "type.googleapis.com/other n7 <nil>" {
		t.Errorf("answer: %s", got)
	}
	if !g.log.has("level=ERROR", "unknown type") || g.counts.messages["type.googleapis.com/other"] != 1 || g.counts.bytes["type.googleapis.com/other"] != 4 {
		t.Errorf("log: %s, counts: %v", g.log.String(), g.counts.messages)
	}
}

func TestANewStreamEchoesWhatWasTaken(t *testing.T) {
	leak.Check(t)
	srv := fakeistiod.Start(t, fakeistiod.Options{})
	srv.World.Put(res(addresses, "a", "1"), res(addresses, "b", "2"), res(addresses, "refused", "bad"), res(addresses, "held", "closed"))
	g := start(t, srv, nil)
	requests(t, srv, 1, 4)
	srv.World.Put(res(addresses, "b", "bad")) // v2 is refused, so v1 stays
	requests(t, srv, 1, 5)
	srv.World.Put(res(addresses, "c", "3"))
	requests(t, srv, 1, 6)
	srv.World.Remove(addresses, "c")
	requests(t, srv, 1, 7)
	if err := srv.Restart(); err != nil {
		t.Fatal(err)
	}
	got := requests(t, srv, 2, 2)
	want := map[string]string{"a": "v1", "b": "v1", "held": ""}
	if v := got[0].GetInitialResourceVersions(); !maps.Equal(v, want) || got[0].GetNode() == nil {
		t.Errorf("echoed %v, want %v", v, want)
	}
	if v := got[1].GetInitialResourceVersions(); len(v) != 0 {
		t.Errorf("policies echoed %v", v)
	}
	if !g.has("a", "1") {
		t.Error("what was taken is gone")
	}
}

func TestWhatWasRemovedMeanwhileGoes(t *testing.T) {
	leak.Check(t)
	srv := fakeistiod.Start(t, fakeistiod.Options{})
	srv.World.Put(res(addresses, "a", "1"), res(addresses, "b", "2"))
	g := start(t, srv, nil)
	requests(t, srv, 1, 4)
	srv.Stop()
	srv.World.Remove(addresses, "a")
	eventually(t, "refused connections", func() bool { return g.counts.ended(ConnectionError) > 0 })
	if !g.has("a", "1") {
		t.Error("gone while disconnected")
	}
	if err := srv.Restart(); err != nil {
		t.Fatal(err)
	}
	eventually(t, "removal", func() bool { return g.has("a", "") && g.has("b", "2") })
	if g.counts.ended(Reconnect) != 1 {
		t.Errorf("a stopped server is %d times Reconnect: %v", g.counts.ended(Reconnect), g.counts.endings)
	}
}

// Each row of contract 8.6, on the wire.
func TestEachEndingIsCountedAndTriedAgain(t *testing.T) {
	ends := func(err error) func(*fakeistiod.Stream) error {
		return func(st *fakeistiod.Stream) error {
			if e := st.Greet(); e != nil {
				return e
			}
			if _, e := st.Push("1", []fakeistiod.Resource{res(addresses, "a", "1")}); e != nil {
				return e
			}
			return err
		}
	}
	atOnce := func(err error) func(*fakeistiod.Stream) error {
		return func(*fakeistiod.Stream) error { return err }
	}
	for _, tc := range []struct {
		name   string
		script func(*fakeistiod.Stream) error
		change func(*Config)
		reason Reason
		log    []string
	}{
		{name: "clean", script: ends(nil), reason: Complete, log: []string{"WARN", "XDS client complete"}},
		{name: "unknown", script: ends(status.Error(codes.Unknown, "x")), reason: Reconnect, log: []string{"DEBUG", "XDS client terminated: gRPC error status: Unknown", "retrying in 10ms"}},
		{name: "cancelled", script: ends(status.Error(codes.Canceled, "x")), reason: Reconnect, log: []string{"DEBUG", "status: Cancelled"}},
		{name: "deadline", script: ends(status.Error(codes.DeadlineExceeded, "x")), reason: Reconnect, log: []string{"DEBUG", "status: DeadlineExceeded"}},
		{name: "closing", script: ends(status.Error(codes.Unavailable, "transport is closing")), reason: Reconnect, log: []string{"DEBUG", "transport is closing"}},
		{name: "unavailable", script: ends(status.Error(codes.Unavailable, "busy")), reason: Error, log: []string{"WARN", "XDS client error: gRPC error status: Unavailable, message: \\\"busy\\\""}},
		{name: "internal", script: ends(status.Error(codes.Internal, "x")), reason: Error, log: []string{"WARN", "XDS client error"}},
		{name: "in headers", script: atOnce(status.Error(codes.Internal, "x")), reason: ConnectionError, log: []string{"WARN", "XDS client connection error: gRPC connection error connecting to https://127.0.0.1"}},
		{name: "no trust", reason: ConnectionError, change: func(c *Config) {
			c.Control.Address = strings.Replace(c.Control.Address, "127.0.0.1", "127.0.0.2", 1) // nobody listens
		}, log: []string{"WARN", "connection refused"}},
		{name: "bad token file", reason: ConnectionError, change: func(c *Config) { c.Control.Token.File = "/nonexistent" }, log: []string{"WARN", "token: "}},
		{name: "bad roots", reason: Error, change: func(c *Config) { c.Control.Roots = control.Roots{File: "/nonexistent"} }, log: []string{"WARN", "XDS client error: root certificates: "}},
		{name: "bad alternate name", reason: Error, change: func(c *Config) { c.Control.AltHostname = "a b" }, log: []string{"WARN", "invalid dns name"}},
		{name: "cannot be sent", reason: Error, change: func(c *Config) { c.Node.ID = "\xff" }, log: []string{"WARN", "XDS client error: ", "UTF-8"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			leak.Check(t)
			srv := fakeistiod.Start(t, fakeistiod.Options{Script: tc.script})
			g := start(t, srv, tc.change)
			eventually(t, "three endings", func() bool { return g.counts.ended(tc.reason) >= 3 })
			g.Close()
			if len(g.counts.endings) != 1 {
				t.Errorf("endings %v", g.counts.endings)
			}
			if !g.log.has(tc.log...) {
				t.Errorf("no line with %q in\n%s", tc.log, g.log.String())
			}
		})
	}
}

func TestARefusedTokenIsReadAgain(t *testing.T) {
	leak.Check(t)
	srv := fakeistiod.Start(t, fakeistiod.Options{Token: func(token string) error {
		if token != "good" {
			return errors.New("token has expired")
		}
		return nil
	}})
	file := filepath.Join(t.TempDir(), "token")
	write := func(s string) {
		if err := os.WriteFile(file, []byte(s), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("expired")
	g := start(t, srv, func(c *Config) { c.Control.Token.File = file })
	eventually(t, "refusals", func() bool { return g.counts.ended(ConnectionError) >= 2 })
	if !g.log.has("authentication failure: token has expired", "(hint: check the control plane logs for more information)") {
		t.Errorf("log: %s", g.log.String())
	}
	write("")
	eventually(t, "an empty file", func() bool { return g.log.has("token file exists, but was empty") })
	write("good\n")
	eventually(t, "a line break", func() bool { return g.log.has("not a legal header value") })
	write("good")
	eventually(t, "ready", g.isReady)
}
