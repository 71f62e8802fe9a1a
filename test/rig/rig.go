// SPDX-License-Identifier: Apache-2.0

// Package rig runs the built proxy on the nodes of a lab, as it runs on the
// nodes of a cluster: one process in each node's namespace, pods announced by
// a stand-in node agent, state from a file that all nodes share, certificates
// from one embedded authority. For tests and the demo.
//
// It starts, stops and looks; what to check is the caller's. It knows the proxy
// from outside only: environment, ports, files, output.
package rig

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/ztunnel-go/ztunnel/test/fakeagent"
	"github.com/ztunnel-go/ztunnel/test/netlab"
	"github.com/ztunnel-go/ztunnel/test/privileged"
)

// Build builds the proxy into dir and returns the path. The Go tool must be in
// PATH and the current directory in the module.
func Build(dir string, race bool) (string, error) {
	path := filepath.Join(dir, "ztunnel")
	args := []string{"build", "-o", path}
	cgo := "CGO_ENABLED=0"
	if race {
		args, cgo = append(args, "-race"), "CGO_ENABLED=1"
	}
	cmd := exec.Command("go", append(args, "github.com/ztunnel-go/ztunnel/cmd/ztunnel")...)
	cmd.Env = append(cmd.Environ(), cgo)
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build ztunnel: %w\n%s", err, out)
	}
	return path, nil
}

// Run runs the tests of a package that play with the proxy: built once, into a
// directory that is gone afterwards, and its path in *binary. With ZTUNNEL_RACE
// set it has the race detector. Without the rights that tests need nothing is
// built, and each says why it is skipped. The answer is for [os.Exit].
func Run(m interface{ Run() int }, binary *string) int {
	if privileged.Missing() != nil {
		return m.Run()
	}
	dir, err := os.MkdirTemp("", "ztrig-")
	if err == nil {
		defer os.RemoveAll(dir)
		*binary, err = Build(dir, os.Getenv("ZTUNNEL_RACE") != "")
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return m.Run()
}

// A Mesh is the proxies of a lab and what they share.
type Mesh struct {
	lab    *netlab.Lab
	binary string
	state  string // path of the state file
	resolv string
	cas    string // directory of authorities

	mu         sync.Mutex
	proxies    []*Proxy           // guarded by mu
	agents     []*fakeagent.Agent // guarded by mu
	generation int                // guarded by mu; of the state
}

// New prepares to run binary on the nodes of lab. The mesh is empty.
func New(lab *netlab.Lab, binary string) (*Mesh, error) {
	m := &Mesh{
		lab: lab, binary: binary,
		state:  filepath.Join(lab.Dir(), "state.json"),
		resolv: filepath.Join(lab.Dir(), "resolv.conf"),
		cas:    filepath.Join(lab.Dir(), "ca"),
	}
	if err := makePinDir(lab.PinDir()); err != nil {
		return nil, err
	}
	// Nobody lives there; see SetNameservers.
	if err := m.SetNameservers(netip.AddrFrom4([4]byte{192, 0, 2, 53})); err != nil {
		return nil, err
	}
	return m, m.SetState(State{})
}

// makePinDir makes the parent of all nodes' pin directories.
func makePinDir(path string) error {
	err := os.Mkdir(path, 0o700)
	if errors.Is(err, os.ErrNotExist) || errors.Is(err, os.ErrPermission) { // of sysfs below
		if err := unix.Mount("bpf", filepath.Dir(path), "bpf", 0, "mode=0700"); err != nil {
			return fmt.Errorf("mount a bpf file system: %w", err)
		}
		err = os.Mkdir(path, 0o700)
	}
	if err != nil {
		return fmt.Errorf("make pin directory: %w", err)
	}
	return nil
}

// SetState replaces the state file. Proxies look at it about once a second.
func (m *Mesh) SetState(s State) error { return s.write(m.state) }

// Apply replaces the state file and waits until every proxy that runs has read
// it.
func (m *Mesh) Apply(ctx context.Context, s State) error {
	m.mu.Lock()
	m.generation++
	// Without rules it denies nothing, and its namespace has no pod.
	seal := &Policy{Name: fmt.Sprintf("state-%d", m.generation), Namespace: "rig", Scope: "Namespace", Action: "Deny", Rules: [][][]Match{}}
	proxies := slices.Clone(m.proxies)
	m.mu.Unlock()
	s.Policies = append(slices.Clone(s.Policies), seal)
	if err := m.SetState(s); err != nil {
		return err
	}
	for _, p := range proxies {
		if !p.Running() {
			continue
		}
		if err := p.AwaitPage(ctx, "15000/config_dump", strconv.Quote(seal.Name)); err != nil {
			return fmt.Errorf("apply state: %w", err)
		}
	}
	return nil
}

// SetNameservers says whom proxies ask for names outside the mesh. Those that
// run follow it in some seconds.
func (m *Mesh) SetNameservers(servers ...netip.Addr) error {
	var b strings.Builder
	for _, s := range servers {
		fmt.Fprintf(&b, "nameserver %v\n", s)
	}
	return os.WriteFile(m.resolv, []byte(b.String()), 0o600)
}

// CADir is the directory of the mesh's authority, made by the first proxy that
// starts. Another name is another authority.
func (m *Mesh) CADir(name string) string { return filepath.Join(m.cas, name) }

// DefaultCA is the name of the authority that proxies use if not told otherwise.
const DefaultCA = "mesh"

// Retire forgets a proxy that has been replaced and has ended: what it has left
// belongs to the one that follows.
func (m *Mesh) Retire(p *Proxy) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.proxies = slices.DeleteFunc(m.proxies, func(other *Proxy) bool { return other == p })
}

// Close kills all proxies, removes what they have left and ends their agents.
func (m *Mesh) Close() error {
	m.mu.Lock()
	proxies, agents := m.proxies, m.agents
	m.proxies, m.agents = nil, nil
	m.mu.Unlock()
	var errs []error
	for _, p := range proxies {
		errs = append(errs, p.close())
	}
	for _, a := range agents {
		errs = append(errs, a.Close())
	}
	return errors.Join(errs...)
}
