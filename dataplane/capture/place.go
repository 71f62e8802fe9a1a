// SPDX-License-Identifier: Apache-2.0

package capture

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/ztunnel-go/ztunnel/internal/netns"
)

// A place is where on the machine the programs belong.
type place struct {
	cgroup     string   // the directory to attach to
	probes     string   // kubelet's, for ProbeKubelet; else empty
	hostCookie uint64   // 0: the initial namespace's
	host       netns.ID // zero without HostNetns
	own        netns.ID // the proxy's namespace
}

func findPlace(cfg Config) (place, error) {
	var p place
	var err error
	if p.cgroup, err = cgroupRoot(cfg.CgroupRoot); err != nil {
		return place{}, err
	}
	if err := insideCgroup(p.cgroup); err != nil {
		return place{}, err
	}
	if cfg.ProbeScope == ProbeKubelet {
		if p.probes, err = kubeletCgroup(p.cgroup); err != nil {
			return place{}, err
		}
	}
	current, err := netns.Current()
	if err != nil {
		return place{}, err
	}
	defer current.Close()
	p.own = current.ID()
	if _, err := current.Cookie(); err != nil {
		return place{}, fmt.Errorf("this kernel lacks network namespace cookies (Linux 5.14): %w", err)
	}
	if cfg.HostNetns == "" {
		return p, nil
	}
	host, err := netns.Open(cfg.HostNetns)
	if err != nil {
		return place{}, fmt.Errorf("HOST_NETNS: %w", err)
	}
	defer host.Close()
	p.host = host.ID()
	if p.hostCookie, err = host.Cookie(); err != nil {
		return place{}, fmt.Errorf("HOST_NETNS: %w", err)
	}
	return p, nil
}

// realRootInode is what the one true root of the cgroup2 hierarchy has. A
// cgroup namespace shows a directory deeper down as the root, and a program
// attached there would see none of the pods while all seems well.
const realRootInode = 1

// cgroupRoot is the directory to attach to: explicit, or the real root.
func cgroupRoot(explicit string) (string, error) {
	if explicit != "" {
		if !isCgroup2(explicit) {
			return "", fmt.Errorf("CGROUP_ROOT %s is not a directory of a cgroup2 hierarchy: name one, or unset it to have the root found", explicit)
		}
		return filepath.Clean(explicit), nil
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return "", fmt.Errorf("look for cgroup2 mounts: %w", err)
	}
	seen := ""
	for _, line := range strings.Split(string(mounts), "\n") {
		// 36 35 98:0 /root /mount/point options - type source options
		fields, kind, ok := strings.Cut(line, " - ")
		f := strings.Fields(fields)
		if !ok || len(f) < 5 || !strings.HasPrefix(kind, "cgroup2 ") {
			continue
		}
		point := unescape(f[4])
		var st unix.Stat_t
		if isCgroup2(point) && unix.Stat(point, &st) == nil {
			if st.Ino == realRootInode {
				return point, nil
			}
			seen = point
		}
	}
	if seen != "" {
		return "", fmt.Errorf("the cgroup2 hierarchy at %s does not begin at its real root (a container's view): mount the host's /sys/fs/cgroup into the proxy's container, or set CGROUP_ROOT", seen)
	}
	return "", errors.New("no cgroup2 hierarchy is mounted: mount the host's /sys/fs/cgroup into the proxy's container, or set CGROUP_ROOT")
}

// unescape undoes the octal escapes of mountinfo.
func unescape(s string) string {
	return strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`).Replace(s)
}

func isCgroup2(path string) bool {
	var st unix.Statfs_t
	return unix.Statfs(path, &st) == nil && uint32(st.Type) == unix.CGROUP2_SUPER_MAGIC
}

// initialCgroupNS is the inode of the first cgroup namespace
// (PROC_CGROUP_INIT_INO, include/linux/proc_ns.h).
const initialCgroupNS = 0xeffffffb

// insideCgroup refuses a directory that the proxy itself is outside of: its
// canaries would prove nothing. In a cgroup namespace of its own a process
// cannot tell where it is; there the canaries' failure is what tells.
func insideCgroup(dir string) error {
	var st unix.Stat_t
	if err := unix.Stat("/proc/self/ns/cgroup", &st); err != nil || st.Ino != initialCgroupNS {
		return nil
	}
	own, err := processCgroup("self")
	if err != nil {
		return err
	}
	path := filepath.Join(cgroupMount(dir), own)
	if path == dir || strings.HasPrefix(path, strings.TrimSuffix(dir, "/")+"/") {
		return nil
	}
	return fmt.Errorf("the proxy (cgroup %s) is not inside CGROUP_ROOT %s: programs attached there would not see it, nor prove that they see pods; name a directory above both, or unset it", own, dir)
}

// cgroupMount is where the hierarchy of dir is mounted, which is what the paths
// in /proc begin at.
func cgroupMount(dir string) string {
	for parent := filepath.Dir(dir); isCgroup2(parent); parent = filepath.Dir(dir) {
		dir = parent
	}
	return dir
}

// processCgroup is the cgroup v2 path of a process as /proc has it.
func processCgroup(pid string) (string, error) {
	lines, err := os.ReadFile(filepath.Join("/proc", pid, "cgroup"))
	if err != nil {
		return "", fmt.Errorf("read cgroup: %w", err)
	}
	for _, line := range strings.Split(string(lines), "\n") {
		if path, ok := strings.CutPrefix(line, "0::"); ok {
			return path, nil
		}
	}
	return "", fmt.Errorf("process %s is in no cgroup v2", pid)
}

// kubeletCgroup is the directory of the process that probes pods, in the
// hierarchy of root.
func kubeletCgroup(root string) (string, error) {
	names := map[string]bool{"kubelet": true, "k3s": true, "k3s-server": true, "k3s-agent": true, "kubelite": true}
	comms, err := filepath.Glob("/proc/[0-9]*/comm")
	if err != nil {
		return "", err
	}
	for _, comm := range comms {
		name, err := os.ReadFile(comm)
		if err != nil || !names[strings.TrimSpace(string(name))] {
			continue
		}
		pid := filepath.Base(filepath.Dir(comm))
		if _, err := strconv.Atoi(pid); err != nil {
			continue
		}
		path, err := processCgroup(pid)
		if err != nil {
			continue
		}
		dir := filepath.Join(cgroupMount(root), path)
		if path != "/" && isCgroup2(dir) {
			return dir, nil
		}
	}
	return "", errors.New("PROBE_SCOPE=kubelet: no kubelet with a cgroup of its own is to be seen; the proxy needs hostPID, or use PROBE_SCOPE=host")
}
