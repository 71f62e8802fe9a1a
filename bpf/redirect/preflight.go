// SPDX-License-Identifier: Apache-2.0

package redirect

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/cilium/ebpf/rlimit"
	"golang.org/x/sys/unix"
)

// Try loads every program of ours and attaches it where it disturbs nobody: to
// a new cgroup below this one, which has no process and is gone afterwards, and
// to a namespace that the caller has made for it. Nothing is pinned. What would
// keep [Open] from attaching to the cgroup itself keeps Try from it as well: a
// program above that tolerates no other, a verifier of another mind, privileges
// that are missing.
func Try(cgroup string, netns int) error {
	if err := rlimit.RemoveMemlock(); err != nil {
		return fmt.Errorf("raise memlock limit: %w", err)
	}
	spec, err := loadRedirect()
	if err != nil {
		return err
	}
	spec.Maps[redirectMapListeners].Key, spec.Maps[redirectMapListeners].Value = nil, nil
	c, err := ebpf.NewCollection(spec)
	if err != nil {
		return fmt.Errorf("load programs: %w", err)
	}
	defer c.Close()
	steer, err := link.AttachNetNs(netns, c.Programs[redirectProgSteer])
	if err != nil {
		return fmt.Errorf("attach %s to a network namespace: %w", redirectProgSteer, err)
	}
	defer steer.Close()
	return tryCgroup(cgroup, c.Programs)
}

func tryCgroup(cgroup string, programs map[string]*ebpf.Program) error {
	child := filepath.Join(cgroup, "ztunnel-check-"+strconv.Itoa(os.Getpid()))
	if err := os.Mkdir(child, 0o755); err != nil {
		if errors.Is(err, unix.EROFS) {
			return nil // attaching needs no directory of ours, so this is no trouble; it just cannot be tried
		}
		return fmt.Errorf("make a cgroup to try in: %w", err)
	}
	defer os.Remove(child)
	dir, err := os.Open(child)
	if err != nil {
		return fmt.Errorf("open cgroup: %w", err)
	}
	defer dir.Close()
	for _, h := range hooks() {
		l, err := link.AttachRawLink(link.RawLinkOptions{Target: int(dir.Fd()), Program: programs[h.program], Attach: h.attach})
		if err != nil {
			return fmt.Errorf("attach %s to a cgroup below %s: %w", h.program, cgroup, err)
		}
		defer l.Close()
	}
	return nil
}

// A Foreign is a program of somebody else on a hook that we use.
type Foreign struct {
	Hook string // as bpftool names it: connect4
	Name string // at most 15 bytes, as the kernel keeps it
	ID   uint32
	// Connects says that the program sees connects, and can change where they go.
	Connects bool
	// Twin says that it has the name of ours: another proxy pins elsewhere.
	Twin bool
}

// Others lists the programs on our hooks of a cgroup that are not pinned below
// pinDir.
func Others(pinDir, cgroup string) ([]Foreign, error) {
	dir, err := os.Open(cgroup)
	if err != nil {
		return nil, fmt.Errorf("open cgroup: %w", err)
	}
	defer dir.Close()
	ours, err := pinnedPrograms(pinDir)
	if err != nil {
		return nil, err
	}
	var found []Foreign
	var seen []ebpf.AttachType // two of our programs share a hook
	for _, h := range hooks() {
		if slices.Contains(seen, h.attach) {
			continue
		}
		seen = append(seen, h.attach)
		result, err := link.QueryPrograms(link.QueryOptions{Target: int(dir.Fd()), Attach: h.attach})
		if err != nil {
			return nil, fmt.Errorf("list programs at %v of %s: %w", h.attach, cgroup, err)
		}
		for _, p := range result.Programs {
			if !ours[p.ID] {
				found = append(found, foreign(h.attach, p.ID))
			}
		}
	}
	return found, nil
}

func foreign(attach ebpf.AttachType, id ebpf.ProgramID) Foreign {
	names := map[ebpf.AttachType]string{
		ebpf.AttachCGroupInetEgress: "egress", ebpf.AttachCGroupSockOps: "sock_ops", ebpf.AttachCGroupInetSockCreate: "sock_create",
		ebpf.AttachCGroupInet4Connect: "connect4", ebpf.AttachCGroupInet6Connect: "connect6",
	}
	f := Foreign{Hook: names[attach], ID: uint32(id), Connects: attach == ebpf.AttachCGroupInet4Connect || attach == ebpf.AttachCGroupInet6Connect}
	if p, err := ebpf.NewProgramFromID(id); err == nil { // else it has just gone
		defer p.Close()
		if info, err := p.Info(); err == nil {
			f.Name = info.Name
			f.Twin = slices.ContainsFunc(hooks(), func(h hook) bool { return h.attach == attach && h.program == info.Name })
		}
	}
	return f
}

// pinnedPrograms are those that run behind the pinned links of all versions.
func pinnedPrograms(pinDir string) (map[ebpf.ProgramID]bool, error) {
	paths, err := filepath.Glob(filepath.Join(pinDir, "v*", "*"))
	if err != nil {
		return nil, fmt.Errorf("list pins: %w", err)
	}
	ours := map[ebpf.ProgramID]bool{}
	for _, path := range paths {
		l, err := link.LoadPinnedLink(path, nil)
		if err != nil {
			continue // a map, or a directory
		}
		if info, err := l.Info(); err == nil {
			ours[info.Program] = true
		}
		l.Close()
	}
	return ours, nil
}

// CheckPinDir says what would keep [Open] from pinning below pinDir, without
// changing anything. Unlike Open it wants the file system to be mounted: one
// that a container mounts for itself ends with it, and capture with its pins.
func CheckPinDir(pinDir string) error {
	pinDir = filepath.Clean(pinDir)
	place := pinDir
	for !exists(place) && place != "/" {
		place = filepath.Dir(place)
	}
	var st unix.Statfs_t
	if err := unix.Statfs(place, &st); err != nil {
		return fmt.Errorf("look at %s: %w", place, err)
	}
	if uint32(st.Type) != unix.BPF_FS_MAGIC {
		return fmt.Errorf("%s is on %s and not on a bpf file system", place, fileSystem(uint32(st.Type)))
	}
	if st.Flags&unix.ST_RDONLY != 0 {
		return fmt.Errorf("%s is mounted read-only", place)
	}
	dir := filepath.Join(pinDir, "v"+strconv.Itoa(ABI))
	for _, d := range []string{pinDir, dir, filepath.Join(dir, podsDir)} {
		if err := checkOwner(d, 0o077); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
	}
	return nil
}

// OtherVersions are the directories of pins of another layout than ours, whose
// programs would run beside ours.
func OtherVersions(pinDir string) ([]string, error) {
	dirs, err := filepath.Glob(filepath.Join(pinDir, "v*"))
	if err != nil {
		return nil, fmt.Errorf("list pins: %w", err)
	}
	return slices.DeleteFunc(dirs, func(dir string) bool { return filepath.Base(dir) == "v"+strconv.Itoa(ABI) }), nil
}

func exists(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}

// fileSystem names the kinds that are found where a bpf file system should be.
func fileSystem(magic uint32) string {
	switch magic {
	case unix.TMPFS_MAGIC:
		return "a tmpfs"
	case unix.SYSFS_MAGIC:
		return "sysfs"
	case unix.OVERLAYFS_SUPER_MAGIC:
		return "an overlay"
	}
	return fmt.Sprintf("a file system of kind %#x", magic)
}
