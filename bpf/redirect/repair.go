// SPDX-License-Identifier: Apache-2.0

package redirect

import (
	"errors"
	"fmt"
	"path/filepath"

	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"
)

// cgroupOf is where a hook's program belongs.
func (o Options) cgroupOf(h hook) string {
	if h.program == redirectProgProbe && o.ProbeCgroup != "" {
		return o.ProbeCgroup
	}
	return o.CgroupRoot
}

// Reattach puts back the programs of the node that somebody has detached, or
// whose pins are gone, and returns the names of their hooks. Any process that
// runs may do it: the programs are the same.
func (n *Node) Reattach() ([]string, error) {
	missing, err := n.detached()
	if err != nil || len(missing) == 0 {
		return nil, err
	}
	err = n.locked(func() error {
		return n.attachLocked(missing)
	})
	if err != nil {
		return nil, fmt.Errorf("attach programs again: %w", err)
	}
	names := make([]string, len(missing))
	for i, h := range missing {
		names[i] = h.program
	}
	return names, nil
}

// detached are the hooks whose pinned link leads to no cgroup, or is not there.
// The probe's moves with kubelet and is looked after by AttachProbe.
func (n *Node) detached() ([]hook, error) {
	var st unix.Stat_t
	if err := unix.Stat(n.options.CgroupRoot, &st); err != nil {
		return nil, fmt.Errorf("stat cgroup %s: %w", n.options.CgroupRoot, err)
	}
	var missing []hook
	for _, h := range hooks() {
		if h.program == redirectProgProbe && n.options.ProbeCgroup != "" {
			continue
		}
		if cgroupID(filepath.Join(n.dir, h.program)) != st.Ino {
			missing = append(missing, h)
		}
	}
	return missing, nil
}

// cgroupID is where a pinned link is attached; 0: nowhere, or there is no pin.
func cgroupID(pin string) uint64 {
	l, err := link.LoadPinnedLink(pin, nil)
	if err != nil {
		return 0
	}
	defer l.Close()
	info, err := l.Info()
	if err != nil || info.Cgroup() == nil {
		return 0
	}
	return info.Cgroup().CgroupId
}

// attachLocked attaches hooks to where they belong. The caller holds mu and the
// lock of the directory.
func (n *Node) attachLocked(missing []hook) error {
	names := make([]string, len(hooks()))
	for i, h := range hooks() { // all: what none of them used would be missed
		names[i] = h.program
	}
	programs, err := n.load(n.spec, names, n.maps)
	if err != nil {
		return err
	}
	defer closePrograms(programs)
	for _, h := range missing {
		l, err := attachCgroup(filepath.Join(n.dir, h.program), n.options.cgroupOf(h), h.attach, programs[h.program])
		if err != nil {
			return err
		}
		n.links = append(n.links, l)
	}
	if n.probe == nil {
		n.probe = programs[redirectProgProbe]
		delete(programs, redirectProgProbe)
	}
	return n.dropLinksLocked()
}

// Reattach puts the steering program back to the namespace of descriptor ns if
// it is not there.
func (p *Pod) Reattach(ns int) error {
	if p.Attached(ns) == nil && checkPin(filepath.Join(p.dir, redirectProgSteer)) == nil {
		return nil
	}
	return p.write(func() error {
		old := p.link
		if err := p.attach(ns); err != nil {
			return err
		}
		if old != nil {
			// Where somebody removed the pin alone it is attached still, and
			// would be a second one.
			return errors.Join(ignoreDetached(old.Detach()), old.Close())
		}
		return nil
	})
}

// ignoreDetached passes the errors of a link that has lost its place already.
func ignoreDetached(err error) error {
	if errors.Is(err, unix.ENOLINK) || errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOENT) {
		return nil
	}
	return err
}
