// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/netip"

	"github.com/ztunnel-go/ztunnel/test/netlab/serve"
)

// showBorder goes between the mesh and what is not in it. What passes the
// links in plaintext here is excepted, flow by flow.
func (d *demo) showBorder(ctx context.Context) {
	a := fixed()
	d.table.check("out to a machine that the mesh does not know", func() (string, error) {
		to := target{addr: netip.AddrPortFrom(a.outside4, portWeb)}
		defer d.wire.allow("to outside", between(d.client.IPv4, to.addr))()
		got, err := d.post(ctx, d.client, to, "www.outside.example", nil)
		return passed(got, d.client.IPv4, err)
	})
	d.table.check("out to a pod that is not captured, by its service", func() (string, error) {
		to := target{addr: netip.AddrPortFrom(a.legacy4, portWeb), pod: d.legacy, service: legacyName}
		defer d.wire.allow("to legacy", between(d.client.IPv4, d.legacy.Addr(targetWeb)))()
		got, err := d.post(ctx, d.client, to, "legacy", nil)
		return passed(got, d.client.IPv4, err)
	})
	d.table.check("in from a pod that is not captured: the control", func() (string, error) {
		to := toPod(d.server, targetEcho)
		defer d.wire.allow("stranger", between(d.stranger.IPv4, to.addr))()
		return "plaintext, with the marker", d.echo(ctx, d.stranger, to, d.wire.marker)
	})
	d.table.check("a probe from the node", func() (string, error) { return d.probe(ctx) })
}

// passed tells of an answer by somebody outside, who must see the client as
// it is.
func passed(a *serve.Answer, client netip.Addr, err error) (string, error) {
	if err != nil {
		return "", err
	}
	peer, err := netip.ParseAddrPort(a.Peer)
	if err != nil || peer.Addr().Unmap() != client {
		return "", fmt.Errorf("it sees %s, want %v", a.Peer, client)
	}
	return fmt.Sprintf("200 from %s, which saw %s", a.Server, a.Peer), nil
}

// probe asks the server from its node, as a kubelet does. It is no business of
// the proxy's, so it must be in no count.
func (d *demo) probe(ctx context.Context) (string, error) {
	node := d.server.Pod.Node()
	to := d.server.Addr(targetWeb)
	defer d.wire.allow("probe", between(node.IPv4, to))()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+to.String()+"/healthz", nil)
	if err != nil {
		return "", err
	}
	resp, err := node.HTTPClient().Do(req)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	var a serve.Answer
	if err := json.NewDecoder(resp.Body).Decode(&a); err != nil {
		return "", err
	}
	return passed(&a, node.IPv4, nil)
}
