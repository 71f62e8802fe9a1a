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

	"github.com/ztunnel-go/ztunnel/bpf/redirect"
	"github.com/ztunnel-go/ztunnel/internal/sock"
)

// listenBacklog is one for all ports of the pod, so it is longer than the
// reference's 128; the kernel caps it at net.core.somaxconn.
const listenBacklog = 4096

// A Listener yields the connections of one role of a pod.
type Listener struct {
	tcp  *net.TCPListener
	pod  *Pod
	role Role
}

// Accept waits for the next connection. What the proxy's own checks open is not
// among them. Errors are as of [net.Listener.Accept]: net.ErrClosed after
// Close; others concern one connection only.
func (l *Listener) Accept() (*Conn, error) {
	for {
		c, err := l.tcp.AcceptTCP()
		if err != nil {
			return nil, err
		}
		conn, err := l.admit(c)
		if err != nil {
			c.Close()
			return nil, err
		}
		if conn != nil {
			return conn, nil
		}
	}
}

// admit finds out where c was going. No connection and no error: it was the
// capture's own, and is taken care of.
func (l *Listener) admit(c *net.TCPConn) (*Conn, error) {
	conn := &Conn{TCPConn: c, Peer: canonical(c.RemoteAddr()), Dst: canonical(c.LocalAddr())}
	if l.pod.tier != TierEBPF && l.role != HBONE {
		// No rule redirects HBONE. Without a redirect the local address is
		// what the peer dialled.
		if dst, err := sock.OriginalDst(c); err == nil {
			conn.Dst = dst
		}
	}
	if l.role == Outbound && l.pod.tier != TierPlain && l.pod.canaries.isTarget(conn.Dst) {
		l.pod.canaries.arrived(c)
		return nil, nil
	}
	if l.pod.tier == TierEBPF && l.role != Outbound {
		again, err := isDelivery(c)
		if err != nil {
			return nil, err
		}
		if again {
			l.pod.node.events.recaptured.Add(1)
			return nil, sock.CloseReset(c)
		}
	}
	keepalive := l.pod.node.cfg.Keepalive
	if l.role == HBONE {
		keepalive = sock.Keepalive{} // tunnels rely on PING (contract 2.3)
	}
	return conn, keepalive.Apply(c)
}

// isDelivery recognises a delivery that was captured again, because its
// announcement was lost: over lo the mark comes along (tcp_fwmark_accept),
// while what arrives from outside has none. Handing it to the proxy would loop
// for ever.
func isDelivery(c *net.TCPConn) (bool, error) {
	var mark int
	err := sock.Control(c, func(fd int) (err error) {
		mark, err = unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_MARK)
		return os.NewSyscallError("getsockopt SO_MARK", err)
	})
	return uint32(mark)&redirect.MarkDeliveryMask == redirect.MarkDelivery, err
}

func canonical(a net.Addr) netip.AddrPort {
	tcp, ok := a.(*net.TCPAddr)
	if !ok {
		return netip.AddrPort{}
	}
	ap := tcp.AddrPort()
	return netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port())
}

// Close stops accepting. Connections already accepted stay. In tier A, capture
// stays as well: what is opened from now on waits for another listener, and
// that there is none is from now on no fault to be repaired. Later calls do
// nothing.
func (l *Listener) Close() error {
	l.pod.mu.Lock()
	l.pod.vacated = true
	l.pod.mu.Unlock()
	if err := l.tcp.Close(); err != nil && !errors.Is(err, net.ErrClosed) {
		return err
	}
	return nil
}

// Addr is where the socket is bound, which in tier A may be any port.
func (l *Listener) Addr() net.Addr { return l.tcp.Addr() }

// listen makes the listener of a role. In tier A Enable puts it into its slot.
func (p *Pod) listen(r Role) error {
	l := sock.Listen{Transparent: true, Backlog: listenBacklog}
	any6 := netip.IPv6Unspecified()
	if p.tier == TierIstioCNI {
		l.Mark, l.ReusePort, l.Transparent = p.node.cfg.Mark, p.node.cfg.PortReuse, p.node.cfg.SpoofSource
		if !p.node.cfg.IPv6 {
			any6 = netip.IPv4Unspecified()
		}
	}
	if l.ReusePort {
		p.migrateRequests()
	}
	l.Inherit = p.bequest(r)
	// In tier A a listener has no mark: with 0x111 its SYN-ACKs would be
	// routed to lo, and without any, what it accepts tells by the mark of the
	// SYN where it came from.
	tcp, err := p.listenTCP(l, any6, r.Port())
	if err != nil {
		return fmt.Errorf("%v listener: %w", r, err)
	}
	p.listeners[r] = &Listener{tcp: tcp, pod: p, role: r}
	if p.tier != TierEBPF {
		return nil
	}
	p.slots = append(p.slots, slotted{[]redirect.Slot{redirect.SlotOutbound, redirect.SlotPlaintext, redirect.SlotHBONE}[r], tcp})
	return nil
}

// bequest is what connections to a role inherit: see [Listener.Prompt].
func (p *Pod) bequest(r Role) *sock.Keepalive {
	if r != Outbound {
		return nil
	}
	return &p.node.cfg.Keepalive
}

// listenTCP binds the port everybody knows. In tier A another one does as well
// if an application has taken it; and a kernel without IPv6 gets IPv4.
func (p *Pod) listenTCP(l sock.Listen, addr netip.Addr, port uint16) (*net.TCPListener, error) {
	l.Addr = netip.AddrPortFrom(addr, port)
	tcp, err := p.sockets().ListenTCP(l)
	if errors.Is(err, unix.EAFNOSUPPORT) && addr == netip.IPv6Unspecified() {
		return p.listenTCP(l, netip.IPv4Unspecified(), port)
	}
	if errors.Is(err, unix.EADDRINUSE) && p.tier == TierEBPF && port != 0 {
		return p.listenTCP(l, addr, 0)
	}
	return tcp, err
}

// migrateRequests has the kernel hand what waits in a listener's queues to
// another process's listener of the port when it closes (Linux 5.14). Without
// it those connections are reset, as they are with ztunnel.
func (p *Pod) migrateRequests() {
	err := p.ns.Do(func() error { return writeSysctl("ipv4/tcp_migrate_req", "1") })
	if err != nil {
		p.node.log.Debug("connections may be lost when another process takes over", slog.String("pod", p.name()), slog.Any("err", err))
	}
}
