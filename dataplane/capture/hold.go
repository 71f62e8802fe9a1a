// SPDX-License-Identifier: Apache-2.0

package capture

import (
	"errors"
	"fmt"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// holdName, holdHandle and holdPriority name our filter among others' on the
// clsact of a device. Filters outlive the process, as everything of capture.
const (
	holdName     = "ztunnel_hold"
	holdHandle   = 1
	holdPriority = 32700
)

// hold attaches the classifier of descriptor fd to the ingress of every device
// of the namespace, in place of an earlier process's. Without it connections are
// refused while no proxy runs, and nothing else is different; so the caller may
// go on after an error.
func (r *router) hold(fd int) error {
	links, err := r.h.LinkList()
	if err != nil {
		return fmt.Errorf("list devices: %w", err)
	}
	var errs []error
	for _, link := range links {
		index := link.Attrs().Index
		if err := r.h.QdiscAdd(clsact(index)); err != nil && !errors.Is(err, unix.EEXIST) {
			errs = append(errs, fmt.Errorf("add clsact to %s: %w", link.Attrs().Name, err))
			continue
		}
		filter := holdFilter(index)
		filter.Fd = fd
		if err := r.h.FilterReplace(filter); err != nil {
			errs = append(errs, fmt.Errorf("add filter to %s: %w", link.Attrs().Name, err))
		}
	}
	return errors.Join(errs...)
}

func clsact(index int) *netlink.Clsact {
	return &netlink.Clsact{QdiscAttrs: netlink.QdiscAttrs{LinkIndex: index,
		Handle: netlink.MakeHandle(0xffff, 0), Parent: netlink.HANDLE_CLSACT}}
}

func holdFilter(index int) *netlink.BpfFilter {
	return &netlink.BpfFilter{
		FilterAttrs: netlink.FilterAttrs{LinkIndex: index, Parent: netlink.HANDLE_MIN_INGRESS,
			Handle: holdHandle, Priority: holdPriority, Protocol: unix.ETH_P_ALL},
		Name: holdName, DirectAction: true,
	}
}

// unhold takes our filters away, and each clsact that has no other one.
func (r *router) unhold() error {
	links, err := r.h.LinkList()
	if err != nil {
		return fmt.Errorf("list devices: %w", err)
	}
	var errs []error
	for _, link := range links {
		errs = append(errs, r.unholdLink(link))
	}
	return errors.Join(errs...)
}

func (r *router) unholdLink(link netlink.Link) error {
	others, ours := 0, false
	for _, parent := range []uint32{netlink.HANDLE_MIN_INGRESS, netlink.HANDLE_MIN_EGRESS} {
		filters, err := r.h.FilterList(link, parent)
		if err != nil {
			return nil // no clsact here
		}
		for _, f := range filters {
			if bpf, ok := f.(*netlink.BpfFilter); !ok || bpf.Name != holdName {
				others++
				continue
			}
			ours = true
			if err := r.h.FilterDel(f); err != nil {
				return fmt.Errorf("delete filter of %s: %w", link.Attrs().Name, err)
			}
		}
	}
	if !ours || others > 0 {
		return nil
	}
	if err := r.h.QdiscDel(clsact(link.Attrs().Index)); err != nil && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("delete clsact of %s: %w", link.Attrs().Name, err)
	}
	return nil
}
