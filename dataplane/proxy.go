// SPDX-License-Identifier: Apache-2.0

// Package dataplane is the proxy of one pod: its listeners and the order of
// the steps that a connection takes through them.
//
// It decides nothing itself. Where a connection goes is dataplane/route,
// whether it may is dataplane/rbac, how bytes travel is dataplane/hbone and
// dataplane/relay, which connections are open is dataplane/live, and what is
// said about them is dataplane/report, which of several endpoints has it is
// dataplane/balance; sockets come from dataplane/capture
// through [Sockets]. It knows neither the node agent nor DNS, and is imported
// by cmd/ztunnel/app alone.
package dataplane

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/ztunnel-go/ztunnel/dataplane/balance"
	"github.com/ztunnel-go/ztunnel/dataplane/capture"
	"github.com/ztunnel-go/ztunnel/dataplane/engine"
	"github.com/ztunnel-go/ztunnel/dataplane/hbone"
	"github.com/ztunnel-go/ztunnel/dataplane/live"
	"github.com/ztunnel-go/ztunnel/dataplane/reason"
	"github.com/ztunnel-go/ztunnel/dataplane/relay"
	"github.com/ztunnel-go/ztunnel/dataplane/report"
	"github.com/ztunnel-go/ztunnel/dataplane/route"
	"github.com/ztunnel-go/ztunnel/internal/certs"
	"github.com/ztunnel-go/ztunnel/internal/logs"
	"github.com/ztunnel-go/ztunnel/internal/mesh"
	"github.com/ztunnel-go/ztunnel/internal/mtls"
	"github.com/ztunnel-go/ztunnel/internal/sock"
)

const (
	// workloadWait is how long a connection waits for what it cannot be judged
	// without (contract 16).
	workloadWait = 5 * time.Second

	// An accept that fails for want of descriptors or memory fails again at
	// once. It is tried again after minPause, and then ever more slowly: the
	// wait must neither burn the CPU that could close connections nor be felt
	// once some have closed.
	minPause = 5 * time.Millisecond
	maxPause = time.Second
)

// Config is what every pod's proxy on a node has in common.
type Config struct {
	Network         string        // of this node; may be empty
	Node            string        // workloads of other nodes are not local; empty: all are
	ClusterID       string        // of this node; part of how istiod names its pods
	WorkloadWait    time.Duration // how long a connection waits for what it cannot be judged without; 0: 5 s
	SOCKSWait       time.Duration // how long a SOCKS client may take to say where to; 0: 10 s
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
// Errors of Accept are as of [net.Listener]: net.ErrClosed is the end.
type Acceptor interface {
	Accept() (*capture.Conn, error)
	Close() error
	Addr() net.Addr
}

// Sockets is what a proxy needs of its pod's network namespace.
// [capture.Pod] has all of it; tests have it on loopback. An Acceptor that is
// nil is a way to the proxy that there is not.
type Sockets struct {
	Outbound  Acceptor // connections of the pod's applications, port 15001
	Plaintext Acceptor // connections to the pod, port 15006
	HBONE     Acceptor // tunnels to the pod, port 15008
	SOCKS     Acceptor // connections that say where to, port 15080

	// Resolve finds an address of a name that a SOCKS client asks for, as the
	// pod's DNS server would answer it, IPv6 with v6. nil: there is none.
	Resolve func(ctx context.Context, name string, v6 bool) (netip.Addr, error)
	// Dial connects towards the network, from the pod's namespace.
	Dial func(context.Context, netip.AddrPort) (*net.TCPConn, error)
	// Deliver connects to the pod's application as if from client.
	Deliver func(ctx context.Context, client netip.Addr, dst netip.AddrPort) (*net.TCPConn, error)
	// DeliverNow is Deliver on event loops: it does not wait, and says
	// [sock.ErrLater] where Deliver would. Delivered hears what became of it.
	// nil: only Deliver delivers.
	DeliverNow func(client netip.Addr, dst netip.AddrPort) (*sock.Dialing, error)
	Delivered  func(error)
	// Transparent says in the log that Deliver keeps the client's address.
	Transparent bool
}

// Shared is what proxies of all pods use together.
type Shared struct {
	Store    *mesh.Store
	Certs    *certs.Manager
	Reporter *report.Reporter
	// Balance chooses endpoints by what all proxies know of them; nil: each
	// proxy has a table of its own.
	Balance *balance.Table
	// Lookup resolves the hostname of a workload without addresses, outside any pod (contract 3.8).
	// asked says that the answer was not in a cache.
	Lookup func(ctx context.Context, hostname string) (addrs []netip.Addr, asked bool, err error)
	// Demand has the control plane tell of a workload or service by one of its
	// names (contract 8.7), and returns when Store holds what it said; nil:
	// Store has everything without being asked for it.
	Demand func(ctx context.Context, name string) error
	// Used hears which resources decisions rest on, by name, where there is
	// Demand; nil: nobody wants to know.
	Used    func(names []string)
	Metrics *Metrics // nil: waits are not counted
	Logger  *slog.Logger
	// Gate bounds connections without a finished handshake; nil: nothing does.
	Gate *Gate
	// Engine carries tunnels and their connections on event loops; nil:
	// goroutines do (TLS_ENGINE=std).
	Engine *engine.Engine
}

/* The life of a proxy
 *
 *	Start --> serving --Stop--> draining --last connection, or grace--> ended
 *
 * A draining proxy accepts nothing, and its inbound tunnels have said GOAWAY.
 * Everything else goes on as before, so that a connection accepted a moment
 * ago still gets its upstream. At the end of grace ctx ends all that is left.
 */

// A Proxy serves one pod. Make it with [Start] and end it with [Proxy.Stop].
type Proxy struct {
	cfg     Config
	pod     Pod
	sockets Sockets
	shared  Shared
	view    mesh.View
	log     *slog.Logger

	pool    *hbone.Pool
	live    *live.Table
	balance *balance.Table

	waits     waits
	absent    absences
	inquiries inquiries

	// ctx ends when connections must: its cause says why.
	ctx    context.Context
	cancel context.CancelCauseFunc
	lives  relay.Lives // of user connections, which end with ctx

	draining  chan struct{}   // closed when Stop begins
	quick     []quickAcceptor // set by Start, taken back by Stop
	acceptors sync.WaitGroup  // one per listener; ends when that is closed
	conns     sync.WaitGroup  // one per accepted socket; ends with it
	watcher   sync.WaitGroup  // of policies; ends with ctx
	stopOnce  sync.Once
	hurried   chan struct{} // closed by Hurry
	hurryOnce sync.Once

	retired atomic.Bool // see Retire
	severed atomic.Bool // see Sever

	mu      sync.Mutex
	tunnels map[*hbone.ServerConn]arrived // guarded by mu; inbound tunnels, which a drain must tell
	proofs  map[*hbone.Tunnel]*witness    // guarded by mu; of the peers of outbound tunnels
}

// ErrDrained ends connections that outlive a drain (contract 10.6, 15.3).
var ErrDrained = reason.New(reason.Drained, "connection closed due to connection drain")

// Start begins to accept. It returns at once; nothing here fails.
func Start(cfg Config, pod Pod, sockets Sockets, shared Shared) *Proxy {
	if cfg.WorkloadWait == 0 {
		cfg.WorkloadWait = workloadWait
	}
	if cfg.SOCKSWait == 0 {
		cfg.SOCKSWait = socksWait
	}
	ctx, cancel := context.WithCancelCause(context.Background())
	p := &Proxy{
		cfg: cfg, pod: pod, sockets: sockets, shared: shared,
		view: shared.Store.View(), log: shared.Logger,
		ctx: ctx, cancel: cancel, draining: make(chan struct{}), hurried: make(chan struct{}),
		tunnels: map[*hbone.ServerConn]arrived{}, proofs: map[*hbone.Tunnel]*witness{},
	}
	if p.balance = shared.Balance; p.balance == nil {
		p.balance = balance.New(balance.Config{})
	}
	p.live = live.New(shared.Store, shared.Logger, live.DecisionsAt(cfg.DecisionLevel))
	p.pool = hbone.NewPool(hbone.PoolConfig{
		Dial:        p.dialTunnel,
		TLS:         p.handshake,
		Settings:    cfg.Settings,
		Engine:      shared.Engine,
		MaxStreams:  cfg.MaxStreams,
		IdleTimeout: cfg.IdleTimeout,
		Logger:      shared.Logger,
	})
	p.watcher.Go(func() { p.live.Run(ctx) })
	for _, l := range p.listeners() {
		p.logFor(l.target).Info("listener established", slog.Any("address", l.Addr()),
			slog.String("component", l.component), slog.Bool("transparent", sockets.Transparent))
		if !p.listenQuick(l) {
			p.acceptors.Go(func() { p.accept(l) })
		}
	}
	return p
}

// A listener is one of the ways to a proxy.
type listener struct {
	Acceptor
	component string // as logged (contract 14.5)
	target    string // of log lines
	serve     func(*capture.Conn)
	quick     func(*capture.Socket) // the same on an event loop; nil: goroutines serve
}

// Log targets, which operators filter by (contract 14.2).
const (
	targetOutbound  = "proxy::outbound"
	targetInbound   = "proxy::inbound"
	targetPlaintext = "proxy::inbound_passthrough"
	targetSOCKS     = "proxy::socks5"
)

func (p *Proxy) listeners() []listener {
	all := []listener{
		{p.sockets.HBONE, "inbound", targetInbound, p.tunnel, nil},
		{p.sockets.Plaintext, "inbound plaintext", targetPlaintext, p.plaintext, nil},
		{p.sockets.Outbound, "outbound", targetOutbound, p.outbound, p.outboundNow},
		{p.sockets.SOCKS, "socks5", targetSOCKS, p.socks, nil},
	}
	return slices.DeleteFunc(all, func(l listener) bool { return l.Acceptor == nil })
}

func (p *Proxy) logFor(target string) *slog.Logger { return logs.Target(p.log, target) }

// accept ends when its listener is closed.
func (p *Proxy) accept(l listener) {
	pause := minPause
	for {
		conn, err := l.Accept()
		if err == nil {
			pause = minPause
			p.conns.Go(func() { l.serve(conn) })
			continue
		}
		if errors.Is(err, net.ErrClosed) {
			return
		}
		p.logFor(l.target).Error(fmt.Sprintf("Failed TCP handshake %v", err))
		if !exhausted(err) {
			continue // it concerned that connection only
		}
		select {
		case <-time.After(pause):
		case <-p.draining:
		}
		pause = min(2*pause, maxPause)
	}
}

// exhausted reports whether err is the machine's, and not one connection's.
func exhausted(err error) bool {
	for _, e := range []syscall.Errno{syscall.EMFILE, syscall.ENFILE, syscall.ENOBUFS, syscall.ENOMEM} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

// Live shows the open connections.
func (p *Proxy) Live() live.Snapshot { return p.live.Snapshot() }

// Stop ends the proxy: listeners close at once, and connections end by
// themselves until grace has passed, then with [ErrDrained]. Inbound tunnels
// are told at once that no more streams are taken, and tunnels of our own that
// carry nothing close. It returns when everything
// has ended; later calls wait for the first.
func (p *Proxy) Stop(grace time.Duration) {
	p.stopOnce.Do(func() { p.stop(grace) })
}

func (p *Proxy) stop(grace time.Duration) {
	close(p.draining)
	p.closeQuick()
	for _, l := range p.listeners() {
		if err := l.Close(); err != nil {
			p.log.Warn("close listener", slog.String("component", l.component), slog.String("error", err.Error()))
		}
	}
	p.acceptors.Wait() // from now on there is no new connection
	p.drainTunnels()
	p.pool.Shed()
	ended := make(chan struct{})
	go func() { // ends with the last connection, for which we wait below
		p.conns.Wait()
		close(ended)
	}()
	if grace > 0 {
		deadline := time.NewTimer(grace)
		defer deadline.Stop()
		select {
		case <-ended:
		case <-p.hurried:
		case <-deadline.C:
			p.log.Warn("drain duration expired with pending connections, forcefully shutting down")
		}
	}
	p.cancel(ErrDrained)
	p.lives.End(ErrDrained)
	p.endTunnels()
	<-ended
	p.pool.Close() // always nil
	p.watcher.Wait()
}

func (p *Proxy) isDraining() bool {
	select {
	case <-p.draining:
		return true
	default:
		return false
	}
}

func (p *Proxy) drainTunnels() {
	for _, t := range p.tunnelsNow() {
		t.Drain()
	}
}

func (p *Proxy) endTunnels() {
	for _, t := range p.tunnelsNow() {
		t.Close() // always nil
	}
}

func (p *Proxy) tunnelsNow() []*hbone.ServerConn {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Collect(maps.Keys(p.tunnels))
}

// addTunnel remembers an inbound tunnel for the time of a drain and for the
// end. A tunnel whose handshake ends during one is drained from its beginning.
func (p *Proxy) addTunnel(t *hbone.ServerConn, from arrived) {
	p.mu.Lock()
	p.tunnels[t] = from
	p.mu.Unlock()
	if p.isDraining() {
		t.Drain()
	}
	if p.ctx.Err() != nil {
		t.Close() // always nil
	}
}

func (p *Proxy) removeTunnel(t *hbone.ServerConn) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.tunnels, t)
}
