// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"bytes"
	"io"
	"net"
	"net/netip"
	"testing"

	"github.com/ztunnel-go/ztunnel/test/rig"
)

// TestSOCKS5 has an application ask the proxy by name, instead of being
// captured.
func TestSOCKS5(t *testing.T) {
	w := newWorld(t, rig.Options{Env: map[string]string{"UNSTABLE_ENABLE_SOCKS5": "true"}})
	secret := w.watch(t, w.a, w.b)
	proxy := netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), 15080)

	c := w.dial(t, w.a.Host, proxy)
	socks(t, c, 0, serviceName, 7)
	echo(t, c, secret.marker)
	must(t, c.Close())
	w.logged(t, w.p1, 0, "connection complete", `src.workload="a"`, `dst.service="`+serviceName+`"`, `direction="outbound"`)
	w.logged(t, w.p2, 0, "connection complete", `src.identity="spiffe://`+rig.Principal("default", "a")+`"`, `direction="inbound"`)
	secret.kept(t)

	c = w.dial(t, w.a.Host, proxy)
	const unreachable = 4
	socks(t, c, unreachable, "nobody.invalid", 7)
	w.logged(t, w.p1, 0, "failed to negotiate socks connection: HostUnreachable: nobody.invalid")

	if err := refused(w.a.Host, w.a.Addr(15080), nil); !isRefused(err) {
		t.Errorf("the port is open on the pod's own address: %v", err)
	}
}

// socks asks for a name and wants an answer (RFC 1928).
func socks(t *testing.T, c net.Conn, code byte, name string, port byte) {
	t.Helper()
	request := append([]byte{5, 1, 0, 5, 1, 0, 3, byte(len(name))}, name...)
	_, err := c.Write(append(request, 0, port))
	must(t, err)
	want := []byte{5, 0, 5, code, 0, 1, 0, 0, 0, 0, 0, 0}
	got := make([]byte, len(want))
	if _, err := io.ReadFull(c, got); err != nil || !bytes.Equal(got, want) {
		t.Fatalf("answered % x, %v; want % x", got, err, want)
	}
}
