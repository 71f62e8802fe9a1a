// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/ztunnel-go/ztunnel/cmd/zagent/cni"
	"github.com/ztunnel-go/ztunnel/cmd/zagent/conflist"
)

// watchInterval is between looks whether somebody has written the configuration.
const watchInterval = 2 * time.Second

// An installation is where the plugin goes.
type installation struct {
	confDir, binDir string
	program         string // this one
	plugin          conflist.Plugin
	log             *slog.Logger
}

// install is the command install-cni.
func (p process) install(ctx context.Context, args []string) error {
	f, logger := p.flags("install-cni", "")
	confDir := f.String("conf-dir", "/etc/cni/net.d", "`directory` of the node's network configurations")
	binDir := f.String("bin-dir", "/opt/cni/bin", "`directory` of the node's plugins")
	socket := f.String("cni-socket", cni.DefaultSocket, "`path` of the agent's socket on the node")
	timeout := f.Int("timeout", 20, "`seconds` that a pod waits for the agent and the proxy before it is tried again")
	exclude := f.String("exclude-namespaces", "kube-system", "`names` of namespaces whose pods start without the agent, by commas")
	remove := f.Bool("remove", false, "take the plugin out")
	watch := f.Bool("watch", false, "stay, and put it back when somebody else has written the configuration")
	daemonSet := f.String("daemonset", "", "with -watch: `namespace/name` of our own; when it is being deleted the plugin goes with us")
	kubeconfig := f.String("kubeconfig", p.env.kubeconfig, "`file` to reach the API with; none: as a pod does (KUBECONFIG)")
	if err := parse(f, args, 0); err != nil {
		return err
	}
	program, err := os.Executable()
	if err != nil {
		return err
	}
	i := installation{confDir: *confDir, binDir: *binDir, program: program, log: logger(), plugin: conflist.Plugin{
		"type": cni.Type, "socket": *socket, "timeoutSeconds": *timeout, "excludeNamespaces": list(*exclude),
	}}
	switch {
	case *remove:
		return i.remove()
	case !*watch:
		_, err := i.insert()
		return err
	}
	i.watch(ctx)
	if *daemonSet == "" {
		return nil
	}
	leaving, err := isLeaving(*kubeconfig, *daemonSet)
	if err != nil {
		return fmt.Errorf("is this an upgrade, or the end? The plugin stays: %w", err)
	}
	if leaving {
		return i.remove()
	}
	i.log.Info("the plugin stays for the next agent")
	return nil
}

// insert puts program and configuration where they belong.
func (i installation) insert() (changed bool, _ error) {
	// The program first: a configuration that names none breaks every pod.
	copied, err := i.copyProgram()
	if err != nil {
		return false, err
	}
	file, changed, err := conflist.Insert(i.confDir, i.plugin)
	if err != nil {
		return copied, err
	}
	if changed || copied {
		i.log.Info("the CNI plugin is in place", "configuration", file, "program", filepath.Join(i.binDir, cni.Type))
	}
	return changed || copied, nil
}

// copyProgram puts this program among the plugins, if it is not there.
func (i installation) copyProgram() (bool, error) {
	target := filepath.Join(i.binDir, cni.Type)
	if same, err := sameContent(i.program, target); same || err != nil {
		return false, err
	}
	source, err := os.Open(i.program)
	if err != nil {
		return false, err
	}
	defer source.Close()
	return true, conflist.Replace(target, source, 0o755)
}

// sameContent compares files; one that is not there is another.
func sameContent(a, b string) (bool, error) {
	x, err := os.Open(a)
	if err != nil {
		return false, err
	}
	defer x.Close()
	y, err := os.Open(b)
	if errors.Is(err, os.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	defer y.Close()
	left, right := make([]byte, 1<<16), make([]byte, 1<<16)
	for {
		n, errX := io.ReadFull(x, left)
		m, errY := io.ReadFull(y, right)
		if n != m || !bytes.Equal(left[:n], right[:m]) {
			return false, nil
		}
		if errX != nil || errY != nil {
			return n == 0 || errors.Is(errX, io.ErrUnexpectedEOF), nil
		}
	}
}

// remove takes the configuration out, and then the program.
func (i installation) remove() error {
	removed, err := conflist.Remove(i.confDir, cni.Type)
	if err != nil {
		return err // the program stays, since something may name it
	}
	if err := os.Remove(filepath.Join(i.binDir, cni.Type)); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	i.log.Info("the CNI plugin is gone", "was in a configuration", removed)
	return nil
}

// watch keeps the plugin in place until ctx ends.
func (i installation) watch(ctx context.Context) {
	tick := time.NewTicker(watchInterval)
	defer tick.Stop()
	told := ""
	for {
		_, err := i.insert()
		switch {
		case err == nil:
			told = ""
		case err.Error() != told:
			told = err.Error()
			i.log.Warn("the CNI plugin is not in place, trying on", "error", err)
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}

// leaveWait bounds the question whether this is the end, within the time that
// a pod has to stop.
const leaveWait = 10 * time.Second

// isLeaving says whether a DaemonSet is gone or being deleted.
func isLeaving(kubeconfig, name string) (bool, error) {
	namespace, name, ok := strings.Cut(name, "/")
	if !ok {
		return false, errors.New("-daemonset is not namespace/name")
	}
	client, err := apiClient(kubeconfig)
	if err != nil {
		return false, err
	}
	ctx, cancel := context.WithTimeout(context.Background(), leaveWait)
	defer cancel()
	set, err := client.AppsV1().DaemonSets(namespace).Get(ctx, name, metav1.GetOptions{})
	switch {
	case apierrors.IsNotFound(err):
		return true, nil
	case err != nil:
		return false, err
	}
	return set.DeletionTimestamp != nil, nil
}
