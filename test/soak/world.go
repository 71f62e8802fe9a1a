// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/ztunnel-go/ztunnel/test/fakeistiod"
	"github.com/ztunnel-go/ztunnel/test/netlab"
	"github.com/ztunnel-go/ztunnel/test/netlab/serve"
	"github.com/ztunnel-go/ztunnel/test/rig"
)

// A soak is all that is up:
//
//	node1      fabric      node2
//	core-1-*      |        core-2-*     in the mesh, all the time
//	pod-1-*       |        pod-2-*      in the mesh, for a while
//	              |        stranger     that nobody has enrolled
//	           outside                  the control plane, a nameserver, a server
//
// The proxies of node 1 come and go, each in a pod of its own as a DaemonSet's;
// that of node 2 stays, and so shows what piles up in a process.
type soak struct {
	options
	ledger    *ledger
	chronicle *chronicle
	lab       *netlab.Lab
	mesh      *rig.Mesh
	istiod    *fakeistiod.Server
	n1, n2    *netlab.Node
	outside   *netlab.Node
	far       *pod // outside, as if it were one
	stranger  *pod
	resolver  netip.Addr // that pods ask; nobody lives there
	serving   sync.WaitGroup
	env       map[string]string

	mu      sync.Mutex
	pods    []*pod                     // guarded by mu; that may be used
	proxies map[string]*rig.Proxy      // guarded by mu; by node: that serves now
	homes   map[*rig.Proxy]*netlab.Pod // guarded by mu; where those of node 1 live
	printed []*rig.Proxy               // guarded by mu; all that ever were
	lives   int                        // guarded by mu; of node 1's
}

// Ports of the servers; portBarred is one that a policy may forbid.
const (
	portMain, portBarred = 7100, 7101
	serviceMain          = 71
	outsideName          = "www.outside.example"
	namespace            = "default"
	suffix               = "." + namespace + ".svc.cluster.local"
	everyone             = "everyone" // the service of all pods
)

// cores are the pods on each node that stay.
const cores = 3

// poolIdle is after what time an idle tunnel is closed: it is to be gone when we
// look at what the proxies hold.
const poolIdle = 3 * time.Second

// drain is CONNECTION_TERMINATION_DEADLINE of all proxies.
const drain = 3 * time.Second

// build makes the lab and waits until both proxies serve.
func (s *soak) build(ctx context.Context) (err error) {
	if s.lab, err = netlab.New(netlab.Config{}); err != nil {
		return err
	}
	for _, n := range []struct {
		to   **netlab.Node
		name string
	}{{&s.n1, "node1"}, {&s.n2, "node2"}, {&s.outside, "outside"}} {
		if *n.to, err = s.lab.Node(n.name); err != nil {
			return err
		}
	}
	s.resolver = netip.MustParseAddr("10.96.0.10")
	if s.mesh, err = rig.New(s.lab, s.ztunnel); err != nil {
		return err
	}
	if err := s.buildOutside(); err != nil {
		return err
	}
	if err := s.startProxies(ctx); err != nil {
		return err
	}
	for _, node := range []*netlab.Node{s.n1, s.n2} {
		for i := range cores {
			p, err := s.newPod(ctx, node, fmt.Sprintf("core-%s-%d", node.Name()[4:], i), addressesOf(node, i))
			if err != nil {
				return err
			}
			s.use(p)
		}
	}
	made, err := s.n2.Pod("stranger", addressesOf(s.n2, 90))
	if err != nil {
		return err
	}
	s.stranger = &pod{Host: made.Host, node: "", name: "stranger", v4: made.IPv4, v6: made.IPv6}
	return nil
}

func (s *soak) buildOutside() (err error) {
	if err := s.mesh.SetNameservers(s.outside.IPv4); err != nil {
		return err
	}
	_, err = s.outside.Serve(serve.Options{DNS: ":53", Records: map[string][]netip.Addr{outsideName: {s.outside.IPv4, s.outside.IPv6}}})
	if err != nil {
		return err
	}
	s.far = &pod{Host: s.outside.Host, name: "outside", v4: s.outside.IPv4, v6: s.outside.IPv6}
	if err := s.serve(s.far); err != nil {
		return err
	}
	s.istiod, err = fakeistiod.New(fakeistiod.Options{
		Address: netip.AddrPortFrom(s.outside.IPv4, 15012).String(), Hosts: []string{s.outside.IPv4.String()}, Listen: s.outside.Listen,
	})
	if err != nil {
		return err
	}
	root := filepath.Join(s.lab.Dir(), "istiod.pem")
	if err := os.WriteFile(root, []byte(s.istiod.RootPEM()), 0o600); err != nil {
		return err
	}
	s.env = map[string]string{
		"XDS_ADDRESS": s.istiod.Address(), "XDS_ROOT_CA": root, "LOCAL_XDS_PATH": "", "CLUSTER_ID": "lab",
		"UNSTABLE_ENABLE_SOCKS5": "true", "TLS_ENGINE": s.engine,
		"CONNECTION_TERMINATION_DEADLINE": drain.String(),
		"POOL_UNUSED_RELEASE_TIMEOUT":     poolIdle.String(),
	}
	s.istiod.World.Put(s.serviceOf(everyone, 1))
	return nil
}

// startProxies starts one on each node, and waits until they are ready.
func (s *soak) startProxies(ctx context.Context) error {
	s.proxies, s.homes = map[string]*rig.Proxy{}, map[*rig.Proxy]*netlab.Pod{}
	p1, err := s.startNext(nil)
	if err != nil {
		return err
	}
	p2, err := s.mesh.Start(s.n2, rig.Options{Env: s.env})
	if err != nil {
		return err
	}
	s.proxies["node1"], s.proxies["node2"] = p1, p2
	s.printed = append(s.printed, p2)
	for _, p := range []*rig.Proxy{p1, p2} {
		if err := s.ready(ctx, p); err != nil {
			return err
		}
	}
	return nil
}

// startNext starts a proxy for node 1 in a pod of its own.
func (s *soak) startNext(beside *rig.Proxy) (*rig.Proxy, error) {
	s.mu.Lock()
	s.lives++
	n := s.lives
	s.mu.Unlock()
	home, err := s.n1.Pod(fmt.Sprintf("proxy-%d", n), addressesOf(s.n1, 100+n%100))
	if err != nil {
		return nil, err
	}
	p, err := s.mesh.Start(s.n1, rig.Options{Env: s.env, In: home.Host, Beside: beside})
	s.mu.Lock()
	defer s.mu.Unlock()
	s.homes[p] = home
	s.printed = append(s.printed, p)
	return p, err
}

// ready waits for a proxy. What takes longer is a failure of the soak.
func (s *soak) ready(ctx context.Context, p *rig.Proxy) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	return p.AwaitReady(ctx)
}

// proxy is the one that serves a node now.
func (s *soak) proxy(node string) *rig.Proxy {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.proxies[node]
}

// addressesOf are those of the nth place for a pod on a node. Who comes later
// gets those of who was there before, as in a cluster.
func addressesOf(n *netlab.Node, place int) netlab.PodConfig {
	node := n.IPv4.As4()[3]
	return netlab.PodConfig{
		IPv4: netip.AddrFrom4([4]byte{10, 77, node, byte(place + 1)}),
		IPv6: netip.AddrFrom16([16]byte{0: 0xfd, 1: 0x77, 7: node, 15: byte(place + 1)}),
	}
}

// close ends everything.
func (s *soak) close() error {
	if s.lab == nil {
		return nil
	}
	var errs []error
	if s.mesh != nil {
		errs = append(errs, s.mesh.Close())
	}
	if s.istiod != nil {
		s.istiod.Stop()
	}
	s.mu.Lock()
	pods := s.pods
	s.pods = nil
	s.mu.Unlock()
	for _, p := range append(pods, s.far) {
		if p != nil {
			p.die()
		}
	}
	s.serving.Wait()
	errs = append(errs, s.lab.Close())
	return joined(errs)
}
