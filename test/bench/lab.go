// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"time"

	"github.com/ztunnel-go/ztunnel/test/fakeagent"
	"github.com/ztunnel-go/ztunnel/test/netlab"
	"github.com/ztunnel-go/ztunnel/test/rig"
)

// A bench is a lab with one subject on both of its nodes.
//
//	node1                    fabric     node2
//	client  near  (mesh)       |        far    (mesh)
//	plain   beside (not)       |        beyond (not)
//
// client loads near and far through the proxy, and beyond past it; plain loads
// beside and beyond, on the same links, without.
type bench struct {
	options
	subject
	lab     *netlab.Lab
	mesh    *rig.Mesh
	proxies []*rig.Proxy

	client, near, far     *netlab.Pod
	plain, beside, beyond *netlab.Pod
	servers               []*generator
}

const (
	namespace = "bench"
	// farName is what DNS is asked for.
	farName = "far." + namespace + ".svc.cluster.local"
)

// resolver is what the client's resolv.conf would say. Nobody is there: what
// is not captured gets no answer.
func resolver() netip.Addr { return netip.AddrFrom4([4]byte{10, 96, 0, 10}) }

// sources are the client's addresses beside its own: a tunnel belongs to one
// address of a client, so each makes a tunnel of its own.
func sources() netip.Prefix { return netip.MustParsePrefix("10.78.0.0/16") }

// half is one half of sources, 0 or 1.
func half(which byte) netip.Prefix {
	a := sources().Addr().As4()
	a[2] = which << 7
	return netip.PrefixFrom(netip.AddrFrom4(a), sources().Bits()+1)
}

func (b *bench) build(ctx context.Context) (err error) {
	if b.lab, err = netlab.New(netlab.Config{}); err != nil {
		return err
	}
	node1, err := b.lab.Node("node1")
	if err != nil {
		return err
	}
	node2, err := b.lab.Node("node2")
	if err != nil {
		return err
	}
	for _, p := range []struct {
		to   **netlab.Pod
		name string
		node *netlab.Node
	}{
		{&b.client, "client", node1}, {&b.near, "near", node1}, {&b.far, "far", node2},
		{&b.plain, "plain", node1}, {&b.beside, "beside", node1}, {&b.beyond, "beyond", node2},
	} {
		if *p.to, err = p.node.Pod(p.name); err != nil {
			return err
		}
		if err := b.prepare(*p.to); err != nil {
			return err
		}
	}
	if err := b.routeSources(node1, node2); err != nil {
		return err
	}
	for _, p := range []*netlab.Pod{b.near, b.far, b.beside, b.beyond} {
		g, err := serveIn(p)
		if err != nil {
			return err
		}
		b.servers = append(b.servers, g)
	}
	return b.startProxies(ctx, node1, node2)
}

// prepare makes room for what a pod's applications and its proxy do in it.
func (b *bench) prepare(p *netlab.Pod) error {
	for name, value := range map[string]string{
		"net/ipv4/ip_local_port_range": "16000 65000",
		"net/ipv4/tcp_tw_reuse":        "1", // or plain connections run out of ports
		"net/core/somaxconn":           "8192",
	} {
		if err := p.Sysctl(name, value); err != nil {
			return err
		}
	}
	return nil
}

// routeSources makes sources addresses of the client, which all nodes and pods
// reach.
func (b *bench) routeSources(node1, node2 *netlab.Node) error {
	for _, r := range []struct {
		in  *netlab.Host
		how string
	}{
		{b.client.Host, "local %s dev lo"},
		{node1.Host, "%s via " + b.client.IPv4.String() + " dev " + b.client.VethName + " onlink"},
		{node2.Host, "%s via " + node1.IPv4.String()},
	} {
		if err := ip(r.in, "route add "+fmt.Sprintf(r.how, sources())); err != nil {
			return err
		}
	}
	return nil
}

// ip runs ip(8) in a namespace.
func ip(in *netlab.Host, args string) error {
	cmd := exec.Command("ip", strings.Fields(args)...)
	var out strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := in.Start(cmd); err != nil {
		return err
	}
	if err := cmd.Wait(); err != nil {
		return fmt.Errorf("ip %s in %s: %w: %s", args, in.Name(), err, out.String())
	}
	return nil
}

// state is what both proxies know. It is JSON, and must be YAML for a peer: so
// there are no ports in it, since a number that is a key is a string in JSON,
// and no matches of strings, which have tags in YAML.
func (b *bench) state() rig.State {
	s := rig.State{Policies: []*rig.Policy{{
		Name: "nobody", Namespace: namespace, Scope: "Namespace", Action: "Deny",
		Rules: [][][]rig.Match{{{{SourceIPs: []string{"192.0.2.0/24"}}}}},
	}}}
	for _, p := range []*netlab.Pod{b.client, b.near, b.far} {
		s.Workloads = append(s.Workloads, rig.WorkloadOf(p, namespace))
	}
	s.Services = []*rig.Service{{
		Name: "far", Namespace: namespace, Hostname: farName, VIPs: []string{"/10.96.0.1"}, Ports: map[uint16]uint16{},
	}}
	return s
}

// readyWait is for a machine with other things to do.
const readyWait = 30 * time.Second

func (b *bench) startProxies(ctx context.Context, nodes ...*netlab.Node) (err error) {
	captured := map[*netlab.Node][]*netlab.Pod{nodes[0]: {b.client, b.near}, nodes[1]: {b.far}}
	if b.mesh, err = rig.New(b.lab, b.Binary); err != nil {
		return err
	}
	if err := b.mesh.SetState(b.state()); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, readyWait)
	defer cancel()
	for _, n := range nodes {
		for _, pod := range captured[n] {
			if b.Capture != istioCNI {
				break
			}
			if err := rig.Redirect(pod, rig.IstioCNI); err != nil {
				return err
			}
		}
		p, err := b.mesh.Start(n, rig.Options{Foreign: b.foreign(), Env: b.env()})
		if err != nil {
			return err
		}
		b.proxies = append(b.proxies, p)
		for _, pod := range captured[n] {
			if err := p.Enrol(pod, namespace); err != nil {
				return fmt.Errorf("enrol %s: %w", pod.Name(), err)
			}
		}
	}
	for i, p := range b.proxies {
		if err := awaitPods(ctx, p, len(captured[nodes[i]])); err != nil {
			return err
		}
	}
	return b.prove(ctx)
}

// prove makes sure that what is measured goes through tunnels: somebody whose
// pods are not captured would be the fastest of all.
func (b *bench) prove(ctx context.Context) error {
	for _, to := range []*netlab.Pod{b.near, b.far} {
		conn, err := b.client.Dial(ctx, "tcp", to.Addr(portSmall).String())
		if err != nil {
			return fmt.Errorf("reach %s through the proxy: %w", to.Name(), err)
		}
		_, err = conn.Write(make([]byte, smallSize))
		if err == nil {
			_, err = io.ReadFull(conn, make([]byte, smallSize))
		}
		conn.Close()
		if err != nil {
			return fmt.Errorf("a round trip to %s through the proxy: %w", to.Name(), err)
		}
	}
	for _, p := range b.proxies {
		if err := p.AwaitPage(ctx, "15020/metrics", `connection_security_policy="mutual_tls"`); err != nil {
			return fmt.Errorf("a tunnel was to be used: %w", err)
		}
	}
	return nil
}

// alive wants that measuring can go on.
func (b *bench) alive(ctx context.Context) error {
	for _, p := range b.proxies {
		if !p.Running() {
			return fmt.Errorf("the proxy of %s has ended", p.Node().Name())
		}
	}
	return context.Cause(ctx)
}

// awaitPods waits until the proxy is ready and has taken so many pods.
func awaitPods(ctx context.Context, p *rig.Proxy, pods int) error {
	for {
		taken := 0
		for _, a := range p.Agent.Answers() {
			var refused *fakeagent.Refused
			if errors.As(a.Err, &refused) {
				return fmt.Errorf("%s refused %s: %w", p.Node().Name(), a.UID, refused)
			}
			if a.Request == "add" && a.Err == nil {
				taken++
			}
		}
		if taken >= pods {
			return p.AwaitReady(ctx)
		}
		if !p.Running() {
			return fmt.Errorf("the proxy of %s has ended", p.Node().Name())
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%s has taken %d of %d pods: %w", p.Node().Name(), taken, pods, ctx.Err())
		case <-time.After(10 * time.Millisecond):
		}
	}
}

// logTail is how many lines of a log are printed after a failure.
const logTail = 20

func (b *bench) close(failed error) error {
	if failed != nil && !errors.Is(failed, context.Canceled) {
		for _, p := range b.proxies {
			lines := p.Output.Lines(0)
			fmt.Fprintf(os.Stderr, "--- the end of the log of %s\n%s\n", p.Node().Name(), strings.Join(lines[max(0, len(lines)-logTail):], "\n"))
		}
	}
	var errs []error
	if b.mesh != nil {
		errs = append(errs, b.mesh.Close())
	}
	for _, g := range b.servers {
		g.stop()
	}
	if b.lab != nil {
		errs = append(errs, b.lab.Close())
	}
	return errors.Join(errs...)
}
