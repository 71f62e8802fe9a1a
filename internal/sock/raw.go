// SPDX-License-Identifier: Apache-2.0

package sock

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"

	"golang.org/x/sys/unix"
)

// udpHeaderLen is that of RFC 768, and checksumOffset where in it the checksum is.
const (
	udpHeaderLen   = 8
	checksumOffset = 6
)

// A Speaker sends UDP from an address and port that need be nobody's, or may be
// somebody else's: it writes UDP headers itself, so that no port is bound. It
// receives nothing.
type Speaker struct {
	conn *net.IPConn
	from netip.AddrPort
}

// Speak returns a Speaker for from.
func (f *Factory) Speak(from netip.AddrPort, mark uint32) (*Speaker, error) {
	fd, err := f.createProto(family(from.Addr()), unix.SOCK_RAW, unix.IPPROTO_UDP, func(fd int) error {
		if err := setMark(fd, mark); err != nil {
			return err
		}
		return prepareRaw(fd, from.Addr())
	})
	if err != nil {
		return nil, fmt.Errorf("speak as %v: %w", from, err)
	}
	file := os.NewFile(uintptr(fd), "raw udp")
	defer file.Close()
	pc, err := net.FilePacketConn(file)
	if err != nil {
		return nil, fmt.Errorf("speak as %v: %w", from, err)
	}
	conn, ok := pc.(*net.IPConn)
	if !ok {
		pc.Close()
		return nil, errors.New("descriptor is not a raw IP socket")
	}
	return &Speaker{conn: conn, from: from}, nil
}

// prepareRaw binds a raw UDP socket that receives nothing.
func prepareRaw(fd int, from netip.Addr) error {
	// First, so that nothing is queued that nobody reads.
	drop := []unix.SockFilter{{Code: unix.BPF_RET | unix.BPF_K}}
	if err := unix.SetsockoptSockFprog(fd, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER,
		&unix.SockFprog{Len: uint16(len(drop)), Filter: &drop[0]}); err != nil {
		return os.NewSyscallError("setsockopt SO_ATTACH_FILTER", err)
	}
	fam := family(from)
	// Raw IPv6 sockets have no options of IPv4, so not setTransparent.
	level, option := unix.SOL_IP, unix.IP_TRANSPARENT
	if fam == unix.AF_INET6 {
		level, option = unix.SOL_IPV6, unix.IPV6_TRANSPARENT
		// For IPv4 a checksum of zero says that there is none.
		if err := unix.SetsockoptInt(fd, unix.SOL_IPV6, unix.IPV6_CHECKSUM, checksumOffset); err != nil {
			return os.NewSyscallError("setsockopt IPV6_CHECKSUM", err)
		}
	}
	if err := unix.SetsockoptInt(fd, level, option, 1); err != nil {
		return os.NewSyscallError("setsockopt IP_TRANSPARENT", err)
	}
	sa, err := sockaddr(fam, netip.AddrPortFrom(from, 0))
	if err != nil {
		return err
	}
	return os.NewSyscallError("bind", unix.Bind(fd, sa))
}

// WriteToUDPAddrPort sends b as one datagram.
func (s *Speaker) WriteToUDPAddrPort(b []byte, to netip.AddrPort) (int, error) {
	packet := make([]byte, udpHeaderLen, udpHeaderLen+len(b))
	binary.BigEndian.PutUint16(packet[0:], s.from.Port())
	binary.BigEndian.PutUint16(packet[2:], to.Port())
	binary.BigEndian.PutUint16(packet[4:], uint16(udpHeaderLen+len(b)))
	n, err := s.conn.WriteToIP(append(packet, b...), &net.IPAddr{IP: to.Addr().AsSlice(), Zone: to.Addr().Zone()})
	return max(0, n-udpHeaderLen), err
}

// Close closes the socket.
func (s *Speaker) Close() error { return s.conn.Close() }
