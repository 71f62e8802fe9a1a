// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"

	"github.com/ztunnel-go/ztunnel/test/netlab"
	"github.com/ztunnel-go/ztunnel/test/netlab/serve"
	"github.com/ztunnel-go/ztunnel/test/rig"
)

// A demo is all that is up, and the books that are kept of it.
//
//	node1                  fabric                  node2
//	client    (mesh)          |           server    (mesh)
//	stranger  (not captured)  |           guest     (mesh)
//	                       outside        legacy    (out of the mesh)
//
// outside is a machine with the nameserver that our DNS forwards to, and a
// web server that the mesh knows nothing of.
type demo struct {
	options
	table  *table
	ledger *ledger
	lab    *netlab.Lab
	mesh   *rig.Mesh
	wire   *wire

	outside          *netlab.Node
	proxies          []*rig.Proxy // of node1 and node2
	client, stranger *pod         // on node1
	server, guest    *pod         // on node2
	legacy           *pod         // on node2
}

// A pod is one of the demo's. Its service account has its name.
type pod struct {
	*netlab.Pod
	name     string
	captured bool   // announced to the node's proxy
	known    bool   // to the mesh, as a workload
	node     string // where it runs
}

const (
	namespace = "demo"
	suffix    = "." + namespace + ".svc.cluster.local"

	serverName = "server" + suffix // HTTP, echo, sink, source
	legacyName = "legacy" + suffix // HTTP; has no IPv6 address

	// forwardedName is the outside world's; missingName is nobody's.
	forwardedName = "www.outside.example"
	missingName   = "missing.outside.example"
)

// Ports that services have and that servers listen on.
const (
	portWeb, portEcho, portSink, portSource         = 80, 7, 9, 19
	targetWeb, targetEcho, targetSink, targetSource = 8080, 7007, 9009, 19019
)

// addresses are made up; nothing routes the first three.
type addresses struct {
	resolver           netip.AddrPort // what pods have in resolv.conf
	server4, server6   netip.Addr     // VIPs
	legacy4            netip.Addr
	outside4, outside6 netip.Addr // of the machine outside
}

func fixed() addresses {
	return addresses{
		resolver: netip.MustParseAddrPort("10.96.0.10:53"),
		server4:  netip.MustParseAddr("10.96.0.1"),
		server6:  netip.MustParseAddr("fd96::1"),
		legacy4:  netip.MustParseAddr("10.96.0.2"),
		outside4: netip.MustParseAddr("203.0.113.53"),
		outside6: netip.MustParseAddr("2001:db8::53"),
	}
}

// build makes the lab and waits until both proxies are ready.
func (d *demo) build(ctx context.Context) (err error) {
	if d.lab, err = netlab.New(netlab.Config{}); err != nil {
		return err
	}
	node1, err := d.lab.Node("node1")
	if err != nil {
		return err
	}
	node2, err := d.lab.Node("node2")
	if err != nil {
		return err
	}
	if err := d.buildOutside(); err != nil {
		return err
	}
	if err := d.buildPods(node1, node2); err != nil {
		return err
	}
	if err := d.buildServers(); err != nil {
		return err
	}
	// Recorded from before the first packet, so that every tunnel is seen
	// from its first byte.
	if d.wire, err = d.record(node1, node2); err != nil {
		return err
	}
	return d.startProxies(ctx, node1, node2)
}

func (d *demo) buildOutside() (err error) {
	if d.outside, err = d.lab.Node("outside"); err != nil {
		return err
	}
	for _, a := range []netip.Addr{fixed().outside4, fixed().outside6} {
		if err := d.outside.AddAddress(a); err != nil {
			return err
		}
	}
	return nil
}

func (d *demo) buildPods(node1, node2 *netlab.Node) error {
	for _, p := range []struct {
		to              **pod
		name            string
		node            *netlab.Node
		captured, known bool
		config          netlab.PodConfig
	}{
		{to: &d.client, name: "client", node: node1, captured: true, known: true},
		{to: &d.stranger, name: "stranger", node: node1},
		{to: &d.server, name: "server", node: node2, captured: true, known: true},
		{to: &d.guest, name: "guest", node: node2, captured: true, known: true},
		{to: &d.legacy, name: "legacy", node: node2, known: true, config: netlab.PodConfig{NoIPv6: true}},
	} {
		made, err := p.node.Pod(p.name, p.config)
		if err != nil {
			return err
		}
		*p.to = &pod{Pod: made, name: p.name, captured: p.captured, known: p.known, node: p.node.Name()}
	}
	return nil
}

func (d *demo) pods() []*pod { return []*pod{d.client, d.stranger, d.server, d.guest, d.legacy} }

func (d *demo) buildServers() error {
	at := func(port uint16) string { return fmt.Sprintf(":%d", port) }
	_, err := d.server.Serve(serve.Options{
		HTTP: at(targetWeb), Echo: at(targetEcho), Sink: at(targetSink), Source: at(targetSource),
	})
	if err != nil {
		return err
	}
	if _, err := d.legacy.Serve(serve.Options{HTTP: at(targetWeb)}); err != nil {
		return err
	}
	_, err = d.outside.Serve(serve.Options{
		HTTP: at(portWeb), DNS: ":53",
		Records: map[string][]netip.Addr{forwardedName: {fixed().outside4, fixed().outside6}},
	})
	return err
}

// close ends the proxies, then takes the lab away. Both are claims as well:
// the proxy goes when it is told to, and leaves nothing. It adds to err what
// went wrong in it; if anything has, it prints the end of the logs.
func (d *demo) close(err error) error {
	if d.lab == nil {
		return err
	}
	d.table.title("The end")
	if err == nil {
		d.stopProxies()
	}
	if interrupted := d.table.over.Err() != nil; !interrupted && (err != nil || len(d.table.failed) > 0) {
		d.printLogs(os.Stdout)
	}
	err = errors.Join(err, d.wire.close())
	if d.mesh != nil {
		err = errors.Join(err, d.mesh.Close())
	}
	dir, cgroup, pins := d.lab.Dir(), d.lab.CgroupRoot(), d.lab.PinDir()
	err = errors.Join(err, d.lab.Close())
	d.table.over = context.Background() // this one matters most when interrupted
	d.table.check("nothing is left: pins, cgroup, namespaces, files", func() (string, error) {
		return "no " + pins + ", no " + cgroup, errors.Join(gone(pins), gone(cgroup), gone(dir))
	})
	return err
}

func gone(path string) error {
	if _, err := os.Lstat(path); !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("%s is left (%v)", path, err)
	}
	return nil
}
