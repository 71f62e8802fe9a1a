// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"github.com/miekg/dns"
)

// showMesh goes between pods of the mesh, over IPv4.
func (d *demo) showMesh(ctx context.Context) {
	a := fixed()
	d.table.check("HTTP by the service's name", func() (string, error) {
		addr, err := d.lookup(ctx, serverName, dns.TypeA)
		if err != nil {
			return "", err
		}
		return d.web(ctx, d.client, d.toServer(addr, portWeb), serverName)
	})
	d.table.check("HTTP by VIP", func() (string, error) {
		return d.web(ctx, d.client, d.toServer(a.server4, portWeb), a.server4.String())
	})
	d.table.check("HTTP by the pod's address", func() (string, error) {
		return d.web(ctx, d.client, toPod(d.server, targetWeb), d.server.Addr(targetWeb).String())
	})
	d.table.check("the server sees the client's address", func() (string, error) {
		return d.sawClient(ctx, d.client.IPv4, d.toServer(a.server4, portWeb))
	})
	d.table.check("a marker there and back, node to node", func() (string, error) {
		return "echoed", d.echo(ctx, d.client, d.toServer(a.server4, portEcho), d.wire.marker)
	})
	d.table.check("a marker there and back, on one node", func() (string, error) {
		return "echoed", d.echo(ctx, d.guest, d.toServer(a.server4, portEcho), d.wire.marker)
	})
	d.table.check("HTTP on one node, by the pod's address", func() (string, error) {
		return d.web(ctx, d.guest, toPod(d.server, targetWeb), "server")
	})
	d.table.check("a closed port is refused at the source at once", func() (string, error) {
		return d.closedPort(ctx)
	})
}

// showIPv6 does the same over IPv6.
func (d *demo) showIPv6(ctx context.Context) {
	a := fixed()
	d.table.check("HTTP by the service's name", func() (string, error) {
		addr, err := d.lookup(ctx, serverName, dns.TypeAAAA)
		if err != nil {
			return "", err
		}
		return d.web(ctx, d.client, d.toServer(addr, portWeb), serverName)
	})
	d.table.check("HTTP by VIP", func() (string, error) {
		return d.web(ctx, d.client, d.toServer(a.server6, portWeb), "["+a.server6.String()+"]")
	})
	d.table.check("HTTP by the pod's address", func() (string, error) {
		return d.web(ctx, d.client, toPod6(d.server, targetWeb), d.server.Addr6(targetWeb).String())
	})
	d.table.check("the server sees the client's address", func() (string, error) {
		return d.sawClient(ctx, d.client.IPv6, d.toServer(a.server6, portWeb))
	})
	d.table.check("a marker there and back, node to node", func() (string, error) {
		return "echoed", d.echo(ctx, d.client, d.toServer(a.server6, portEcho), d.wire.marker)
	})
}

// web posts the marker and tells who answered.
func (d *demo) web(ctx context.Context, from *pod, to target, host string) (string, error) {
	a, err := d.post(ctx, from, to, host, d.wire.marker)
	if err != nil {
		return "", err
	}
	if to.pod != nil && a.Server != to.pod.Name() {
		return "", fmt.Errorf("%s answered", a.Server)
	}
	return fmt.Sprintf("%v: 200 from %s, asked at %s", to.addr, a.Server, a.Local), nil
}

func (d *demo) sawClient(ctx context.Context, client netip.Addr, to target) (string, error) {
	a, err := d.post(ctx, d.client, to, "server", nil)
	if err != nil {
		return "", err
	}
	peer, err := netip.ParseAddrPort(a.Peer)
	if err != nil || peer.Addr().Unmap() != client {
		return "", fmt.Errorf("it sees %s, want %v", a.Peer, client)
	}
	return "peer " + a.Peer, nil
}

// closedPort asks for a port that nobody listens on. The connection fails
// behind the proxies, and the client hears of it by a reset.
func (d *demo) closedPort(ctx context.Context) (string, error) {
	const closedPort, soon = 4444, time.Second // a lost reset would cost ten
	began := time.Now()
	failed := map[string]string{"source": "CONNECT", "destination": "CONNECT"}
	if err := d.refused(ctx, d.client, toPod(d.server, closedPort), failed); err != nil {
		return "", err
	}
	took := time.Since(began)
	if took > soon {
		return "", fmt.Errorf("it took %v", took)
	}
	return "ended", nil
}

// showBulk moves much both ways, and compares sums.
func (d *demo) showBulk(ctx context.Context) {
	a := fixed()
	size := fmt.Sprintf("%d MiB", d.bytes>>20)
	if d.bytes%(1<<30) == 0 {
		size = fmt.Sprintf("%d GiB", d.bytes>>30)
	}
	var sum string
	d.table.check(size+" to the server, SHA-256 equal", func() (saw string, err error) {
		saw, sum, err = d.upload(ctx, d.toServer(a.server4, portSink))
		return saw, err
	})
	d.table.check(size+" from the server, SHA-256 equal", func() (string, error) {
		if sum == "" {
			return "", errors.New("there is no sum to compare with")
		}
		return d.download(ctx, d.toServer(a.server4, portSource), sum)
	})
}
