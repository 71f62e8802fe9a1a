// SPDX-License-Identifier: Apache-2.0

package fake

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"

	"github.com/ztunnel-go/ztunnel/dataplane"
	"github.com/ztunnel-go/ztunnel/dataplane/capture"
	"github.com/ztunnel-go/ztunnel/dataplane/inpod"
	"github.com/ztunnel-go/ztunnel/dataplane/live"
	"github.com/ztunnel-go/ztunnel/dnsproxy"
	"github.com/ztunnel-go/ztunnel/internal/admin"
	"github.com/ztunnel-go/ztunnel/internal/logs"
	"github.com/ztunnel-go/ztunnel/internal/mesh"
	"github.com/ztunnel-go/ztunnel/internal/mtls"
	"github.com/ztunnel-go/ztunnel/internal/netns"
)

// A pod is what the model runs for one pod.
type pod struct {
	owner *proxy
	info  inpod.Pod
	proxy *dataplane.Proxy
	dns   *dnsproxy.Server
}

var _ inpod.Proxy = (*pod)(nil)

// An acceptor yields connections that the stage has brought.
type acceptor struct {
	*net.TCPListener
	stage    *Stage
	captured bool // the destination is not the listener's own address
}

// Accept implements [dataplane.Acceptor].
func (a *acceptor) Accept() (*capture.Conn, error) {
	c, err := a.AcceptTCP()
	if err != nil {
		return nil, err
	}
	peer := c.RemoteAddr().(*net.TCPAddr).AddrPort()
	dst := c.LocalAddr().(*net.TCPAddr).AddrPort()
	if a.captured {
		if d := a.stage.destination(peer); d.IsValid() {
			dst = d
		}
	}
	return &capture.Conn{TCPConn: c, Peer: peer, Dst: dst}, nil
}

// startPod binds what a pod's proxy needs, and starts it.
func (p *proxy) startPod(_ context.Context, info inpod.Pod, ns *netns.NS) (inpod.Proxy, error) {
	defer ns.Close()
	ip := p.stage.addr(info.Name)
	if !ip.IsValid() {
		return nil, fmt.Errorf("there is no pod %q here", info.Name)
	}
	one := &pod{owner: p, info: info}
	sockets := dataplane.Sockets{
		Transparent: true,
		Dial:        func(ctx context.Context, to netip.AddrPort) (*net.TCPConn, error) { return dialFrom(ctx, ip, to) },
		// On loopback the client's address is never kept (contract 5.6).
		Deliver: func(ctx context.Context, _ netip.Addr, to netip.AddrPort) (*net.TCPConn, error) {
			return dialFrom(ctx, ip, to)
		},
	}
	for _, at := range []struct {
		port uint16
		to   *dataplane.Acceptor
	}{{15001, &sockets.Outbound}, {15006, &sockets.Plaintext}, {15008, &sockets.HBONE}} {
		l, err := net.ListenTCP("tcp", net.TCPAddrFromAddrPort(netip.AddrPortFrom(ip, at.port)))
		if err != nil {
			return nil, errors.Join(err, closeAll(sockets))
		}
		*at.to = &acceptor{l, p.stage, at.port != 15008}
	}
	name := slog.Any("wl", logs.Bare(info.Namespace+"/"+info.Name))
	if err := one.serveNames(ip, logs.Span(logs.Target(p.logger, "dns"), "dns_proxy", name)); err != nil {
		return nil, errors.Join(err, closeAll(sockets))
	}
	logger := logs.Span(logs.Target(p.logger, "proxy"), "proxy", name)
	one.proxy = dataplane.Start(p.config(), podOf(info), sockets, dataplane.Shared{
		Store: p.store, Certs: p.certs, Reporter: p.reporter, Logger: logger,
		Lookup: func(context.Context, string) ([]netip.Addr, bool, error) {
			return nil, true, errors.New("no names here")
		},
	})
	p.mu.Lock()
	p.pods[info.UID] = one
	p.mu.Unlock()
	p.stage.setEnrolled(info.Name, true)
	return one, nil
}

func closeAll(s dataplane.Sockets) error {
	for _, a := range []dataplane.Acceptor{s.Outbound, s.Plaintext, s.HBONE} {
		if a != nil {
			a.Close()
		}
	}
	return nil
}

// config is the contract's, but for a fault.
func (p *proxy) config() dataplane.Config {
	f := p.stage.fault
	cfg := dataplane.Config{
		Node: p.node, ResponseBaggage: p.env["ENABLE_RESPONSE_BAGGAGE"] != "false" && !f.noBaggage, Illegal: ownPorts(), LocalhostTunnel: true,
		Settings: f.settings, MaxStreams: f.maxStreams,
		TLS: mtls.Options{TLS12: p.env["TLS12_ENABLED"] == "true" || f.oldTLS}, DecisionLevel: slog.LevelDebug,
	}
	if f.ownPorts {
		cfg.Illegal = nil
	}
	if p.env["AUTHZ_POLICY_INFO_LOGGING"] == "true" && !f.quietPolicy {
		cfg.DecisionLevel = slog.LevelInfo
	}
	return cfg
}

func (o *pod) serveNames(ip netip.Addr, logger *slog.Logger) error {
	at := netip.AddrPortFrom(ip, 15053)
	pc, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(at))
	if err != nil {
		return err
	}
	l, err := net.ListenTCP("tcp", net.TCPAddrFromAddrPort(at))
	if err != nil {
		pc.Close()
		return err
	}
	p := o.owner
	o.dns = dnsproxy.New(dnsproxy.Config{
		IPv6: true, View: p.store.View(), Metrics: p.names, Logger: logger, Access: logs.Target(p.logger, "dns"),
		Upstream: dnsproxy.Upstream{Nameservers: []netip.AddrPort{netip.AddrPortFrom(p.stage.addr("outside"), namesPort)}},
		Client: func(ctx context.Context) (*mesh.Workload, error) {
			if w := dataplane.WaitWorkload(ctx, p.store, p.node, podOf(o.info)); w != nil {
				return w, nil
			}
			return nil, errors.New("unknown workload")
		},
		Dial: func(ctx context.Context, network string, to netip.AddrPort) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, network, to.String())
		},
	})
	return o.dns.Serve([]net.PacketConn{pc}, []net.Listener{l})
}

// Stop implements [inpod.Proxy].
func (o *pod) Stop(mode inpod.StopMode) error {
	o.owner.stage.setEnrolled(o.info.Name, false)
	defer o.dns.Close()
	if mode == inpod.Drain {
		o.proxy.Stop(o.owner.grace)
		return nil
	}
	o.proxy.Stop(0)
	return nil
}

// Hurry implements [inpod.Proxy].
func (o *pod) Hurry() { o.proxy.Hurry() }

// Health implements [inpod.Proxy].
func (o *pod) Health() error { return nil }

func (o *pod) connections() *admin.Connections { return connectionsOf(o.proxy.Live()) }

func connectionsOf(s live.Snapshot) *admin.Connections {
	out := &admin.Connections{}
	for _, c := range s.Inbound {
		out.Inbound = append(out.Inbound, admin.InboundConnection{Src: c.Src, ActualDst: c.ActualDst, OriginalDst: c.Service, Protocol: string(c.Protocol)})
	}
	for _, c := range s.Outbound {
		out.Outbound = append(out.Outbound, admin.OutboundConnection{Src: c.Src, ActualDst: c.ActualDst, OriginalDst: c.OriginalDst, Protocol: string(c.Protocol)})
	}
	return out
}

func podOf(p inpod.Pod) dataplane.Pod {
	return dataplane.Pod{UID: p.UID, Name: p.Name, Namespace: p.Namespace, ServiceAccount: p.ServiceAccount}
}
