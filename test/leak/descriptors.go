// SPDX-License-Identifier: Apache-2.0

package leak

import (
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// A descriptor is one entry of /proc/self/fd.
type descriptor struct {
	number int
	target string // what the link says: a path, socket:[inode], anon_inode:name
}

// descriptors lists what the process has open, by target.
func descriptors() (map[string][]descriptor, error) {
	const dir = "/proc/self/fd"
	d, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	defer d.Close()
	names, err := d.Readdirnames(-1)
	if err != nil {
		return nil, err
	}
	found := map[string][]descriptor{}
	for _, name := range names {
		number, err := strconv.Atoi(name)
		if err != nil || number == int(d.Fd()) {
			continue
		}
		target, err := os.Readlink(dir + "/" + name)
		if errors.Is(err, fs.ErrNotExist) {
			continue // closed since it was listed
		}
		if err != nil {
			return nil, err
		}
		found[target] = append(found[target], descriptor{number, target})
	}
	return found, nil
}

// describe says what d is; of a socket also its addresses, since an inode
// tells a reader nothing.
func (d descriptor) describe() string {
	if !strings.HasPrefix(d.target, "socket:") {
		return d.target
	}
	text := d.target
	if kind, err := unix.GetsockoptInt(d.number, unix.SOL_SOCKET, unix.SO_TYPE); err == nil {
		text += map[int]string{
			unix.SOCK_STREAM: " stream", unix.SOCK_DGRAM: " datagram",
			unix.SOCK_RAW: " raw", unix.SOCK_SEQPACKET: " seqpacket",
		}[kind]
	}
	if sa, err := unix.Getsockname(d.number); err == nil {
		text += " at " + address(sa)
	}
	if sa, err := unix.Getpeername(d.number); err == nil {
		text += " to " + address(sa)
	}
	return text
}

func address(sa unix.Sockaddr) string {
	switch sa := sa.(type) {
	case *unix.SockaddrInet4:
		return netip.AddrPortFrom(netip.AddrFrom4(sa.Addr), uint16(sa.Port)).String()
	case *unix.SockaddrInet6:
		return netip.AddrPortFrom(netip.AddrFrom16(sa.Addr), uint16(sa.Port)).String()
	case *unix.SockaddrUnix:
		return "unix " + strconv.Quote(sa.Name)
	case *unix.SockaddrNetlink:
		return "netlink"
	default:
		return fmt.Sprintf("%T", sa)
	}
}
