// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ztunnel-go/ztunnel/test/netlab"
	"github.com/ztunnel-go/ztunnel/test/rig"
)

// A deed is something that is done to the mesh, again and again: first after
// every, then that long after the end of the one before, more or less.
type deed struct {
	name  string
	every time.Duration
	do    func(context.Context, *rand.Rand) error
}

// deeds are all of them. Each has a goroutine of its own, so that they meet.
func (s *soak) deeds() []deed {
	c := &churn{s: s}
	return []deed{
		{"pods", 600 * time.Millisecond, c.turn},
		{"policies", 3 * time.Second, s.flip},
		{"proxy", 9 * time.Second, s.breakProxy},
		{"agent", 7 * time.Second, s.restartAgent},
		{"istiod", 13 * time.Second, s.restartIstiod},
	}
}

func (s *soak) chosen() []deed {
	return slices.DeleteFunc(s.deeds(), func(d deed) bool {
		return s.only != "" && !slices.Contains(strings.Split(s.only, ","), d.name)
	})
}

// repeat does a deed until ctx ends. What it cannot do ends the soak.
func (s *soak) repeat(ctx context.Context, d deed, n int) error {
	r := rand.New(rand.NewPCG(s.seed, 1<<32+uint64(n)))
	for {
		sleep(ctx, time.Duration((0.5+r.Float64())*float64(d.every)))
		if ctx.Err() != nil {
			return nil
		}
		// What is begun is brought to its end.
		if err := d.do(context.WithoutCancel(ctx), r); err != nil {
			return fmt.Errorf("%s: %w", d.name, err)
		}
	}
}

// breakProxy ends node 1's proxy in one of the ways in which that happens.
func (s *soak) breakProxy(ctx context.Context, r *rand.Rand) error {
	switch n := r.IntN(10); {
	case n < 5:
		return s.succeed(ctx, r)
	case n < 8:
		return s.restart(ctx)
	default:
		return s.crash(ctx)
	}
}

// succeed puts another process in the place of node 1's.
func (s *soak) succeed(ctx context.Context, r *rand.Rand) error {
	old := s.proxy("node1")
	s.chronicle.note("a successor starts")
	next, err := s.startNext(old)
	if err != nil {
		return err
	}
	if err := s.ready(ctx, next); err != nil {
		return fmt.Errorf("the successor: %w", err)
	}
	s.mu.Lock()
	s.proxies["node1"] = next
	s.mu.Unlock()
	sleep(ctx, time.Duration(r.IntN(1000))*time.Millisecond)
	ev := s.chronicle.begin(&event{what: "the predecessor is told to end", deadline: time.Now().Add(drain),
		hits: func(ev *event, e *entry, failed time.Time) bool {
			return e.uses("node1") && e.began.Before(ev.from.Add(slack)) && failed.After(ev.deadline.Add(-slack))
		}})
	if err := s.end(ctx, old); err != nil {
		return err
	}
	s.chronicle.end(ev)
	s.mesh.Retire(old)
	s.mu.Lock()
	home := s.homes[old]
	delete(s.homes, old)
	s.mu.Unlock()
	return home.Delete()
}

// end tells a proxy to end and waits until it has.
func (s *soak) end(ctx context.Context, p *rig.Proxy) error {
	if err := p.Signal(unix.SIGTERM); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	code, err := p.Wait(ctx)
	if err == nil && code != 0 {
		err = fmt.Errorf("it ended with %d", code)
	}
	return err
}

// restart tells node 1's proxy to end, and starts it again.
func (s *soak) restart(ctx context.Context) error {
	p := s.proxy("node1")
	ev := s.chronicle.begin(&event{what: "a restart", deadline: time.Now().Add(drain),
		hits: func(ev *event, e *entry, failed time.Time) bool {
			e.mu.Lock()
			early := !e.established.IsZero() && e.established.Before(ev.from.Add(-slack))
			e.mu.Unlock()
			return e.uses("node1") && !(early && failed.Before(ev.deadline.Add(-slack)))
		}})
	if err := s.end(ctx, p); err != nil {
		return err
	}
	return s.again(ctx, p, ev)
}

// crash kills node 1's proxy, and starts it again.
func (s *soak) crash(ctx context.Context) error {
	p := s.proxy("node1")
	ev := s.chronicle.begin(&event{what: "a crash", deadline: time.Now(),
		hits: func(_ *event, e *entry, _ time.Time) bool { return e.uses("node1") }})
	if err := p.Kill(); err != nil {
		return err
	}
	return s.again(ctx, p, ev)
}

func (s *soak) again(ctx context.Context, p *rig.Proxy, ev *event) error {
	taken := p.Agent.Snapshots()
	if err := p.Restart(); err != nil {
		return err
	}
	within, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	if err := p.Agent.AwaitSnapshots(within, taken+1); err != nil {
		return err
	}
	if err := s.ready(ctx, p); err != nil {
		return err
	}
	s.chronicle.end(ev)
	return nil
}

// restartAgent ends the connections of a node's agent. Nobody notices.
func (s *soak) restartAgent(ctx context.Context, r *rand.Rand) error {
	node := [...]string{"node1", "node2"}[r.IntN(2)]
	s.chronicle.note("the agent of %s restarts", node)
	s.proxy(node).Agent.Disconnect()
	return nil
}

// restartIstiod ends the control plane for a while. Nobody notices.
func (s *soak) restartIstiod(ctx context.Context, r *rand.Rand) error {
	s.chronicle.note("istiod goes")
	s.istiod.Stop()
	sleep(ctx, time.Duration(r.IntN(1500))*time.Millisecond)
	err := s.istiod.Restart()
	s.chronicle.note("istiod is back")
	return err
}

// A churn is the pods that come and go.
type churn struct {
	s    *soak
	pods []*pod
	made int
}

// places are how many pods that come and go there may be on each node.
const places = 4

// turn makes a pod, or takes one away, or tells of one again.
func (c *churn) turn(ctx context.Context, r *rand.Rand) error {
	switch n := r.IntN(10); {
	case len(c.pods) < 2*places && n < 5 || len(c.pods) == 0:
		return c.add(ctx)
	case n < 6:
		p := c.pods[r.IntN(len(c.pods))]
		c.s.chronicle.note("pod %s is told of again", p.name)
		return c.s.enrol(ctx, p)
	case n < 9 || len(c.pods) == 2*places:
		i := r.IntN(len(c.pods))
		p := c.pods[i]
		c.pods = slices.Delete(c.pods, i, i+1)
		return c.remove(ctx, r, p)
	}
	return nil
}

func (c *churn) add(ctx context.Context) error {
	node := []*netlab.Node{c.s.n1, c.s.n2}[c.made%2]
	free := 0
	for slices.ContainsFunc(c.pods, func(p *pod) bool { return p.v4 == addressesOf(node, 20+free).IPv4 }) {
		free++
	}
	c.made++
	name := fmt.Sprintf("pod-%s-%d", node.Name()[4:], c.made)
	p, err := c.s.newPod(ctx, node, name, addressesOf(node, 20+free))
	if err != nil {
		return err
	}
	c.s.chronicle.note("pod %s is there, at %v", name, p.v4)
	c.pods = append(c.pods, p)
	c.s.use(p)
	return nil
}

// remove takes a pod away, in one of the orders in which that happens.
func (c *churn) remove(ctx context.Context, r *rand.Rand, p *pod) error {
	s := c.s
	s.leave(p)
	agent := s.proxy(p.node).Agent
	manner := r.IntN(4)
	if s.brief() { // what the agent forgets is held on to for that long
		manner = r.IntN(3)
	}
	ev := s.chronicle.begin(&event{
		what: fmt.Sprintf("pod %s goes: %s", p.name, [...]string{"as kubelet does it", "its deletion first", "its namespace first", "the agent forgets it"}[manner]),
		hits: func(_ *event, e *entry, _ time.Time) bool { return e.touches(p) },
	})
	s.istiod.World.Remove(typeAddress, uidOf(p))
	if err := s.eachKnows(ctx, strconvQuote(uidOf(p)), false); err != nil {
		return err
	}
	switch manner {
	case 0:
		p.die()
		_ = agent.Del(p.name)
	case 1:
		_ = agent.Del(p.name)
		sleep(ctx, time.Duration(r.IntN(300))*time.Millisecond)
		p.die()
	case 3:
		agent.Forget(p.name)
		agent.Disconnect()
		sleep(ctx, time.Duration(r.IntN(2000))*time.Millisecond)
		p.die()
	default:
		p.die()
	}
	if err := p.lab.Delete(); err != nil {
		return err
	}
	if manner == 2 {
		sleep(ctx, time.Duration(r.IntN(300))*time.Millisecond)
		_ = agent.Del(p.name)
	}
	s.chronicle.end(ev)
	return nil
}
