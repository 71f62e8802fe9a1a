// SPDX-License-Identifier: Apache-2.0

package sock

import (
	"net"
	"net/netip"
	"os"

	"golang.org/x/sys/unix"
)

// AcceptNow takes a connection of a listener that does not block, as a
// non-blocking descriptor, and says who opened it; EAGAIN if there is none. The
// descriptor has what the listener has of TCP_NODELAY, keepalive, mark and
// transparency: Linux hands them on.
func AcceptNow(fd int) (conn int, peer netip.AddrPort, err error) {
	for {
		conn, sa, err := unix.Accept4(fd, unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC)
		switch err {
		case nil:
			return conn, addrPort(sa), nil
		case unix.EINTR, unix.ECONNABORTED: // it has gone again: the next one
		case unix.EAGAIN:
			return -1, peer, err
		default:
			return -1, peer, os.NewSyscallError("accept4", err)
		}
	}
}

// DupFD is another descriptor of l's listening socket. It does not block.
func DupFD(l *net.TCPListener) (int, error) {
	fd := -1
	err := Control(l, func(old int) (err error) {
		fd, err = unix.FcntlInt(uintptr(old), unix.F_DUPFD_CLOEXEC, 0)
		return os.NewSyscallError("fcntl F_DUPFD_CLOEXEC", err)
	})
	return fd, err
}

// Hand gives a connected descriptor to the runtime's poller; it is closed in
// any case. Options are as Go sets them.
func Hand(fd int) (*net.TCPConn, error) { return tcpConn(os.NewFile(uintptr(fd), "tcp")) }
