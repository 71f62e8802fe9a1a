// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"syscall"
	"testing"

	"github.com/ztunnel-go/ztunnel/dataplane/balance"
	"github.com/ztunnel-go/ztunnel/dataplane/hbone"
	"github.com/ztunnel-go/ztunnel/internal/mesh"
)

// fallen is an endpoint of web where no proxy answers.
func fallen(i int) *mesh.Workload {
	return member(fmt.Sprint("fallen", i), fmt.Sprint("10.0.0.", 20+i), inWeb)
}

// unlucky is a client that meets the endpoints which do not answer first: they
// have all but nothing of the weight.
func (n *lan) unlucky(dead ...*mesh.Workload) *pod {
	n.t.Helper()
	for _, w := range dead {
		w.Capacity = 1 << 30
		n.put(w)
	}
	n.balanceBy(balance.Config{Policy: balance.Random, Random: func(n uint64) uint64 { return n / 2 }})
	n.put(clientWorkload())
	return n.start(clientWorkload())
}

func idle(t *testing.T, n *lan) {
	t.Helper()
	eventually(t, "no endpoint has a connection", func() bool { return len(n.balance.Open()) == 0 })
}

func TestWithOneEndpointDeadEveryConnectionWorks(t *testing.T) {
	n, client, _ := pair(t)
	n.put(fallen(0))
	n.balance.Failed("nobody") // the fast way is not the only one
	for range 20 {
		c := client.connect("10.96.0.1:80")
		say(t, c, "hello")
		finish(t, c)
	}
	eventually(t, "all are reported", func() bool { return client.counts("-")[1] == 20 })
	if got := client.counts("CONNECT"); got != [3]float64{20, 0, 0} {
		t.Errorf("opened, closed and failed: %v", got)
	}
	idle(t, n)
}

func TestTheFinalEndpointIsReportedOnce(t *testing.T) {
	n, _, server := pair(t)
	client := n.unlucky(fallen(0), fallen(1))
	c := client.connect("10.96.0.1:80")
	say(t, c, "hello")
	if live := client.Live().Outbound; len(live) != 1 || live[0].ActualDst != addrPort("10.0.0.2:15008") {
		t.Errorf("live: %+v", live)
	}
	if open := n.balance.Open(); len(open) != 1 || open[serverWorkload().UID] != 1 {
		t.Errorf("open: %v", open)
	}
	finish(t, c)
	client.out.await("info\taccess\tconnection complete\t", "dst.addr=10.0.0.2:15008", dstFields, `duration="`)
	client.out.await("debug\tproxy::outbound", "outbound{id=TRACE}", "connecting to another endpoint", `failed="c1//Pod/ns/fallen`,
		`error="`, "connection refused")
	if got := len(client.out.lines("connecting to another endpoint")); got != 2 {
		t.Errorf("%d retries were logged", got)
	}
	if got := n.retries(); got != 2 {
		t.Errorf("%v retries were counted", got)
	}
	for _, text := range []string{"connection opened", "connection complete"} {
		if lines := client.out.lines("access", text); len(lines) != 1 || !strings.Contains(lines[0], `dst.workload="server"`) {
			t.Errorf("%s: %q", text, lines)
		}
	}
	if got := client.count("istio_tcp_connections_opened_total", "destination_workload=server-dep"); got != 1 {
		t.Errorf("%v were opened", got)
	}
	if got := client.counts("-"); got != [3]float64{1, 1, 0} {
		t.Errorf("opened, closed and failed: %v", got)
	}
	if got := server.count("istio_tcp_connections_opened_total"); got != 1 {
		t.Errorf("the server had %v", got)
	}
	idle(t, n)
}

func TestIfAllAreDeadThereIsOneError(t *testing.T) {
	for dead, want := range map[int]float64{2: 1, 3: 2, 5: maxRetries} {
		n := newLAN(t)
		n.put(web())
		var all []*mesh.Workload
		for i := range dead {
			all = append(all, fallen(i))
		}
		client := n.unlucky(all...)
		wantReset(t, client.connect("10.96.0.1:80"))
		client.out.await("error\taccess\tconnection complete", `dst.service="web.ns.svc.cluster.local"`, `error="io error: Connection refused (os error 111)"`)
		if got := client.counts("CONNECT"); got != [3]float64{1, 1, 1} {
			t.Errorf("opened, closed and failed: %v", got)
		}
		if got := n.retries(); got != want {
			t.Errorf("of %d, %v were retried, want %v", dead, got, want)
		}
		if got := len(client.out.lines("connection complete")); got != 1 {
			t.Errorf("%d lines", got)
		}
		idle(t, n)
	}
}

func TestWhatIsRetried(t *testing.T) {
	plain := func(w *mesh.Workload) { w.Protocol = mesh.TCP }
	for _, tc := range []struct {
		name   string
		change func(*mesh.Workload) // of the endpoint that fails; nil: none
		given  func(n *lan)
		want   float64
	}{
		{"refused", nil, nil, 1},
		{"timeout", nil, func(n *lan) { n.unreachable("10.0.0.20:15008", errTimeout) }, 1},
		{"no way", nil, func(n *lan) { n.unreachable("10.0.0.20:15008", syscall.EHOSTUNREACH) }, 1},
		{"hangs up in TLS", nil, func(n *lan) {
			n.outside("10.0.0.20:15008", func(c *net.TCPConn) { c.Read(make([]byte, 1)) })
		}, 1},
		{"not TLS", nil, func(n *lan) {
			n.outside("10.0.0.20:15008", func(c *net.TCPConn) { io.WriteString(c, "HTTP/1.1 200 OK\r\n\r\n"); io.Copy(io.Discard, c) })
		}, 1},
		{"plaintext, refused", plain, nil, 1},
		{"our own fault", nil, func(n *lan) { n.unreachable("10.0.0.20:15008", syscall.EMFILE) }, 0},
		{"answered 503", nil, func(n *lan) { n.start(fallen(0)) }, 1},
		{"plaintext, a reset later", plain, func(n *lan) {
			n.outside("10.0.0.20:8080", func(c *net.TCPConn) { c.SetLinger(0) })
		}, 0},
	} {
		t.Run(tc.name, func(t *testing.T) {
			n, _, server := pair(t)
			dead := fallen(0)
			if tc.change != nil {
				tc.change(dead)
			}
			if tc.given != nil {
				tc.given(n)
			}
			client := n.unlucky(dead)
			c := client.connect("10.96.0.1:80")
			if tc.want > 0 {
				say(t, c, "hello")
				finish(t, c)
			} else {
				wantReset(t, c)
				if got := server.count("istio_tcp_connections_opened_total"); got != 0 {
					t.Errorf("the other endpoint had %v connections", got)
				}
			}
			client.out.await("access\tconnection complete")
			if got := n.retries(); got != tc.want {
				t.Errorf("%v retries", got)
			}
			idle(t, n)
		})
	}
}

func TestNothingGoesWithoutATunnelInstead(t *testing.T) {
	n := newLAN(t)
	n.put(web(), member("plain", "10.0.0.3", inWeb, func(w *mesh.Workload) { w.Protocol = mesh.TCP }))
	n.outside("10.0.0.3:8080", echo)
	client := n.unlucky(fallen(0))
	wantReset(t, client.connect("10.96.0.1:80"))
	client.out.await("error\taccess\tconnection complete", `dst.workload="fallen0"`)
	if got := n.retries(); got != 0 {
		t.Errorf("%v retries", got)
	}
}

func TestAPodIsNotRetried(t *testing.T) {
	n, _, _ := pair(t)
	client := n.unlucky(fallen(0))
	wantReset(t, client.connect("10.0.0.20:8080"))
	client.out.await("error\taccess\tconnection complete", `dst.workload="fallen0"`)
	if got := n.retries(); got != 0 {
		t.Errorf("%v retries", got)
	}
	idle(t, n)
}

func TestTheNodeLearnsWhoFailed(t *testing.T) {
	n, client, _ := pair(t)
	plain := member("plain", "10.0.0.3", func(w *mesh.Workload) { w.Protocol = mesh.TCP })
	n.put(fallen(0), plain)
	for _, dst := range []string{"10.0.0.20:8080", "10.0.0.3:8080"} {
		wantReset(t, client.connect(dst))
	}
	avoided := n.balance.Avoided()
	if _, ok := avoided[fallen(0).UID]; !ok || len(avoided) != 1 { // a closed port of plain is not the whole of it
		t.Errorf("avoided: %v", avoided)
	}
	n.start(fallen(0)).app(8080, echo)
	say(t, client.connect("10.0.0.20:8080"), "hello")
	if avoided := n.balance.Avoided(); len(avoided) != 0 {
		t.Errorf("avoided after it answered: %v", avoided)
	}
}

func TestOfTwoTheLessLoadedHasTheNext(t *testing.T) {
	n, client, _ := pair(t)
	twin := member("twin", "10.0.0.5", inWeb)
	n.put(twin)
	n.start(twin).app(8080, echo)
	var all []*net.TCPConn
	for range 10 {
		c := client.connect("10.96.0.1:80")
		say(t, c, "x")
		all = append(all, c)
	}
	if open := n.balance.Open(); open[twin.UID] != 5 || open[serverWorkload().UID] != 5 {
		t.Errorf("open: %v", open)
	}
	for _, c := range all {
		finish(t, c)
	}
	idle(t, n)
}

func TestUnreached(t *testing.T) {
	refused := &net.OpError{Op: "dial", Err: syscall.ECONNREFUSED}
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	for _, tc := range []struct {
		name string
		err  error
		want bool
	}{
		{"refused", refused, true},
		{"in a tunnel", &hbone.DialError{Err: refused}, true},
		{"timeout", errTimeout, true},
		{"reset at once", &net.OpError{Op: "dial", Err: syscall.ECONNRESET}, false},
		{"TLS", &hbone.TLSError{Err: errors.New("x")}, true},
		{"behind the next hop", &beyondError{&hbone.TLSError{Err: errors.New("x")}}, false},
		{"no certificate", &identityError{errTimeout}, false},
		{"an answer", &hbone.StatusError{Code: 503}, false},
		{"a tunnel that broke before it answered", &hbone.HandshakeError{Err: &hbone.ResetError{Cause: refused}}, false},
		{"drained", hbone.ErrDraining, false},
		{"forbidden here", &hbone.DialError{Err: syscall.EPERM}, false},
	} {
		if got := unreached(t.Context(), tc.err); got != tc.want {
			t.Errorf("%s: %v", tc.name, got)
		}
		if unreached(gone, tc.err) {
			t.Errorf("%s: retried although it was ended", tc.name)
		}
	}
}

// TestAnApplicationThatIsGone has a service's endpoint answer that nobody
// listens there: it is left alone, unless it was the pod that was asked for.
func TestAnApplicationThatIsGone(t *testing.T) {
	for _, tc := range []struct {
		dst     string
		avoided int
	}{{"10.96.0.1:80", 1}, {"10.0.0.20:8080", 0}} {
		n, _, _ := pair(t)
		n.start(fallen(0))
		client := n.unlucky(fallen(0))
		c := client.connect(tc.dst)
		if tc.avoided > 0 {
			say(t, c, "hello")
		} else {
			wantReset(t, c)
			client.out.await("access\tconnection complete")
		}
		if got := n.balance.Avoided(); len(got) != tc.avoided {
			t.Errorf("%s: avoided: %v", tc.dst, got)
		}
	}
	for err, want := range map[error]bool{
		&hbone.StatusError{Code: 503}:               true,
		&hbone.StatusError{Code: 401}:               false,
		&beyondError{&hbone.StatusError{Code: 503}}: false,
		hbone.ErrDraining:                           false,
	} {
		if got := unanswered(t.Context(), err); got != want {
			t.Errorf("%v: %v", err, got)
		}
	}
}
