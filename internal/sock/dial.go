// SPDX-License-Identifier: Apache-2.0

package sock

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// A Dial says where to and as whom.
type Dial struct {
	Dst     netip.AddrPort
	Src     netip.Addr    // zero: the kernel chooses; else a transparent bind to (Src, 0)
	Mark    uint32        // SO_MARK; 0: none
	Timeout time.Duration // of bind and connect together; 0: 10 s
	Hops    int           // IP_TTL, IPV6_UNICAST_HOPS; 0: the kernel's default
}

// DialTCP connects. Errors are *net.OpError around the kernel's errno, or
// around os.ErrDeadlineExceeded after the timeout (contract 2.5), or the cause
// of ctx's end.
func (f *Factory) DialTCP(ctx context.Context, d Dial) (*net.TCPConn, error) {
	timeout := d.Timeout
	if timeout == 0 {
		timeout = defaultDialTimeout
	}
	c, err := f.dialTCP(ctx, d, time.Now().Add(timeout))
	if err != nil {
		return nil, opError("tcp", d, err)
	}
	return c, nil
}

func opError(network string, d Dial, err error) error {
	op := &net.OpError{Op: "dial", Net: network, Addr: net.TCPAddrFromAddrPort(d.Dst), Err: err}
	if d.Src.IsValid() {
		op.Source = net.TCPAddrFromAddrPort(netip.AddrPortFrom(d.Src, 0))
	}
	return op
}

func (f *Factory) dialTCP(ctx context.Context, d Dial, deadline time.Time) (*net.TCPConn, error) {
	if err := context.Cause(ctx); err != nil {
		return nil, err
	}
	fam := family(d.Dst.Addr())
	to, err := sockaddr(fam, d.Dst)
	if err != nil {
		return nil, err
	}
	fd, err := f.connectable(fam, d)
	if err != nil {
		return nil, err
	}
	err = unix.Connect(fd, to)
	if err != nil && err != unix.EINPROGRESS {
		unix.Close(fd)
		return nil, os.NewSyscallError("connect", err)
	}
	// The poller must not see the socket before connect: an unconnected TCP
	// socket polls as hung up.
	file := os.NewFile(uintptr(fd), "tcp")
	if err := awaitConnect(ctx, file, deadline); err != nil {
		file.Close()
		return nil, err
	}
	c, err := tcpConn(file)
	if err != nil {
		return nil, err
	}
	if err := f.Keepalive.Apply(c); err != nil {
		c.Close()
		return nil, err
	}
	return c, nil
}

// connectable is a socket for d, from the stock if that has one.
func (f *Factory) connectable(fam int, d Dial) (int, error) {
	if f.Stock != nil {
		if fd := f.Stock.take(fam); fd >= 0 {
			err := prepare(fd, fam, d)
			if err != nil {
				unix.Close(fd)
			}
			return fd, err
		}
	}
	return f.create(fam, unix.SOCK_STREAM, func(fd int) error {
		if err := unix.SetsockoptInt(fd, unix.SOL_TCP, unix.TCP_NODELAY, 1); err != nil {
			return os.NewSyscallError("setsockopt TCP_NODELAY", err)
		}
		return prepare(fd, fam, d)
	})
}

// prepare marks and binds a socket that is about to connect.
func prepare(fd, fam int, d Dial) error {
	if err := setMark(fd, d.Mark); err != nil {
		return err
	}
	if err := setHops(fd, fam, d.Hops); err != nil {
		return err
	}
	if !d.Src.IsValid() {
		return nil
	}
	if err := setTransparent(fd, fam); err != nil {
		return err
	}
	from, err := sockaddr(fam, netip.AddrPortFrom(d.Src, 0))
	if err != nil {
		return err
	}
	// Without IP_BIND_ADDRESS_NO_PORT: the connect program has to see the port.
	if err := unix.Bind(fd, from); err != nil {
		return os.NewSyscallError("bind", err)
	}
	return nil
}

func setHops(fd, fam, hops int) error {
	switch {
	case hops == 0:
		return nil
	case fam == unix.AF_INET6:
		return os.NewSyscallError("setsockopt IPV6_UNICAST_HOPS", unix.SetsockoptInt(fd, unix.SOL_IPV6, unix.IPV6_UNICAST_HOPS, hops))
	}
	return os.NewSyscallError("setsockopt IP_TTL", unix.SetsockoptInt(fd, unix.SOL_IP, unix.IP_TTL, hops))
}

// awaitConnect waits for a non-blocking connect to end one way or the other.
func awaitConnect(ctx context.Context, file *os.File, deadline time.Time) error {
	if d, ok := ctx.Deadline(); ok && d.Before(deadline) {
		deadline = d
	}
	if err := file.SetWriteDeadline(deadline); err != nil {
		return err
	}
	stop := context.AfterFunc(ctx, func() { file.SetWriteDeadline(time.Unix(1, 0)) })
	defer stop()
	rc, err := file.SyscallConn()
	if err != nil {
		return err
	}
	var result error
	err = rc.Write(func(fd uintptr) bool {
		var done bool
		done, result = connected(int(fd))
		return done
	})
	if cause := context.Cause(ctx); cause != nil && (err != nil || result != nil) && !errors.Is(cause, context.DeadlineExceeded) {
		return cause
	}
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return os.ErrDeadlineExceeded
	}
	if err != nil {
		return err
	}
	return result
}

// connected says whether a connect is over, and how it ended.
func connected(fd int) (bool, error) {
	code, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ERROR)
	if err != nil {
		return true, os.NewSyscallError("getsockopt SO_ERROR", err)
	}
	if code != 0 {
		return true, os.NewSyscallError("connect", unix.Errno(code))
	}
	// SO_ERROR is 0 both before and after success; only a peer tells.
	_, err = unix.Getpeername(fd)
	return err == nil, nil
}

// DialUDP returns a UDP socket connected to d.Dst; nothing is sent.
func (f *Factory) DialUDP(ctx context.Context, d Dial) (*net.UDPConn, error) {
	c, err := f.dialUDP(ctx, d)
	if err != nil {
		return nil, opError("udp", d, err)
	}
	return c, nil
}

func (f *Factory) dialUDP(ctx context.Context, d Dial) (*net.UDPConn, error) {
	if err := context.Cause(ctx); err != nil {
		return nil, err
	}
	fam := family(d.Dst.Addr())
	to, err := sockaddr(fam, d.Dst)
	if err != nil {
		return nil, err
	}
	fd, err := f.create(fam, unix.SOCK_DGRAM, func(fd int) error {
		if err := prepare(fd, fam, d); err != nil {
			return err
		}
		return os.NewSyscallError("connect", unix.Connect(fd, to))
	})
	if err != nil {
		return nil, err
	}
	return udpConn(fd)
}

// udpConn hands a UDP descriptor to the runtime's poller. fd is closed in any
// case.
func udpConn(fd int) (*net.UDPConn, error) {
	file := os.NewFile(uintptr(fd), "udp")
	defer file.Close()
	c, err := net.FilePacketConn(file)
	if err != nil {
		return nil, err
	}
	udp, ok := c.(*net.UDPConn)
	if !ok {
		c.Close()
		return nil, errors.New("descriptor is not a UDP socket")
	}
	return udp, nil
}
