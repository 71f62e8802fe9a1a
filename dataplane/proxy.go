// SPDX-License-Identifier: Apache-2.0

// Package dataplane is the proxy of one pod: its listeners and the order of
// the steps that a connection takes through them.
//
// It decides nothing itself. Where a connection goes is dataplane/route,
// whether it may is dataplane/rbac, how bytes travel is dataplane/hbone and
// dataplane/relay, which connections are open is dataplane/live, and what is
// said about them is dataplane/report; sockets come from dataplane/capture
// through [Sockets]. It knows neither the node agent nor DNS, and is imported
// by cmd/ztunnel/app alone.
package dataplane

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"time"

	"github.com/ztunnel-go/ztunnel/dataplane/capture"
	"github.com/ztunnel-go/ztunnel/dataplane/hbone"
	"github.com/ztunnel-go/ztunnel/dataplane/live"
	"github.com/ztunnel-go/ztunnel/dataplane/report"
	"github.com/ztunnel-go/ztunnel/dataplane/route"
	"github.com/ztunnel-go/ztunnel/internal/certs"
	"github.com/ztunnel-go/ztunnel/internal/mesh"
	"github.com/ztunnel-go/ztunnel/internal/mtls"
)

// workloadWait is how long a connection waits for the pod's own workload to
// arrive from the control plane (contract 16).
const workloadWait = 5 * time.Second

// Config is what every pod's proxy on a node has in common.
type Config struct {
	Network         string        // of this node; may be empty
	Node            string        // workloads of other nodes are not local; empty: all are
	ResponseBaggage bool          // send baggage with 200 and read it from requests
	MaxStreams      int           // user connections on one tunnel; 0: 100
	IdleTimeout     time.Duration // unused tunnels are dropped after it; 0: 5 min
	Settings        hbone.Settings
	TLS             mtls.Options
	Illegal         route.IllegalPorts // never dialled and never asked for: our own listeners
	LocalhostTunnel bool               // application tunnels are dialled on loopback
	DecisionLevel   slog.Level         // of the lines that tell what policy said
}

// A Pod is what the node agent says of the pod that a proxy serves.
type Pod struct{ UID, Name, Namespace, ServiceAccount string }

// An Acceptor yields captured connections that know where they were going.
type Acceptor interface {
	Accept() (*capture.Conn, error)
	Close() error
}

// Sockets is what a proxy needs of its pod's network namespace.
// [capture.Pod] has all of it; tests have it on loopback.
type Sockets struct {
	Outbound  Acceptor // connections of the pod's applications, port 15001
	Plaintext Acceptor // connections to the pod, port 15006
	HBONE     Acceptor // tunnels to the pod, port 15008

	// Dial connects towards the network, from the pod's namespace.
	Dial func(context.Context, netip.AddrPort) (*net.TCPConn, error)
	// Deliver connects to the pod's application as if from client.
	Deliver func(ctx context.Context, client netip.Addr, dst netip.AddrPort) (*net.TCPConn, error)
}

// Shared is what proxies of all pods use together.
type Shared struct {
	Store    *mesh.Store
	Certs    *certs.Manager
	Reporter *report.Reporter
	// Lookup resolves the hostname of a workload without addresses, outside any pod (contract 3.8).
	Lookup func(ctx context.Context, hostname string) ([]netip.Addr, error)
	Logger *slog.Logger
}

// A Proxy serves one pod. Make it with [Start] and end it with [Proxy.Stop].
type Proxy struct {
	cfg     Config
	pod     Pod
	sockets Sockets
	shared  Shared
	view    mesh.View
	log     *slog.Logger

	pool *hbone.Pool
	live *live.Table

	// ctx ends when connections must: its cause says why.
	ctx    context.Context
	cancel context.CancelCauseFunc

	mu      sync.Mutex
	tunnels map[*hbone.ServerConn]struct{} // guarded by mu; inbound tunnels that drain must tell
	drained bool                           // guarded by mu; no tunnel may be added

	acceptors sync.WaitGroup // three accept loops and the policy watcher; end when listeners close and ctx ends
	conns     sync.WaitGroup // one per accepted socket; ends with it
	stopOnce  sync.Once
}

// ErrDrained ends connections that outlive a drain (contract 10.6, 15.3).
var ErrDrained = errors.New("connection closed due to connection drain")

// Start begins to accept. It returns at once; nothing here fails.
func Start(cfg Config, pod Pod, sockets Sockets, shared Shared) *Proxy {
	ctx, cancel := context.WithCancelCause(context.Background())
	p := &Proxy{
		cfg: cfg, pod: pod, sockets: sockets, shared: shared,
		view: shared.Store.View(), log: shared.Logger,
		ctx: ctx, cancel: cancel,
		tunnels: map[*hbone.ServerConn]struct{}{},
	}
	p.live = live.New(shared.Store, shared.Logger, live.DecisionsAt(cfg.DecisionLevel))
	p.pool = hbone.NewPool(hbone.PoolConfig{
		Dial:        p.dialTunnel,
		TLS:         p.tunnelTLS,
		Settings:    cfg.Settings,
		MaxStreams:  cfg.MaxStreams,
		IdleTimeout: cfg.IdleTimeout,
		Logger:      shared.Logger,
	})
	p.acceptors.Go(func() { p.live.Run(ctx) })
	p.acceptors.Go(func() { p.acceptLoop(sockets.Outbound, p.outbound) })
	p.acceptors.Go(func() { p.acceptLoop(sockets.Plaintext, p.plaintext) })
	p.acceptors.Go(func() { p.acceptLoop(sockets.HBONE, p.tunnel) })
	return p
}

// acceptLoop ends when its listener is closed.
func (p *Proxy) acceptLoop(l Acceptor, serve func(*capture.Conn)) {
	const pause = 5 * time.Millisecond // an accept that fails for want of descriptors fails again at once
	for {
		conn, err := l.Accept()
		switch {
		case err == nil:
			p.conns.Go(func() { serve(conn) })
		case errors.Is(err, net.ErrClosed):
			return
		default:
			p.log.Error(fmt.Sprintf("Failed TCP handshake %v", err))
			time.Sleep(pause)
		}
	}
}

// Live shows the open connections.
func (p *Proxy) Live() live.Snapshot { return p.live.Snapshot() }

// Stop ends the proxy: listeners close at once, and connections end by
// themselves until grace has passed, then with [ErrDrained]. Tunnels are told
// at once that no more streams are taken. It returns when everything has
// ended; later calls wait for the first.
func (p *Proxy) Stop(grace time.Duration) {
	p.stopOnce.Do(func() {
		for _, l := range []Acceptor{p.sockets.Outbound, p.sockets.Plaintext, p.sockets.HBONE} {
			l.Close()
		}
		p.drainTunnels()
		p.pool.Drain()
		if grace > 0 {
			wait, done := context.WithTimeout(context.Background(), grace)
			if p.live.Wait(wait) != nil {
				p.log.Warn("drain duration expired with pending connections, forcefully shutting down")
			}
			done()
		}
		p.cancel(ErrDrained)
		p.pool.Close()
		p.conns.Wait()
		p.acceptors.Wait()
	})
}

func (p *Proxy) drainTunnels() {
	p.mu.Lock()
	p.drained = true
	tunnels := make([]*hbone.ServerConn, 0, len(p.tunnels))
	for t := range p.tunnels {
		tunnels = append(tunnels, t)
	}
	p.mu.Unlock()
	for _, t := range tunnels {
		t.Drain()
	}
}

// addTunnel remembers an inbound tunnel for the time of a drain. A tunnel that
// comes during one is drained from its beginning.
func (p *Proxy) addTunnel(t *hbone.ServerConn) {
	p.mu.Lock()
	p.tunnels[t] = struct{}{}
	late := p.drained
	p.mu.Unlock()
	if late {
		t.Drain()
	}
}

func (p *Proxy) removeTunnel(t *hbone.ServerConn) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.tunnels, t)
}

// workload waits for the pod's own workload, for at most workloadWait
// (contract 3.1 step 3). The answer is nil when it did not come.
func (p *Proxy) workload(ctx context.Context) *mesh.Workload {
	return WaitWorkload(ctx, p.shared.Store, p.cfg.Node, p.pod)
}

// WaitWorkload waits up to 5 s, or until ctx ends, for the workload that
// belongs to pod among those of node; nil says that it did not come. An empty
// node means any.
func WaitWorkload(ctx context.Context, store *mesh.Store, node string, pod Pod) *mesh.Workload {
	find := func() *mesh.Workload {
		return store.View().LocalWorkload(node, pod.Name, pod.Namespace, pod.ServiceAccount)
	}
	if w := find(); w != nil {
		return w
	}
	timer := time.NewTimer(workloadWait)
	defer timer.Stop()
	for {
		changed := store.Changed()
		if w := find(); w != nil {
			return w
		}
		select {
		case <-changed:
		case <-timer.C:
			return nil
		case <-ctx.Done():
			return nil
		}
	}
}

// label is how logs and errors name the pod: <service account>.<namespace> (<name>).
func (p Pod) label() string {
	return fmt.Sprintf("%s.%s (%s)", p.ServiceAccount, p.Namespace, p.Name)
}

func (p *Proxy) errNoWorkload() error {
	return fmt.Errorf("failed to fetch information about local workload: %s", p.pod.label())
}
