// SPDX-License-Identifier: Apache-2.0

package capture

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/ztunnel-go/ztunnel/bpf/redirect"
	"github.com/ztunnel-go/ztunnel/internal/netns"
)

// Rules and tables in a pod's namespace. They are ours alone: 100 is
// istio-cni's, and its rule has 32764. Both come before the main table's rule
// and after the one of the local table, so that what the pod has itself stays
// its own.
const (
	captureRule   = 32700
	deliveryRule  = 32701
	captureTable  = 15101
	deliveryTable = 15100
)

const dnsServerPort = 53

// A router holds the netlink socket of one namespace and knows what belongs
// into its rules, routes and settings. Its methods are for one goroutine at a
// time.
type router struct {
	ns   *netns.NS
	h    *netlink.Handle
	ipv6 bool // the kernel has it
	dns  bool
}

func newRouter(ns *netns.NS, dns bool) (*router, error) {
	r := &router{ns: ns, dns: dns}
	err := ns.Do(func() (err error) {
		_, missing := os.Stat("/proc/sys/net/ipv6")
		r.ipv6 = missing == nil
		r.h, err = netlink.NewHandle(unix.NETLINK_ROUTE)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("open netlink: %w", err)
	}
	return r, nil
}

func (r *router) close() {
	if r != nil && r.h != nil {
		r.h.Close()
		r.h = nil
	}
}

// sysctls are needed for what the proxy delivers: replies of the application
// must inherit the mark of the SYN, and resets that of the packet they answer.
// Without the latter a closed port costs the client a timeout.
func (r *router) sysctls() []string {
	names := []string{"ipv4/tcp_fwmark_accept", "ipv4/fwmark_reflect"}
	if r.ipv6 {
		names = append(names, "ipv6/fwmark_reflect")
	}
	return names
}

func (r *router) setSysctls(value string) error {
	return r.ns.Do(func() error {
		for _, name := range r.sysctls() {
			if err := writeSysctl(name, value); err != nil {
				return fmt.Errorf("set net/%s: %w", name, err)
			}
		}
		return nil
	})
}

// addresses are the namespace's own, and per family the one that connections
// leave from; zero where a family has none that is of use beyond the link.
func (r *router) addresses() (own []netip.Addr, src4, src6 netip.Addr, err error) {
	list, err := r.h.AddrList(nil, netlink.FAMILY_ALL)
	if err != nil {
		return nil, src4, src6, fmt.Errorf("list addresses: %w", err)
	}
	for _, a := range list {
		addr, ok := netip.AddrFromSlice(a.IP)
		if !ok {
			continue
		}
		addr = addr.Unmap()
		own = append(own, addr)
		if a.Scope != unix.RT_SCOPE_UNIVERSE || addr.IsLoopback() {
			continue
		}
		switch {
		case addr.Is4() && !src4.IsValid():
			src4 = addr
		case addr.Is6() && !src6.IsValid() && a.Flags&(unix.IFA_F_TENTATIVE|unix.IFA_F_DEPRECATED) == 0:
			src6 = addr
		}
	}
	return own, src4, src6, nil
}

// ensure puts in place what is missing; what is there stays. A family without
// an address gets nothing: its connects fail for want of one.
func (r *router) ensure(src4, src6 netip.Addr) error {
	if err := r.setSysctls("1"); err != nil {
		return err
	}
	for _, src := range []netip.Addr{src4, src6} {
		if !src.IsValid() {
			continue
		}
		if err := r.ensureFamily(src); err != nil {
			return err
		}
	}
	return nil
}

func (r *router) ensureFamily(src netip.Addr) error {
	for _, rule := range r.rules(src.Is6()) {
		if err := r.h.RuleAdd(rule); err != nil && !errors.Is(err, unix.EEXIST) {
			return fmt.Errorf("add rule %d: %w", rule.Priority, err)
		}
	}
	lo, err := r.h.LinkByName("lo")
	if err != nil {
		return fmt.Errorf("find lo: %w", err)
	}
	everything := &net.IPNet{IP: net.IPv4zero.To4(), Mask: net.CIDRMask(0, 32)}
	if src.Is6() {
		everything = &net.IPNet{IP: net.IPv6zero, Mask: net.CIDRMask(0, 128)}
	}
	capture := &netlink.Route{LinkIndex: lo.Attrs().Index, Dst: everything, Table: captureTable,
		Type: unix.RTN_LOCAL, Scope: unix.RT_SCOPE_HOST,
		// Else the kernel makes the destination the source, as for any
		// local route.
		Src: src.AsSlice()}
	delivery := *capture
	delivery.Table, delivery.Src = deliveryTable, nil
	for _, route := range []*netlink.Route{capture, &delivery} {
		if err := r.h.RouteReplace(route); err != nil {
			return fmt.Errorf("set route of table %d: %w", route.Table, err)
		}
	}
	return nil
}

// freeDNS takes out the rule for datagrams: sockets that were marked when the
// pod was captured ask their own servers again.
func (r *router) freeDNS() error {
	families := []bool{false}
	if r.ipv6 {
		families = append(families, true)
	}
	for _, v6 := range families {
		for _, rule := range r.rules(v6) {
			if rule.IPProto != unix.IPPROTO_UDP {
				continue
			}
			if err := r.h.RuleDel(rule); err != nil && !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.EAFNOSUPPORT) {
				return fmt.Errorf("delete rule %d: %w", rule.Priority, err)
			}
		}
	}
	return nil
}

func (r *router) rules(v6 bool) []*netlink.Rule {
	rule := func(priority, table int, mark, mask uint32) *netlink.Rule {
		n := netlink.NewRule()
		n.Family = unix.AF_INET
		if v6 {
			n.Family = unix.AF_INET6
		}
		n.Priority, n.Table, n.Mark, n.Mask = priority, table, mark, &mask
		return n
	}
	tcp := rule(captureRule, captureTable, redirect.MarkCapture, redirect.MarkCaptureMask)
	tcp.IPProto = unix.IPPROTO_TCP
	rules := []*netlink.Rule{tcp,
		rule(deliveryRule, deliveryTable, redirect.MarkDelivery, redirect.MarkDeliveryMask)}
	if r.dns {
		udp := rule(captureRule, captureTable, redirect.MarkCapture, redirect.MarkCaptureMask)
		udp.IPProto = unix.IPPROTO_UDP
		udp.Dport = netlink.NewRulePortRange(dnsServerPort, dnsServerPort)
		rules = append(rules, udp)
	}
	return rules
}

// remove takes out every rule and route of ours and resets the settings. What
// is not there is no error.
func (r *router) remove() error {
	families := []int{unix.AF_INET}
	if r.ipv6 {
		families = append(families, unix.AF_INET6)
	}
	errs := []error{r.unhold()}
	for _, family := range families {
		errs = append(errs, r.removeRules(family), r.removeRoutes(family))
	}
	return errors.Join(append(errs, r.setSysctls("0"))...)
}

func (r *router) removeRules(family int) error {
	rules, err := r.h.RuleList(family)
	if err != nil {
		return fmt.Errorf("list rules: %w", err)
	}
	var errs []error
	for _, rule := range rules {
		if rule.Table != captureTable && rule.Table != deliveryTable {
			continue
		}
		rule.Family = family
		if err := r.h.RuleDel(&rule); err != nil && !errors.Is(err, unix.ENOENT) {
			errs = append(errs, fmt.Errorf("delete rule %d: %w", rule.Priority, err))
		}
	}
	return errors.Join(errs...)
}

func (r *router) removeRoutes(family int) error {
	var errs []error
	for _, table := range []int{captureTable, deliveryTable} {
		routes, err := r.h.RouteListFiltered(family, &netlink.Route{Table: table}, netlink.RT_FILTER_TABLE)
		if err != nil {
			errs = append(errs, fmt.Errorf("list routes: %w", err))
			continue
		}
		for _, route := range routes {
			if err := r.h.RouteDel(&route); err != nil && !errors.Is(err, unix.ESRCH) {
				errs = append(errs, fmt.Errorf("delete route of table %d: %w", table, err))
			}
		}
	}
	return errors.Join(errs...)
}
