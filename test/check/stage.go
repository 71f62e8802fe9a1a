// SPDX-License-Identifier: Apache-2.0

// Package check holds the tests of `ztunnel check`: the built program, on a
// machine of which one thing at a time is made worse. A stage is what is made
// worse, in namespaces, limits and filters that end with the process: nothing
// of the machine itself changes. For tests only.
package check

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// A Step makes one thing worse for the calling thread and what it executes.
// arg is the step's, behind a colon.
type Step func(arg string) error

// Steps are those that there are, by name.
func Steps() map[string]Step {
	return map[string]Step{
		"tmpfs":    hide,
		"readonly": readOnly,
		"unmount":  unmountCgroup2,
		"cgroup":   enterCgroup,
		"cgroupns": cgroupNamespace,
		"netns":    enterNetns,
		"proc":     freshProc,
		"drop":     dropCapability,
		"forbid":   forbid,
		"files":    fewFiles,
	}
}

// Main is for TestMain: started as `stage step:arg ... -- program args`, the
// test binary makes the steps and becomes the program. Otherwise it returns.
func Main() {
	if len(os.Args) < 2 || os.Args[1] != "stage" {
		return
	}
	runtime.LockOSThread() // namespaces, filters and capabilities are the thread's
	err := stage(os.Args[2:])
	fmt.Fprintln(os.Stderr, "stage:", err)
	os.Exit(99)
}

func stage(args []string) error {
	if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
		return fmt.Errorf("mount namespace: %w", err)
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("private mounts: %w", err)
	}
	for i, word := range args {
		if word == "--" {
			return syscall.Exec(args[i+1], args[i+1:], os.Environ())
		}
		name, arg, _ := strings.Cut(word, ":")
		step := Steps()[name]
		if step == nil {
			return fmt.Errorf("no step is called %q", name)
		}
		if err := step(arg); err != nil {
			return fmt.Errorf("%s: %w", word, err)
		}
	}
	return errors.New("no program")
}

// hide mounts a tmpfs over a directory.
func hide(dir string) error { return unix.Mount("tmpfs", dir, "tmpfs", 0, "mode=755") }

func readOnly(dir string) error {
	if err := unix.Mount(dir, dir, "", unix.MS_BIND|unix.MS_REC, ""); err != nil {
		return err
	}
	return unix.Mount("", dir, "", unix.MS_BIND|unix.MS_REMOUNT|unix.MS_RDONLY, "")
}

// cgroup2Mounts are where the hierarchy is mounted.
func cgroup2Mounts() ([]string, error) {
	text, err := os.ReadFile("/proc/thread-self/mountinfo")
	if err != nil {
		return nil, err
	}
	var points []string
	for line := range strings.Lines(string(text)) {
		before, after, _ := strings.Cut(line, " - ")
		if f := strings.Fields(before); strings.HasPrefix(after, "cgroup2 ") && len(f) > 4 {
			points = append(points, f[4])
		}
	}
	return points, nil
}

func unmountCgroup2(string) error {
	points, err := cgroup2Mounts()
	for _, point := range points {
		err = errors.Join(err, unix.Unmount(point, unix.MNT_DETACH))
	}
	return err
}

func enterCgroup(dir string) error {
	return os.WriteFile(filepath.Join(dir, "cgroup.procs"), []byte("0"), 0)
}

// cgroupNamespace shows the own cgroup as the root of the hierarchy, and
// nothing above.
func cgroupNamespace(string) error {
	points, err := cgroup2Mounts()
	if err != nil || len(points) == 0 {
		return fmt.Errorf("no cgroup2 to hide, %w", err)
	}
	if err := unmountCgroup2(""); err != nil {
		return err
	}
	if err := unix.Unshare(unix.CLONE_NEWCGROUP); err != nil {
		return err
	}
	return unix.Mount("cgroup2", points[0], "cgroup2", 0, "")
}

func enterNetns(path string) error {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return unix.Setns(fd, unix.CLONE_NEWNET)
}

// freshProc shows the processes of the own pid namespace, and no others.
func freshProc(string) error { return unix.Mount("proc", "/proc", "proc", 0, "") }

// dropCapability takes one, by number, from what root gets by executing.
func dropCapability(number string) error {
	var n uintptr
	if _, err := fmt.Sscan(number, &n); err != nil {
		return err
	}
	return unix.Prctl(unix.PR_CAPBSET_DROP, n, 0, 0, 0)
}

// forbid has a system call, by number, fail as container runtimes' profiles do.
func forbid(number string) error {
	var n uint32
	if _, err := fmt.Sscan(number, &n); err != nil {
		return err
	}
	const ret, allow, fails = unix.BPF_RET | unix.BPF_K, 0x7fff0000, 0x00050000 // linux/seccomp.h
	filter := []unix.SockFilter{
		{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: 0}, // the call's number
		{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, Jf: 1, K: n},
		{Code: ret, K: fails | uint32(unix.EPERM)},
		{Code: ret, K: allow},
	}
	prog := unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]}
	const modeFilter = 2
	return unix.Prctl(unix.PR_SET_SECCOMP, modeFilter, uintptr(unsafe.Pointer(&prog)), 0, 0)
}

func fewFiles(number string) error {
	var n uint64
	if _, err := fmt.Sscan(number, &n); err != nil {
		return err
	}
	return unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: n, Max: n})
}
