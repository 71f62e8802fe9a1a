// SPDX-License-Identifier: Apache-2.0

// Package sock makes sockets as a node proxy needs them: inside a pod's
// network namespace, marked, with the client's address as their own, and
// flagged as the proxy's own before anything is sent.
//
// It knows nothing of capture, of pods or of the mesh; which mark means what is
// its caller's affair. Names are never looked up here: all addresses are
// numbers.
package sock

import (
	"cmp"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ztunnel-go/ztunnel/internal/netns"
)

// defaultDialTimeout bounds bind and connect together (contract 2.5).
const defaultDialTimeout = 10 * time.Second

// Keepalive says how dead peers are noticed on a TCP socket.
type Keepalive struct {
	Enabled        bool
	Time, Interval time.Duration // rounded up to whole seconds, the kernel's unit; 0: Go's default
	Retries        int
	UserTimeout    bool // also TCP_USER_TIMEOUT = Time + Retries*Interval
}

// A Factory makes the sockets of one namespace. Its methods may be called by
// several goroutines.
type Factory struct {
	NS        *netns.NS // nil: the process's own
	Keepalive Keepalive
	// Own flags a new socket as the proxy's own before it is bound, connected
	// or listening; nil: there is nothing to flag.
	Own func(fd int) error
	// Stock is of the same namespace and options, and holds sockets for
	// connections; nil: each is made when it is wanted.
	Stock *Stock
}

// inside runs fn in the factory's namespace.
func (f *Factory) inside(fn func() error) error {
	if f.NS == nil {
		return fn()
	}
	return f.NS.Do(fn)
}

// create makes a non-blocking socket inside the factory's namespace and lets
// setup finish it. On error the socket is closed.
func (f *Factory) create(family, kind int, setup func(fd int) error) (int, error) {
	return f.createProto(family, kind, 0, setup)
}

func (f *Factory) createProto(family, kind, proto int, setup func(fd int) error) (int, error) {
	fd := -1
	open := func() (err error) {
		fd, err = unix.Socket(family, kind|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, proto)
		return os.NewSyscallError("socket", err)
	}
	if err := f.inside(open); err != nil {
		return -1, err
	}
	// From here on the socket's namespace is fixed; any thread will do.
	if f.Own != nil {
		if err := f.Own(fd); err != nil {
			unix.Close(fd)
			return -1, fmt.Errorf("flag socket as own: %w", err)
		}
	}
	if err := setup(fd); err != nil {
		unix.Close(fd)
		return -1, err
	}
	return fd, nil
}

// setMark gives the socket a routing mark; 0 leaves it as it is.
func setMark(fd int, mark uint32) error {
	if mark == 0 {
		return nil
	}
	return os.NewSyscallError("setsockopt SO_MARK", unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_MARK, int(mark)))
}

// setTransparent allows addresses that the namespace does not have. A v6
// socket takes both options, since it may carry v4-mapped addresses.
func setTransparent(fd, family int) error {
	if family == unix.AF_INET6 {
		if err := unix.SetsockoptInt(fd, unix.SOL_IPV6, unix.IPV6_TRANSPARENT, 1); err != nil {
			return os.NewSyscallError("setsockopt IPV6_TRANSPARENT", err)
		}
	}
	return os.NewSyscallError("setsockopt IP_TRANSPARENT", unix.SetsockoptInt(fd, unix.SOL_IP, unix.IP_TRANSPARENT, 1))
}

// Apply sets the options on a connection, also when they are off: Go switches
// keepalive on by itself.
func (k Keepalive) Apply(c *net.TCPConn) error {
	err := c.SetKeepAliveConfig(net.KeepAliveConfig{
		Enable: k.Enabled, Idle: k.Time, Interval: k.Interval, Count: k.Retries})
	if err != nil || !k.Enabled || !k.UserTimeout {
		return err
	}
	total := k.Time + time.Duration(k.Retries)*k.Interval
	return Control(c, func(fd int) error {
		return os.NewSyscallError("setsockopt TCP_USER_TIMEOUT",
			unix.SetsockoptInt(fd, unix.SOL_TCP, unix.TCP_USER_TIMEOUT, int(total.Milliseconds())))
	})
}

// Set is Apply for a descriptor on which nobody has set anything.
func (k Keepalive) Set(fd int) error {
	if !k.Enabled {
		return nil
	}
	seconds := func(d time.Duration) int { return int((d + time.Second - 1) / time.Second) }
	options := []struct{ level, name, value int }{
		{unix.SOL_TCP, unix.TCP_KEEPIDLE, seconds(cmp.Or(k.Time, goKeepalive))},
		{unix.SOL_TCP, unix.TCP_KEEPINTVL, seconds(cmp.Or(k.Interval, goKeepalive))},
		{unix.SOL_TCP, unix.TCP_KEEPCNT, cmp.Or(k.Retries, goRetries)},
		{unix.SOL_SOCKET, unix.SO_KEEPALIVE, 1},
	}
	if k.UserTimeout {
		total := k.Time + time.Duration(k.Retries)*k.Interval
		options = append(options, struct{ level, name, value int }{unix.SOL_TCP, unix.TCP_USER_TIMEOUT, int(total.Milliseconds())})
	}
	for _, o := range options {
		if err := unix.SetsockoptInt(fd, o.level, o.name, o.value); err != nil {
			return os.NewSyscallError("setsockopt", err)
		}
	}
	return nil
}

// What Go takes where nothing is said.
const (
	goKeepalive = 15 * time.Second
	goRetries   = 9
)

// family is the socket family for an address; v4-mapped counts as v4.
func family(a netip.Addr) int {
	if a.Unmap().Is4() {
		return unix.AF_INET
	}
	return unix.AF_INET6
}

// sockaddr is ap for a socket of family fam.
func sockaddr(fam int, ap netip.AddrPort) (unix.Sockaddr, error) {
	addr := ap.Addr()
	if fam == unix.AF_INET {
		if !addr.Unmap().Is4() {
			return nil, fmt.Errorf("address %v is not IPv4", addr)
		}
		return &unix.SockaddrInet4{Port: int(ap.Port()), Addr: addr.Unmap().As4()}, nil
	}
	zone := uint32(0)
	if addr.Zone() != "" {
		ifc, err := net.InterfaceByName(addr.Zone())
		if err != nil {
			return nil, fmt.Errorf("zone of %v: %v", addr, err)
		}
		zone = uint32(ifc.Index)
	}
	return &unix.SockaddrInet6{Port: int(ap.Port()), Addr: addr.As16(), ZoneId: zone}, nil
}

// addrPort is the canonical form of a kernel address; zero for other families.
func addrPort(sa unix.Sockaddr) netip.AddrPort {
	switch sa := sa.(type) {
	case *unix.SockaddrInet4:
		return netip.AddrPortFrom(netip.AddrFrom4(sa.Addr), uint16(sa.Port))
	case *unix.SockaddrInet6:
		return netip.AddrPortFrom(netip.AddrFrom16(sa.Addr).Unmap(), uint16(sa.Port))
	}
	return netip.AddrPort{}
}

// LocalAddr is the canonical address (v4-mapped as v4) that the socket is bound
// to, read from the kernel.
func LocalAddr(fd int) (netip.AddrPort, error) {
	sa, err := unix.Getsockname(fd)
	if err != nil {
		return netip.AddrPort{}, os.NewSyscallError("getsockname", err)
	}
	return addrPort(sa), nil
}

// tcpConn hands a connected descriptor to the runtime's poller as a net.Conn.
// The file is closed in any case.
func tcpConn(file *os.File) (*net.TCPConn, error) {
	defer file.Close()
	c, err := net.FileConn(file)
	if err != nil {
		return nil, err
	}
	tcp, ok := c.(*net.TCPConn)
	if !ok {
		c.Close()
		return nil, errors.New("descriptor is not a TCP connection")
	}
	return tcp, nil
}

// Control runs fn with the descriptor of c and hands back its error.
func Control(c syscall.Conn, fn func(fd int) error) error {
	rc, err := c.SyscallConn()
	if err != nil {
		return err
	}
	var inner error
	if err := rc.Control(func(fd uintptr) { inner = fn(int(fd)) }); err != nil {
		return err
	}
	return inner
}
