// SPDX-License-Identifier: Apache-2.0

package capture

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ztunnel-go/ztunnel/internal/sock"
)

// redirectTimeout is how long a redirected connection may take to arrive; it
// does not leave the namespace, and where there is no redirect every pod that
// is added waits this long at most.
const redirectTimeout = 250 * time.Millisecond

// meetsRedirect finds out whether istio-cni's rules turn the pod's connections
// to port 15001, by opening one to an address that nobody may use.
func (p *Pod) meetsRedirect(ctx context.Context) (bool, error) {
	src, err := p.anySource()
	if err != nil {
		return false, err
	}
	l, err := p.strangers().ListenTCP(sock.Listen{Addr: netip.AddrPortFrom(netip.IPv6Unspecified(), Outbound.Port())})
	if errors.Is(err, unix.EAFNOSUPPORT) {
		l, err = p.strangers().ListenTCP(sock.Listen{Addr: netip.AddrPortFrom(netip.IPv4Unspecified(), Outbound.Port())})
	}
	if errors.Is(err, unix.EADDRINUSE) {
		return p.isRedirected(ctx, src)
	}
	if err != nil {
		return false, err
	}
	defer l.Close()
	// Another port than the listener's, so that only a redirect leads there.
	const anyPort = 9
	to := netip.AddrPortFrom(canaryFor(src), anyPort)
	c, err := p.strangers().DialTCP(ctx, sock.Dial{Dst: to, Hops: canaryHops, Timeout: redirectTimeout})
	if err != nil {
		return false, context.Cause(ctx)
	}
	defer func() { _ = sock.CloseReset(c) }()
	l.SetDeadline(time.Now().Add(redirectTimeout))
	got, err := l.AcceptTCP()
	if err != nil {
		return false, nil // somebody else answered
	}
	defer func() { _ = sock.CloseReset(got) }()
	return isSame(c, got), nil
}

// isSame says whether the two are the ends of one connection.
func isSame(client, server net.Conn) bool {
	return canonical(client.LocalAddr()) == canonical(server.RemoteAddr())
}

// isRedirected is meetsRedirect where somebody listens on port 15001 already,
// as the process before does: whoever answers in the name of an address that
// nobody has was led to. If it is an application, our own listener will not
// be able to bind, which refuses the pod.
func (p *Pod) isRedirected(ctx context.Context, src netip.Addr) (bool, error) {
	to := netip.AddrPortFrom(canaryFor(src), Outbound.Port()) // which proxies know for a canary
	c, err := p.strangers().DialTCP(ctx, sock.Dial{Dst: to, Hops: canaryHops, Timeout: redirectTimeout})
	if err != nil {
		return false, context.Cause(ctx)
	}
	return true, sock.CloseReset(c)
}
