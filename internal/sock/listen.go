// SPDX-License-Identifier: Apache-2.0

package sock

import (
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"os"

	"golang.org/x/sys/unix"
)

// defaultBacklog is the reference's (contract 2.1).
const defaultBacklog = 128

// A Listen says where to listen and how.
type Listen struct {
	Addr        netip.AddrPort // [::] is dual-stack
	Mark        uint32         // SO_MARK; accepted sockets inherit it
	Transparent bool           // IP_TRANSPARENT: accept for addresses that are not the namespace's own
	ReusePort   bool           // SO_REUSEPORT
	ReuseAddr   bool           // SO_REUSEADDR; TCP listeners always have it
	Backlog     int            // 0: 128; the kernel caps it at net.core.somaxconn
	// Inherit, of TCP: accepted connections have TCP_NODELAY and this, which
	// Linux hands on from the listener (see [AcceptNow]; Go sets its own).
	Inherit *Keepalive
	// V6Only keeps a v6 socket from taking v4.
	V6Only bool
	// RecvOrigDst, of UDP sockets: each packet comes with the address that
	// it was sent to (IP_RECVORIGDSTADDR, IPV6_RECVORIGDSTADDR).
	RecvOrigDst bool
}

// ListenTCP returns a listening socket, which is never an MPTCP one: no sockmap
// takes those.
func (f *Factory) ListenTCP(l Listen) (*net.TCPListener, error) {
	l.ReuseAddr = true
	fd, err := f.create(family(l.Addr.Addr()), unix.SOCK_STREAM, func(fd int) error {
		if err := l.prepare(fd); err != nil {
			return err
		}
		if err := l.bequeath(fd); err != nil {
			return err
		}
		backlog := l.Backlog
		if backlog == 0 {
			backlog = defaultBacklog
		}
		return os.NewSyscallError("listen", unix.Listen(fd, backlog))
	})
	if err != nil {
		return nil, fmt.Errorf("listen on tcp %v: %w", l.Addr, err)
	}
	file := os.NewFile(uintptr(fd), "listener")
	defer file.Close()
	ln, err := net.FileListener(file)
	if err != nil {
		return nil, fmt.Errorf("listen on tcp %v: %w", l.Addr, err)
	}
	tcp, ok := ln.(*net.TCPListener)
	if !ok {
		ln.Close()
		return nil, fmt.Errorf("listen on tcp %v: not a TCP listener", l.Addr)
	}
	return tcp, nil
}

// bequeath sets what accepted connections inherit.
func (l Listen) bequeath(fd int) error {
	if l.Inherit == nil {
		return nil
	}
	if err := unix.SetsockoptInt(fd, unix.SOL_TCP, unix.TCP_NODELAY, 1); err != nil {
		return os.NewSyscallError("setsockopt TCP_NODELAY", err)
	}
	return l.Inherit.Set(fd)
}

// ListenUDP returns a bound UDP socket.
func (f *Factory) ListenUDP(l Listen) (*net.UDPConn, error) {
	fd, err := f.create(family(l.Addr.Addr()), unix.SOCK_DGRAM, l.prepare)
	if err != nil {
		return nil, fmt.Errorf("listen on udp %v: %w", l.Addr, err)
	}
	return udpConn(fd)
}

// prepare sets the options in an order that the kernel accepts and binds.
func (l Listen) prepare(fd int) error {
	fam := family(l.Addr.Addr())
	if fam == unix.AF_INET6 && l.V6Only {
		if err := unix.SetsockoptInt(fd, unix.SOL_IPV6, unix.IPV6_V6ONLY, 1); err != nil {
			return os.NewSyscallError("setsockopt IPV6_V6ONLY", err)
		}
	}
	if err := setMark(fd, l.Mark); err != nil {
		return err
	}
	if l.ReuseAddr {
		if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1); err != nil {
			return os.NewSyscallError("setsockopt SO_REUSEADDR", err)
		}
	}
	if l.ReusePort {
		if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEPORT, 1); err != nil {
			return os.NewSyscallError("setsockopt SO_REUSEPORT", err)
		}
	}
	if l.Transparent {
		if err := setTransparent(fd, fam); err != nil {
			return err
		}
	}
	if l.RecvOrigDst {
		if err := recvOrigDst(fd, fam); err != nil {
			return err
		}
	}
	sa, err := sockaddr(fam, l.Addr)
	if err != nil {
		return err
	}
	return os.NewSyscallError("bind", unix.Bind(fd, sa))
}

func recvOrigDst(fd, fam int) error {
	if fam == unix.AF_INET6 {
		return os.NewSyscallError("setsockopt IPV6_RECVORIGDSTADDR",
			unix.SetsockoptInt(fd, unix.SOL_IPV6, unix.IPV6_RECVORIGDSTADDR, 1))
	}
	return os.NewSyscallError("setsockopt IP_RECVORIGDSTADDR",
		unix.SetsockoptInt(fd, unix.SOL_IP, unix.IP_RECVORIGDSTADDR, 1))
}

// PacketDst reads from the control data of a received packet the address that
// the packet was sent to, as Listen.RecvOrigDst asks for; false: there is none.
func PacketDst(oob []byte) (netip.AddrPort, bool) {
	messages, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return netip.AddrPort{}, false
	}
	for _, m := range messages {
		switch {
		case m.Header.Level == unix.SOL_IP && m.Header.Type == unix.IP_ORIGDSTADDR && len(m.Data) >= 8:
			return netip.AddrPortFrom(netip.AddrFrom4([4]byte(m.Data[4:8])), binary.BigEndian.Uint16(m.Data[2:])), true
		case m.Header.Level == unix.SOL_IPV6 && m.Header.Type == unix.IPV6_ORIGDSTADDR && len(m.Data) >= 24:
			return netip.AddrPortFrom(netip.AddrFrom16([16]byte(m.Data[8:24])).Unmap(), binary.BigEndian.Uint16(m.Data[2:])), true
		}
	}
	return netip.AddrPort{}, false
}

// soOriginalDst is SO_ORIGINAL_DST and IP6T_SO_ORIGINAL_DST, which are equal
// (linux/netfilter_ipv4.h, linux/netfilter_ipv6/ip6_tables.h).
const soOriginalDst = 80

// OriginalDst is where a connection was going before a REDIRECT rule of its
// namespace turned it to us: SO_ORIGINAL_DST, then its IPv6 twin (contract
// 2.4). The error is the kernel's; ENOENT means that nothing was redirected.
func OriginalDst(c *net.TCPConn) (dst netip.AddrPort, err error) {
	err = Control(c, func(fd int) (err error) {
		dst, err = OriginalDstOf(fd)
		return err
	})
	return dst, err
}

// OriginalDstOf is [OriginalDst] of a descriptor.
func OriginalDstOf(fd int) (netip.AddrPort, error) {
	// x/sys has no getter for a sockaddr; these two read enough bytes.
	v4, err := unix.GetsockoptIPv6Mreq(fd, unix.SOL_IP, soOriginalDst)
	if err == nil {
		raw := v4.Multiaddr
		return netip.AddrPortFrom(netip.AddrFrom4([4]byte(raw[4:8])), binary.BigEndian.Uint16(raw[2:])), nil
	}
	v6, err6 := unix.GetsockoptIPv6MTUInfo(fd, unix.SOL_IPV6, soOriginalDst)
	if err6 == nil {
		var port [2]byte
		binary.NativeEndian.PutUint16(port[:], v6.Addr.Port)
		return netip.AddrPortFrom(netip.AddrFrom16(v6.Addr.Addr).Unmap(), binary.BigEndian.Uint16(port[:])), nil
	}
	return netip.AddrPort{}, os.NewSyscallError("getsockopt SO_ORIGINAL_DST", err)
}

// CloseReset closes so that the peer sees a reset instead of an orderly end:
// what is still unsent is thrown away.
func CloseReset(c *net.TCPConn) error {
	err := c.SetLinger(0)
	if cerr := c.Close(); err == nil {
		err = cerr
	}
	return err
}
