// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"errors"
	"io"
	"net/netip"
	"testing"

	"github.com/ztunnel-go/ztunnel/test/netlab"
	"github.com/ztunnel-go/ztunnel/test/netlab/serve"
	"github.com/ztunnel-go/ztunnel/test/rig"
)

// TestPolicy changes policy under running proxies and sees who gets through.
func TestPolicy(t *testing.T) {
	w := newWorld(t)
	const otherPort = 7070
	w.serve(w.b.Host, serve.Options{Echo: port(otherPort)})
	rule := func(m ...rig.Match) [][][]rig.Match { return [][][]rig.Match{{m}} }
	policy := func(action string, rules [][][]rig.Match) *rig.Policy {
		return &rig.Policy{Name: "p", Namespace: "default", Scope: "Namespace", Action: action, Rules: rules}
	}
	a, c := rig.Exact(rig.Principal("default", "a")), rig.Exact(rig.Principal("other", "c"))
	const denied, noneAllowed = "explicitly denied by: default/p", "allow policies exist, but none allowed"
	for _, tc := range []struct {
		name                   string
		policy                 *rig.Policy
		a, c, stranger, aOther bool // who gets through, and a to another port
		reason                 string
	}{
		{"none", nil, true, true, true, true, ""},
		{"deny a principal", policy("Deny", rule(rig.Match{Principals: []rig.StringMatch{a}})), false, true, true, false, denied},
		{"deny a namespace", policy("Deny", rule(rig.Match{Namespaces: []rig.StringMatch{rig.Exact("other")}})), true, false, true, true, denied},
		{"deny a port", policy("Deny", rule(rig.Match{DestinationPorts: []uint16{portEcho}})), false, false, false, true, denied},
		{"allow a principal", policy("Allow", rule(rig.Match{Principals: []rig.StringMatch{c}})), false, true, false, false, noneAllowed},
		{"allow a namespace", policy("Allow", rule(rig.Match{Namespaces: []rig.StringMatch{rig.Exact("default")}})), true, false, false, true, noneAllowed},
		{"allow a port", policy("Allow", rule(rig.Match{DestinationPorts: []uint16{portEcho}})), true, true, true, false, noneAllowed},
		{"allow nothing", policy("Allow", [][][]rig.Match{}), false, false, false, false, noneAllowed},
		{"strict", rig.Strict("default"), true, true, false, true, "explicitly denied by: default/strict"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if tc.policy != nil {
				w.policies(tc.policy)
			}
			since := w.p2.Output.Mark()
			for _, try := range []struct {
				name string
				from *netlab.Host
				port uint16
				want bool
			}{{"a", w.a.Host, portEcho, tc.a}, {"c", w.c.Host, portEcho, tc.c},
				{"stranger", w.stranger.Host, portEcho, tc.stranger}, {"a to another port", w.a.Host, otherPort, tc.aOther}} {
				for _, to := range []netip.AddrPort{w.b.Addr(try.port), w.b.Addr6(try.port)} {
					err := refused(try.from, to, []byte("hello"))
					if (err == nil) != try.want {
						t.Errorf("%s to %v got through: %v (%v), want %v", try.name, to, err == nil, err, try.want)
					}
					if !try.want && !wasReset(err) && !errors.Is(err, io.EOF) {
						t.Errorf("%s to %v: %v", try.name, to, err)
					}
				}
			}
			// kubelet asks in any case.
			if saw, err := tryGet(w.n2.Host, w.b.Addr(portHTTP)); err != nil || saw.Server != "b" {
				t.Errorf("the node's probe: %+v, %v", saw, err)
			}
			if tc.reason != "" {
				w.logged(t, w.p2, since, "\terror\taccess\tconnection complete", `direction="inbound"`,
					`error="connection closed due to policy rejection: `+tc.reason+`"`)
			}
		})
	}
}

// TestPolicyChangeCutsLiveConnections closes the connections that a new policy
// forbids, whichever way they came, and no others.
func TestPolicyChangeCutsLiveConnections(t *testing.T) {
	w := newWorld(t)
	tunnelled, kept := w.dial(t, w.a.Host, w.b.Addr(portEcho)), w.dial(t, w.c.Host, at(serviceVIPs()[1], 7))
	plain := w.dial(t, w.stranger.Host, w.b.Addr6(portEcho))
	app := listen(t, w.b.Host, port(6000))
	direct := w.dial(t, w.a.Host, w.b.Addr(6000))
	_, err := direct.Write([]byte("hello"))
	must(t, err)
	server := app.accept(t)
	_, err = io.ReadFull(server, make([]byte, len("hello")))
	must(t, err)
	for _, c := range []io.ReadWriter{tunnelled, kept, plain} {
		echo(t, c, []byte("before"))
	}
	since := w.p2.Output.Mark()
	w.policies(rig.Strict("default"), &rig.Policy{
		Name: "no-a", Namespace: "default", Scope: "Namespace", Action: "Deny",
		Rules: [][][]rig.Match{{{{Principals: []rig.StringMatch{rig.Exact(rig.Principal("default", "a"))}}}}},
	})
	if err := ended(tunnelled); !wasReset(err) {
		t.Errorf("the client in the mesh saw %v", err)
	}
	if err := ended(plain); !wasReset(err) {
		t.Errorf("the client out of the mesh saw %v", err)
	}
	if err := ended(server); !wasReset(err) {
		t.Errorf("the server saw %v", err)
	}
	echo(t, kept, []byte("after"))
	for _, src := range []string{`src.workload="a"`, "src.addr=" + plain.LocalAddr().String()} {
		w.logged(t, w.p2, since, "\terror\taccess\tconnection complete", src, `error="connection closed due to policy change"`)
	}
	w.logged(t, w.p2, since, "closed because it's no longer allowed after a policy update", "lab//Pod/b")
}
