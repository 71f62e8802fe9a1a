// SPDX-License-Identifier: Apache-2.0

package handover

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ztunnel-go/ztunnel/internal/sock"
)

// A peer is the process at the other end, held by a descriptor, so that its
// number cannot come to mean another.
type peer struct {
	pid   int
	pidfd int
}

// identify finds out who is at the other end, and refuses whoever is not a
// process of our kind: another user, another program, or one that does not live
// beside us. A process whose number cannot be seen from here, since it is in a
// pid namespace of its own, is refused too: it could not be stopped either.
func identify(conn *net.UnixConn) (*peer, error) {
	var cred *unix.Ucred
	p := &peer{pidfd: -1}
	err := sock.Control(conn, func(fd int) (err error) {
		if cred, err = unix.GetsockoptUcred(fd, unix.SOL_SOCKET, unix.SO_PEERCRED); err != nil {
			return os.NewSyscallError("getsockopt SO_PEERCRED", err)
		}
		if p.pidfd, err = unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_PEERPIDFD); err != nil { // before Linux 6.5
			p.pidfd, err = unix.PidfdOpen(int(cred.Pid), 0)
		}
		return os.NewSyscallError("pidfd_open", err)
	})
	if err == nil {
		p.pid = int(cred.Pid)
		err = p.admissible(int(cred.Uid))
	}
	if err != nil {
		p.close()
		return nil, err
	}
	return p, nil
}

// admissible is [identify] for a process of user uid.
func (p *peer) admissible(uid int) error {
	switch {
	case uid != os.Geteuid():
		return fmt.Errorf("peer is of user %d", uid)
	case p.pid == 0:
		return errors.New("peer is in another pid namespace: both pods need hostPID")
	}
	if err := p.ofOurKind(); err != nil {
		return fmt.Errorf("peer %d: %w", p.pid, err)
	}
	if p.dead(0) { // then what was read may be another's
		return fmt.Errorf("peer %d is gone", p.pid)
	}
	return nil
}

func (p *peer) close() {
	if p.pidfd >= 0 {
		unix.Close(p.pidfd)
	}
}

func (p *peer) ofOurKind() error {
	own, err := programOf("self")
	if err != nil {
		return err
	}
	other, err := programOf(strconv.Itoa(p.pid))
	if err != nil {
		return err
	}
	if own != other {
		return fmt.Errorf("runs %s, and we %s", other, own)
	}
	ours, err := cgroupOf("self")
	if err != nil {
		return err
	}
	theirs, err := cgroupOf(strconv.Itoa(p.pid))
	if err != nil {
		return err
	}
	if !beside(ours, theirs) {
		return fmt.Errorf("cgroup %s is not beside ours, %s", theirs, ours)
	}
	return nil
}

// programOf is the name of a process's executable. Its path may differ from
// release to release.
func programOf(pid string) (string, error) {
	target, err := os.Readlink(filepath.Join("/proc", pid, "exe"))
	if err != nil {
		return "", err
	}
	return filepath.Base(strings.TrimSuffix(target, " (deleted)")), nil
}

// cgroupOf is a process's cgroup in the unified hierarchy, as seen from our
// cgroup namespace; empty if there is none.
func cgroupOf(pid string) (string, error) {
	b, err := os.ReadFile(filepath.Join("/proc", pid, "cgroup"))
	if err != nil {
		return "", err
	}
	for line := range strings.SplitSeq(string(b), "\n") {
		if p, ok := strings.CutPrefix(line, "0::"); ok {
			return p, nil
		}
	}
	return "", nil
}

// beside reports whether two cgroups can be of two pods of one DaemonSet: equal,
// of two containers of a pod, or of containers of two pods with one parent.
// Either may be seen from within a cgroup namespace, from where others begin
// with /.. .
func beside(ours, theirs string) bool {
	if strings.HasPrefix(theirs, "/..") || strings.HasPrefix(ours, "/..") {
		const far = "/a/b/c/d/e/f/g/h" // where our root may be
		ours, theirs = path.Join(far, ours), path.Join(far, theirs)
	}
	a, b := split(ours), split(theirs)
	if len(a) != len(b) {
		return false
	}
	for n := range len(a) - 2 {
		if a[n] != b[n] {
			return false
		}
	}
	return true
}

func split(p string) []string { return strings.Split(strings.Trim(path.Clean(p), "/"), "/") }

// dead reports whether the process has ended, and waits for it for a while.
func (p *peer) dead(wait time.Duration) bool {
	deadline := time.Now().Add(wait)
	for {
		fds := []unix.PollFd{{Fd: int32(p.pidfd), Events: unix.POLLIN}}
		n, err := unix.Poll(fds, int(max(time.Until(deadline), 0).Milliseconds()))
		switch {
		case errors.Is(err, unix.EINTR):
		case err != nil:
			return false
		case n > 0:
			return true
		}
		if !time.Now().Before(deadline) {
			return false
		}
	}
}

// fence makes sure that the process does nothing any more: it is killed, and
// waited for. Only then false is not returned.
func (p *peer) fence(wait time.Duration) bool {
	if p.pid == os.Getpid() { // in tests
		return false
	}
	_ = unix.PidfdSendSignal(p.pidfd, unix.SIGKILL, nil, 0) // it may be gone
	return p.dead(wait)
}
