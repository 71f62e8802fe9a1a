// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/ztunnel-go/ztunnel/test/rig"
)

// shellName is argv[0] of the child that becomes the shell.
const shellName = "ztunnel-demo-shell"

// shell runs the user's shell in the client pod and waits for it. SIGINT is
// for what runs in the shell; the demo heeds it no more.
func (d *demo) shell() error {
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGTERM, unix.SIGHUP)
	defer stop()
	resolv := filepath.Join(d.lab.Dir(), "client-resolv.conf")
	text := fmt.Sprintf("search %s.svc.cluster.local svc.cluster.local cluster.local\nnameserver %v\noptions ndots:5\n",
		namespace, fixed().resolver.Addr())
	if err := os.WriteFile(resolv, []byte(text), 0o644); err != nil { //nolint:gosec // as /etc/resolv.conf
		return err
	}
	if err := d.followLogs(ctx); err != nil {
		return err
	}
	d.hints()
	cmd := exec.CommandContext(ctx, "/proc/self/exe", resolv)
	cmd.Args[0] = shellName
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.Env = append(os.Environ(), "PS1=pod client # ")
	// A mount namespace of its own, for a resolv.conf of its own.
	cmd.SysProcAttr = &unix.SysProcAttr{Unshareflags: unix.CLONE_NEWNS}
	if err := d.client.Start(cmd); err != nil {
		return fmt.Errorf("shell: %w", err)
	}
	var exit *exec.ExitError
	if err := cmd.Wait(); err != nil && !errors.As(err, &exit) {
		return fmt.Errorf("shell: %w", err)
	}
	return nil // what its last command said is no business of ours
}

func (d *demo) logPath(p *rig.Proxy) string {
	return filepath.Join(d.lab.Dir(), p.Node().Name()+".log")
}

// followLogs has the logs in files until ctx ends.
func (d *demo) followLogs(ctx context.Context) error {
	for _, p := range d.proxies {
		f, err := os.Create(d.logPath(p))
		if err != nil {
			return err
		}
		go func() {
			defer f.Close()
			follow(ctx, p, f)
		}()
	}
	return nil
}

// inPod is the child: it puts the pod's resolv.conf over the machine's and
// becomes the shell. It returns only if that fails.
func inPod(args []string) error {
	if len(args) != 1 {
		return errors.New("not to be run by hand")
	}
	if err := unix.Mount(args[0], "/etc/resolv.conf", "", unix.MS_BIND, ""); err != nil {
		fmt.Fprintln(os.Stderr, "names have to be asked for by address, no resolv.conf:", err)
	}
	shell := os.Getenv("SHELL")
	if shell == "" {
		shell = "/bin/sh"
	}
	return unix.Exec(shell, []string{shell}, os.Environ())
}

func (d *demo) hints() {
	node := d.proxies[0].Node()
	lines := []string{
		"",
		"This is a shell in the pod client, on node1. Its connections are captured. Try:",
		"  curl http://server/             by name, in HBONE to node2",
		"  curl http://" + fixed().server4.String() + "/          by VIP; http://legacy/ is out of the mesh",
		"  dig AAAA server." + namespace + ".svc.cluster.local; dig " + forwardedName,
		"The state of the mesh, read again when it changes: " + filepath.Join(d.lab.Dir(), "state.json"),
		"Logs: " + d.logPath(d.proxies[0]) + " and " + d.logPath(d.proxies[1]),
		"The pages of node1's proxy, from inside its namespace:",
		"  nsenter --net=" + node.Path() + " curl -s http://127.0.0.1:15020/metrics",
		"  nsenter --net=" + node.Path() + fmt.Sprintf(" curl -s 'http://127.0.0.1:15000/debug/route?src=%v&dst=%v:80'",
			d.client.IPv4, fixed().server4),
		"Leave the shell and all of it goes.",
		"",
	}
	fmt.Println(strings.Join(lines, "\n"))
}
