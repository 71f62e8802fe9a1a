// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/ztunnel-go/ztunnel/test/conform"
	"github.com/ztunnel-go/ztunnel/test/netlab"
	"github.com/ztunnel-go/ztunnel/test/rig"
)

// jailName is argv[0] of a child that gives itself a resolv.conf of its own and
// then becomes the binary.
const jailName = "conform-jail"

// Main must come first in main, or TestMain, of a program that uses this
// package: proxies are started through the same binary. In such a child it
// does not return.
func Main() {
	netlab.Main()
	if os.Args[0] != jailName {
		return
	}
	fmt.Fprintln(os.Stderr, "Error:", jail(os.Args[1], os.Args[2:]))
	os.Exit(127)
}

// jail puts a file over /etc/resolv.conf, where nobody else sees it, and
// becomes args.
func jail(resolv string, args []string) error {
	runtime.LockOSThread() // only this thread leaves the machine's mounts
	if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
		return fmt.Errorf("unshare: %w", err)
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make mounts private: %w", err)
	}
	const target = "/etc/resolv.conf"
	if err := unix.Mount(resolv, target, "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("mount %s over %s: %w", resolv, target, err)
	}
	return unix.Exec(args[0], args, os.Environ())
}

// A process is a running binary.
type process struct {
	stage  *Stage
	env    []string
	node   *netlab.Node
	cmd    *exec.Cmd
	out    *rig.Output
	errs   *rig.Output
	done   chan struct{} // closed when it has ended
	err    error         // of waiting; after done
	closed bool
}

var _ conform.Proxy = (*process)(nil)

// Start implements [conform.Stage].
func (s *Stage) Start(start conform.Start) (conform.Proxy, error) {
	node := s.nodes[start.Node]
	if node == nil {
		return nil, fmt.Errorf("there is no node %q", start.Node)
	}
	p := &process{stage: s, node: node, out: rig.NewOutput(), errs: rig.NewOutput(), done: make(chan struct{})}
	for name, value := range s.environment(start) {
		p.env = append(p.env, name+"="+value)
	}
	slices.Sort(p.env)
	p.cmd = p.command(start.Args...)
	if err := node.Start(p.cmd); err != nil {
		return nil, err
	}
	go func() { // ends with the process, which Close kills
		p.err = p.cmd.Wait()
		close(p.done)
	}()
	return p, nil
}

func (p *process) command(args ...string) *exec.Cmd {
	cmd := exec.Command("/proc/self/exe", append([]string{p.stage.resolvConf(), p.stage.opts.Binary}, args...)...)
	cmd.Args[0] = jailName
	cmd.Dir = p.stage.Dir() // default paths are relative, and must not be there
	cmd.Stdout, cmd.Stderr, cmd.Env = p.out, p.errs, p.env
	return cmd
}

// Output implements [conform.Proxy].
func (p *process) Output() *rig.Output { return p.out }

// Errors implements [conform.Proxy].
func (p *process) Errors() *rig.Output { return p.errs }

// Signal implements [conform.Proxy].
func (p *process) Signal(name string) error {
	sig, ok := map[string]syscall.Signal{"TERM": unix.SIGTERM, "INT": unix.SIGINT, "KILL": unix.SIGKILL}[name]
	if !ok {
		return fmt.Errorf("no signal %q", name)
	}
	return p.cmd.Process.Signal(sig)
}

// Wait implements [conform.Proxy].
func (p *process) Wait(ctx context.Context) (int, error) {
	select {
	case <-p.done:
	case <-ctx.Done():
		return 0, fmt.Errorf("the process runs on: %w", ctx.Err())
	}
	var exit *exec.ExitError
	if p.err != nil && !errors.As(p.err, &exit) {
		return 0, p.err
	}
	return p.cmd.ProcessState.ExitCode(), nil
}

// Close implements [conform.Proxy].
func (p *process) Close() error {
	if p.closed {
		return nil
	}
	p.closed = true
	if err := p.cmd.Process.Kill(); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	<-p.done
	if p.stage.opts.IstioCNI {
		return nil
	}
	// What captures outlives the process on purpose.
	cleanup := p.command("cleanup")
	cleanup.Env = []string{"FAKE_CA=true", "XDS_ADDRESS="}
	for name, value := range p.stage.environment(conform.Start{Node: p.node.Name()}) {
		cleanup.Env = append(cleanup.Env, name+"="+value)
	}
	if err := p.node.Start(cleanup); err != nil {
		return err
	}
	return cleanup.Wait()
}

type recording struct{ *netlab.Recorder }

// Contains implements [conform.Recording].
func (r *recording) Contains(b []byte) bool {
	for _, p := range r.Packets() {
		if bytes.Contains(p.Data, b) {
			return true
		}
	}
	return false
}

// Stop implements [conform.Recording].
func (r *recording) Stop() error {
	_, err := r.Recorder.Stop()
	return err
}

func mountBPF(dir string) error {
	if err := unix.Mount("bpf", dir, "bpf", 0, "mode=0700"); err != nil {
		return fmt.Errorf("mount a bpf file system: %w", err)
	}
	return nil
}
