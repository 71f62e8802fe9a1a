// SPDX-License-Identifier: Apache-2.0

package capture

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"

	"golang.org/x/sys/unix"

	"github.com/ztunnel-go/ztunnel/internal/sock"
)

// A PlainConfig says how to listen for the one workload of the process's own
// network namespace.
type PlainConfig struct {
	// Proxy makes the three listeners of the roles.
	Proxy bool
	// DNS is where the DNS server listens, UDP and TCP; empty: there is none.
	// Loopback addresses of IPv6 may be missing from the namespace.
	DNS []netip.AddrPort
	// Mark goes on what the proxy opens, UDP as well, and on no listener. 0:
	// none.
	Mark uint32
	// Keepalive is for all TCP sockets but accepted tunnels.
	Keepalive sock.Keepalive
	// IPv6 false: the roles listen on IPv4 only.
	IPv6 bool
	// SpoofSource keeps the client's address on the way to the application:
	// true wants it, false does without, nil takes it where the kernel allows
	// it (contract 2.2).
	SpoofSource *bool
}

// Plain makes the sockets of a process that serves the one workload of its own
// network namespace (PROXY_MODE=dedicated, contract 2.1). Who leads
// connections to them, and keeps the proxy's own from coming back, is not our
// affair: nothing is captured here, nothing is proven, and [Pod.Enable] has
// nothing to do. Connections queue from now on. [Pod.Release] closes
// everything. The error names the address that could not be bound, or the
// privilege that is missing.
func Plain(cfg PlainConfig, info PodInfo, log *slog.Logger) (*Pod, error) {
	n := &Node{log: log, cfg: Config{
		Mode: IstioCNI, Mark: cfg.Mark, Keepalive: cfg.Keepalive, IPv6: cfg.IPv6,
		SpoofSource: cfg.SpoofSource == nil || *cfg.SpoofSource,
	}}
	p := newPod(n, info, nil)
	p.tier = TierPlain
	if err := p.openPlain(cfg); err != nil {
		return nil, errors.Join(err, p.Release())
	}
	return p, nil
}

func (p *Pod) openPlain(cfg PlainConfig) error {
	if err := p.mayMark(); err != nil {
		return err
	}
	for _, at := range cfg.DNS {
		err := p.listenPlainDNS(at)
		missing := errors.Is(err, unix.EADDRNOTAVAIL) || errors.Is(err, unix.EAFNOSUPPORT)
		if err != nil && !(at.Addr() == netip.IPv6Loopback() && missing) {
			return fmt.Errorf("DNS: %w", cannotBind(at, err))
		}
	}
	if !cfg.Proxy {
		return nil
	}
	wildcard := netip.IPv6Unspecified()
	if !cfg.IPv6 {
		wildcard = netip.IPv4Unspecified()
	}
	mayFail := cfg.SpoofSource == nil
	for r := range roles {
		tcp, err := p.listenPlain(wildcard, r, mayFail)
		if err != nil {
			return fmt.Errorf("%v: %w", r, cannotBind(netip.AddrPortFrom(wildcard, r.Port()), err))
		}
		p.listeners[r] = &Listener{tcp: tcp, pod: p, role: r}
	}
	return nil
}

// cannotBind is the reference's wording (contract 2.1).
func cannotBind(at netip.AddrPort, err error) error {
	return fmt.Errorf("failed to bind to address %v: %w", at, err)
}

// mayMark finds out at once what would fail every connection later.
func (p *Pod) mayMark() error {
	if p.node.cfg.Mark == 0 {
		return nil
	}
	udp, err := p.sockets().ListenUDP(sock.Listen{
		Addr: netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), 0), Mark: p.node.cfg.Mark})
	if err != nil {
		return fmt.Errorf("PACKET_MARK: failed to set mark on socket. make sure ztunnel has CAP_NET_RAW, CAP_NET_ADMIN. error: %w", err)
	}
	return udp.Close()
}

// listenPlain binds one role's port. Where the kernel allows no transparent
// sockets and mayFail says that none are insisted on, the pod does without
// from then on.
func (p *Pod) listenPlain(wildcard netip.Addr, r Role, mayFail bool) (*net.TCPListener, error) {
	l := sock.Listen{Transparent: p.node.cfg.SpoofSource, Backlog: listenBacklog, Inherit: p.bequest(r)}
	tcp, err := p.listenTCP(l, wildcard, r.Port())
	if !errors.Is(err, os.ErrPermission) || !l.Transparent {
		return tcp, err
	}
	if !mayFail {
		return nil, fmt.Errorf("ENABLE_ORIG_SRC=true needs CAP_NET_ADMIN or CAP_NET_RAW: %w", err)
	}
	p.node.log.Warn("applications will see the proxy's address and not their clients': transparent sockets are not permitted",
		slog.Any("err", err))
	p.node.cfg.SpoofSource = false
	return p.listenPlain(wildcard, r, mayFail)
}

func (p *Pod) listenPlainDNS(at netip.AddrPort) error {
	l := sock.Listen{Addr: at, Backlog: listenBacklog}
	udp, err := p.sockets().ListenUDP(l)
	if err != nil {
		return err
	}
	p.dnsPackets = append(p.dnsPackets, p.packetConn(udp))
	tcp, err := p.sockets().ListenTCP(l)
	if err != nil {
		return err
	}
	p.dnsListeners = append(p.dnsListeners, tcp)
	return nil
}

// Transparent says whether Deliver keeps the client's address.
func (p *Pod) Transparent() bool { return p.node.cfg.SpoofSource }
