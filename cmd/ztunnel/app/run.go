// SPDX-License-Identifier: Apache-2.0

package app

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/ztunnel-go/ztunnel/dataplane"
	"github.com/ztunnel-go/ztunnel/dataplane/balance"
	"github.com/ztunnel-go/ztunnel/dataplane/capture"
	"github.com/ztunnel-go/ztunnel/dataplane/engine"
	"github.com/ztunnel-go/ztunnel/dataplane/handover"
	"github.com/ztunnel-go/ztunnel/dataplane/hbone"
	"github.com/ztunnel-go/ztunnel/dataplane/inpod"
	"github.com/ztunnel-go/ztunnel/dataplane/report"
	"github.com/ztunnel-go/ztunnel/dnsproxy"
	"github.com/ztunnel-go/ztunnel/internal/admin"
	"github.com/ztunnel-go/ztunnel/internal/certs"
	"github.com/ztunnel-go/ztunnel/internal/logs"
	"github.com/ztunnel-go/ztunnel/internal/mesh"
	"github.com/ztunnel-go/ztunnel/internal/metrics"
	"github.com/ztunnel-go/ztunnel/internal/mtls"
	"github.com/ztunnel-go/ztunnel/internal/revocation"
	"github.com/ztunnel-go/ztunnel/xds"
)

// serverGrace is how long a request to an admin page may take to finish when
// the process ends.
const serverGrace = 2 * time.Second

type nodeParams struct {
	cfg     *Config
	version BuildInfo
	log     *logs.Log
	stop    *stopper
}

// A node is everything that runs in one process.
type node struct {
	nodeParams
	logger *slog.Logger
	began  time.Time

	registry   *metrics.Registry
	reporter   *report.Reporter
	balance    *balance.Table // of all pods
	gate       *dataplane.Gate
	engine     *engine.Engine // nil: goroutines carry tunnels
	waits      *dataplane.Metrics
	handovers  *handover.Metrics
	dnsMetrics *dnsproxy.Metrics
	ready      *admin.Tasks
	state      *admin.Task   // the control plane has told everything once
	enrolled   *admin.Task   // snapshot received, every pod served and healthy
	starting   []*admin.Task // done when everything serves

	store   *mesh.Store
	local   *xds.Local
	feed    *xds.Feed // nil without a control plane
	certs   *certs.Manager
	revoked *revocation.Enforcer // nil: nothing is
	resolv  *dnsproxy.Source     // resolv.conf
	hosts   dnsproxy.Hosts
	lookups *dnsproxy.Resolver // of workloads' names
	capture *capture.Node
	// succession passes open connections from process to process; nil: they
	// drain.
	succession *succession
	inpod      *inpod.Enrollment

	identities identities // of enrolled pods

	self      *dataplane.Proxy // of our own pod; nil: we do not know who we are
	dedicated *dedicated       // of the one workload; nil in shared mode, else capture, inpod and enrolled are

	readiness, stats, admin *admin.Server

	closers []closer // in order of construction
}

// A closer is one part's end. What was built first ends last.
type closer struct {
	name  string
	close func() error
}

// run builds the node, serves until ctx ends or the node agent breaks the
// protocol, and takes everything down again.
//
// The order of construction follows contract 15.1: servers are bound early, so
// that a taken port is known at once, and serve when what they show is there.
// The end is the reverse, so that one can watch it: readiness first of all,
// with it enrolment and every pod's connections, the admin pages last.
func run(ctx context.Context, params nodeParams) error {
	n := &node{nodeParams: params, logger: params.log.Logger(), began: time.Now()}
	defer n.close()
	// What differs between the modes: what is built last, and what is served.
	last, work := n.buildShared, n.serveShared
	if n.cfg.Dedicated {
		last, work = n.buildDedicated, n.serveDedicated
	}
	for _, build := range []func(context.Context) error{
		n.startTidying, n.buildMetrics, n.buildEngine, n.bindServers, n.buildCerts, n.buildRevocation, n.buildState, n.buildResolver, last,
	} {
		if err := build(ctx); err != nil {
			if ctx.Err() != nil {
				return nil // asked to stop, which may be why
			}
			return err
		}
	}
	n.serve()
	if !n.awaitState(ctx) {
		return nil // asked to stop before there was anything to serve
	}
	return work(ctx) // nil: asked to stop
}

// buildShared prepares to serve a node's pods (PROXY_MODE=shared).
func (n *node) buildShared(ctx context.Context) error {
	if err := n.buildCapture(ctx); err != nil {
		return err
	}
	if err := n.buildSelf(ctx); err != nil {
		return err
	}
	n.buildSuccession(ctx)
	n.buildEnrollment()
	return nil
}

// serveShared talks with the node agent until ctx ends.
func (n *node) serveShared(ctx context.Context) error {
	if err := n.inpod.Run(ctx); err != nil { // the agent and we disagree; it has been logged
		return fmt.Errorf("workload proxy manager: %w", err)
	}
	return nil
}

func (n *node) onClose(name string, f func() error) {
	n.closers = append(n.closers, closer{name, f})
}

// close ends the parts in reverse. What goes wrong then, such as a reader of
// an admin page who had to be cut off, is no reason to fail.
func (n *node) close() {
	log := logs.Target(n.logger, "ztunnel::app")
	for i := len(n.closers) - 1; i >= 0; i-- {
		if err := n.closers[i].close(); err != nil {
			log.Warn("close", slog.String("part", n.closers[i].name), slog.String("error", err.Error()))
		}
	}
	log.Info("shutdown complete")
}

// buildEnrollment prepares the conversation with the node agent; run holds it.
func (n *node) buildEnrollment() {
	n.inpod = inpod.New(n.enrollmentConfig())
	n.registry.CapturedPods(n.capturedPods)
	n.enrolled.Explain(n.ailing)
	n.onClose("enrolment", n.closeEnrollment)
	logs.Target(n.logger, "ztunnel::proxyfactory").Info("shared proxy mode - in-pod mode enabled")
}

func (n *node) enrollmentConfig() inpod.Config {
	return inpod.Config{
		Socket:  n.cfg.InpodUDS,
		Start:   n.startPod,
		Logger:  logs.Target(n.logger, "ztunnel::inpod::statemanager"),
		Metrics: n.registry.Pods(),
		Settled: n.releaseStrays,
		Missing: n.orphaned,
		Ready: func(ready bool, _ []string) {
			if ready {
				n.enrolled.Done()
				n.succession.settled()
			} else {
				n.enrolled.Pending()
			}
		},
	}
}

// closeEnrollment drains all pods at the same time, our own among them, so that
// a stop takes one deadline. Nobody is told any more that we are ready, and
// nobody who is being told holds the drain up.
func (n *node) closeEnrollment() (err error) {
	n.enrolled.Pending()
	var telling sync.WaitGroup
	telling.Go(func() { err = shutdown(n.readiness) })
	if n.self != nil {
		telling.Go(func() { n.self.Stop(n.cfg.Drain) })
	}
	n.inpod.Close()
	telling.Wait()
	return err
}

func (n *node) buildMetrics(context.Context) error {
	n.registry = metrics.New(n.version.IstioVersion)
	n.registry.LogLines(n.log.Lost)
	n.reporter = report.New(report.NewMetrics(n.registry), n.logger).With(n.cfg.AccessLog)
	n.waits = dataplane.NewMetrics(n.registry.Registerer())
	n.handovers = handover.NewMetrics(n.registry.Registerer())
	if err := n.buildBalance(); err != nil {
		return err
	}
	if n.cfg.DNSProxy {
		n.dnsMetrics = dnsproxy.NewMetrics(n.registry.Registerer())
	}
	return nil
}

// buildBalance makes the one table from which all pods choose endpoints.
func (n *node) buildBalance() error {
	policy, err := balance.ParsePolicy(n.cfg.Balance)
	if err != nil {
		return err
	}
	n.balance = balance.New(balance.Config{Policy: policy, Metrics: balance.NewMetrics(n.registry.Registerer())})
	return nil
}

func (n *node) buildState(ctx context.Context) error {
	log := logs.Target(n.logger, "state_manager")
	for _, text := range n.cfg.ignored() {
		log.Warn(text)
	}
	n.store = mesh.NewStore()
	local, err := xds.OpenLocal(ctx, xds.LocalConfig{Path: n.cfg.Local.Path, Inline: n.cfg.Local.Inline}, n.store, log)
	if err != nil {
		return err
	}
	n.local = local
	n.onClose("local state", local.Close)
	n.followControlPlane()
	return nil
}

func (n *node) buildCapture(ctx context.Context) error {
	cc, err := n.cfg.capture()
	if err != nil {
		return err
	}
	node, err := capture.Open(ctx, cc, logs.Target(n.logger, "capture"))
	if err != nil {
		return err
	}
	n.capture = node
	n.onClose("capture", func() error { node.Close(); return nil })
	n.registry.Capture(n.captureCounts)
	n.registry.CaptureChecks(n.checkCounts)
	return nil
}

func (n *node) captureCounts() []metrics.CaptureCount {
	counters := n.capture.Counters()
	out := make([]metrics.CaptureCount, len(counters))
	for i, c := range counters {
		out[i] = metrics.CaptureCount{Hook: c.Hook, Reason: c.Reason, Value: c.Value}
	}
	return out
}

func (n *node) checkCounts() []metrics.CheckCount {
	counts := n.capture.CheckCounts()
	out := make([]metrics.CheckCount, len(counts))
	for i, c := range counts {
		out[i] = metrics.CheckCount(c)
	}
	return out
}

// capture is what package capture wants of the environment.
func (c *Config) capture() (capture.Config, error) {
	mode, err := capture.ParseMode(c.Capture.Mode)
	if err != nil {
		return capture.Config{}, err
	}
	scope, err := capture.ParseProbeScope(c.Capture.ProbeScope)
	if err != nil {
		return capture.Config{}, err
	}
	out := capture.Config{
		Mode: mode, PinDir: c.Capture.PinDir, CgroupRoot: c.Capture.CgroupRoot,
		HostNetns: c.Capture.HostNetns, ProbeScope: scope,
		Keepalive: c.keepalive(),
		IPv6:      c.IPv6, DNS: c.DNSProxy, PortReuse: c.Sockets.PortReuse,
		SpoofSource: c.keepsSource(),
	}
	if c.Sockets.PacketMark != nil {
		out.Mark = *c.Sockets.PacketMark
	}
	return out, nil
}

// keepsSource says whether applications see their clients' addresses
// (ENABLE_ORIG_SRC).
func (c *Config) keepsSource() bool {
	return c.Sockets.OriginalSource == nil || *c.Sockets.OriginalSource
}

// proxyConfig is what every pod's proxy has in common.
func (n *node) proxyConfig() dataplane.Config {
	c := n.cfg
	level := slog.LevelDebug
	if c.PolicyInfo {
		level = slog.LevelInfo
	}
	return dataplane.Config{
		Network: c.Network, Node: c.LocalNode, ClusterID: c.ClusterID, WorkloadWait: c.WorkloadWait, ResponseBaggage: c.ResponseBaggage,
		MaxStreams: int(c.HBONE.MaxStreams), IdleTimeout: c.HBONE.IdleTimeout,
		Settings: hbone.Settings{
			StreamWindow: c.HBONE.StreamWindow, ConnWindow: c.HBONE.ConnectionWindow, MaxFrameSize: c.HBONE.FrameSize,
		},
		TLS:     mtls.Options{TLS12: c.Control.TLS12, PQC: c.Control.PQC, Revocation: n.revoked},
		Illegal: c.IllegalPorts, LocalhostTunnel: c.LocalhostAppTunnel, DecisionLevel: level,
	}
}

// shared is what every pod's proxy shares with the others.
func (n *node) shared(logger *slog.Logger) dataplane.Shared {
	s := dataplane.Shared{
		Store: n.store, Certs: n.certs, Reporter: n.reporter, Balance: n.balance, Lookup: n.lookups.Addresses,
		Metrics: n.waits, Logger: logger, Engine: n.engine, Gate: n.gate,
	}
	if n.cfg.Control.OnDemand && n.feed != nil {
		s.Demand, s.Used = n.feed.Demand, n.feed.Used
	}
	return s
}

// releaseStrays lets go of pods that were deleted while no process was there
// to hear of it.
func (n *node) releaseStrays() {
	if _, err := n.capture.ReleaseStrays(); err != nil {
		logs.Target(n.logger, "capture").Warn("pods that are gone are still captured", slog.String("error", err.Error()))
	}
}

// orphaned says whether pods were told to another process alone.
func (n *node) orphaned() bool {
	found, err := n.capture.Orphaned()
	if err != nil {
		logs.Target(n.logger, "capture").Warn("pods that nobody serves are not looked for", slog.String("error", err.Error()))
	}
	return found
}
