// SPDX-License-Identifier: Apache-2.0

// Package lab is a stage for scenarios on which a binary runs: nodes and pods
// are network namespaces, the proxies are processes. It needs root.
//
// It knows what a binary needs besides the contract's environment: how it is
// to capture, where a laboratory differs from a node, and that /etc/resolv.conf
// is the one file that no variable names.
package lab

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"sync"

	"github.com/ztunnel-go/ztunnel/internal/netns"
	"github.com/ztunnel-go/ztunnel/test/conform"
	"github.com/ztunnel-go/ztunnel/test/netlab"
	"github.com/ztunnel-go/ztunnel/test/netlab/serve"
)

// Options are how a binary is to be run.
type Options struct {
	// Binary is the ztunnel's path.
	Binary string
	// IstioCNI lays istio-cni's iptables rules into the pods; else the binary
	// captures by itself, with CAPTURE=ebpf.
	IstioCNI bool
	// CADir holds root-cert.pem and ca-key.pem of the authority that the binary
	// signs with under FAKE_CA; empty: it takes the one that EMBEDDED_CA_DIR
	// names.
	CADir string
}

// A Stage is a lab with two nodes.
type Stage struct {
	opts  Options
	lab   *netlab.Lab
	hosts map[string]*netlab.Host
	nodes map[string]*netlab.Node
	pods  map[string]*netlab.Pod
	stop  context.CancelFunc
	serve sync.WaitGroup // the name server; ends with stop
}

var _ conform.Stage = (*Stage)(nil)

// New builds the lab. The calling program must have called [Main] first.
func New(opts Options) (_ *Stage, err error) {
	l, err := netlab.New(netlab.Config{})
	if err != nil {
		return nil, err
	}
	s := &Stage{opts: opts, lab: l, hosts: map[string]*netlab.Host{}, nodes: map[string]*netlab.Node{}, pods: map[string]*netlab.Pod{}, stop: func() {}}
	defer func() {
		if err != nil {
			s.Close()
		}
	}()
	for _, name := range []string{"node1", "node2", "outside"} {
		n, err := l.Node(name)
		if err != nil {
			return nil, err
		}
		s.nodes[name], s.hosts[name] = n, n.Host
	}
	for _, p := range [][2]string{{"a", "node1"}, {"c", "node1"}, {"b", "node2"}, {"stranger", "node2"}} {
		pod, err := s.nodes[p[1]].Pod(p[0])
		if err != nil {
			return nil, err
		}
		s.pods[p[0]], s.hosts[p[0]] = pod, pod.Host
		if opts.IstioCNI && p[0] != "stranger" {
			if err := istioRules(pod.Host); err != nil {
				return nil, fmt.Errorf("istio-cni's rules in %s: %w", p[0], err)
			}
		}
	}
	return s, s.prepare()
}

// prepare makes the files that proxies read, and the name server they ask.
func (s *Stage) prepare() error {
	if err := makePinDir(s.lab.PinDir()); err != nil {
		return err
	}
	if err := os.WriteFile(s.resolvConf(), []byte("nameserver "+s.nodes["outside"].IPv4.String()+"\n"), 0o600); err != nil {
		return err
	}
	if s.opts.CADir != "" {
		if err := copyCA(s.opts.CADir, filepath.Join(s.Dir(), "ca-mesh")); err != nil {
			return err
		}
	}
	pc, err := s.hosts["outside"].ListenPacket("udp", ":53")
	if err != nil {
		return err
	}
	l, err := s.Listen("outside", ":53")
	if err != nil {
		pc.Close()
		return err
	}
	ctx, stop := context.WithCancel(context.Background())
	s.stop = stop
	s.serve.Go(func() { _ = serve.DNS(ctx, pc, l, conform.OutsideNames()) })
	return nil
}

func copyCA(from, to string) error {
	if err := os.MkdirAll(to, 0o700); err != nil {
		return err
	}
	for _, name := range []string{"root-cert.pem", "ca-key.pem"} {
		b, err := os.ReadFile(filepath.Join(from, name))
		if err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(to, name), b, 0o600); err != nil {
			return err
		}
	}
	return nil
}

func (s *Stage) resolvConf() string { return filepath.Join(s.Dir(), "resolv.conf") }

func (s *Stage) host(place string) (*netlab.Host, error) {
	h := s.hosts[place]
	if h == nil {
		return nil, fmt.Errorf("there is no %q", place)
	}
	return h, nil
}

// Addr implements [conform.Stage].
func (s *Stage) Addr(place string, six bool) (netip.Addr, error) {
	var v4, v6 netip.Addr
	if p := s.pods[place]; p != nil {
		v4, v6 = p.IPv4, p.IPv6
	} else if n := s.nodes[place]; n != nil {
		v4, v6 = n.IPv4, n.IPv6
	} else {
		return netip.Addr{}, fmt.Errorf("there is no %q", place)
	}
	if six {
		return v6, nil
	}
	return v4, nil
}

// Dial implements [conform.Stage].
func (s *Stage) Dial(ctx context.Context, place, network string, to netip.AddrPort) (net.Conn, error) {
	h, err := s.host(place)
	if err != nil {
		return nil, err
	}
	return h.Dial(ctx, network, to.String())
}

// Listen implements [conform.Stage].
func (s *Stage) Listen(place, addr string) (net.Listener, error) {
	h, err := s.host(place)
	if err != nil {
		return nil, err
	}
	return h.Listen("tcp", addr)
}

// Inside implements [conform.Stage].
func (s *Stage) Inside(place string, f func() error) error {
	h, err := s.host(place)
	if err != nil {
		return err
	}
	return h.Do(f)
}

// Namespace implements [conform.Stage].
func (s *Stage) Namespace(pod string) (*netns.NS, error) {
	p := s.pods[pod]
	if p == nil {
		return nil, fmt.Errorf("there is no pod %q", pod)
	}
	return p.NS(), nil
}

// Dir implements [conform.Stage].
func (s *Stage) Dir() string { return s.lab.Dir() }

// Control implements [conform.Stage].
func (s *Stage) Control() netip.AddrPort {
	return netip.AddrPortFrom(s.nodes["outside"].IPv4, conform.ControlPort)
}

// Record implements [conform.Stage].
func (s *Stage) Record(pod string) (conform.Recording, error) {
	p := s.pods[pod]
	if p == nil {
		return nil, fmt.Errorf("there is no pod %q", pod)
	}
	r, err := p.Node().Record(p.VethName, nil)
	if err != nil {
		return nil, err
	}
	return &recording{r}, nil
}

// Close implements [conform.Stage].
func (s *Stage) Close() error {
	s.stop()
	s.serve.Wait()
	return s.lab.Close()
}

// environment is what a laboratory needs besides the scenario's.
func (s *Stage) environment(start conform.Start) map[string]string {
	env := map[string]string{
		"CGROUP_ROOT": s.lab.CgroupRoot(), "BPF_PIN_DIR": filepath.Join(s.lab.PinDir(), start.Node),
		"HOST_NETNS": s.nodes[start.Node].Path(), "RESOLV_CONF": s.resolvConf(), "CAPTURE": "ebpf",
	}
	if s.opts.IstioCNI {
		env["CAPTURE"] = "istio-cni"
	}
	maps.Copy(env, start.Env)
	return env
}

// makePinDir makes the parent of all pins, on a file system for them.
func makePinDir(path string) error {
	err := os.Mkdir(path, 0o700)
	if errors.Is(err, os.ErrExist) {
		return nil
	}
	if err != nil {
		if err := mountBPF(filepath.Dir(path)); err != nil {
			return err
		}
		err = os.Mkdir(path, 0o700)
	}
	return err
}
