// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/binary"
	"net/netip"
	"unsafe"

	"golang.org/x/sys/unix"
)

// System calls of the load's threads. They block, and Go's scheduler is not
// told, so that it does nothing before and after them: a thread costs what it
// would in C. For that the processes that use them (see generate) have a place
// for every thread to run at once, collect no garbage and preempt nobody.

// retry reports whether a call was only interrupted.
func retry(errno unix.Errno) bool { return errno == unix.EINTR }

// result is what a call comes to. Pointers become numbers in the calls
// themselves, as package unsafe has it.
func result(n uintptr, errno unix.Errno) (int, error) {
	if errno != 0 {
		return -1, errno
	}
	return int(n), nil
}

func read(fd int, b []byte) (int, error) {
	for {
		n, _, errno := unix.RawSyscall(unix.SYS_READ, uintptr(fd), uintptr(unsafe.Pointer(unsafe.SliceData(b))), uintptr(len(b)))
		if !retry(errno) {
			return result(n, errno)
		}
	}
}

func write(fd int, b []byte) (int, error) {
	for {
		n, _, errno := unix.RawSyscall(unix.SYS_WRITE, uintptr(fd), uintptr(unsafe.Pointer(unsafe.SliceData(b))), uintptr(len(b)))
		if !retry(errno) {
			return result(n, errno)
		}
	}
}

// discard takes up to n bytes that have come on a TCP connection, without
// looking at them.
func discard(fd, n int) (int, error) {
	for {
		got, _, errno := unix.RawSyscall6(unix.SYS_RECVFROM, uintptr(fd), 0, uintptr(n), unix.MSG_TRUNC, 0, 0)
		if !retry(errno) {
			return result(got, errno)
		}
	}
}

func closeFD(fd int) { _, _, _ = unix.RawSyscall(unix.SYS_CLOSE, uintptr(fd), 0, 0) }

// An address is a socket address as the kernel reads it.
type address struct {
	raw unix.RawSockaddrInet4
}

func addressOf(ap netip.AddrPort) *address {
	a := &address{unix.RawSockaddrInet4{Family: unix.AF_INET, Addr: ap.Addr().As4()}}
	binary.BigEndian.PutUint16((*[2]byte)(unsafe.Pointer(&a.raw.Port))[:], ap.Port())
	return a
}

// join is bind or connect.
func join(call uintptr, fd int, a *address) error {
	for {
		_, _, errno := unix.RawSyscall(call, uintptr(fd), uintptr(unsafe.Pointer(&a.raw)), unix.SizeofSockaddrInet4)
		if !retry(errno) {
			_, err := result(0, errno)
			return err
		}
	}
}

// socket makes a socket of the kind, bound to from if that is not nil, and
// connects it.
func socket(kind int, from, to *address) (int, error) {
	n, _, errno := unix.RawSyscall(unix.SYS_SOCKET, unix.AF_INET, uintptr(kind|unix.SOCK_CLOEXEC), 0)
	fd, err := result(n, errno)
	if err != nil {
		return -1, err
	}
	if from != nil {
		if err = unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_BIND_ADDRESS_NO_PORT, 1); err == nil {
			err = join(unix.SYS_BIND, fd, from)
		}
	}
	if err == nil {
		err = join(unix.SYS_CONNECT, fd, to)
	}
	if err != nil {
		closeFD(fd)
		return -1, err
	}
	return fd, nil
}

// listen makes a listening TCP socket on every address.
func listen(port uint16) (int, error) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, err
	}
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1); err != nil {
		return -1, err
	}
	if err := unix.Bind(fd, &unix.SockaddrInet4{Port: int(port)}); err != nil {
		return -1, err
	}
	return fd, unix.Listen(fd, 8192)
}

func accept(fd int) (int, error) {
	for {
		n, _, errno := unix.RawSyscall(unix.SYS_ACCEPT, uintptr(fd), 0, 0)
		if retry(errno) {
			continue
		}
		c, err := result(n, errno)
		if err == nil {
			err = unix.SetsockoptInt(c, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1)
		}
		return c, err
	}
}

// readFull reads until b is full; 0 is an end before its first byte.
func readFull(fd int, b []byte) (int, error) {
	for n := 0; n < len(b); {
		k, err := read(fd, b[n:])
		switch {
		case err != nil:
			return n, err
		case k == 0 && n == 0:
			return 0, nil
		case k == 0:
			return n, unix.ECONNABORTED
		}
		n += k
	}
	return len(b), nil
}

func writeFull(fd int, b []byte) error {
	for len(b) > 0 {
		n, err := write(fd, b)
		if err != nil {
			return err
		}
		b = b[n:]
	}
	return nil
}

func recvFrom(fd int, b []byte, from *address) (int, error) {
	size := uint32(unix.SizeofSockaddrInet4)
	n, _, errno := unix.RawSyscall6(unix.SYS_RECVFROM, uintptr(fd), uintptr(unsafe.Pointer(unsafe.SliceData(b))), uintptr(len(b)), 0,
		uintptr(unsafe.Pointer(&from.raw)), uintptr(unsafe.Pointer(&size)))
	return result(n, errno)
}

func sendTo(fd int, b []byte, to *address) (int, error) {
	n, _, errno := unix.RawSyscall6(unix.SYS_SENDTO, uintptr(fd), uintptr(unsafe.Pointer(unsafe.SliceData(b))), uintptr(len(b)), 0,
		uintptr(unsafe.Pointer(&to.raw)), unix.SizeofSockaddrInet4)
	return result(n, errno)
}
