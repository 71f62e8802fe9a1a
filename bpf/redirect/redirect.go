// SPDX-License-Identifier: Apache-2.0

// Package redirect loads the programs that capture a pod's sockets, attaches
// and pins them, and speaks to their maps.
//
// It is the only owner of redirect.c. It opens no socket and enters no
// namespace: descriptors and cookies are handed in. Its pins outlive the
// process, so that capture has no gap while none runs; [Remove] is what ends
// it. docs/wire/redirect.md lists maps and pins.
package redirect

// Instruction set v3 is in every kernel since 5.1, and the helpers need 5.15.
//
//go:generate go run github.com/cilium/ebpf/cmd/bpf2go -target bpfel redirect redirect.c -- -mcpu=v3 -I../include

import (
	"errors"
	"fmt"
	"path/filepath"
	"sync"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/cilium/ebpf/rlimit"
)

// ABI numbers the layout of pinned maps and the meaning of their contents, and
// the programs that share them. Whoever changes either raises it, so that two
// versions never write to the same pins.
const ABI = 2

// The marks that programs and routing rules share, with their masks. They steer
// and prove nothing: any pod may set them.
const (
	MarkCapture      = 0x1000
	MarkCaptureMask  = 0xf000
	MarkDelivery     = 0x111
	MarkDeliveryMask = 0xfff
)

// A Slot is a listener's place in a pod's listener map (enum slot).
type Slot uint32

// The slots.
const (
	SlotOutbound Slot = iota
	SlotPlaintext
	SlotHBONE
	SlotDNSUDP4
	SlotDNSUDP6
	SlotDNSTCP4
	SlotDNSTCP6
)

// ErrReplaced means that a newer process has taken over, the pod or what all
// pods share; it is no longer this process's to change.
var ErrReplaced = errors.New("a newer process has taken over capture")

// Options say where the programs go.
type Options struct {
	PinDir string // on a bpf file system
	// CgroupRoot is the cgroup v2 directory to attach to.
	CgroupRoot string
	// ProbeCgroup is the directory whose sockets in the host's namespace may
	// reach applications directly; empty: CgroupRoot.
	ProbeCgroup string
	// HostCookie is the host namespace's; 0: that of the initial namespace.
	HostCookie uint64
}

// A Node has the programs and maps that all pods of a node share. Its methods
// may be called by several goroutines.
type Node struct {
	options    Options
	dir        string // PinDir/v<ABI>
	spec       *ebpf.CollectionSpec
	maps       map[string]*ebpf.Map // the shared ones, by name
	generation uint64

	mu    sync.Mutex
	links []link.Link   // held open: a dropped link is closed by the collector; guarded by mu
	probe *ebpf.Program // for AttachProbe; guarded by mu
}

// sharedMaps are pinned once per node, before any link.
func sharedMaps() []string {
	return []string{redirectMapEnrolled, redirectMapAddresses, redirectMapSockets,
		redirectMapPass, redirectMapCounters, redirectMapGeneration, mapOwners}
}

// A hook is a program with its place.
type hook struct {
	program string
	attach  ebpf.AttachType
}

func hooks() []hook {
	return []hook{
		// The guard comes first: nothing is marked that is not guarded.
		{redirectProgGuard, ebpf.AttachCGroupInetEgress},
		{redirectProgEvents, ebpf.AttachCGroupSockOps},
		{redirectProgProbe, ebpf.AttachCGroupSockOps},
		{redirectProgCreate, ebpf.AttachCGroupInetSockCreate},
		{redirectProgConnect4, ebpf.AttachCGroupInet4Connect},
		{redirectProgConnect6, ebpf.AttachCGroupInet6Connect},
	}
}

// Open loads the node's programs and attaches them, or takes over the pins of
// the process before. Nothing is captured until a pod is enrolled.
func Open(o Options) (*Node, error) {
	if err := rlimit.RemoveMemlock(); err != nil {
		return nil, fmt.Errorf("raise memlock limit: %w", err)
	}
	dir, err := prepareDir(o.PinDir)
	if err != nil {
		return nil, err
	}
	spec, err := loadRedirect()
	if err != nil {
		return nil, err
	}
	spec.Maps[mapOwners] = ownersSpec(spec.Maps[redirectMapEnrolled].MaxEntries)
	// A sockmap takes no types. The kernel would refuse them, and the library try
	// again without, after the 20 ms that it takes to free what was begun.
	spec.Maps[redirectMapListeners].Key, spec.Maps[redirectMapListeners].Value = nil, nil
	if err := spec.Variables[redirectVarHost].Set(o.HostCookie); err != nil {
		return nil, fmt.Errorf("set host cookie: %w", err)
	}
	unlock, err := lockDir(dir)
	if err != nil {
		return nil, err
	}
	defer unlock()
	n := &Node{options: o, dir: dir, spec: spec, maps: map[string]*ebpf.Map{}}
	if err := n.open(); err != nil {
		n.Close()
		return nil, err
	}
	return n, nil
}

func (n *Node) open() error {
	for _, name := range sharedMaps() {
		m, err := openMap(n.dir, name, n.spec.Maps[name])
		if err != nil {
			return err
		}
		n.maps[name] = m
	}
	var err error
	if n.maps[redirectMapUnheard], err = ebpf.NewMap(n.spec.Maps[redirectMapUnheard]); err != nil {
		return fmt.Errorf("make map %s: %w", redirectMapUnheard, err)
	}
	if err := n.takeGeneration(); err != nil {
		return err
	}
	return n.attachLocked(hooks())
}

// AttachProbe moves the program that announces probes to another cgroup, if it
// is not there already.
func (n *Node) AttachProbe(cgroup string) error {
	return n.write(func() error {
		l, err := attachCgroup(filepath.Join(n.dir, redirectProgProbe), cgroup, ebpf.AttachCGroupSockOps, n.probe)
		if err != nil {
			return err
		}
		n.links = append(n.links, l)
		return n.dropLinksLocked()
	})
}

// dropLinksLocked closes the links whose cgroup is gone and doubles of others.
// The caller holds mu.
func (n *Node) dropLinksLocked() error {
	var errs []error
	seen := map[link.ID]bool{}
	kept := n.links[:0]
	for _, l := range n.links {
		info, err := l.Info()
		if err == nil && !seen[info.ID] && info.Cgroup() != nil && info.Cgroup().CgroupId != 0 {
			seen[info.ID] = true
			kept = append(kept, l)
			continue
		}
		errs = append(errs, l.Close())
	}
	n.links = kept
	return errors.Join(errs...)
}

// load loads the named programs of spec over the given maps.
func (n *Node) load(spec *ebpf.CollectionSpec, names []string, maps map[string]*ebpf.Map) (map[string]*ebpf.Program, error) {
	spec = spec.Copy()
	wanted := map[string]*ebpf.ProgramSpec{}
	used := map[string]bool{}
	for _, name := range names {
		p := spec.Programs[name]
		wanted[name] = p
		for i := range p.Instructions {
			used[p.Instructions[i].Reference()] = true
		}
	}
	spec.Programs = wanted
	replace := map[string]*ebpf.Map{}
	for name := range spec.Maps {
		switch {
		case maps[name] != nil && used[name]:
			replace[name] = maps[name]
		case !used[name]:
			delete(spec.Maps, name)
		}
	}
	c, err := ebpf.NewCollectionWithOptions(spec, ebpf.CollectionOptions{MapReplacements: replace})
	if err != nil {
		return nil, fmt.Errorf("load programs: %w", err)
	}
	defer c.Close()
	programs := map[string]*ebpf.Program{}
	for _, name := range names {
		programs[name] = c.DetachProgram(name)
	}
	return programs, nil
}

func closePrograms(programs map[string]*ebpf.Program) {
	for _, p := range programs {
		p.Close()
	}
}

// takeGeneration makes this process the one that may write.
func (n *Node) takeGeneration() error {
	m := n.maps[redirectMapGeneration]
	var last uint64
	if err := m.Lookup(uint32(0), &last); err != nil {
		return fmt.Errorf("read generation: %w", err)
	}
	n.generation = last + 1
	if err := m.Update(uint32(0), n.generation, ebpf.UpdateAny); err != nil {
		return fmt.Errorf("write generation: %w", err)
	}
	return nil
}

// locked runs fn under the lock of the pin directory.
func (n *Node) locked(fn func() error) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	unlock, err := lockDir(n.dir)
	if err != nil {
		return err
	}
	defer unlock()
	return fn()
}

// write runs fn under the lock if no newer process has opened the pins.
func (n *Node) write(fn func() error) error {
	return n.locked(func() error {
		if newest, err := n.newest(); err != nil {
			return err
		} else if !newest {
			return ErrReplaced
		}
		return fn()
	})
}

// newest says whether no other process has opened the pins after this one.
func (n *Node) newest() (bool, error) {
	var now uint64
	if err := n.maps[redirectMapGeneration].Lookup(uint32(0), &now); err != nil {
		return false, fmt.Errorf("read generation: %w", err)
	}
	return now == n.generation, nil
}

// Own flags the socket as the proxy's: it is never captured, and what it
// delivers reaches applications.
func (n *Node) Own(fd int) error {
	const roleOwn = uint32(1) // enum role
	if err := n.maps[redirectMapSockets].Update(uint32(fd), roleOwn, ebpf.UpdateAny); err != nil {
		return fmt.Errorf("flag socket: %w", err)
	}
	return nil
}

// SocketsMap is the descriptor of the map of roles, for inet_diag to read it
// by. It belongs to the node.
func (n *Node) SocketsMap() int { return n.maps[redirectMapSockets].FD() }

// IsEnrolled says whether the namespace is captured, by this process or the
// one before.
func (n *Node) IsEnrolled(cookie uint64) (bool, error) {
	var by uint64
	err := n.maps[redirectMapEnrolled].Lookup(cookie, &by)
	if errors.Is(err, ebpf.ErrKeyNotExist) {
		return false, nil
	}
	return err == nil, err
}

// A Count is the value of one counter.
type Count struct {
	Reason
	Value uint64
}

// Counts reads every counter of the node.
func (n *Node) Counts() ([]Count, error) { return readCounts(n.maps[redirectMapCounters]) }

func readCounts(m *ebpf.Map) ([]Count, error) {
	var counts []Count
	for i, reason := range reasons() {
		var perCPU []uint64
		if err := m.Lookup(uint32(i), &perCPU); err != nil {
			return nil, fmt.Errorf("read counter %s %s: %w", reason.Hook, reason.Name, err)
		}
		c := Count{Reason: reason}
		for _, v := range perCPU {
			c.Value += v
		}
		counts = append(counts, c)
	}
	return counts, nil
}

// Close lets go of descriptors. Pins, and with them capture, stay. Later calls
// do nothing.
func (n *Node) Close() error {
	n.mu.Lock()
	defer n.mu.Unlock()
	var errs []error
	for _, l := range n.links {
		errs = append(errs, l.Close())
	}
	n.links = nil
	if n.probe != nil {
		errs = append(errs, n.probe.Close())
		n.probe = nil
	}
	for _, m := range n.maps {
		errs = append(errs, m.Close()) // twice does no harm
	}
	return errors.Join(errs...)
}
