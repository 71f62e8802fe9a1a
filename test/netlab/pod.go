// SPDX-License-Identifier: Apache-2.0

package netlab

import (
	"errors"
	"fmt"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"
)

// A Pod is a namespace with an eth0 that its node routes to.
type Pod struct {
	*Host
	// IPv4 and IPv6 are the pod's addresses; zero where it has none.
	IPv4, IPv6 netip.Addr
	// VethName is the node's end of the pod's link.
	VethName string

	node *Node
}

// PodConfig overrides what [Node.Pod] would choose.
type PodConfig struct {
	// IPv4 and IPv6 are the pod's addresses; zero ones are chosen.
	IPv4, IPv6 netip.Addr
	// NoIPv4 and NoIPv6 leave a family out.
	NoIPv4, NoIPv6 bool
}

// gateway4 and gateway6 are the node's end of every pod's link, as the pod
// sees it. 169.254.1.1 is Calico's choice too; it is never on a wire but in
// ARP.
var (
	gateway4 = netip.AddrFrom4([4]byte{169, 254, 1, 1})
	gateway6 = netip.AddrFrom16([16]byte{0: 0xfe, 1: 0x80, 15: 1})
)

// Pod makes the node's next pod: 10.77.n.p and fd77:0:0:n::p, with p from 1,
// where cfg (one at most) does not say otherwise.
func (n *Node) Pod(name string, cfg ...PodConfig) (*Pod, error) {
	n.lab.mu.Lock()
	defer n.lab.mu.Unlock()
	var c PodConfig
	if len(cfg) > 0 {
		c = cfg[0]
	}
	n.pods++
	p := &Pod{node: n, IPv4: c.IPv4, IPv6: c.IPv6, VethName: fmt.Sprintf("veth%d-%d", n.index, n.pods)}
	if !p.IPv4.IsValid() && !c.NoIPv4 {
		p.IPv4 = netip.AddrFrom4([4]byte{10, 77, byte(n.index), byte(n.pods)})
	}
	if !p.IPv6.IsValid() && !c.NoIPv6 && !n.lab.cfg.NoIPv6 {
		p.IPv6 = netip.AddrFrom16([16]byte{0: 0xfd, 1: 0x77, 7: byte(n.index), 15: byte(n.pods)})
	}
	if err := p.build(name); err != nil {
		if p.Host != nil {
			p.Host.close()
		}
		return nil, fmt.Errorf("make pod %s: %w", name, err)
	}
	n.lab.pods = append(n.lab.pods, p)
	return p, nil
}

func (p *Pod) build(name string) (err error) {
	if p.Host, err = p.node.lab.newHost(name); err != nil {
		return err
	}
	mtu := p.node.lab.cfg.MTU
	err = p.node.netlink(func(h *netlink.Handle) error {
		err := addUp(h, &netlink.Veth{
			LinkAttrs:     netlink.LinkAttrs{Name: p.VethName, MTU: mtu},
			PeerName:      uplinkName,
			PeerNamespace: netlink.NsFd(p.NS().Fd()),
			PeerMTU:       uint32(mtu),
		})
		if err != nil {
			return err
		}
		if err := address(h, p.VethName, netip.PrefixFrom(gateway4, 32), p.only6(netip.PrefixFrom(gateway6, 64))); err != nil {
			return err
		}
		return toPod(h, p)
	})
	if err != nil {
		return err
	}
	err = p.netlink(func(h *netlink.Handle) error {
		if err := address(h, uplinkName, p.prefixes()...); err != nil {
			return err
		}
		return p.defaultRoutes(h)
	})
	if err != nil {
		return err
	}
	return p.node.announceLocked(p.addrs()...)
}

// only6 is pre for a pod with IPv6, else nothing.
func (p *Pod) only6(pre netip.Prefix) netip.Prefix {
	if !p.IPv6.IsValid() {
		return netip.Prefix{}
	}
	return pre
}

func (p *Pod) addrs() []netip.Addr { return []netip.Addr{p.IPv4, p.IPv6} }

func (p *Pod) prefixes() []netip.Prefix {
	var all []netip.Prefix
	for _, a := range p.addrs() {
		if a.IsValid() {
			all = append(all, netip.PrefixFrom(a, a.BitLen()))
		}
	}
	return all
}

// toPod routes the pod's addresses to its veth, and makes the node's own
// connections (kubelet's probes) come from the node's address, as they do in
// a cluster; without it they would come from 169.254.1.1.
func toPod(h *netlink.Handle, p *Pod) error {
	link, err := h.LinkByName(p.VethName)
	if err != nil {
		return fmt.Errorf("find %s: %w", p.VethName, err)
	}
	for _, pre := range p.prefixes() {
		src := p.node.IPv4
		if pre.Addr().Is6() {
			src = p.node.IPv6
		}
		r := &netlink.Route{LinkIndex: link.Attrs().Index, Dst: ipNet(pre), Src: src.AsSlice(), Scope: netlink.SCOPE_LINK}
		if err := h.RouteReplace(r); err != nil {
			return fmt.Errorf("route %v to %s: %w", pre, p.VethName, err)
		}
	}
	return nil
}

func (p *Pod) defaultRoutes(h *netlink.Handle) error {
	link, err := h.LinkByName(uplinkName)
	if err != nil {
		return fmt.Errorf("find %s: %w", uplinkName, err)
	}
	index := link.Attrs().Index
	if p.IPv4.IsValid() {
		gw := netip.PrefixFrom(gateway4, 32)
		if err := h.RouteAdd(&netlink.Route{LinkIndex: index, Dst: ipNet(gw), Scope: netlink.SCOPE_LINK}); err != nil {
			return fmt.Errorf("route to gateway: %w", err)
		}
		any4 := &net.IPNet{IP: net.IPv4zero.To4(), Mask: net.CIDRMask(0, 32)}
		if err := h.RouteAdd(&netlink.Route{LinkIndex: index, Dst: any4, Gw: gateway4.AsSlice()}); err != nil {
			return fmt.Errorf("default route: %w", err)
		}
	}
	if p.IPv6.IsValid() {
		any6 := &net.IPNet{IP: net.IPv6zero, Mask: net.CIDRMask(0, 128)}
		if err := h.RouteAdd(&netlink.Route{LinkIndex: index, Dst: any6, Gw: gateway6.AsSlice()}); err != nil {
			return fmt.Errorf("default IPv6 route: %w", err)
		}
	}
	return nil
}

// Node is where the pod runs.
func (p *Pod) Node() *Node { return p.node }

// Addr is the pod's IPv4 address with a port.
func (p *Pod) Addr(port uint16) netip.AddrPort { return netip.AddrPortFrom(p.IPv4, port) }

// Addr6 is the pod's IPv6 address with a port.
func (p *Pod) Addr6(port uint16) netip.AddrPort { return netip.AddrPortFrom(p.IPv6, port) }

// Delete takes the pod away as a CNI does at its end: the link goes and the
// lab lets the namespace go. It lives on while somebody else holds it.
func (p *Pod) Delete() error {
	lab := p.node.lab
	lab.mu.Lock()
	for i, other := range lab.pods {
		if other == p {
			lab.pods = append(lab.pods[:i:i], lab.pods[i+1:]...)
			break
		}
	}
	lab.mu.Unlock()
	err := p.node.netlink(func(h *netlink.Handle) error {
		link, err := h.LinkByName(p.VethName)
		if err != nil {
			return fmt.Errorf("find %s: %w", p.VethName, err)
		}
		return h.LinkDel(link)
	})
	return errors.Join(err, p.Host.close())
}
