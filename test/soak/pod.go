// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"strings"
	"sync"
	"time"

	"github.com/ztunnel-go/ztunnel/test/fakeagent"
	"github.com/ztunnel-go/ztunnel/test/fakeistiod"
	"github.com/ztunnel-go/ztunnel/test/netlab"
	"github.com/ztunnel-go/ztunnel/test/rig"
	"github.com/ztunnel-go/ztunnel/xds/pb/workloadpb"
)

// A pod is a namespace with an application in it, which is part of this
// process: its sockets are ours.
type pod struct {
	*netlab.Host
	lab    *netlab.Pod // nil: of outside
	name   string
	node   string // whose proxy serves it; empty: none does
	v4, v6 netip.Addr
	vip    int // of the service that has its name; 0: none

	mu   sync.Mutex
	dead bool               // guarded by mu
	open map[io.Closer]bool // guarded by mu; its sockets
}

// hold counts a socket among the application's, until it is dropped. It fails
// when the application has died.
func (p *pod) hold(c io.Closer) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.dead {
		c.Close()
		return net.ErrClosed
	}
	if p.open == nil {
		p.open = map[io.Closer]bool{}
	}
	p.open[c] = true
	return nil
}

func (p *pod) drop(c io.Closer) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.open, c)
}

// die closes all that the application has open, as the kernel does when it ends.
func (p *pod) die() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.dead = true
	for c := range p.open {
		c.Close()
	}
}

// newPod makes a pod, tells everybody of it, and returns when both proxies have
// it.
func (s *soak) newPod(ctx context.Context, node *netlab.Node, name string, at netlab.PodConfig) (*pod, error) {
	made, err := node.Pod(name, at)
	if err != nil {
		return nil, err
	}
	p := &pod{Host: made.Host, lab: made, name: name, node: node.Name(), v4: made.IPv4, v6: made.IPv6}
	resources := []fakeistiod.Resource{}
	if rest, core := strings.CutPrefix(name, "core-"); core {
		var a, b int
		if _, err := fmt.Sscanf(rest, "%d-%d", &a, &b); err != nil {
			return nil, err
		}
		p.vip = 10*a + b
		resources = append(resources, s.serviceOf(name, p.vip))
	}
	s.istiod.World.Put(append(resources, s.workloadOf(p))...)
	if err := s.serve(p); err != nil {
		return nil, err
	}
	if err := s.enrol(ctx, p); err != nil {
		return nil, err
	}
	return p, s.eachKnows(ctx, strconvQuote(uidOf(p)), true)
}

// enrol has the agent tell of a pod until a proxy has accepted it, as kubelet
// does: until then nothing of the pod runs. That none is there to hear of it,
// or goes while it answers, is no failure.
func (s *soak) enrol(ctx context.Context, p *pod) error {
	agent := s.proxy(p.node).Agent
	told := fakeagent.Pod{UID: p.name, Name: p.name, Namespace: namespace, ServiceAccount: p.name, NS: p.NS()}
	for deadline := time.Now().Add(patience); ; {
		err := agent.Add(told)
		if agent.Accepted(p.name) {
			return nil
		}
		s.chronicle.note("pod %s was not accepted at first: %v", p.name, err)
		if time.Now().After(deadline) || ctx.Err() != nil {
			return fmt.Errorf("no proxy of %s accepts pod %s: %w", p.node, p.name, errors.Join(err, ctx.Err()))
		}
		sleep(ctx, 200*time.Millisecond)
	}
}

// use lets connections begin and end at a pod.
func (s *soak) use(p *pod) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.pods = append(s.pods, p)
}

// leave lets no new connection begin or end at a pod.
func (s *soak) leave(p *pod) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for i, other := range s.pods {
		if other == p {
			s.pods = append(s.pods[:i:i], s.pods[i+1:]...)
			return
		}
	}
}

func uidOf(p *pod) string { return "lab//Pod/" + namespace + "/" + p.name }

func (s *soak) workloadOf(p *pod) fakeistiod.Resource {
	v4, v6 := p.v4.As4(), p.v6.As16()
	ports := &workloadpb.PortList{Ports: []*workloadpb.Port{{ServicePort: serviceMain, TargetPort: portMain}}}
	services := map[string]*workloadpb.PortList{namespace + "/" + everyone + suffix: ports}
	if p.vip > 0 {
		services[namespace+"/"+p.name+suffix] = ports
	}
	return fakeistiod.Workload(&workloadpb.Workload{
		Uid: uidOf(p), Name: p.name, Namespace: namespace, ServiceAccount: p.name, TrustDomain: rig.TrustDomain,
		Addresses: [][]byte{v4[:], v6[:]}, TunnelProtocol: workloadpb.TunnelProtocol_HBONE, Node: p.node, ClusterId: "lab",
		Services: services,
	})
}

// vips are the addresses of the nth service.
func vips(n int) (v4, v6 netip.Addr) {
	return netip.AddrFrom4([4]byte{10, 96, 1, byte(n)}), netip.AddrFrom16([16]byte{0: 0xfd, 1: 0x96, 15: byte(n)})
}

func (s *soak) serviceOf(name string, n int) fakeistiod.Resource {
	a, b := vips(n)
	v4, v6 := a.As4(), b.As16()
	return fakeistiod.Service(&workloadpb.Service{
		Name: name, Namespace: namespace, Hostname: name + suffix,
		Addresses: []*workloadpb.NetworkAddress{{Address: v4[:]}, {Address: v6[:]}},
		Ports:     []*workloadpb.Port{{ServicePort: serviceMain, TargetPort: portMain}},
	})
}

// eachKnows waits until the dump of each proxy that serves has a text, or has it
// no more. Who starts meanwhile learns it before it serves.
func (s *soak) eachKnows(ctx context.Context, text string, has bool) error {
	deadline := time.Now().Add(patience)
	for _, node := range []string{"node1", "node2"} {
		for {
			_, dump, err := s.proxy(node).Get(ctx, "15000/config_dump")
			if err == nil && strings.Contains(dump, text) == has {
				break
			}
			if time.Now().After(deadline) || ctx.Err() != nil {
				return fmt.Errorf("the proxy of %s does not learn of %s: %w", node, text, errors.Join(err, ctx.Err()))
			}
			sleep(ctx, 50*time.Millisecond)
		}
	}
	return nil
}

// serve accepts connections of a pod until it dies.
func (s *soak) serve(p *pod) error {
	for _, port := range []int{portMain, portBarred} {
		l, err := p.Listen("tcp", fmt.Sprintf(":%d", port))
		if err != nil {
			return err
		}
		if err := p.hold(l); err != nil {
			return err
		}
		s.serving.Go(func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				s.serving.Go(func() { s.answer(p, c.(*net.TCPConn)) })
			}
		})
	}
	return nil
}

// answer is the server's side of a connection.
func (s *soak) answer(p *pod, c *net.TCPConn) {
	defer c.Close()
	if p.hold(c) != nil {
		return
	}
	defer p.drop(c)
	_ = c.SetDeadline(time.Now().Add(patience))
	var b [greeting]byte
	if _, err := io.ReadFull(c, b[:]); err != nil || string(b[:len(magic)]) != magic {
		return // a probe, or a client that was cut off at once: that one knows
	}
	e := s.ledger.find(binary.BigEndian.Uint64(b[len(magic):]))
	if e == nil {
		return
	}
	e.mu.Lock()
	again := e.to != nil
	e.to = p
	e.mu.Unlock()
	if again {
		s.chronicle.note("WRONG: connection %d reached %s after somebody else", e.id, p.name)
		return
	}
	defer e.over(server)
	if _, err := c.Write([]byte{accepted}); err != nil {
		e.note(server, classify(err), err)
		return
	}
	e.play(context.Background(), c, server)
}

// pick is one of the pods that may be used.
func (s *soak) pick(r *rand.Rand) *pod {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.pods[r.IntN(len(s.pods))]
}
