// SPDX-License-Identifier: Apache-2.0

package sock

import (
	"net"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

// The calls of this file are for descriptors that never block, and only for
// those: they do not tell the runtime's scheduler of the call, which is most
// of the cost of a short one. A call that blocked would hold up every garbage
// collection. They try again after EINTR, and their errors are bare errnos.

// Vec makes the part of a gathering or scattering call that is b, which must
// not be empty.
func Vec(b []byte) unix.Iovec {
	v := unix.Iovec{Base: &b[0]}
	v.SetLen(len(b))
	return v
}

// ReadNow reads what there is, 0 at the end; EAGAIN if there is nothing.
func ReadNow(fd int, b []byte) (int, error) {
	if len(b) == 0 {
		return 0, nil
	}
	return raw(unix.SYS_READ, fd, unsafe.Pointer(&b[0]), len(b))
}

// ReadvNow is [ReadNow] into several pieces, at least one.
func ReadvNow(fd int, to []unix.Iovec) (int, error) {
	return raw(unix.SYS_READV, fd, unsafe.Pointer(&to[0]), len(to))
}

// WriteNow writes what the socket takes; EAGAIN if it takes nothing. A socket
// whose peer is gone answers EPIPE without a signal (package os sees to that
// for the process, see [os/signal]).
func WriteNow(fd int, b []byte) (int, error) {
	if len(b) == 0 {
		return 0, nil
	}
	return raw(unix.SYS_WRITE, fd, unsafe.Pointer(&b[0]), len(b))
}

// WritevNow is [WriteNow] from several pieces, at least one and at most
// [MaxVec].
func WritevNow(fd int, from []unix.Iovec) (int, error) {
	return raw(unix.SYS_WRITEV, fd, unsafe.Pointer(&from[0]), len(from))
}

// MaxVec is how many pieces one call takes (UIO_MAXIOV).
const MaxVec = 1024

func raw(trap uintptr, fd int, p unsafe.Pointer, n int) (int, error) {
	for {
		r, _, errno := unix.RawSyscall(trap, uintptr(fd), uintptr(p), uintptr(n))
		switch {
		case errno == unix.EINTR:
			continue
		case errno != 0:
			return 0, errno
		}
		return int(r), nil
	}
}

// SpliceNow moves up to n bytes between a socket and a pipe, neither of which
// blocks; 0 at the end, EAGAIN if nothing can be moved.
func SpliceNow(from, to, n int) (int, error) {
	for {
		r, _, errno := unix.RawSyscall6(unix.SYS_SPLICE, uintptr(from), 0, uintptr(to), 0, uintptr(n),
			unix.SPLICE_F_MOVE|unix.SPLICE_F_NONBLOCK)
		switch {
		case errno == unix.EINTR:
			continue
		case errno != 0:
			return 0, errno
		}
		return int(r), nil
	}
}

// PollNow asks an epoll instance without waiting.
func PollNow(ep int, events []unix.EpollEvent) (int, error) {
	for {
		r, _, errno := unix.RawSyscall6(unix.SYS_EPOLL_PWAIT, uintptr(ep),
			uintptr(unsafe.Pointer(&events[0])), uintptr(len(events)), 0, 0, 0)
		switch {
		case errno == unix.EINTR:
			continue
		case errno != 0:
			return 0, errno
		}
		return int(r), nil
	}
}

// TakeFD moves the descriptor of c away from the runtime's poller. c is closed
// in any case; the descriptor, which is non-blocking, is the caller's.
func TakeFD(c *net.TCPConn) (int, error) {
	fd := -1
	err := Control(c, func(old int) (err error) {
		fd, err = unix.FcntlInt(uintptr(old), unix.F_DUPFD_CLOEXEC, 0)
		return os.NewSyscallError("fcntl F_DUPFD_CLOEXEC", err)
	})
	_ = c.Close() // the connection lives on in fd
	return fd, err
}
