// SPDX-License-Identifier: Apache-2.0

package redirect

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"
)

// mountPoint is where distributions mount the bpf file system.
const mountPoint = "/sys/fs/bpf"

// podsDir has one directory per pod, named after its namespace's cookie.
const podsDir = "pods"

// prepareDir makes PinDir/v<ABI> and what is above it and below the mount.
func prepareDir(pinDir string) (string, error) {
	pinDir = filepath.Clean(pinDir)
	if err := ensureMounted(pinDir); err != nil {
		return "", err
	}
	dir := filepath.Join(pinDir, "v"+strconv.Itoa(ABI))
	for _, d := range []string{pinDir, dir, filepath.Join(dir, podsDir)} {
		if err := makeDir(d); err != nil {
			return "", err
		}
	}
	return dir, nil
}

// makeDir makes a directory that is root's alone, or checks that it is.
func makeDir(path string) error {
	err := os.Mkdir(path, 0o700)
	if err == nil || errors.Is(err, os.ErrExist) {
		return checkOwner(path, 0o077)
	}
	return fmt.Errorf("make pin directory: %w", err)
}

// ensureMounted checks that pins below pinDir can exist. The usual mount point
// is mounted if the node has not done it.
func ensureMounted(pinDir string) error {
	parent := filepath.Dir(pinDir)
	if isBPF(pinDir) || isBPF(parent) {
		return nil
	}
	if parent != mountPoint && !strings.HasPrefix(parent, mountPoint+"/") {
		return fmt.Errorf("%s is not on a bpf file system: mount one there (mount -t bpf bpf %s) or choose BPF_PIN_DIR below %s",
			pinDir, parent, mountPoint)
	}
	if !isBPF(mountPoint) {
		if err := mountOnce(); err != nil {
			return err
		}
	}
	if err := os.MkdirAll(parent, 0o700); err != nil {
		return fmt.Errorf("make pin directory: %w", err)
	}
	return nil
}

// mountOnce mounts the usual mount point; a lock keeps two processes from
// mounting twice, where the second would hide the pins of the first.
func mountOnce() error {
	unlock, err := lockDir(mountPoint)
	if err != nil {
		return err
	}
	defer unlock()
	if isBPF(mountPoint) {
		return nil
	}
	if err := unix.Mount("bpf", mountPoint, "bpf", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "mode=0700"); err != nil {
		return fmt.Errorf("no bpf file system is mounted at %s, and mounting one failed: %w", mountPoint, err)
	}
	return nil
}

func isBPF(path string) bool {
	var st unix.Statfs_t
	return unix.Statfs(path, &st) == nil && uint32(st.Type) == unix.BPF_FS_MAGIC
}

// lockDir waits for the exclusive lock of a directory. Locks end with the
// process, so none is ever stale.
func lockDir(dir string) (unlock func(), err error) {
	f, err := os.Open(dir)
	if err != nil {
		return nil, fmt.Errorf("lock: %w", err)
	}
	for {
		err = unix.Flock(int(f.Fd()), unix.LOCK_EX)
		if err != unix.EINTR {
			break
		}
	}
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("lock %s: %w", dir, err)
	}
	return func() { f.Close() }, nil
}

// checkPin refuses pins that another user could have made or could change. It
// wraps os.ErrNotExist where there is none.
func checkPin(path string) error { return checkOwner(path, 0o177) }

func checkOwner(path string, forbidden os.FileMode) error {
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		return fmt.Errorf("stat pin: %w", &fs.PathError{Op: "lstat", Path: path, Err: err})
	}
	if st.Uid != 0 || os.FileMode(st.Mode)&forbidden != 0 || st.Mode&unix.S_IFMT == unix.S_IFLNK {
		return fmt.Errorf("%s belongs to user %d with mode %#o: only root may have access; find out who made it, then remove it",
			path, st.Uid, st.Mode&0o7777)
	}
	return nil
}

// A PodPin is a pod whose capture is pinned.
type PodPin struct {
	Cookie uint64
	// NetnsIno is the inode of its namespace, with which /proc and /run/netns
	// find it; 0: the namespace is gone.
	NetnsIno uint32
	path     string
}

// PodPins lists the pods pinned under PinDir, of every version.
func PodPins(pinDir string) ([]PodPin, error) {
	paths, err := filepath.Glob(filepath.Join(pinDir, "v*", podsDir, "*"))
	if err != nil {
		return nil, fmt.Errorf("list pins: %w", err)
	}
	var pods []PodPin
	for _, path := range paths {
		cookie, err := strconv.ParseUint(filepath.Base(path), 10, 64)
		if err != nil {
			continue
		}
		pods = append(pods, PodPin{Cookie: cookie, NetnsIno: netnsOf(filepath.Join(path, redirectProgSteer)), path: path})
	}
	return pods, nil
}

// netnsOf is the namespace a pinned link is attached to; 0: to none.
func netnsOf(pin string) uint32 {
	l, err := link.LoadPinnedLink(pin, nil)
	if err != nil {
		return 0
	}
	defer l.Close()
	info, err := l.Info()
	if err != nil || info.NetNs() == nil {
		return 0
	}
	return info.NetNs().NetnsInode
}

// Remove unpins everything below PinDir, which ends capture, and removes the
// directories. What does not exist is no error.
func Remove(pinDir string) error {
	versions, err := filepath.Glob(filepath.Join(pinDir, "v*"))
	if err != nil {
		return fmt.Errorf("list pins: %w", err)
	}
	var errs []error
	for _, dir := range versions {
		// First who is captured, then the rest: a connect that is marked
		// must find its pod's programs.
		for _, first := range []string{redirectProgConnect4, redirectProgConnect6, redirectProgCreate} {
			if err := os.Remove(filepath.Join(dir, first)); err != nil && !errors.Is(err, os.ErrNotExist) {
				errs = append(errs, err)
			}
		}
		errs = append(errs, os.RemoveAll(dir))
	}
	if err := os.Remove(pinDir); err != nil && !errors.Is(err, os.ErrNotExist) {
		errs = append(errs, err)
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("remove pins: %w", err)
	}
	return nil
}

// Unenroll ends the capture of new sockets for every pod under PinDir.
func Unenroll(pinDir string) error {
	paths, err := filepath.Glob(filepath.Join(pinDir, "v*", redirectMapEnrolled))
	if err != nil {
		return fmt.Errorf("list pins: %w", err)
	}
	var errs []error
	for _, path := range paths {
		errs = append(errs, clearMap(path))
	}
	return errors.Join(errs...)
}
