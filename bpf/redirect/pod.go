// SPDX-License-Identifier: Apache-2.0

package redirect

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"sync/atomic"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"
)

// A Pod is one namespace's instance of the steering program with its listeners.
// Its methods are for one goroutine at a time.
type Pod struct {
	node   *Node
	cookie uint64
	dir    string

	listeners *ebpf.Map
	counters  *ebpf.Map
	program   *ebpf.Program
	hold      *ebpf.Program
	twins     map[uint32]*ebpf.Program // see Ask
	link      link.Link
	dns       bool
	claimed   atomic.Bool // see Claim
}

// Pod attaches the steering program to the namespace of descriptor ns, whose
// cookie is given, or takes over what is pinned for it. dns says that DNS is
// answered for the pod. What it steers depends on [Pod.Enroll].
func (n *Node) Pod(cookie uint64, ns int, dns bool) (*Pod, error) {
	p := &Pod{node: n, cookie: cookie, dns: dns, twins: map[uint32]*ebpf.Program{}, dir: filepath.Join(n.dir, podsDir, strconv.FormatUint(cookie, 10))}
	err := n.locked(func() error { return p.open(ns) })
	if err != nil {
		p.Close()
		return nil, fmt.Errorf("steer namespace %d: %w", cookie, err)
	}
	return p, nil
}

func (p *Pod) open(ns int) (err error) {
	if err := makeDir(p.dir); err != nil {
		return err
	}
	if p.listeners, err = openMap(p.dir, redirectMapListeners, p.node.spec.Maps[redirectMapListeners]); err != nil {
		return err
	}
	if p.counters, err = openMap(p.dir, redirectMapPodCounters, p.node.spec.Maps[redirectMapPodCounters]); err != nil {
		return err
	}
	programs, err := p.loadPrograms(0, redirectProgSteer, redirectProgHold)
	if err != nil {
		return err
	}
	p.program, p.hold = programs[redirectProgSteer], programs[redirectProgHold]
	return p.attach(ns)
}

// Hold is the descriptor of a classifier (tc, direct action) for the ingress of
// the pod's devices, which drops SYNs for as long as nobody listens; it belongs
// to the pod. Attaching it is the caller's part. Without it such connections are
// refused instead of held.
func (p *Pod) Hold() int { return p.hold.FD() }

// loadPrograms loads programs with this pod's constants; pretend is 0 but for
// twins.
func (p *Pod) loadPrograms(pretend uint32, names ...string) (map[string]*ebpf.Program, error) {
	spec := p.node.spec.Copy()
	err := errors.Join(
		spec.Variables[redirectVarSelf].Set(p.cookie),
		spec.Variables[redirectVarDns].Set(p.dns),
		spec.Variables[redirectVarPretend].Set(pretend))
	if err != nil {
		return nil, fmt.Errorf("set constants: %w", err)
	}
	maps := map[string]*ebpf.Map{redirectMapListeners: p.listeners, redirectMapPodCounters: p.counters}
	for name, m := range p.node.maps {
		maps[name] = m
	}
	return p.node.load(spec, names, maps)
}

func (p *Pod) attach(ns int) error {
	pin := filepath.Join(p.dir, redirectProgSteer)
	var st unix.Stat_t
	if err := unix.Fstat(ns, &st); err != nil {
		return fmt.Errorf("stat namespace: %w", err)
	}
	old, err := openLink(pin, p.program)
	if err != nil {
		return err
	}
	if old != nil && uint64(netnsOf(pin)) == st.Ino {
		p.link, err = updated(old, pin, p.program)
		return err
	}
	if old != nil {
		old.Close()
	}
	l, err := link.AttachNetNs(ns, p.program)
	if err != nil {
		return fmt.Errorf("attach sk_lookup: %w", err)
	}
	if err := pinLink(l, pin); err != nil {
		return err
	}
	p.link = l
	return nil
}

// Attached says whether the program is where it was attached to and still ours.
func (p *Pod) Attached(ns int) error {
	var st unix.Stat_t
	if err := unix.Fstat(ns, &st); err != nil {
		return fmt.Errorf("stat namespace: %w", err)
	}
	info, err := p.link.Info()
	if err != nil {
		return fmt.Errorf("read link: %w", err)
	}
	if info.NetNs() == nil || uint64(info.NetNs().NetnsInode) != st.Ino {
		return errors.New("sk_lookup is no longer attached to the pod's namespace")
	}
	return checkTag(p.link, p.program)
}

// SetListener puts the listening socket of a descriptor into a slot, at once
// and for all connections from then on.
func (p *Pod) SetListener(s Slot, fd int) error {
	err := p.write(func() error {
		return p.listeners.Update(uint32(s), uint64(fd), ebpf.UpdateAny)
	})
	if err != nil {
		return fmt.Errorf("set listener %d: %w", s, err)
	}
	return nil
}

// ownKey is struct own_key.
func ownKey(cookie uint64, a netip.Addr) redirectOwnKey {
	k := redirectOwnKey{Netns: cookie}
	raw := a.As16()
	for i := range k.Address.Word {
		k.Address.Word[i] = nativeWord(raw[i*4:])
	}
	return k
}

// SetAddresses makes addrs, and no others, the pod's own.
func (p *Pod) SetAddresses(addrs []netip.Addr) error {
	want := map[redirectOwnKey]bool{}
	for _, a := range addrs {
		want[ownKey(p.cookie, a)] = true
	}
	err := p.write(func() error {
		m := p.node.maps[redirectMapAddresses]
		for key := range want {
			if err := m.Update(key, uint32(1), ebpf.UpdateAny); err != nil {
				return err
			}
		}
		return p.node.forgetAddresses(func(k redirectOwnKey) bool { return k.Netns == p.cookie && !want[k] })
	})
	if err != nil {
		return fmt.Errorf("set addresses of namespace %d: %w", p.cookie, err)
	}
	return nil
}

// forgetAddresses deletes the entries that gone says are.
func (n *Node) forgetAddresses(gone func(redirectOwnKey) bool) error {
	m := n.maps[redirectMapAddresses]
	keys, err := allKeys[redirectOwnKey, uint32](m)
	if err != nil {
		return err
	}
	stale := slices.DeleteFunc(keys, func(k redirectOwnKey) bool { return !gone(k) })
	for _, k := range stale {
		if err := m.Delete(k); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
			return err
		}
	}
	return nil
}

// Enroll begins the capture of every socket that the namespace opens from now
// on.
func (p *Pod) Enroll() error {
	err := p.write(func() error {
		return p.node.maps[redirectMapEnrolled].Update(p.cookie, p.node.generation, ebpf.UpdateAny)
	})
	if err != nil {
		return fmt.Errorf("enroll namespace %d: %w", p.cookie, err)
	}
	return nil
}

// Unenroll ends it, and then calls then, unless that is nil. Nobody can claim
// the pod in between. Sockets already captured stay confined to lo.
func (p *Pod) Unenroll(then func() error) error {
	err := p.take(func() error {
		if err := p.node.unenroll(p.cookie); err != nil || then == nil {
			return err
		}
		return then()
	})
	if err != nil {
		return fmt.Errorf("un-enroll namespace %d: %w", p.cookie, err)
	}
	return nil
}

func (n *Node) unenroll(cookie uint64) error {
	err := n.maps[redirectMapEnrolled].Delete(cookie)
	if errors.Is(err, ebpf.ErrKeyNotExist) {
		return nil
	}
	return err
}

// Counts reads the pod's share of the counters of sk_lookup.
func (p *Pod) Counts() ([]Count, error) { return readCounts(p.counters) }

// Remove un-enrolls, has rest take away what else captures, detaches and
// unpins. Nobody can claim the pod in between. The caller has seen to it that no
// socket is left that needs the program.
func (p *Pod) Remove(rest func() error) error {
	err := p.take(func() error {
		return errors.Join(p.node.unenroll(p.cookie), rest(), p.node.removePod(p.cookie, p.dir))
	})
	if err != nil {
		return fmt.Errorf("remove namespace %d: %w", p.cookie, err)
	}
	return p.Close()
}

func (n *Node) removePod(cookie uint64, dir string) error {
	return errors.Join(
		n.unenroll(cookie),
		n.disown(cookie),
		n.forgetAddresses(func(k redirectOwnKey) bool { return k.Netns == cookie }),
		os.RemoveAll(dir))
}

func (n *Node) disown(cookie uint64) error {
	err := n.maps[mapOwners].Delete(cookie)
	if errors.Is(err, ebpf.ErrKeyNotExist) {
		return nil
	}
	return err
}

// RemoveStray is [Pod.Remove] for a namespace that has pins but no [Pod] in this
// process. One whose listener is in its slot is served by somebody, and no
// stray: then it returns false.
func (n *Node) RemoveStray(cookie uint64, rest func() error) (removed bool, err error) {
	dir := filepath.Join(n.dir, podsDir, strconv.FormatUint(cookie, 10))
	err = n.write(func() error {
		if served, err := n.served(dir); err != nil || served {
			return err
		}
		removed = true
		return errors.Join(n.unenroll(cookie), rest(), n.removePod(cookie, dir))
	})
	return removed && err == nil, err
}

// Orphan says whether a namespace is captured and nobody listens for it. Only the
// newest process learns of one: an older one is about to end.
func (n *Node) Orphan(cookie uint64) (bool, error) {
	newest, err := n.newest()
	if err != nil || !newest {
		return false, err
	}
	enrolled, err := n.IsEnrolled(cookie)
	if err != nil || !enrolled {
		return false, err
	}
	served, err := n.served(filepath.Join(n.dir, podsDir, strconv.FormatUint(cookie, 10)))
	return !served && err == nil, err
}

// served says whether somebody listens for the pod whose pins are in dir.
func (n *Node) served(dir string) (bool, error) {
	m, err := ebpf.LoadPinnedMap(filepath.Join(dir, redirectMapListeners), nil)
	if errors.Is(err, os.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("open listeners: %w", err)
	}
	defer m.Close()
	cookie, err := inSlot(m, SlotOutbound)
	return cookie != 0, err
}

// Close lets go of descriptors; pins stay. Later calls do nothing.
func (p *Pod) Close() error {
	var errs []error
	if p.link != nil {
		errs = append(errs, p.link.Close())
	}
	if p.program != nil {
		errs = append(errs, p.program.Close())
	}
	if p.hold != nil {
		errs = append(errs, p.hold.Close())
	}
	if p.listeners != nil {
		errs = append(errs, p.listeners.Close())
	}
	if p.counters != nil {
		errs = append(errs, p.counters.Close())
	}
	for _, t := range p.twins {
		errs = append(errs, t.Close())
	}
	clear(p.twins)
	p.link, p.program, p.hold, p.listeners, p.counters = nil, nil, nil, nil, nil
	return errors.Join(errs...)
}

// Collect removes the pins of pods whose namespace is gone. It returns how many
// there were.
func (n *Node) Collect() (int, error) {
	gone := 0
	err := n.write(func() error {
		pods, err := PodPins(filepath.Dir(n.dir))
		if err != nil {
			return err
		}
		for _, pod := range pods {
			if pod.NetnsIno != 0 || filepath.Dir(filepath.Dir(pod.path)) != n.dir {
				continue
			}
			if err := n.removePod(pod.Cookie, pod.path); err != nil {
				return err
			}
			gone++
		}
		return nil
	})
	if err != nil {
		return gone, fmt.Errorf("collect pins: %w", err)
	}
	return gone, nil
}
