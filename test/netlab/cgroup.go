// SPDX-License-Identifier: Apache-2.0

package netlab

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// namePrefix begins every directory of every lab. The creator's pid and start
// time follow, so that anyone can tell whether it still lives.
const namePrefix = "ztlab-"

func newName() (string, error) {
	start, err := startTime(os.Getpid())
	if err != nil {
		return "", err
	}
	var b [4]byte
	rand.Read(b[:]) // never fails since Go 1.24
	return fmt.Sprintf("%s%d-%s-%s", namePrefix, os.Getpid(), start, hex.EncodeToString(b[:])), nil
}

// startTime is field 22 of /proc/<pid>/stat, clock ticks since boot: with the
// pid it names a process for good.
func startTime(pid int) (string, error) {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return "", err
	}
	// The second field, the command, may hold anything; it ends at the last ).
	_, rest, ok := strings.Cut(string(stat[strings.LastIndexByte(string(stat), ')')+1:]), " ")
	fields := strings.Fields(rest)
	if !ok || len(fields) < 20 {
		return "", fmt.Errorf("unexpected /proc/%d/stat", pid)
	}
	return fields[19], nil
}

// orphaned reports whether a directory is a lab's whose creator is dead.
func orphaned(name string) bool {
	parts := strings.Split(name, "-")
	if len(parts) != 4 || parts[0]+"-" != namePrefix {
		return false
	}
	pid, err := strconv.Atoi(parts[1])
	if err != nil {
		return false
	}
	start, err := startTime(pid)
	return err != nil || start != parts[2]
}

// bpffs is where pins of BPF objects go on every distribution.
const bpffs = "/sys/fs/bpf"

// reap removes what labs of dead processes left: children and their cgroup,
// the directory of names, pins. It does what it can; another process may be at
// it too.
func reap(root string) {
	for _, dir := range []string{root, os.TempDir(), bpffs} {
		entries, err := os.ReadDir(dir)
		if err != nil {
			continue
		}
		for _, e := range entries {
			if !orphaned(e.Name()) {
				continue
			}
			path := filepath.Join(dir, e.Name())
			if dir == root {
				_ = removeCgroup(path)
			} else {
				_ = os.RemoveAll(path)
			}
		}
	}
}

// cgroupRoot finds where the whole cgroup v2 tree is mounted: alone at
// /sys/fs/cgroup, or beside v1 at /sys/fs/cgroup/unified.
func cgroupRoot() (string, error) {
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return "", fmt.Errorf("find cgroup2: %w", err)
	}
	for line := range strings.Lines(string(mounts)) {
		// id parent dev root mountpoint options [optional...] - type ...
		before, after, _ := strings.Cut(line, " - ")
		fields := strings.Fields(before)
		if strings.HasPrefix(after, "cgroup2 ") && len(fields) > 4 && fields[3] == "/" {
			return fields[4], nil
		}
	}
	return "", errors.New("find cgroup2: the root of the tree is not mounted")
}

// A cgroup is a lab's directory in the cgroup v2 tree, with this process in it.
type cgroup struct {
	path string
	home string // where the process was before
}

func enterCgroup(root, name string) (*cgroup, error) {
	own, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		return nil, err
	}
	var home string
	for line := range strings.Lines(string(own)) {
		if path, ok := strings.CutPrefix(line, "0::"); ok {
			home = strings.TrimSpace(path)
		}
	}
	if strings.HasPrefix(home, "/"+namePrefix) {
		// Children of one lab must not make another inside it, nor may one
		// process have two: a process is in one cgroup only.
		return nil, fmt.Errorf("this process is in the cgroup of a lab already: %s", home)
	}
	c := &cgroup{path: filepath.Join(root, name), home: filepath.Join(root, home)}
	if err := os.Mkdir(c.path, 0o755); err != nil {
		return nil, fmt.Errorf("make cgroup: %w", err)
	}
	if err := moveTo(c.path); err != nil {
		os.Remove(c.path)
		return nil, err
	}
	return c, nil
}

// moveTo moves the calling process with all its threads.
func moveTo(dir string) error {
	if err := os.WriteFile(filepath.Join(dir, "cgroup.procs"), []byte("0"), 0); err != nil {
		return fmt.Errorf("move to cgroup: %w", err)
	}
	return nil
}

// leave moves the process home, kills what is still inside and removes the
// directory.
func (c *cgroup) leave() error {
	if err := moveTo(c.home); err != nil {
		return err
	}
	return removeCgroup(c.path)
}

// removeWait bounds the wait for killed processes to be gone. They need a
// scheduler tick; seconds are for a machine under load.
const removeWait = 5 * time.Second

// removeCgroup kills what is in path and below and removes it.
func removeCgroup(path string) error {
	// cgroup.kill exists since Linux 5.14, as SO_NETNS_COOKIE does.
	if err := os.WriteFile(filepath.Join(path, "cgroup.kill"), []byte("1"), 0); err != nil {
		return fmt.Errorf("kill cgroup: %w", err)
	}
	deadline := time.Now().Add(removeWait)
	for {
		err := removeTree(path)
		if err == nil || time.Now().After(deadline) {
			return err
		}
		time.Sleep(2 * time.Millisecond)
	}
}

// removeTree removes cgroup directories, deepest first. Their files cannot and
// need not be removed.
func removeTree(path string) error {
	entries, err := os.ReadDir(path)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if e.IsDir() {
			if err := removeTree(filepath.Join(path, e.Name())); err != nil {
				return err
			}
		}
	}
	return os.Remove(path)
}
