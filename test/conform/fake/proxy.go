// SPDX-License-Identifier: Apache-2.0

package fake

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"sync"
	"time"

	"github.com/ztunnel-go/ztunnel/dataplane"
	"github.com/ztunnel-go/ztunnel/dataplane/inpod"
	"github.com/ztunnel-go/ztunnel/dataplane/report"
	"github.com/ztunnel-go/ztunnel/dnsproxy"
	"github.com/ztunnel-go/ztunnel/internal/admin"
	"github.com/ztunnel-go/ztunnel/internal/ca"
	"github.com/ztunnel-go/ztunnel/internal/certs"
	"github.com/ztunnel-go/ztunnel/internal/control"
	"github.com/ztunnel-go/ztunnel/internal/logs"
	"github.com/ztunnel-go/ztunnel/internal/mesh"
	"github.com/ztunnel-go/ztunnel/internal/metrics"
	"github.com/ztunnel-go/ztunnel/test/conform"
	"github.com/ztunnel-go/ztunnel/test/rig"
	"github.com/ztunnel-go/ztunnel/xds"
)

// A proxy is the model: one goroutine that plays a process.
type proxy struct {
	stage *Stage
	node  string
	env   map[string]string
	out   *rig.Output
	errs  *rig.Output
	grace time.Duration

	log      *logs.Log
	logger   *slog.Logger
	tasks    *admin.Tasks
	registry *metrics.Registry
	names    *dnsproxy.Metrics
	reporter *report.Reporter
	store    *mesh.Store
	certs    *certs.Manager
	inpod    *inpod.Enrollment

	servers map[string]*http.Server
	serving sync.WaitGroup // of servers; ends with them

	stop    context.CancelCauseFunc
	done    chan struct{} // closed when the process would have ended
	code    int           // after done
	closing sync.Once
	ending  sync.WaitGroup // of pods that Close cuts

	mu   sync.Mutex
	pods map[string]*pod // guarded by mu; by uid
}

var _ conform.Proxy = (*proxy)(nil)

// known are the variables that the model heeds, or may pass over: the stage's
// own. Any other makes a scenario one that cannot be played here.
func known(name string) bool {
	switch name {
	case "NODE_NAME", "XDS_ADDRESS", "XDS_ROOT_CA", "INPOD_UDS", "HANDOVER_SOCK", "FAKE_CA", "EMBEDDED_CA_DIR", "RUST_LOG", "LOG_FORMAT",
		"CONNECTION_TERMINATION_DEADLINE", "ISTIO_META_ISTIO_VERSION", "AUTHZ_POLICY_INFO_LOGGING", "ENABLE_RESPONSE_BAGGAGE", "TLS12_ENABLED":
		return true
	}
	return false
}

// Start implements [conform.Stage].
func (s *Stage) Start(start conform.Start) (conform.Proxy, error) {
	for name := range start.Env {
		if !known(name) {
			return nil, conform.ErrUnsupported
		}
	}
	if len(start.Args) == 0 || start.Args[0] != "proxy" {
		return nil, conform.ErrUnsupported
	}
	ctx, stop := context.WithCancelCause(context.Background())
	p := &proxy{
		stage: s, node: start.Node, env: start.Env, out: rig.NewOutput(), errs: rig.NewOutput(), grace: 5 * time.Second,
		servers: map[string]*http.Server{}, stop: stop, done: make(chan struct{}), pods: map[string]*pod{},
	}
	if d, err := time.ParseDuration(start.Env["CONNECTION_TERMINATION_DEADLINE"]); err == nil {
		p.grace = min(d, p.grace) // nobody waits for a model for long
	}
	go func() { // ends when the process would
		defer close(p.done)
		if err := p.run(ctx); err != nil {
			fmt.Fprintf(p.errs, "Error: %v\n", err)
			p.code = 1
		}
		if s.fault.exit != 0 {
			p.code = s.fault.exit
		}
	}()
	return p, nil
}

// errKilled ends a process without grace.
var errKilled = errors.New("killed")

func (p *proxy) run(ctx context.Context) (err error) {
	p.log, err = logs.New(logs.Config{Output: &faultyLines{out: p.out, change: p.stage.fault.line}, JSON: p.env["LOG_FORMAT"] == "json", Filter: p.env["RUST_LOG"]})
	if err != nil {
		return err
	}
	defer p.log.Close()
	p.logger = p.log.Logger()
	p.tasks = admin.NewTasks(logs.Target(p.logger, "readiness"))
	state, enrolled := p.tasks.Register(admin.TaskState), p.tasks.Register(admin.TaskInPod)
	p.serve("15021", "readiness", admin.Readiness(p.tasks))
	defer p.closeServers()

	tag := p.env["ISTIO_META_ISTIO_VERSION"]
	if tag == "" {
		tag = "unknown"
	}
	p.registry = metrics.New(tag)
	p.names = dnsproxy.NewMetrics(p.registry.Registerer())
	p.reporter = report.New(report.NewMetrics(p.registry), p.logger)
	authority, err := ca.OpenEmbedded(p.env["EMBEDDED_CA_DIR"], time.Hour)
	if err != nil {
		return err
	}
	p.certs = certs.New(p.stage.fault.issuer(authority), certs.Config{}, nil)
	defer p.certs.Close()
	p.store = mesh.NewStore()
	feed := xds.Open(xds.Config{
		Control: control.Config{Address: p.env["XDS_ADDRESS"], Roots: control.Roots{File: p.env["XDS_ROOT_CA"]}, MaxMessage: 16 << 20},
		Node:    xds.Node{NodeName: p.node}, LocalNode: p.node,
	}, p.store, xds.Hooks{Metrics: xds.NewMetrics(p.registry.Registerer())}, p.logger)
	defer feed.Close()
	p.inpod = inpod.New(p.enrollment(enrolled))
	p.serve("15000", "admin", p.pages(ctx).Handler())
	p.serve("15020", "stats", admin.Stats(p.registry, metrics.ContentType, p.logger))
	defer p.logger.Info("shutdown complete")
	select {
	case <-feed.Ready():
		state.Done()
	case <-ctx.Done():
		return nil
	}
	if p.stage.fault.readyEarly {
		enrolled.Done()
	}
	err = p.inpod.Run(ctx)
	if errors.Is(context.Cause(ctx), errKilled) {
		p.grace = 0
	}
	p.closeServer("15021")
	p.inpod.Close()
	return err
}

func (p *proxy) enrollment(enrolled *admin.Task) inpod.Config {
	return inpod.Config{
		Socket: p.env["INPOD_UDS"], Start: p.startPod, Metrics: p.registry.Pods(),
		Logger: logs.Target(p.logger, "ztunnel::inpod::statemanager"),
		Ready: func(ready bool, _ []string) {
			if ready || p.stage.fault.readyEarly {
				enrolled.Done()
			} else {
				enrolled.Pending()
			}
		},
	}
}

func (p *proxy) pages(context.Context) admin.Pages {
	return admin.Pages{
		Log: p.log, Shutdown: func() { p.stop(errors.New("asked to")) }, Logger: p.logger,
		Dump: admin.Dump{
			View: p.store.View(), Pods: p.dumpPods,
			Config: func() any { return map[string]any{} }, Version: func() any { return map[string]any{} },
		},
	}
}

func (p *proxy) dumpPods() []admin.Pod {
	var out []admin.Pod
	for _, st := range p.inpod.Pods() {
		one := admin.Pod{UID: st.Pod.UID, Name: st.Pod.Name, Namespace: st.Pod.Namespace, ServiceAccount: st.Pod.ServiceAccount, State: string(st.State)}
		if pod, ok := st.Proxy.(*pod); ok && st.State == inpod.StateUp {
			one.Connections = pod.connections()
		}
		out = append(out, one)
	}
	return out
}

// serve answers on a port of the node's own.
func (p *proxy) serve(port, component string, h http.Handler) {
	l, err := net.Listen("tcp", net.JoinHostPort(p.stage.addr(p.node).String(), port))
	if err != nil {
		p.errs.Write([]byte("Error: " + component + " server starts: " + err.Error() + "\n"))
		return
	}
	srv := &http.Server{Handler: &faultyPages{h: h, port: port, change: p.stage.fault.page}, ReadHeaderTimeout: time.Second}
	p.servers[port] = srv
	p.serving.Go(func() { _ = srv.Serve(l) })
	p.logger.Info("listener established", slog.String("component", component))
}

func (p *proxy) closeServer(port string) {
	if s := p.servers[port]; s != nil {
		s.Close()
	}
}

func (p *proxy) closeServers() {
	for _, s := range p.servers {
		s.Close()
	}
	p.serving.Wait()
}

// Output implements [conform.Proxy].
func (p *proxy) Output() *rig.Output { return p.out }

// Errors implements [conform.Proxy].
func (p *proxy) Errors() *rig.Output { return p.errs }

// Signal implements [conform.Proxy].
func (p *proxy) Signal(name string) error {
	switch name {
	case "KILL":
		p.stop(errKilled)
	case "TERM", "INT":
		if !p.stage.fault.deaf {
			p.logger.Info("received signal SIG" + name + ", starting shutdown")
			p.stop(errors.New("signal"))
		}
	}
	return nil
}

// Wait implements [conform.Proxy].
func (p *proxy) Wait(ctx context.Context) (int, error) {
	select {
	case <-p.done:
		return p.code, nil
	case <-ctx.Done():
		return 0, fmt.Errorf("the model runs on: %w", ctx.Err())
	}
}

// Close implements [conform.Proxy].
func (p *proxy) Close() error {
	p.closing.Do(func() {
		p.stop(errKilled)
		p.mu.Lock()
		defer p.mu.Unlock()
		for _, pod := range p.pods {
			p.ending.Go(func() { pod.proxy.Stop(0) })
		}
	})
	p.ending.Wait()
	<-p.done
	return nil
}

// A dialer of the places' addresses.
func dialFrom(ctx context.Context, from netip.Addr, to netip.AddrPort) (*net.TCPConn, error) {
	c, err := (&net.Dialer{LocalAddr: &net.TCPAddr{IP: from.AsSlice()}, Timeout: 10 * time.Second}).DialContext(ctx, "tcp", to.String())
	if err != nil {
		return nil, err
	}
	return c.(*net.TCPConn), nil
}

var _ dataplane.Acceptor = (*acceptor)(nil)
