// SPDX-License-Identifier: Apache-2.0

// Package netlab builds nodes and pods out of network namespaces on one
// machine, by netlink, for tests and the demo alike.
//
// A lab is a fabric (a namespace with a bridge), nodes on it, and pods routed
// by their node, as CNIs do it: a pod has one eth0 with a /32 and a /128 and a
// default route to its node; every node knows every pod.
//
//	pod eth0 -- veth  node  eth0 -- port  bridge (fabric)  port -- eth0  node
//
// It knows nothing of the proxy. The lab also owns a cgroup v2 directory, and
// the calling process lives in it while the lab is open: sockets made here and
// children started here are inside. A process has one lab at a time.
//
// Nothing outlives its creator for long. Namespaces are held by descriptors
// and reached by name through links to them, so they go with the process;
// children get SIGKILL when it dies; what is left (an empty cgroup, a
// directory of dead links) is removed by the next New.
//
// Needs root and Linux 5.14. Signals are the caller's to handle.
package netlab

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/ztunnel-go/ztunnel/test/privileged"
)

// Config says what a lab looks like. The zero Config is a good one.
type Config struct {
	// RPFilter is net.ipv4.conf.*.rp_filter of every namespace: 0 (as the
	// kernel has it), 1 strict, 2 loose.
	RPFilter int
	// MTU of every link; 0 leaves the kernel's 1500.
	MTU int
	// NoIPv6 leaves IPv6 out everywhere.
	NoIPv6 bool
}

// A Lab is a fabric with the nodes on it. Its methods may be called by several
// goroutines.
type Lab struct {
	cfg    Config
	dir    string
	cgroup *cgroup
	forker *forker
	fabric *Host

	mu      sync.Mutex
	nodes   []*Node   // guarded by mu
	pods    []*Pod    // guarded by mu
	bare    []*Host   // guarded by mu
	servers []*Server // guarded by mu
	closed  bool      // guarded by mu
}

const (
	bridgeName = "br0"
	uplinkName = "eth0" // of nodes and pods, as everywhere
)

// New makes a lab with no node yet. It first removes what labs of dead
// processes left behind.
func New(cfg Config) (_ *Lab, err error) {
	root, err := cgroupRoot()
	if err != nil {
		return nil, fmt.Errorf("make lab: %w", err)
	}
	reap(root)
	name, err := newName()
	if err != nil {
		return nil, fmt.Errorf("make lab: %w", err)
	}
	l := &Lab{cfg: cfg, dir: filepath.Join(os.TempDir(), name), forker: newForker()}
	defer func() {
		if err != nil {
			l.Close()
			err = fmt.Errorf("make lab: %w", err)
		}
	}()
	if err := os.Mkdir(l.dir, 0o700); err != nil {
		return nil, err
	}
	if l.cgroup, err = enterCgroup(root, name); err != nil {
		return nil, err
	}
	if l.fabric, err = l.newHost("fabric"); err != nil {
		return nil, err
	}
	return l, l.fabric.netlink(func(h *netlink.Handle) error {
		off := false
		return addUp(h, &netlink.Bridge{
			LinkAttrs: netlink.LinkAttrs{Name: bridgeName, MTU: cfg.MTU},
			// Snooping drops neighbour solicitations until it has learned.
			MulticastSnooping: &off,
		})
	})
}

// NewTest is [New] for tests: it needs root (see package privileged), fails
// the test on error and closes the lab at its end.
func NewTest(t testing.TB) *Lab { return NewTestWith(t, Config{}) }

// NewTestWith is [NewTest] with a Config.
func NewTestWith(t testing.TB, cfg Config) *Lab {
	t.Helper()
	privileged.Need(t)
	l, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Errorf("close lab: %v", err)
		}
	})
	return l
}

// Close kills the children that run in the lab's cgroup, moves this process
// back to the cgroup it came from and lets every namespace go. Later calls do
// nothing.
func (l *Lab) Close() error {
	l.mu.Lock()
	if l.closed {
		l.mu.Unlock()
		return nil
	}
	l.closed = true
	nodes, pods, servers, bare := l.nodes, l.pods, l.servers, l.bare
	l.mu.Unlock()

	var errs []error
	for _, s := range servers {
		errs = append(errs, s.Stop())
	}
	l.forker.close()
	if l.cgroup != nil {
		errs = append(errs, l.cgroup.leave())
	}
	for _, p := range pods {
		errs = append(errs, p.Host.close())
	}
	for _, n := range nodes {
		errs = append(errs, n.Host.close())
	}
	for _, h := range bare {
		errs = append(errs, h.close())
	}
	if l.fabric != nil {
		errs = append(errs, l.fabric.close())
	}
	errs = append(errs, os.RemoveAll(l.dir), os.RemoveAll(l.PinDir()))
	return errors.Join(errs...)
}

// CgroupRoot is the lab's cgroup v2 directory: what CGROUP_ROOT of a proxy in
// the lab should say.
func (l *Lab) CgroupRoot() string { return l.cgroup.path }

// PinDir is a directory on bpffs for who wants to pin something: it is theirs
// to make, and goes with the lab.
func (l *Lab) PinDir() string { return filepath.Join(bpffs, filepath.Base(l.dir)) }

// Dir is a directory of the lab's own (mode 0700, short enough for sockets in
// it). Namespaces are named in it, see [Host.Path].
func (l *Lab) Dir() string { return l.dir }

// Fabric is the namespace of the bridge that joins the nodes. Each node's port
// there is named by [Node.Port].
func (l *Lab) Fabric() *Host { return l.fabric }

// Bare makes a namespace that is joined to nothing: it has a lo, as the pod of a
// node proxy needs no more of its own network than that.
func (l *Lab) Bare(name string) (*Host, error) {
	h, err := l.newHost(name)
	if err != nil {
		return nil, fmt.Errorf("make namespace %s: %w", name, err)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.bare = append(l.bare, h)
	return h, nil
}

// A Node is a namespace with an eth0 on the fabric, forwarding on. A node
// without pods serves well as a machine outside of the mesh.
type Node struct {
	*Host
	// IPv4 and IPv6 are the node's own addresses; IPv6 is zero without IPv6.
	IPv4, IPv6 netip.Addr
	// Port is the name of the node's link in the fabric.
	Port string

	lab   *Lab
	index int
	pods  int // guarded by lab.mu
}

// Node makes the lab's next node: 10.77.0.n and fd77::n with n from 1.
func (l *Lab) Node(name string) (*Node, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	n := &Node{lab: l, index: len(l.nodes) + 1}
	n.Port = fmt.Sprintf("port%d", n.index)
	n.IPv4 = netip.AddrFrom4([4]byte{10, 77, 0, byte(n.index)})
	if !l.cfg.NoIPv6 {
		n.IPv6 = netip.AddrFrom16([16]byte{0: 0xfd, 1: 0x77, 15: byte(n.index)})
	}
	if err := n.build(name); err != nil {
		if n.Host != nil {
			n.Host.close()
		}
		return nil, fmt.Errorf("make node %s: %w", name, err)
	}
	l.nodes = append(l.nodes, n)
	return n, nil
}

func (n *Node) build(name string) (err error) {
	if n.Host, err = n.lab.newHost(name); err != nil {
		return err
	}
	if err := n.sysctls("net/ipv4/conf/all/forwarding=1", "net/ipv6/conf/all/forwarding=1"); err != nil {
		return err
	}
	err = n.lab.fabric.netlink(func(h *netlink.Handle) error {
		bridge, err := h.LinkByName(bridgeName)
		if err != nil {
			return fmt.Errorf("find bridge: %w", err)
		}
		return addUp(h, &netlink.Veth{
			LinkAttrs:     netlink.LinkAttrs{Name: n.Port, MasterIndex: bridge.Attrs().Index, MTU: n.lab.cfg.MTU},
			PeerName:      uplinkName,
			PeerNamespace: netlink.NsFd(n.NS().Fd()),
			PeerMTU:       uint32(n.lab.cfg.MTU),
		})
	})
	if err != nil {
		return err
	}
	return n.netlink(func(h *netlink.Handle) error {
		if err := address(h, uplinkName, netip.PrefixFrom(n.IPv4, 24), netip.PrefixFrom(n.IPv6, 64)); err != nil {
			return err
		}
		for _, p := range n.lab.pods {
			if err := route(h, uplinkName, p.node, p.addrs()...); err != nil {
				return err
			}
		}
		return nil
	})
}

// AddAddress gives the node one more address and tells the other nodes (and so
// their pods) to reach it through this one.
func (n *Node) AddAddress(addr netip.Addr) error {
	n.lab.mu.Lock()
	defer n.lab.mu.Unlock()
	err := n.netlink(func(h *netlink.Handle) error {
		return address(h, uplinkName, netip.PrefixFrom(addr, addr.BitLen()))
	})
	if err != nil {
		return err
	}
	return n.announceLocked(addr)
}

// announceLocked routes addrs through n on all other nodes. lab.mu is held.
func (n *Node) announceLocked(addrs ...netip.Addr) error {
	for _, other := range n.lab.nodes {
		if other == n {
			continue
		}
		if err := other.netlink(func(h *netlink.Handle) error { return route(h, uplinkName, n, addrs...) }); err != nil {
			return err
		}
	}
	return nil
}

// mustBeRoot reads better than the EPERM of whatever comes first.
func mustBeRoot() error {
	if unix.Geteuid() != 0 {
		return errors.New("network namespaces need root")
	}
	return nil
}
