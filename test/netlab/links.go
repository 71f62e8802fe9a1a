// SPDX-License-Identifier: Apache-2.0

package netlab

import (
	"fmt"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// netlink runs fn with a route netlink socket of the host's namespace.
func (h *Host) netlink(fn func(*netlink.Handle) error) error {
	return h.ns.Do(func() error {
		nl, err := netlink.NewHandle(unix.NETLINK_ROUTE)
		if err != nil {
			return fmt.Errorf("netlink socket: %w", err)
		}
		defer nl.Close()
		if err := fn(nl); err != nil {
			return fmt.Errorf("in namespace %s: %w", h.name, err)
		}
		return nil
	})
}

// addUp makes a link and sets it up.
func addUp(h *netlink.Handle, link netlink.Link) error {
	name := link.Attrs().Name
	if err := h.LinkAdd(link); err != nil {
		return fmt.Errorf("add link %s: %w", name, err)
	}
	if err := h.LinkSetUp(link); err != nil {
		return fmt.Errorf("set %s up: %w", name, err)
	}
	return nil
}

// address sets a link up and gives it addresses; invalid ones are left out.
func address(h *netlink.Handle, name string, prefixes ...netip.Prefix) error {
	link, err := h.LinkByName(name)
	if err != nil {
		return fmt.Errorf("find %s: %w", name, err)
	}
	if err := h.LinkSetUp(link); err != nil {
		return fmt.Errorf("set %s up: %w", name, err)
	}
	for _, p := range prefixes {
		if !p.IsValid() {
			continue
		}
		a := &netlink.Addr{IPNet: &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}}
		if p.Addr().Is6() {
			a.Flags = unix.IFA_F_NODAD // a second of "tentative" per pod is a second of failing binds
		}
		if err := h.AddrAdd(link, a); err != nil {
			return fmt.Errorf("add %v to %s: %w", p, name, err)
		}
	}
	return nil
}

// route sends addrs through node's own addresses; invalid ones are left out.
func route(h *netlink.Handle, linkName string, node *Node, addrs ...netip.Addr) error {
	link, err := h.LinkByName(linkName)
	if err != nil {
		return fmt.Errorf("find %s: %w", linkName, err)
	}
	for _, a := range addrs {
		if !a.IsValid() {
			continue
		}
		via := node.IPv4
		if a.Is6() {
			via = node.IPv6
		}
		r := &netlink.Route{
			LinkIndex: link.Attrs().Index,
			Dst:       ipNet(netip.PrefixFrom(a, a.BitLen())),
			Gw:        via.AsSlice(),
		}
		if err := h.RouteReplace(r); err != nil {
			return fmt.Errorf("route %v via %v: %w", a, via, err)
		}
	}
	return nil
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Masked().Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}
