// SPDX-License-Identifier: Apache-2.0

package capture

import (
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"os"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/ztunnel-go/ztunnel/internal/netns"
)

// destroyedSockets tells of each TCP socket of the namespace that ceases to
// exist, unless it has a peer: an inet_diag message per Read (SKNLGRP_INET_TCP_DESTROY
// and its IPv6 twin).
func destroyedSockets(ns *netns.NS) (*os.File, error) {
	const (
		groups    = 1<<0 | 1<<2 // linux/sock_diag.h numbers them 1 and 3
		peersPort = unix.NLMSG_HDRLEN + diagIDOffset + 2
	)
	filter := []unix.SockFilter{
		{Code: unix.BPF_LD | unix.BPF_H | unix.BPF_ABS, K: peersPort},
		{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, Jf: 1},
		{Code: unix.BPF_RET | unix.BPF_K, K: 0xffffffff},
		{Code: unix.BPF_RET | unix.BPF_K, K: 0},
	}
	var file *os.File
	err := ns.Do(func() error {
		fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.NETLINK_INET_DIAG)
		if err != nil {
			return os.NewSyscallError("socket", err)
		}
		file = os.NewFile(uintptr(fd), "destroyed sockets")
		prog := unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]}
		if err := unix.SetsockoptSockFprog(fd, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, &prog); err != nil {
			return os.NewSyscallError("setsockopt SO_ATTACH_FILTER", err)
		}
		return os.NewSyscallError("bind", unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: groups}))
	})
	if err != nil && file != nil {
		file.Close()
		return nil, err
	}
	return file, err
}

// watchLinks waits for the end of the pod's devices. Nothing that comes by them
// can be answered from then on, and TCP would find out after minutes.
func (p *Pod) watchLinks() error {
	updates := make(chan netlink.LinkUpdate, 16)
	err := p.ns.Do(func() error { // the socket belongs to where it is made
		return netlink.LinkSubscribeWithOptions(updates, p.running.Done(), netlink.LinkSubscribeOptions{
			ErrorCallback: func(error) {}, // an overrun is no reason to end anything
		})
	})
	if err != nil {
		return err
	}
	own, linked, err := p.links()
	if err != nil {
		return err
	}
	p.tasks.Go(func() { // ends when netlink closes updates, after stop
		for u := range updates {
			now, left, err := p.links()
			if err != nil {
				continue // the next look may be luckier
			}
			for a := range now {
				own[a] = true // an address leaves before its device does
			}
			if linked && !left && u.Header.Type == unix.RTM_DELLINK {
				p.severed(own)
			}
			linked = left || linked && u.Header.Type != unix.RTM_DELLINK
		}
	})
	return nil
}

// links are the addresses of the namespace, and whether it has a device that is
// up beside lo.
func (p *Pod) links() (own map[netip.Addr]bool, linked bool, err error) {
	own = map[netip.Addr]bool{}
	err = p.ns.Do(func() error {
		devices, err := net.Interfaces()
		if err != nil {
			return err
		}
		for _, d := range devices {
			linked = linked || d.Flags&net.FlagUp != 0 && d.Flags&net.FlagLoopback == 0
		}
		addrs, err := net.InterfaceAddrs()
		for _, a := range addrs {
			if prefix, ok := a.(*net.IPNet); ok {
				if ip, ok := netip.AddrFromSlice(prefix.IP); ok {
					own[ip.Unmap()] = true
				}
			}
		}
		return err
	})
	return own, linked, err
}

// severed ends the proxy's connections through devices that are gone. What they
// have received can still be read and delivered.
func (p *Pod) severed(own map[netip.Addr]bool) {
	p.node.log.Debug("a pod has lost its network", slog.String("pod", p.name()))
	if p.ending.told.Severed != nil {
		p.ending.told.Severed()
	}
	if err := p.keepAddresses(own); err != nil {
		p.node.log.Debug("keep the addresses of a pod that has lost its network", slog.String("pod", p.name()), slog.Any("err", err))
	}
	storage := -1
	if p.tier == TierEBPF {
		storage = p.node.bpf.SocketsMap()
	}
	const outsiders = everyState &^ (1<<tcpListen | 1<<tcpTimeWait)
	sockets, err := tcpSockets(p.ns, outsiders, storage)
	var lost []tcpSocket
	for _, s := range sockets {
		local := s.remote.Addr().IsLoopback() || own[s.remote.Addr()]
		ours := s.role == roleOwn || s.role == rolePassive
		if p.tier == TierIstioCNI {
			ours = s.mark == p.node.cfg.Mark
		}
		if ours && !local {
			lost = append(lost, s)
		}
	}
	if err == nil {
		err = destroy(p.ns, lost)
	}
	if err != nil { // TCP's own timeouts end them
		p.node.log.Warn("connections of a pod that has lost its network end late", slog.String("pod", p.name()), slog.Any("err", err))
	}
}

// keepAddresses gives lo the addresses that went with their device. Without
// them the kernel routes nothing between applications and the proxy, neither
// what has arrived nor a reset.
func (p *Pod) keepAddresses(own map[netip.Addr]bool) error {
	return p.ns.Do(func() error {
		lo, err := netlink.LinkByName("lo")
		if err != nil {
			return err
		}
		var errs []error
		for a := range own {
			if !a.IsGlobalUnicast() {
				continue
			}
			err := netlink.AddrAdd(lo, &netlink.Addr{Flags: unix.IFA_F_NODAD, IPNet: &net.IPNet{
				IP: a.AsSlice(), Mask: net.CIDRMask(a.BitLen(), a.BitLen()),
			}})
			if !errors.Is(err, unix.EEXIST) {
				errs = append(errs, err)
			}
		}
		return errors.Join(errs...)
	})
}
