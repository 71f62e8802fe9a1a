// SPDX-License-Identifier: Apache-2.0

package netlab

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/vishvananda/netlink"

	"github.com/ztunnel-go/ztunnel/internal/netns"
)

// A Host is one namespace of a lab: what nodes, pods and the fabric have in
// common. Sockets made through it belong to the calling process (and so to
// the lab's cgroup) and to the host's network.
type Host struct {
	lab  *Lab
	name string
	path string
	ns   *netns.NS
}

// newHost makes a namespace with lo up and settings that do not depend on the
// machine's, and names it in the lab's directory.
func (l *Lab) newHost(name string) (_ *Host, err error) {
	if name == "" || strings.ContainsAny(name, "/ ") {
		return nil, fmt.Errorf("name %q would make no good file name", name)
	}
	if err := mustBeRoot(); err != nil {
		return nil, err
	}
	ns, err := netns.New()
	if err != nil {
		return nil, err
	}
	h := &Host{lab: l, name: name, path: filepath.Join(l.dir, name), ns: ns}
	defer func() {
		if err != nil {
			ns.Close()
		}
	}()
	if err := os.Symlink(ns.Path(), h.path); err != nil {
		return nil, fmt.Errorf("name namespace: %w", err)
	}
	err = h.sysctls(
		fmt.Sprintf("net/ipv4/conf/all/rp_filter=%d", l.cfg.RPFilter),
		fmt.Sprintf("net/ipv4/conf/default/rp_filter=%d", l.cfg.RPFilter),
		"net/ipv6/conf/all/accept_dad=0", "net/ipv6/conf/default/accept_dad=0",
		"net/ipv6/conf/default/dad_transmits=0", "net/ipv6/conf/default/accept_ra=0",
	)
	if err == nil && l.cfg.NoIPv6 {
		err = h.sysctls("net/ipv6/conf/all/disable_ipv6=1", "net/ipv6/conf/default/disable_ipv6=1")
	}
	if err != nil {
		return nil, err
	}
	return h, h.netlink(func(nl *netlink.Handle) error { return address(nl, "lo") })
}

// close lets the namespace go, and its name.
func (h *Host) close() error {
	err := os.Remove(h.path)
	if errors.Is(err, os.ErrNotExist) {
		err = nil
	}
	return errors.Join(err, h.ns.Close())
}

// Name is what the host was called when it was made.
func (h *Host) Name() string { return h.name }

// NS is the namespace; it stays the lab's. Dup it to hand it on.
func (h *Host) NS() *netns.NS { return h.ns }

// Path names the namespace for other processes of root's; it can be opened
// while the lab is.
func (h *Host) Path() string { return h.path }

// Do runs fn on a thread in the namespace (see [netns.NS.Do]).
func (h *Host) Do(fn func() error) error { return h.ns.Do(fn) }

// Sysctl sets a kernel setting of the namespace, by its path below /proc/sys.
func (h *Host) Sysctl(name, value string) error {
	return h.ns.Do(func() error {
		if err := os.WriteFile(filepath.Join("/proc/sys", name), []byte(value), 0o644); err != nil {
			return fmt.Errorf("sysctl %s of %s: %w", name, h.name, err)
		}
		return nil
	})
}

func (h *Host) sysctls(settings ...string) error {
	for _, s := range settings {
		name, value, _ := strings.Cut(s, "=")
		err := h.Sysctl(name, value)
		if errors.Is(err, os.ErrNotExist) && strings.HasPrefix(name, "net/ipv6/") {
			continue // a kernel booted without IPv6
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// Dial connects from the namespace. addr is an IP address and port: no name is
// looked up, since the resolver would not be in the namespace.
func (h *Host) Dial(ctx context.Context, network, addr string) (net.Conn, error) {
	return h.DialWith(ctx, &net.Dialer{}, network, addr)
}

// DialWith is [Host.Dial] with a Dialer of the caller's.
func (h *Host) DialWith(ctx context.Context, d *net.Dialer, network, addr string) (conn net.Conn, err error) {
	if _, err := netip.ParseAddrPort(addr); err != nil && !strings.HasPrefix(network, "unix") {
		return nil, fmt.Errorf("dial from %s: %w", h.name, err)
	}
	// A literal address is dialled by the calling goroutine itself, which Do
	// keeps on its thread.
	err = h.ns.Do(func() error {
		conn, err = d.DialContext(ctx, network, addr)
		return err
	})
	return conn, err
}

// Listen listens in the namespace, with MPTCP as Go servers do.
func (h *Host) Listen(network, addr string) (net.Listener, error) {
	return h.ListenWith(&net.ListenConfig{}, network, addr)
}

// ListenWith is [Host.Listen] with a ListenConfig of the caller's.
func (h *Host) ListenWith(c *net.ListenConfig, network, addr string) (l net.Listener, err error) {
	err = h.ns.Do(func() error {
		l, err = c.Listen(context.Background(), network, addr)
		return err
	})
	return l, err
}

// ListenPacket makes a datagram socket in the namespace.
func (h *Host) ListenPacket(network, addr string) (pc net.PacketConn, err error) {
	err = h.ns.Do(func() error {
		pc, err = net.ListenPacket(network, addr)
		return err
	})
	return pc, err
}

// HTTPClient makes requests from the namespace, each on a connection of its
// own. URLs carry IP addresses.
func (h *Host) HTTPClient() *http.Client {
	return &http.Client{Transport: &http.Transport{DialContext: h.Dial, DisableKeepAlives: true}}
}

// Start starts cmd as a child in the namespace and in the lab's cgroup, to be
// killed when this process dies. The caller waits for it.
func (h *Host) Start(cmd *exec.Cmd) error {
	return h.lab.forker.start(h.ns, cmd)
}
