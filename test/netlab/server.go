// SPDX-License-Identifier: Apache-2.0

package netlab

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"sync"
	"time"

	"github.com/ztunnel-go/ztunnel/test/netlab/serve"
)

// reexecName is argv[0] of a child that is to serve instead of doing what its
// binary is for.
const reexecName = "netlab-labd"

// Main must come first in TestMain, or in main, of a program that uses
// [Host.Serve]: servers are started from the same binary. In such a child it
// serves and does not return.
func Main() {
	if os.Args[0] == reexecName {
		os.Exit(serve.Main(os.Args[1:]))
	}
}

// A Server is a child process in a namespace that serves what package serve
// has.
type Server struct {
	cmd    *exec.Cmd
	stdout *os.File
	stderr *lockedBuffer
	once   sync.Once
	err    error
}

// readyWait is for a machine whose processors are all busy.
const readyWait = 20 * time.Second

// Serve starts a child in the namespace with the servers of o, and returns
// when their sockets are bound. It runs until Stop or the end of the lab. See
// [Main] for what the program must do.
func (h *Host) Serve(o serve.Options) (*Server, error) {
	if o.Name == "" {
		o.Name = h.name
	}
	r, w, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	s := &Server{stdout: r, stderr: &lockedBuffer{}}
	s.cmd = exec.Command("/proc/self/exe", o.Args()...)
	s.cmd.Args[0] = reexecName
	s.cmd.Stdout, s.cmd.Stderr = w, s.stderr
	err = h.Start(s.cmd)
	w.Close()
	if err != nil {
		r.Close()
		return nil, fmt.Errorf("serve in %s: %w", h.name, err)
	}
	_ = r.SetReadDeadline(time.Now().Add(readyWait))
	line, err := bufio.NewReader(r).ReadString('\n')
	if line != serve.Ready+"\n" {
		_ = s.Stop()
		return nil, fmt.Errorf("serve in %s: said %q, %v: %s", h.name, line, err, s.stderr)
	}
	h.lab.mu.Lock()
	defer h.lab.mu.Unlock()
	h.lab.servers = append(h.lab.servers, s)
	return s, nil
}

// Pid is the child's.
func (s *Server) Pid() int { return s.cmd.Process.Pid }

// Stop kills the child and waits for it: its connections end as a crashed
// program's do. Later calls do nothing.
func (s *Server) Stop() error {
	s.once.Do(func() {
		_ = s.cmd.Process.Kill()
		err := s.cmd.Wait()
		var exit *exec.ExitError
		if !errors.As(err, &exit) {
			s.err = err
		}
		s.stdout.Close()
	})
	return s.err
}

// lockedBuffer is written by os/exec while others may read it.
type lockedBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer // guarded by mu
}

var _ io.Writer = (*lockedBuffer)(nil)

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

func (b *lockedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.String()
}
