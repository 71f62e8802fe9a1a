// SPDX-License-Identifier: Apache-2.0

package capture

import (
	"container/list"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/ztunnel-go/ztunnel/bpf/redirect"
	"github.com/ztunnel-go/ztunnel/internal/sock"
)

// repliers bounds how many servers of a pod's clients have a socket ready to
// answer in their name: resolv.conf takes three, and clients may know others.
const repliers = 8

// A dnsAddr is a client together with the server it asked. As a net.Addr it is
// the client's.
type dnsAddr struct{ client, server netip.AddrPort }

func (a dnsAddr) Network() string { return "udp" }
func (a dnsAddr) String() string  { return a.client.String() }

// AddrPort is the client's address.
func (a dnsAddr) AddrPort() netip.AddrPort { return a.client }

// A dnsConn receives what clients send to any DNS server and answers in that
// server's name. Everything but reading and writing is the inner socket's.
type dnsConn struct {
	*net.UDPConn // bound to loopback: on the wildcard, outsiders are answered
	pod          *Pod
	local        netip.AddrPort

	mu     sync.Mutex
	recent *list.List                       // of *replier, most recent first; guarded by mu
	known  map[netip.AddrPort]*list.Element // guarded by mu
	closed bool                             // guarded by mu
}

// A replier sends from one server's address.
type replier struct {
	server netip.AddrPort
	conn   speaker
}

// A speaker is a *net.UDPConn bound to the server's address or, where an
// application has the port, a *sock.Speaker.
type speaker interface {
	WriteToUDPAddrPort(b []byte, to netip.AddrPort) (int, error)
	Close() error
}

// ReadFrom gives the next query. The address implements
// interface{ AddrPort() netip.AddrPort } and is what WriteTo answers to.
func (c *dnsConn) ReadFrom(b []byte) (int, net.Addr, error) {
	for {
		var control [64]byte
		n, oob, _, client, err := c.ReadMsgUDPAddrPort(b, control[:])
		if err != nil {
			return n, nil, err
		}
		from := dnsAddr{client: netip.AddrPortFrom(client.Addr().Unmap(), client.Port()), server: c.local}
		if dst, ok := sock.PacketDst(control[:oob]); ok {
			from.server = dst
		}
		if from.server.Port() == dnsServerPort && c.pod.canaries.isTarget(from.server) && c.pod.canaries.isNonce(b[:n]) {
			_, _ = c.WriteTo(b[:n], from) // on error the canary is not answered, which tells
			continue
		}
		return n, from, nil
	}
}

// WriteTo answers from the address that the client asked. addr comes from
// ReadFrom.
func (c *dnsConn) WriteTo(b []byte, addr net.Addr) (int, error) {
	to, ok := addr.(dnsAddr)
	if !ok {
		return 0, fmt.Errorf("answer to %v: not an address that ReadFrom gave", addr)
	}
	if to.server == c.local {
		return c.WriteToUDPAddrPort(b, to.client)
	}
	conn, err := c.replier(to.server)
	if err != nil {
		return 0, err
	}
	n, err := conn.WriteToUDPAddrPort(b, to.client)
	if errors.Is(err, net.ErrClosed) { // pushed out in between
		if conn, err = c.replier(to.server); err == nil {
			n, err = conn.WriteToUDPAddrPort(b, to.client)
		}
	}
	return n, err
}

// replier finds or makes the socket that speaks for a server.
func (c *dnsConn) replier(server netip.AddrPort) (speaker, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return nil, net.ErrClosed
	}
	if e := c.known[server]; e != nil {
		c.recent.MoveToFront(e)
		return e.Value.(*replier).conn, nil
	}
	conn, err := c.pod.speaker(server)
	if err != nil {
		return nil, fmt.Errorf("answer as %v: %w", server, err)
	}
	c.known[server] = c.recent.PushFront(&replier{server: server, conn: conn})
	if c.recent.Len() > repliers {
		oldest := c.recent.Remove(c.recent.Back()).(*replier)
		delete(c.known, oldest.server)
		oldest.conn.Close()
	}
	return conn, nil
}

// speaker makes a socket that sends from server's address.
func (p *Pod) speaker(server netip.AddrPort) (speaker, error) {
	mark := p.node.cfg.Mark
	udp, err := p.sockets().ListenUDP(sock.Listen{Addr: server, Transparent: true, V6Only: true, Mark: mark})
	if err == nil {
		return udp, nil
	}
	// The pod runs a DNS server itself, bound to every address; or port 53 is
	// privileged there and we have no CAP_NET_BIND_SERVICE, as under Istio's chart.
	if !errors.Is(err, unix.EADDRINUSE) && !errors.Is(err, unix.EACCES) {
		return nil, err
	}
	return p.sockets().Speak(server, mark)
}

// Close closes the socket and those that answered for it. Later calls return
// net.ErrClosed.
func (c *dnsConn) Close() error {
	c.mu.Lock()
	c.closed = true
	for e := c.recent.Front(); e != nil; e = e.Next() {
		e.Value.(*replier).conn.Close()
	}
	c.recent.Init()
	clear(c.known)
	c.mu.Unlock()
	return c.UDPConn.Close()
}

// listenDNS makes the sockets of the DNS server, of both families as far as the
// pod's lo has them.
func (p *Pod) listenDNS() error {
	for _, addr := range []netip.Addr{netip.AddrFrom4([4]byte{127, 0, 0, 1}), netip.IPv6Loopback()} {
		err := p.listenDNSOn(addr)
		missing := errors.Is(err, unix.EADDRNOTAVAIL) || errors.Is(err, unix.EAFNOSUPPORT)
		if err != nil && !(addr.Is6() && missing) {
			return fmt.Errorf("DNS on %v: %w", addr, err)
		}
	}
	return nil
}

func (p *Pod) listenDNSOn(addr netip.Addr) error {
	ebpf := p.tier == TierEBPF
	l := sock.Listen{Addr: netip.AddrPortFrom(addr, dnsPort), Transparent: ebpf, V6Only: true,
		RecvOrigDst: ebpf, Mark: p.node.cfg.Mark, ReusePort: !ebpf && p.node.cfg.PortReuse}
	udp, err := p.sockets().ListenUDP(l)
	if errors.Is(err, unix.EADDRINUSE) && ebpf {
		l.Addr = netip.AddrPortFrom(addr, 0)
		udp, err = p.sockets().ListenUDP(l)
	}
	if err != nil {
		return err
	}
	p.dnsPackets = append(p.dnsPackets, p.packetConn(udp))
	l.RecvOrigDst, l.Backlog = false, listenBacklog
	if ebpf {
		l.Mark = 0 // see listen
	}
	tcp, err := p.listenTCP(l, addr, dnsPort)
	if err != nil {
		return err
	}
	p.dnsListeners = append(p.dnsListeners, tcp)
	if !ebpf {
		return nil
	}
	udpSlot, tcpSlot := redirect.SlotDNSUDP4, redirect.SlotDNSTCP4
	if addr.Is6() {
		udpSlot, tcpSlot = redirect.SlotDNSUDP6, redirect.SlotDNSTCP6
	}
	p.slots = append(p.slots, slotted{udpSlot, udp}, slotted{tcpSlot, tcp})
	return nil
}

// packetConn is a socket of the DNS server. In tier C the kernel turns answers
// round as it turned the queries, so the plain one does.
func (p *Pod) packetConn(udp *net.UDPConn) net.PacketConn {
	if p.tier != TierEBPF {
		return plainConn{udp}
	}
	return &dnsConn{UDPConn: udp, pod: p, local: udp.LocalAddr().(*net.UDPAddr).AddrPort(),
		recent: list.New(), known: map[netip.AddrPort]*list.Element{}}
}

// A plainConn has the same addresses as a dnsConn.
type plainConn struct{ *net.UDPConn }

func (c plainConn) ReadFrom(b []byte) (int, net.Addr, error) {
	n, client, err := c.ReadFromUDPAddrPort(b)
	return n, dnsAddr{client: netip.AddrPortFrom(client.Addr().Unmap(), client.Port())}, err
}

func (c plainConn) WriteTo(b []byte, addr net.Addr) (int, error) {
	to, ok := addr.(dnsAddr)
	if !ok {
		return 0, fmt.Errorf("answer to %v: not an address that ReadFrom gave", addr)
	}
	return c.WriteToUDPAddrPort(b, to.client)
}
