// SPDX-License-Identifier: Apache-2.0

// Package podns finds the network namespaces of pods that run, and proves
// whose they are.
//
// What a runtime tells of a container (CRI's PodSandboxStatus has the
// namespace only in a field for debugging that each runtime fills as it likes)
// would have to be proven in any case, so the kernel is asked alone: a process
// whose cgroup names the pod's uid, in a namespace that is not the host's and
// has the pod's addresses. Of several the one of the oldest process counts: the
// sandbox is older than what runs in it, and what runs in it may make a
// namespace and give it any address.
package podns

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/ztunnel-go/ztunnel/internal/netns"
)

// A Finder looks at the processes of one machine.
type Finder struct {
	// Proc is where procfs shows all processes of the machine.
	Proc string
	// Hosts are namespaces that are no pod's.
	Hosts []netns.ID
}

// A Wanted is a pod whose namespace is looked for.
type Wanted struct {
	// UID is the one in its cgroups.
	UID string
	// Addrs are the pod's addresses, one at least.
	Addrs []netip.Addr
}

// NewFinder is for a machine whose processes are all in proc; the namespace of
// its first process and our own are the host's.
func NewFinder(proc string) (*Finder, error) {
	f := &Finder{Proc: proc}
	for _, pid := range []string{"1", "self"} {
		ns, err := netns.Open(filepath.Join(proc, pid, "ns/net"))
		if err != nil {
			return nil, fmt.Errorf("the host's namespace: %w", err)
		}
		f.Hosts = append(f.Hosts, ns.ID())
		ns.Close()
	}
	return f, nil
}

// ErrNoProcess means that no process of a pod was found: it has not started, or
// not all processes of the machine can be seen.
var ErrNoProcess = errors.New("no process belongs to the pod's cgroup")

// Find looks for the namespaces of pods. For each there is one, by uid, or an
// error that says why not.
func (f *Finder) Find(wanted ...Wanted) (map[string]*netns.NS, map[string]error) {
	search := &search{Finder: f, wanted: map[string]Wanted{}, best: map[string]candidate{}, why: map[string]error{}}
	for _, w := range wanted {
		search.wanted[w.UID] = w
		search.why[w.UID] = ErrNoProcess
	}
	entries, err := os.ReadDir(f.Proc)
	if err != nil {
		for uid := range search.why {
			search.why[uid] = err
		}
	}
	for _, e := range entries {
		if pid, err := strconv.Atoi(e.Name()); err == nil {
			search.look(pid)
		}
	}
	found := map[string]*netns.NS{}
	for uid, c := range search.best {
		found[uid] = c.ns
		delete(search.why, uid)
	}
	return found, search.why
}

// A candidate is a namespace that may be a pod's.
type candidate struct {
	ns    *netns.NS
	start uint64 // of the process that is in it, in ticks since boot
}

// A search is one look at all processes.
type search struct {
	*Finder
	wanted map[string]Wanted
	best   map[string]candidate
	why    map[string]error
}

func (s *search) look(pid int) {
	uid, ok := s.podOf(pid)
	if !ok {
		return
	}
	c, err := s.candidate(pid, uid)
	if err != nil {
		if !errors.Is(err, os.ErrNotExist) { // the process has ended
			s.why[uid] = fmt.Errorf("process %d: %w", pid, err)
		}
		return
	}
	if old, ok := s.best[uid]; ok {
		if old.start <= c.start {
			old, c = c, old
		}
		old.ns.Close()
	}
	s.best[uid] = c
}

// podOf is the pod of a process, if that is wanted.
func (s *search) podOf(pid int) (string, bool) {
	text, err := os.ReadFile(s.path(pid, "cgroup"))
	if err != nil {
		return "", false
	}
	uid, err := PodOf(string(text))
	if err != nil {
		return "", false
	}
	_, ok := s.wanted[uid]
	return uid, ok
}

func (s *search) path(pid int, name string) string {
	return filepath.Join(s.Proc, strconv.Itoa(pid), name)
}

func (s *search) candidate(pid int, uid string) (candidate, error) {
	stat, err := os.ReadFile(s.path(pid, "stat"))
	if err != nil {
		return candidate{}, err
	}
	start, err := startOf(string(stat))
	if err != nil {
		return candidate{}, err
	}
	ns, err := netns.Open(s.path(pid, "ns/net"))
	if err != nil {
		return candidate{}, err
	}
	if again, ok := s.podOf(pid); !ok || again != uid { // the number has a new owner
		ns.Close()
		return candidate{}, os.ErrNotExist
	}
	if err := s.Verify(ns, s.wanted[uid].Addrs); err != nil {
		ns.Close()
		return candidate{}, err
	}
	return candidate{ns, start}, nil
}

// startOf is the starttime of a /proc/<pid>/stat (proc_pid_stat(5)): the 20th
// field after the command, which is in parentheses and may contain any.
func startOf(stat string) (uint64, error) {
	end := strings.LastIndexByte(stat, ')')
	fields := strings.Fields(stat[end+1:])
	if end < 0 || len(fields) < 20 {
		return 0, fmt.Errorf("stat %q has no start time", stat)
	}
	return strconv.ParseUint(fields[19], 10, 64)
}

// Verify says whether a namespace can be the one of a pod with these addresses:
// it is not the host's, and has all of them on devices other than lo.
func (f *Finder) Verify(ns *netns.NS, addrs []netip.Addr) error {
	if slices.Contains(f.Hosts, ns.ID()) {
		return errors.New("it is in the host's network namespace")
	}
	if len(addrs) == 0 {
		return errors.New("the pod has no address yet, so that its namespace cannot be told")
	}
	has, err := Addresses(ns)
	if err != nil {
		return err
	}
	for _, a := range addrs {
		if !slices.Contains(has, a) {
			return fmt.Errorf("its network namespace lacks the pod's address %v: it has %v", a, has)
		}
	}
	return nil
}

// Addresses are those of a namespace's devices that are up, lo aside.
func Addresses(ns *netns.NS) ([]netip.Addr, error) {
	var all []netip.Addr
	err := ns.Do(func() error {
		devices, err := net.Interfaces()
		if err != nil {
			return fmt.Errorf("list devices: %w", err)
		}
		for _, d := range devices {
			if d.Flags&net.FlagLoopback != 0 || d.Flags&net.FlagUp == 0 {
				continue
			}
			addrs, err := d.Addrs()
			if err != nil {
				return fmt.Errorf("list addresses of %s: %w", d.Name, err)
			}
			for _, a := range addrs {
				if prefix, ok := a.(*net.IPNet); ok {
					if ip, ok := netip.AddrFromSlice(prefix.IP); ok {
						all = append(all, ip.Unmap())
					}
				}
			}
		}
		return nil
	})
	return all, err
}
