// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"
)

// run soaks, and returns whether nothing was violated. Whatever happens, nothing
// that it made is left behind.
func run(ctx context.Context, o options, out io.Writer) (held bool, err error) {
	s := &soak{options: o, ledger: &ledger{}, chronicle: &chronicle{began: time.Now()}}
	defer func() { err = joined([]error{err, s.close()}) }()
	fmt.Fprintf(out, "soak: TLS_ENGINE=%s, %v, seed %d\n", o.engine, o.lasts, o.seed)
	if err := s.build(ctx); err != nil {
		return false, err
	}
	leaks, err := s.soak(ctx, out)
	if err == nil {
		err = ctx.Err()
	}
	held = s.tell(out)
	for _, leak := range leaks {
		held = false
		fmt.Fprintln(out, "VIOLATED "+leak)
	}
	return held, joined([]error{err, s.writeLogs()})
}

// soak is all that is done while everything is up. It returns what has leaked.
func (s *soak) soak(ctx context.Context, out io.Writer) (leaks []string, err error) {
	lanes, stop := context.WithCancel(context.WithoutCancel(ctx))
	l := &load{s: s}
	l.run(lanes)
	defer func() {
		stop()
		l.lanes.Wait()
	}()
	sleep(ctx, s.warm)
	before, err := s.measure(ctx, l)
	if err != nil {
		return nil, err
	}
	l.paused.Store(false)
	if err := s.disturb(ctx); err != nil {
		return nil, err
	}
	if err := s.clear(ctx, l, before); err != nil {
		return nil, err
	}
	after, err := s.measure(ctx, l)
	// What is only slow to go, and garbage that nobody has collected yet, which
	// happens every two minutes, is no leak.
	for deadline := time.Now().Add(s.late()); err == nil && time.Now().Before(deadline) &&
		len(grown(before["node1"], after["node1"]))+len(grown(before["node2"], after["node2"])) > 0; {
		after, err = s.measure(ctx, l)
	}
	if err != nil {
		return nil, err
	}
	for _, node := range []string{"node1", "node2"} {
		for _, leak := range grown(before[node], after[node]) {
			leaks = append(leaks, node+": "+leak)
		}
		fmt.Fprintf(out, "%s held, before and after: %s\n", node, compared(before[node], after[node]))
	}
	return leaks, nil
}

// late is how long something may take to go.
func (o options) late() time.Duration {
	if o.brief() {
		return 20 * time.Second
	}
	return 150 * time.Second
}

// measure lets all be quiet, and looks at both nodes.
func (s *soak) measure(ctx context.Context, l *load) (map[string]footprint, error) {
	if err := l.quiet(ctx); err != nil {
		return nil, err
	}
	sleep(ctx, poolIdle+time.Second)
	var f1, f2 footprint
	var err1, err2 error
	var looking sync.WaitGroup
	looking.Go(func() { f1, err1 = s.settle(ctx, "node1") })
	looking.Go(func() { f2, err2 = s.settle(ctx, "node2") })
	looking.Wait()
	return map[string]footprint{"node1": f1, "node2": f2}, errors.Join(err1, err2)
}

var errTime = errors.New("the time is over")

// disturb does things to the mesh for as long as was asked.
func (s *soak) disturb(ctx context.Context) error {
	ctx, cancel := context.WithTimeoutCause(ctx, s.lasts, errTime)
	defer cancel()
	ctx, fail := context.WithCancelCause(ctx)
	defer fail(nil)
	var doing sync.WaitGroup
	for i, d := range s.chosen() {
		doing.Go(func() {
			if err := s.repeat(ctx, d, i); err != nil {
				fail(err)
			}
		})
	}
	<-ctx.Done()
	doing.Wait()
	if cause := context.Cause(ctx); cause != errTime {
		return cause
	}
	return nil
}

// clear takes away all pods that have come.
func (s *soak) clear(ctx context.Context, l *load, before map[string]footprint) error {
	if err := l.quiet(ctx); err != nil {
		return err
	}
	s.mu.Lock()
	pods := s.pods
	s.pods = nil
	for _, p := range pods {
		if p.vip > 0 {
			s.pods = append(s.pods, p)
		}
	}
	s.mu.Unlock()
	for _, p := range pods {
		if p.vip > 0 {
			continue
		}
		s.istiod.World.Remove(typeAddress, uidOf(p))
		p.die()
		_ = s.proxy(p.node).Agent.Del(p.name)
		if err := p.lab.Delete(); err != nil {
			return err
		}
	}
	return s.forgotten(ctx, before)
}

// forgotten waits until the proxies have let go of pods that the agent has
// forgotten, or that nobody has named to a process that follows another, which
// they do after a minute.
func (s *soak) forgotten(ctx context.Context, before map[string]footprint) error {
	deadline := time.Now().Add(time.Minute + patience)
	for _, node := range []string{"node1", "node2"} {
		for {
			f, err := s.look(ctx, node)
			if err != nil {
				return err
			}
			if f["pods"] == before[node]["pods"] && f["pins"] == before[node]["pins"] {
				break
			}
			if time.Now().After(deadline) || ctx.Err() != nil {
				s.chronicle.note("WRONG: %s has %d pods and %d pins at the end", node, f["pods"], f["pins"])
				break
			}
			sleep(ctx, time.Second)
		}
	}
	return nil
}
