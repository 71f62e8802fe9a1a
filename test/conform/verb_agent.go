// SPDX-License-Identifier: Apache-2.0

package conform

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"

	"google.golang.org/protobuf/proto"

	"github.com/ztunnel-go/ztunnel/internal/zds/zdspb"
	"github.com/ztunnel-go/ztunnel/test/fakeagent"
)

// An agent is the node agent of a node, which does what one should.
type agent struct{ *fakeagent.Agent }

func (a *agent) close() { _ = a.Close() }

// podOf is what an agent tells of a pod.
func (g *group) podOf(pod string) (fakeagent.Pod, error) {
	ns, err := g.suite.Stage.Namespace(pod)
	return fakeagent.Pod{UID: pod, Name: pod, Namespace: namespaceOf(pod), ServiceAccount: pod, NS: ns}, err
}

func (g *group) startAgent(node string) (*agent, error) {
	var enrolled []fakeagent.Pod
	for _, name := range pods() {
		if nodeOf(name) != node || name == "stranger" {
			continue
		}
		pod, err := g.podOf(name)
		if err != nil {
			return nil, err
		}
		enrolled = append(enrolled, pod)
	}
	a, err := fakeagent.Start(g.socket(node), enrolled...)
	if err != nil {
		return nil, err
	}
	return &agent{a}, nil
}

// enrolVerb: enrol pod
func enrolVerb(r *reader) action {
	name := r.oneOf("pod", pods()...)
	return func(_ context.Context, p *player) error {
		pod, err := p.podOf(name)
		if err != nil {
			return err
		}
		return p.agentOf(name).Add(pod)
	}
}

// unenrolVerb: unenrol pod, as when it is deleted.
func unenrolVerb(r *reader) action {
	name := r.oneOf("pod", pods()...)
	return func(_ context.Context, p *player) error { return p.agentOf(name).Del(name) }
}

func (p *player) agentOf(pod string) *agent { return p.agents[nodeOf(pod)] }

// agentVerb: agent node restart
func agentVerb(r *reader) action {
	node := r.node()
	r.want("restart")
	return func(ctx context.Context, p *player) error {
		a := p.agents[node]
		n := a.Snapshots()
		a.Disconnect()
		return a.AwaitSnapshots(ctx, n+1)
	}
}

// A scriptedAgent is one whose packets are a scenario's steps.
type scriptedAgent struct {
	l *fakeagent.Listener
	c *fakeagent.Conn
}

func (a *scriptedAgent) close() {
	if a.c != nil {
		a.c.Close()
	}
	a.l.Close()
}

// zdsVerb: zds open | hangup | closed
// zds add uid pod [nofd|twofds|noinfo|nonetns] -> ok|refused "text"
// zds keep|del uid -> ... | zds snapshot -> ... | zds raw 0x.. [fd] -> ...
func zdsVerb(r *reader) action {
	switch what := r.oneOf("request", "open", "hangup", "closed", "add", "keep", "del", "snapshot", "raw"); what {
	case "open":
		return openAgent
	case "hangup":
		return func(_ context.Context, p *player) error { return p.scripted.c.Close() }
	case "closed":
		return func(_ context.Context, p *player) error { return p.scripted.c.AwaitClosed() }
	default:
		return zdsRequest(r, what)
	}
}

// openAgent takes the next connection of node1's proxy.
func openAgent(ctx context.Context, p *player) error {
	if p.script.agent != "script" {
		return errors.New("the heading \"agent: script\" is missing")
	}
	if p.scripted == nil {
		l, err := fakeagent.Listen(p.socket("node1"))
		if err != nil {
			return err
		}
		p.scripted = &scriptedAgent{l: l}
	}
	if p.scripted.c != nil {
		p.scripted.c.Close()
	}
	var err error
	p.scripted.c, err = p.scripted.l.Accept(ctx)
	return err
}

func zdsRequest(r *reader, what string) action {
	var build func(p *player) (packet []byte, fds []int, err error)
	switch what {
	case "add":
		build = zdsAdd(r)
	case "raw":
		b, err := hex.DecodeString(strings.TrimPrefix(r.bare("bytes in hex"), "0x"))
		if err != nil {
			r.fail("%w", err)
		}
		fd := r.maybe("fd")
		build = func(p *player) ([]byte, []int, error) {
			fds, err := p.descriptors("a", map[bool]int{true: 1}[fd])
			return b, fds, err
		}
	default:
		m := &zdspb.WorkloadRequest{Payload: &zdspb.WorkloadRequest_SnapshotSent{SnapshotSent: &zdspb.SnapshotSent{}}}
		if what != "snapshot" {
			uid := r.name("a uid")
			m.Payload = &zdspb.WorkloadRequest_Keep{Keep: &zdspb.KeepWorkload{Uid: uid}}
			if what == "del" {
				m.Payload = &zdspb.WorkloadRequest_Del{Del: &zdspb.DelWorkload{Uid: uid}}
			}
		}
		build = func(*player) ([]byte, []int, error) {
			b, err := proto.Marshal(m)
			return b, nil, err
		}
	}
	r.want("->")
	text := ""
	if r.oneOf("answer", "ok", "refused") == "refused" {
		text = r.text("a text")
	}
	return func(_ context.Context, p *player) error {
		if p.scripted == nil || p.scripted.c == nil {
			return errors.New("no proxy has connected: zds open comes first")
		}
		packet, fds, err := build(p)
		if err != nil {
			return err
		}
		return sameAnswer(p.scripted.c.SendRaw(packet, fds...), text)
	}
}

func sameAnswer(err error, refusal string) error {
	var refused *fakeagent.Refused
	switch {
	case refusal == "" || err == nil:
		if err == nil && refusal != "" {
			return errors.New("it was taken")
		}
		return err
	case !errors.As(err, &refused):
		return err
	case !strings.Contains(refused.Text, refusal):
		return fmt.Errorf("it was refused with %q", refused.Text)
	}
	return nil
}

// zdsAdd: uid pod [nofd|twofds|noinfo]
func zdsAdd(r *reader) func(p *player) ([]byte, []int, error) {
	uid, pod, fds, info := r.name("a uid"), r.oneOf("pod", pods()...), 1, true
	for r.more() && r.words[0].text != "->" {
		switch r.oneOf("option", "nofd", "twofds", "noinfo") {
		case "nofd":
			fds = 0
		case "twofds":
			fds = 2
		case "noinfo":
			info = false
		}
	}
	return func(p *player) ([]byte, []int, error) {
		add := &zdspb.AddWorkload{Uid: uid}
		if info {
			add.WorkloadInfo = &zdspb.WorkloadInfo{Name: pod, Namespace: namespaceOf(pod), ServiceAccount: pod}
		}
		b, err := proto.Marshal(&zdspb.WorkloadRequest{Payload: &zdspb.WorkloadRequest_Add{Add: add}})
		if err != nil {
			return nil, nil, err
		}
		descriptors, err := p.descriptors(pod, fds)
		return b, descriptors, err
	}
}

// descriptors are n of a pod's namespace.
func (p *player) descriptors(pod string, n int) ([]int, error) {
	ns, err := p.suite.Stage.Namespace(pod)
	if err != nil {
		return nil, err
	}
	var fds []int
	for range n {
		fds = append(fds, ns.Fd())
	}
	return fds, nil
}
