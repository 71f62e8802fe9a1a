// SPDX-License-Identifier: Apache-2.0

package live

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"regexp"
	"strings"
	"sync"
	"testing"
	"testing/synctest"

	"github.com/ztunnel-go/ztunnel/dataplane/rbac"
	"github.com/ztunnel-go/ztunnel/internal/identity"
	"github.com/ztunnel-go/ztunnel/internal/logs"
	"github.com/ztunnel-go/ztunnel/internal/mesh"
	"github.com/ztunnel-go/ztunnel/test/leak"
)

func addrPort(s string) netip.AddrPort { return netip.MustParseAddrPort(s) }

func server() *mesh.Workload {
	return &mesh.Workload{UID: "cluster//Pod/ns/server", Name: "server", Namespace: "ns"}
}

func clientID(t *testing.T) identity.ID {
	t.Helper()
	id, err := identity.New("cluster.local", "ns", "client")
	if err != nil {
		t.Fatal(err)
	}
	return id
}

func request(t *testing.T) Inbound {
	t.Helper()
	return Inbound{
		Src: addrPort("10.0.0.1:4000"), Source: clientID(t), Dst: addrPort("10.0.0.2:80"),
		Destination: server(), Service: "web.ns.svc.cluster.local",
	}
}

// denyPort refuses connections to a port, in the server's namespace.
func denyPort(port uint16) *mesh.Policy {
	return &mesh.Policy{
		Name: "deny", Namespace: "ns", Scope: mesh.ScopeNamespace, Action: mesh.Deny,
		Rules: []mesh.Rule{{{{DestinationPorts: []uint16{port}}}}},
	}
}

func put(s *mesh.Store, p *mesh.Policy) {
	s.Apply(func(u *mesh.Update) { u.PutPolicy(p.Key(), p) })
}

// A capture collects log lines, without their time.
type capture struct {
	log *logs.Log
	out bytes.Buffer
}

func newCapture(t *testing.T, filter string) *capture {
	t.Helper()
	c := &capture{}
	log, err := logs.New(logs.Config{Output: &c.out, Filter: filter})
	if err != nil {
		t.Fatal(err)
	}
	c.log = log
	t.Cleanup(func() { log.Close() })
	return c
}

func (c *capture) lines(t *testing.T) string {
	t.Helper()
	if err := c.log.Close(); err != nil {
		t.Fatal(err)
	}
	return regexp.MustCompile(`(?m)^[^\t]+\t`).ReplaceAllString(c.out.String(), "")
}

func TestAdmitAsksPolicy(t *testing.T) {
	store := mesh.NewStore()
	put(store, denyPort(80))
	table := New(store, slog.New(slog.DiscardHandler))
	cancel := func(error) { t.Error("a refused connection was cancelled") }

	_, err := table.Admit(request(t), cancel)
	var denied *rbac.DeniedError
	if !errors.As(err, &denied) || denied.Policy != "ns/deny" {
		t.Errorf("Admit = %v", err)
	}
	if n := table.Len(); n != 0 {
		t.Errorf("%d entries are left of a refused connection", n)
	}

	other := request(t)
	other.Dst = addrPort("10.0.0.2:81")
	e, err := table.Admit(other, cancel)
	if err != nil {
		t.Fatal(err)
	}
	e.Done()
	e.Done()
	if n := table.Len(); n != 0 {
		t.Errorf("%d entries are left", n)
	}
}

func TestAPolicyChangeEndsWhatItForbids(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := mesh.NewStore()
		logged := newCapture(t, "info")
		table := New(store, logged.log.Logger())
		ctx, stop := context.WithCancel(t.Context())
		var running sync.WaitGroup
		running.Go(func() { table.Run(ctx) })

		var causes []error
		e, err := table.Admit(request(t), func(cause error) { causes = append(causes, cause) })
		if err != nil {
			t.Fatal(err)
		}
		plain := request(t)
		plain.Source = identity.ID{}
		plain.Dst = addrPort("10.0.0.2:81")
		kept, err := table.Admit(plain, func(error) { t.Error("an allowed connection was ended") })
		if err != nil {
			t.Fatal(err)
		}
		out := table.Track(Outbound{ActualDst: addrPort("10.0.0.2:80")}, func(error) { t.Error("an outbound connection was ended") })

		put(store, denyPort(80))
		synctest.Wait()
		if len(causes) != 1 || !errors.Is(causes[0], ErrPolicyChange) {
			t.Fatalf("causes = %v", causes)
		}
		// Another change before the connection has left says nothing twice.
		put(store, denyPort(80))
		synctest.Wait()
		if len(causes) != 1 {
			t.Errorf("causes = %v", causes)
		}
		if n := table.Len(); n != 3 {
			t.Errorf("Len = %d, want 3 until the connection has ended", n)
		}
		for _, e := range []*Entry{e, kept, out} {
			e.Done()
		}
		stop()
		running.Wait()
		const want = "info\tproxy::connection_manager\tconnection 10.0.0.1:4000(spiffe://cluster.local/ns/ns/sa/client)->10.0.0.2:80 (cluster//Pod/ns/server) closed because it's no longer allowed after a policy update\t\n"
		if got := logged.lines(t); got != want {
			t.Errorf("got  %q\nwant %q", got, want)
		}
	})
}

// The verdict keeps to the workload of the time of connecting: a policy that
// only a later version of it names does not count, a change of one that it
// named then does (contract 5.5).
func TestTheWorkloadOfTheTimeOfConnectingIsJudged(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		selector := func(port uint16) *mesh.Policy {
			p := denyPort(port)
			p.Scope = mesh.ScopeWorkloadSelector
			return p
		}
		store := mesh.NewStore()
		put(store, selector(9999))
		table := New(store, slog.New(slog.DiscardHandler))
		ctx, stop := context.WithCancel(t.Context())
		var running sync.WaitGroup
		running.Go(func() { table.Run(ctx) })

		ended := map[string]bool{}
		admit := func(name string, policies ...string) {
			in := request(t)
			in.Destination.AuthorizationPolicies = policies
			e, err := table.Admit(in, func(error) { ended[name] = true })
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(e.Done)
		}
		admit("named", "ns/deny")
		admit("not named")
		newer := server()
		newer.AuthorizationPolicies = []string{"ns/deny"}
		store.Apply(func(u *mesh.Update) { u.PutWorkload(newer) })
		put(store, selector(80))
		synctest.Wait()
		if !ended["named"] || ended["not named"] {
			t.Errorf("ended: %v", ended)
		}
		stop()
		running.Wait()
	})
}

// A policy that changes while connections come and go is never missed: in the
// end every connection that is open is allowed.
func TestNoChangeIsMissed(t *testing.T) {
	leak.Check(t)
	store := mesh.NewStore()
	table := New(store, slog.New(slog.DiscardHandler))
	ctx, stop := context.WithCancel(t.Context())
	var running sync.WaitGroup
	running.Go(func() { table.Run(ctx) })

	for range 200 {
		var wg sync.WaitGroup
		start := make(chan struct{})
		wg.Go(func() {
			<-start
			put(store, denyPort(80))
		})
		const conns = 4
		for range conns {
			wg.Go(func() {
				<-start
				ended := make(chan error, 1)
				e, err := table.Admit(request(t), func(cause error) {
					select {
					case ended <- cause:
					default:
					}
				})
				if err != nil {
					return // the policy came first
				}
				<-ended // hangs, and fails the test, if the change was missed
				e.Done()
			})
		}
		close(start)
		wg.Wait()
		store.Apply(func(u *mesh.Update) { u.RemovePolicy("ns/deny") })
	}
	stop()
	running.Wait()
	if n := table.Len(); n != 0 {
		t.Errorf("%d entries are left", n)
	}
}

func TestCancelAllEndsBothDirections(t *testing.T) {
	table := New(mesh.NewStore(), slog.New(slog.DiscardHandler))
	var causes []error
	note := func(cause error) { causes = append(causes, cause) }
	table.Track(Outbound{}, note)
	if _, err := table.Admit(request(t), note); err != nil {
		t.Fatal(err)
	}
	cause := errors.New("drain")
	table.CancelAll(cause)
	if len(causes) != 2 || causes[0] != cause || causes[1] != cause {
		t.Errorf("causes = %v", causes)
	}
}

func TestSnapshot(t *testing.T) {
	synctest.Test(t, func(t *testing.T) { // so that times are equal
		table := New(mesh.NewStore(), slog.New(slog.DiscardHandler))
		in := request(t)
		plain := request(t)
		plain.Source, plain.Service, plain.Src = identity.ID{}, "", addrPort("10.0.0.3:1")
		for _, in := range []Inbound{plain, in} {
			if _, err := table.Admit(in, func(error) {}); err != nil {
				t.Fatal(err)
			}
		}
		out := Outbound{Src: addrPort("10.0.0.2:5"), OriginalDst: addrPort("10.96.0.1:80"), ActualDst: addrPort("10.0.0.4:15008"), Protocol: HBONE}
		table.Track(out, func(error) {})
		s := table.Snapshot()
		if len(s.Inbound) != 2 || len(s.Outbound) != 1 || s.Outbound[0].Outbound != out || s.Outbound[0].Opened.IsZero() {
			t.Fatalf("%+v", s)
		}
		if got := s.Inbound[0]; got.Protocol != HBONE || got.Service != in.Service || got.Src != in.Src || got.ActualDst != in.Dst {
			t.Errorf("%+v", got)
		}
		if got := s.Inbound[1]; got.Protocol != TCP || got.Service != "" {
			t.Errorf("%+v", got)
		}
	})
}

func TestDecisionsAreLogged(t *testing.T) {
	trial := denyPort(80)
	trial.Name, trial.DryRun = "trial", true
	in := request(t)
	in.Source = identity.ID{}
	in.Destination.AuthorizationPolicies = []string{"ns/nobody-has-it"}
	const conn = `connection=10.0.0.1:4000(None)->10.0.0.2:80 (cluster//Pod/ns/server)`
	for _, tc := range []struct {
		name    string
		options []Option
		filter  string
		want    []string
	}{
		{"quiet by default", nil, "info", []string{"warn\tstate\tskipping unknown policy ns/nobody-has-it\t"}},
		{"at info when asked for", []Option{DecisionsAt(slog.LevelInfo)}, "info", []string{
			"warn\tstate\tskipping unknown policy ns/nobody-has-it\t",
			"info\tstate\tdry-run: deny policy match\tpolicy=\"ns/trial\" " + conn,
			"info\tstate\tno allow policies, allow\t" + conn,
		}},
		{"at debug", nil, "debug", []string{
			"warn\tstate\tskipping unknown policy ns/nobody-has-it\t",
			"debug\tstate\tdry-run: deny policy match\tpolicy=\"ns/trial\" " + conn,
			"debug\tstate\tno allow policies, allow\t" + conn,
		}},
	} {
		store := mesh.NewStore()
		put(store, trial)
		logged := newCapture(t, tc.filter)
		if _, err := New(store, logged.log.Logger(), tc.options...).Admit(in, func(error) {}); err != nil {
			t.Fatal(err)
		}
		if got, want := logged.lines(t), strings.Join(tc.want, "\n")+"\n"; got != want {
			t.Errorf("%s:\ngot  %q\nwant %q", tc.name, got, want)
		}
	}
}
