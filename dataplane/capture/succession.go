// SPDX-License-Identifier: Apache-2.0

package capture

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ztunnel-go/ztunnel/bpf/redirect"
	"github.com/ztunnel-go/ztunnel/internal/netns"
	"github.com/ztunnel-go/ztunnel/internal/sock"
)

/* One process after the other, with nobody refused in between
 *
 *	new:  Add ........ is warm -> Enable: claims the pod, its sockets into the slots
 *	old:  serves, checks ...................| serves what it has .. Vacate, Release
 *
 * Until the new process claims the pod the old one does all as before. From
 * then on it changes nothing and checks nothing, since what it would see is
 * the other's work; and if the other is gone before it is told to go itself,
 * it takes the pod back. At its own end it serves whoever it has answered:
 * connections and queries that wait in its sockets' queues, and handshakes
 * that are half done.
 */

const (
	// successionInterval is how often an old process looks whether the new one
	// is still there.
	successionInterval = time.Second
	// vacateLimit is how long handshakes that are half done may hold up the end.
	vacateLimit = time.Second
	// vacateStep is between looks at the queues.
	vacateStep = 5 * time.Millisecond
)

// A slotted is a socket with its place in the steering program.
type slotted struct {
	slot redirect.Slot
	conn syscall.Conn
}

// take claims the pod and puts its sockets in the place of the other process's.
func (p *Pod) take() (redirect.Claim, error) {
	claim, err := p.steer.Claim()
	if err != nil {
		return claim, err
	}
	for _, s := range p.slots {
		if err := sock.Control(s.conn, func(fd int) error { return p.steer.SetListener(s.slot, fd) }); err != nil {
			return claim, err
		}
	}
	return claim, nil
}

// Succeeds says whether another process serves the pod now. While it does there
// is time to prepare.
func (p *Pod) Succeeds() bool {
	if p.steer == nil {
		return false
	}
	served, err := p.steer.Served(redirect.SlotOutbound)
	return err == nil && served
}

// replaced says whether another process has claimed the pod.
func (p *Pod) replaced() bool {
	if p.steer == nil {
		return false
	}
	own, err := p.steer.Owned()
	return err == nil && !own
}

// isLeft says whether the pod is another process's, or waits for one: nothing
// that its checks would see is our doing.
func (p *Pod) isLeft() bool {
	p.mu.Lock()
	vacated := p.vacated
	p.mu.Unlock()
	return vacated || p.replaced()
}

// takeBack serves the pod again if the process that has claimed it is gone,
// and has not let the pod go before.
func (p *Pod) takeBack() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.vacated || !p.replaced() {
		return
	}
	if p.since.IsZero() {
		p.since = time.Now()
	}
	if served, err := p.steer.Served(redirect.SlotOutbound); err != nil || served {
		return
	}
	if enrolled, err := p.node.bpf.IsEnrolled(p.cookie); err != nil || !enrolled {
		return
	}
	if _, err := p.take(); err != nil {
		p.node.log.Warn("take back a pod", slog.String("pod", p.name()), slog.Any("err", err))
		return
	}
	p.since = time.Time{}
	p.node.events.takenBack.Add(1)
	p.node.log.Warn("took a pod back: the process that had taken it over is gone", slog.String("pod", p.name()))
}

// Vacate ends the arrival of connections and queries, and returns when those
// that have arrived are accepted and read, or ctx ends. The accept loops and
// the DNS server must still be running. In tier A what comes later waits for
// the next process; in tier C it has gone to it already, if PortReuse is set.
// In TierPlain there is nobody that it could go to, and nothing to wait for.
func (p *Pod) Vacate(ctx context.Context) error {
	if p.tier == TierPlain {
		return nil
	}
	p.mu.Lock()
	p.vacated = true
	p.mu.Unlock()
	var errs []error
	for _, s := range p.slots {
		cookie, err := socketCookie(s.conn)
		if err == nil {
			err = p.steer.Vacate(s.slot, cookie)
		}
		errs = append(errs, err)
	}
	if p.tier == TierIstioCNI {
		errs = append(errs, p.turnAway())
	}
	ctx, cancel := context.WithTimeout(ctx, vacateLimit)
	defer cancel()
	errs = append(errs, p.awaitQuiet(ctx))
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("vacate pod %s: %w", p.name(), err)
	}
	return nil
}

// awaitQuiet returns when nothing waits in the queues, or ctx ends.
func (p *Pod) awaitQuiet(ctx context.Context) error {
	const enough = 2 // looks: a packet may have been between lookup and queue in the first
	for idle := 0; idle < enough; {
		waiting, err := p.isAwaited()
		if err == nil && !waiting && idle == enough-1 && !p.isLong() {
			waiting, err = halfOpen(p.ns)
		}
		if err != nil {
			return err
		}
		if idle++; waiting {
			idle = 0
		}
		select {
		case <-time.After(vacateStep):
		case <-ctx.Done():
			return nil
		}
	}
	return nil
}

// isLong says whether another process has served the pod for so long that no
// handshake can be left that began with us. To look for one is dear.
func (p *Pod) isLong() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return !p.since.IsZero() && time.Since(p.since) > vacateLimit
}

// turnAway has the kernel give queries to the other process: a socket that is
// connected elsewhere is not looked for any more. What it has can be read, and
// answered.
func (p *Pod) turnAway() error {
	var errs []error
	for _, c := range p.dnsPackets {
		udp := c.(plainConn)
		local := udp.LocalAddr().(*net.UDPAddr).AddrPort()
		const discard = 9
		var to unix.Sockaddr = &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}, Port: discard}
		if local.Addr().Is6() {
			to = &unix.SockaddrInet6{Addr: local.Addr().As16(), Port: discard}
		}
		errs = append(errs, sock.Control(udp, func(fd int) error { return os.NewSyscallError("connect", unix.Connect(fd, to)) }))
	}
	return errors.Join(errs...)
}

// isAwaited says whether something has arrived that nobody has taken yet.
func (p *Pod) isAwaited() (bool, error) {
	for _, l := range p.listeners {
		if n, err := backlog(l.tcp); n > 0 || err != nil {
			return n > 0, err
		}
	}
	for _, l := range p.dnsListeners {
		if n, err := backlog(l.(*net.TCPListener)); n > 0 || err != nil {
			return n > 0, err
		}
	}
	for _, c := range p.dnsPackets {
		if n, err := unread(c.(syscall.Conn)); n > 0 || err != nil {
			return n > 0, err
		}
	}
	return false, nil
}

// backlog is how many connections wait to be accepted.
func backlog(l syscall.Conn) (n int, err error) {
	err = sock.Control(l, func(fd int) error {
		info, err := unix.GetsockoptTCPInfo(fd, unix.IPPROTO_TCP, unix.TCP_INFO)
		if err != nil {
			return os.NewSyscallError("getsockopt TCP_INFO", err)
		}
		n = int(info.Unacked) // of a listener: sk_ack_backlog
		return nil
	})
	return n, err
}

// unread is the size of the datagram that is next, 0 if there is none. Of a
// socket that is in a slot it is always 0 (udp_bpf_ioctl).
func unread(c syscall.Conn) (n int, err error) {
	err = sock.Control(c, func(fd int) (err error) {
		n, err = unix.IoctlGetInt(fd, unix.SIOCINQ)
		return os.NewSyscallError("ioctl SIOCINQ", err)
	})
	return n, err
}

// halfOpen says whether a handshake of the namespace waits for its last packet,
// which may be for one of our listeners. It walks the table of all connections
// of the machine.
func halfOpen(ns *netns.NS) (bool, error) {
	const synReceived = 3 // TCP_SYN_RECV
	sockets, err := tcpSockets(ns, 1<<synReceived, -1)
	return len(sockets) > 0, err
}

func socketCookie(c syscall.Conn) (cookie uint64, err error) {
	err = sock.Control(c, func(fd int) (err error) {
		cookie, err = unix.GetsockoptUint64(fd, unix.SOL_SOCKET, unix.SO_COOKIE)
		return os.NewSyscallError("getsockopt SO_COOKIE", err)
	})
	return cookie, err
}
