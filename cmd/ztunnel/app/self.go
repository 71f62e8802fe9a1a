// SPDX-License-Identifier: Apache-2.0

package app

import (
	"context"
	"log/slog"
	"net"
	"net/netip"

	"github.com/ztunnel-go/ztunnel/dataplane"
	"github.com/ztunnel-go/ztunnel/dataplane/capture"
	"github.com/ztunnel-go/ztunnel/internal/logs"
	"github.com/ztunnel-go/ztunnel/internal/sock"
)

// buildSelf serves tunnels to this process's own pod, so that its metrics can
// be read through the mesh. It is there when the process knows who it is
// (POD_NAME, POD_NAMESPACE, SERVICE_ACCOUNT; contract 2.1), keeps no client's
// address and captures nothing.
func (n *node) buildSelf(context.Context) error {
	who := n.cfg.SelfWorkload
	if who == nil {
		return nil
	}
	wildcard := netip.IPv6Unspecified()
	if !n.cfg.IPv6 {
		wildcard = netip.IPv4Unspecified()
	}
	var sockets sock.Factory // our own namespace
	l, err := sockets.ListenTCP(sock.Listen{Addr: netip.AddrPortFrom(wildcard, PortHBONE), ReuseAddr: true})
	if err != nil {
		return err
	}
	n.logger.Info("creating ztunnel self-proxy listener with identity: " + n.cfg.SelfIdentity.String())
	deliver := func(ctx context.Context, _ netip.Addr, dst netip.AddrPort) (*net.TCPConn, error) {
		return sockets.DialTCP(ctx, sock.Dial{Dst: dst})
	}
	dial := func(ctx context.Context, dst netip.AddrPort) (*net.TCPConn, error) {
		return sockets.DialTCP(ctx, sock.Dial{Dst: dst})
	}
	n.self = dataplane.Start(n.proxyConfig(),
		dataplane.Pod{Name: who.Name, Namespace: who.Namespace, ServiceAccount: who.ServiceAccount},
		dataplane.Sockets{HBONE: ownListener{l}, Dial: dial, Deliver: deliver},
		n.shared(logs.Span(n.logger, "proxy", slog.Any("wl", logs.Bare(who.Namespace+"/"+who.Name)))))
	return nil // closeEnrollment ends it; nothing between here and there can fail
}

// An ownListener accepts what was dialled here: nothing was redirected.
type ownListener struct{ *net.TCPListener }

func (l ownListener) Accept() (*capture.Conn, error) {
	c, err := l.AcceptTCP()
	if err != nil {
		return nil, err
	}
	return &capture.Conn{TCPConn: c, Peer: canonical(c.RemoteAddr()), Dst: canonical(c.LocalAddr())}, nil
}

// canonical gives a mapped address as IPv4.
func canonical(a net.Addr) netip.AddrPort {
	ap := a.(*net.TCPAddr).AddrPort()
	return netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port())
}
