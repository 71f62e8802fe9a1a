// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"fmt"
	"net"
	"net/netip"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/ztunnel-go/ztunnel/test/rig"
)

// TestSOCKS5WhereIstioCaptures has an application of a pod with istio-cni's
// rules ask by name, and its other connections be captured all the same.
func TestSOCKS5WhereIstioCaptures(t *testing.T) {
	w := plan(t)
	redirect(t, w.a, rig.IstioCNI)
	redirect(t, w.b, rig.IstioCNI)
	o := rig.Options{Env: map[string]string{"CAPTURE": "istio-cni", "UNSTABLE_ENABLE_SOCKS5": "true"}}
	w.p1, w.p2 = w.start(w.n1, o), w.start(w.n2, o)
	w.enrol(w.p1, w.a)
	w.enrol(w.p2, w.b)
	w.ready(w.p1, w.p2)
	secret := w.watch(t, w.a, w.b)
	proxy := netip.MustParseAddrPort("127.0.0.1:15080")

	c := w.dial(t, w.a.Host, proxy)
	socks(t, c, 0, serviceName, 7)
	echo(t, c, secret.marker)
	must(t, c.Close())
	w.logged(t, w.p1, 0, "connection complete", `src.workload="a"`, `dst.service="`+serviceName+`"`, `direction="outbound"`)
	w.logged(t, w.p2, 0, "connection complete", `src.identity="spiffe://`+rig.Principal("default", "a")+`"`, `direction="inbound"`)
	echo(t, w.dial(t, w.a.Host, w.b.Addr(portEcho)), secret.marker)
	secret.kept(t)
	if saw := get(t, w.a.Host, w.b.Addr(portHTTP)); peerOf(t, saw) != w.a.IPv4 {
		t.Errorf("b saw %+v", saw)
	}

	c = w.dial(t, w.a.Host, proxy)
	const unreachable = 4
	socks(t, c, unreachable, "nobody.invalid", 7)
	// From outside the port is the application's, as any other: there is none.
	if err := refused(w.stranger.Host, w.a.Addr(15080), []byte("x")); err == nil {
		t.Error("a stranger was served")
	}
}

// TestAnApplicationOnOurPortsWhereIstioCaptures takes a port that rules lead
// to. It is shared with an application that shares, if INPOD_PORT_REUSE says
// so; else the pod is refused with the reason, until the port is free.
func TestAnApplicationOnOurPortsWhereIstioCaptures(t *testing.T) {
	for _, tc := range []struct {
		reuse  string
		shares bool // the application
		taken  bool // the outcome
	}{{"true", true, false}, {"true", false, true}, {"false", true, true}} {
		t.Run(fmt.Sprintf("%s %v", tc.reuse, tc.shares), func(t *testing.T) {
			w := plan(t)
			redirect(t, w.a, rig.IstioCNI)
			lc := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) (err error) {
				if tc.shares {
					ctl := c.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEPORT, 1) })
					must(t, ctl)
				}
				return err
			}}
			l, err := w.a.ListenWith(&lc, "tcp", ":15006")
			must(t, err)
			t.Cleanup(func() { l.Close() })
			w.p1 = w.start(w.n1, rig.Options{Env: map[string]string{"CAPTURE": "istio-cni", "INPOD_PORT_REUSE": tc.reuse}})
			w.ready(w.p1) // connected: the agent is answered from now on
			err = w.p1.Enrol(w.a, "default")
			if !tc.taken {
				must(t, err)
				w.ready(w.p1)
				return
			}
			const why = "inbound plaintext listener: listen on tcp [::]:15006: bind: address already in use"
			if err == nil || !strings.Contains(err.Error(), why) {
				t.Errorf("the agent was told %v", err)
			}
			if status, _, err := w.p1.Get(t.Context(), rig.ReadyPage); err != nil || status == 200 {
				t.Errorf("ready: %d, %v", status, err)
			}
			must(t, l.Close())
			w.ready(w.p1) // it is tried again
		})
	}
}
