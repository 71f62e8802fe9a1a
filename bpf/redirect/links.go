// SPDX-License-Identifier: Apache-2.0

package redirect

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"
)

// openMap opens the pin of a map, or makes and pins it.
func openMap(dir, name string, spec *ebpf.MapSpec) (*ebpf.Map, error) {
	path := filepath.Join(dir, name)
	err := checkPin(path)
	if errors.Is(err, os.ErrNotExist) {
		m, err := ebpf.NewMap(spec)
		if err != nil {
			return nil, fmt.Errorf("make map %s: %w", name, err)
		}
		if err := m.Pin(path); err != nil {
			m.Close()
			return nil, fmt.Errorf("pin map %s: %w", name, err)
		}
		return m, nil
	}
	if err != nil {
		return nil, err
	}
	m, err := ebpf.LoadPinnedMap(path, nil)
	if err != nil {
		return nil, fmt.Errorf("open pin %s: %w", path, err)
	}
	if err := spec.Compatible(m); err != nil {
		m.Close()
		return nil, fmt.Errorf("pin %s is not ours: %v; `ztunnel cleanup` removes it", path, err)
	}
	return m, nil
}

// attachCgroup attaches through a bpf_link, or gives the pinned link the new
// program. link.AttachCgroup would fall back to modes in which others may
// override us, so the raw form is used and its refusal is final.
func attachCgroup(pin, cgroup string, attach ebpf.AttachType, p *ebpf.Program) (link.Link, error) {
	dir, err := os.Open(cgroup)
	if err != nil {
		return nil, fmt.Errorf("open cgroup: %w", err)
	}
	defer dir.Close()
	var st unix.Stat_t
	if err := unix.Fstat(int(dir.Fd()), &st); err != nil {
		return nil, fmt.Errorf("stat cgroup %s: %w", cgroup, err)
	}
	old, err := openLink(pin, p)
	if err != nil {
		return nil, err
	}
	if old != nil {
		if info, err := old.Info(); err == nil && info.Cgroup() != nil && info.Cgroup().CgroupId == st.Ino {
			return updated(old, pin, p)
		}
		defer old.Close() // attached elsewhere, or its cgroup is gone
	}
	l, err := link.AttachRawLink(link.RawLinkOptions{Target: int(dir.Fd()), Program: p, Attach: attach})
	if err != nil {
		return nil, fmt.Errorf("attach %s to cgroup %s: %w", filepath.Base(pin), cgroup, err)
	}
	if err := pinLink(l, pin); err != nil {
		return nil, err
	}
	defer l.Close()
	// Once more by its pin: a raw link does not tell its cgroup.
	pinned, err := link.LoadPinnedLink(pin, nil)
	if err != nil {
		return nil, fmt.Errorf("open pin %s: %w", pin, err)
	}
	if old != nil {
		// Closing it is not enough: an older process may hold it as well. It
		// fails on what its cgroup's end has detached.
		_ = old.Detach()
	}
	return pinned, nil
}

// pinLink pins a fresh link, replacing what was pinned there. On error the
// link is closed.
func pinLink(l link.Link, pin string) error {
	fresh := pin + "_new" // the file system takes no dots
	os.Remove(fresh)      // of a process that died right here
	err := l.Pin(fresh)
	if err == nil {
		err = os.Rename(fresh, pin)
	}
	if err != nil {
		l.Close()
		return fmt.Errorf("pin link %s: %w", pin, err)
	}
	return nil
}

func updated(l link.Link, pin string, p *ebpf.Program) (link.Link, error) {
	if err := l.Update(p); err != nil {
		l.Close()
		return nil, fmt.Errorf("update program of %s: %w", pin, err)
	}
	return l, nil
}

// openLink opens a pinned link; nil: there is none. A pin that is not root's
// alone, or runs another program than p, is refused.
func openLink(pin string, p *ebpf.Program) (link.Link, error) {
	err := checkPin(pin)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	l, err := link.LoadPinnedLink(pin, nil)
	if err != nil {
		return nil, fmt.Errorf("open pin %s: %w", pin, err)
	}
	if err := checkTag(l, p); err != nil {
		l.Close()
		return nil, fmt.Errorf("pin %s: %w; `ztunnel cleanup` removes it", pin, err)
	}
	return l, nil
}

func checkTag(l link.Link, p *ebpf.Program) error {
	info, err := l.Info()
	if err != nil {
		return fmt.Errorf("read link: %w", err)
	}
	running, err := ebpf.NewProgramFromID(info.Program)
	if err != nil {
		return fmt.Errorf("open its program: %w", err)
	}
	defer running.Close()
	got, err := running.Info()
	if err != nil {
		return fmt.Errorf("read its program: %w", err)
	}
	want, err := p.Info()
	if err != nil {
		return fmt.Errorf("read our program: %w", err)
	}
	if got.Tag != want.Tag {
		return fmt.Errorf("runs program %s with tag %s, not %s", got.Name, got.Tag, want.Tag)
	}
	return nil
}
