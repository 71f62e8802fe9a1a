// SPDX-License-Identifier: Apache-2.0

package netlab

import (
	"errors"
	"fmt"
	"os/exec"
	"runtime"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/ztunnel-go/ztunnel/internal/netns"
)

// A forker is the thread from which all children of a lab are forked. The
// parent of PR_SET_PDEATHSIG is a thread, not a process (prctl(2)): with any
// thread for a parent, children would die with the first goroutine that ends
// locked to it, which is how package netns gets rid of threads it cannot
// restore.
type forker struct {
	jobs   chan func()
	closed chan struct{}
	once   sync.Once
	thread sync.WaitGroup // ends when closed is
}

func newForker() *forker {
	f := &forker{jobs: make(chan func()), closed: make(chan struct{})}
	f.thread.Go(f.run)
	return f
}

func (f *forker) run() {
	runtime.LockOSThread() // never unlocked: it ends in some pod's namespace
	for {
		select {
		case job := <-f.jobs:
			job()
		case <-f.closed:
			return
		}
	}
}

// start starts cmd in ns. The child begins in the namespace of the thread that
// forks it.
func (f *forker) start(ns *netns.NS, cmd *exec.Cmd) error {
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{}
	}
	cmd.SysProcAttr.Pdeathsig = syscall.SIGKILL
	result := make(chan error, 1)
	job := func() {
		if err := unix.Setns(ns.Fd(), unix.CLONE_NEWNET); err != nil {
			result <- fmt.Errorf("enter namespace: %w", err)
			return
		}
		result <- cmd.Start()
	}
	select {
	case f.jobs <- job:
		return <-result
	case <-f.closed:
		return errors.New("the lab is closed")
	}
}

// close ends the thread, and so the children that are left.
func (f *forker) close() {
	f.once.Do(func() { close(f.closed) })
	f.thread.Wait()
}
