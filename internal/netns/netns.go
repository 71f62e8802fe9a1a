// SPDX-License-Identifier: Apache-2.0

// Package netns runs functions inside other network namespaces, safely.
//
// A thread that could not be brought back to where it came from is never
// reused: it stays locked to its goroutine and dies with it. The package
// knows nothing of pods or sockets; anyone may import it.
package netns

import (
	"errors"
	"fmt"
	"os"
	"runtime"

	"golang.org/x/sys/unix"
)

// An NS is an open network namespace. Its methods may be called by several
// goroutines, also while one closes it; after Close they fail with
// os.ErrClosed, except Fd, Path and Dup, which must not be called then.
type NS struct {
	file *os.File
	id   ID
}

// An ID names a namespace for as long as someone holds it open: the inode is
// reused after that, so it is no map key (see [NS.Cookie]).
type ID struct{ Dev, Ino uint64 }

// FromFile takes ownership of f, which must be a network namespace. On error
// f is closed.
func FromFile(f *os.File) (*NS, error) {
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		f.Close()
		return nil, fmt.Errorf("stat namespace: %w", err)
	}
	kind, err := unix.IoctlRetInt(int(f.Fd()), unix.NS_GET_NSTYPE)
	if err != nil || kind != unix.CLONE_NEWNET {
		f.Close()
		return nil, fmt.Errorf("descriptor is not a network namespace (type %#x, %v)", kind, err)
	}
	return &NS{file: f, id: ID{Dev: st.Dev, Ino: st.Ino}}, nil
}

// Open opens the namespace that a path such as /proc/self/ns/net names.
func Open(path string) (*NS, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("open namespace: %w", err)
	}
	ns, err := FromFile(f)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return ns, nil
}

// Current opens the namespace of the calling thread.
func Current() (*NS, error) { return Open("/proc/thread-self/ns/net") }

// New makes a namespace with no interface but a lo that is down. It lives as
// long as the NS is open or a process is in it.
func New() (*NS, error) {
	var made *NS
	err := onThread(func() error {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("make namespace: %w", err)
		}
		var err error
		made, err = Current()
		return err
	})
	return made, err
}

// ID tells namespaces apart while they are open.
func (n *NS) ID() ID { return n.id }

// Fd is the descriptor; it belongs to the NS.
func (n *NS) Fd() int { return int(n.file.Fd()) }

// Path is a name that other processes' tools can open while the NS is open.
func (n *NS) Path() string { return fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), n.Fd()) }

// Dup returns a second NS on the same namespace with a descriptor of its own.
func (n *NS) Dup() (*NS, error) {
	fd, err := unix.FcntlInt(n.file.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("duplicate namespace: %w", err)
	}
	return &NS{file: os.NewFile(uintptr(fd), "netns"), id: n.id}, nil
}

// Close lets the namespace go.
func (n *NS) Close() error { return n.file.Close() }

// Cookie is the kernel's number for the namespace: unique from boot to boot
// and never used again (SO_NETNS_COOKIE, Linux 5.14).
func (n *NS) Cookie() (uint64, error) {
	var cookie uint64
	err := n.Do(func() error {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return fmt.Errorf("socket: %w", err)
		}
		defer unix.Close(fd)
		cookie, err = unix.GetsockoptUint64(fd, unix.SOL_SOCKET, unix.SO_NETNS_COOKIE)
		if err != nil {
			return fmt.Errorf("SO_NETNS_COOKIE: %w", err)
		}
		return nil
	})
	return cookie, err
}

// Do runs fn on a thread that is inside n. What fn starts on other goroutines
// is not inside. fn's error is returned as it is.
func (n *NS) Do(fn func() error) error {
	return onThread(func() error {
		if err := n.enter(); err != nil {
			return fmt.Errorf("enter namespace: %w", err)
		}
		return fn()
	})
}

// enter moves the thread. The descriptor is held meanwhile, so that Close and
// somebody's open cannot put another file in its place.
func (n *NS) enter() error {
	rc, err := n.file.SyscallConn()
	if err != nil {
		return err
	}
	var entered error
	if err := rc.Control(func(fd uintptr) { entered = unix.Setns(int(fd), unix.CLONE_NEWNET) }); err != nil {
		return os.ErrClosed // package os does not translate it here
	}
	return entered
}

// onThread runs fn, which may change the thread's namespace, on a locked
// thread and brings the thread back. The goroutine that cannot bring it back
// ends while locked, so the runtime ends the thread with it.
func onThread(fn func() error) error {
	result := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		home, err := os.Open("/proc/thread-self/ns/net")
		if err != nil {
			runtime.UnlockOSThread()
			result <- fmt.Errorf("open own namespace: %w", err)
			return
		}
		defer home.Close()
		finished := false
		defer func() {
			if !finished { // fn called runtime.Goexit, as t.FailNow does
				result <- errors.New("function in namespace ended its goroutine")
			}
		}()
		err = fn()
		finished = true
		if back := unix.Setns(int(home.Fd()), unix.CLONE_NEWNET); back == nil {
			runtime.UnlockOSThread()
		}
		result <- err
	}()
	return <-result
}
