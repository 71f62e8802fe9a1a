// SPDX-License-Identifier: Apache-2.0

package app

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"strings"
	"sync"
	"time"

	"github.com/ztunnel-go/ztunnel/dataplane"
	"github.com/ztunnel-go/ztunnel/dataplane/capture"
	"github.com/ztunnel-go/ztunnel/dataplane/inpod"
	"github.com/ztunnel-go/ztunnel/dnsproxy"
	"github.com/ztunnel-go/ztunnel/internal/certs"
	"github.com/ztunnel-go/ztunnel/internal/identity"
	"github.com/ztunnel-go/ztunnel/internal/logs"
	"github.com/ztunnel-go/ztunnel/internal/mesh"
	"github.com/ztunnel-go/ztunnel/internal/netns"
)

// warmLimit is how long after its start a process leaves pods to the one before
// because it could not serve them as well.
const warmLimit = time.Minute

// A podProxy is all that runs for one pod: its capture, its proxy, its DNS
// server. It ends them in the order that leaves no connection unowned.
type podProxy struct {
	node    *node
	pod     dataplane.Pod
	capture *capture.Pod
	proxy   *dataplane.Proxy // nil in dedicated mode until it serves
	dns     *dnsproxy.Server // nil: no names are answered

	cancel context.CancelFunc // ends prefetch
	tasks  sync.WaitGroup     // prefetch

	netns uint64      // cookie of its namespace
	quiet sync.Once   // everything but capture has ended
	holds identity.ID // whose certificate prefetch has asked for; read after tasks
}

// startPod is what the node agent's Add causes. The pod is captured only
// when everything that would serve it runs. On error nothing is left behind
// but what an earlier process had captured, which stays so.
func (n *node) startPod(ctx context.Context, pod inpod.Pod, ns *netns.NS) (inpod.Proxy, error) {
	defer ns.Close() // capture keeps a duplicate
	cookie, err := ns.Cookie()
	if err != nil {
		return nil, err
	}
	captured, err := n.capture.Add(ctx, capture.PodInfo{UID: pod.UID, Name: pod.Name, Namespace: pod.Namespace, Late: pod.Late}, ns)
	if err != nil {
		return nil, err
	}
	alive, cancel := context.WithCancel(context.Background())
	p := &podProxy{
		node: n, capture: captured, cancel: cancel, netns: cookie,
		pod: dataplane.Pod{UID: pod.UID, Name: pod.Name, Namespace: pod.Namespace, ServiceAccount: pod.ServiceAccount},
	}
	name := slog.Any("wl", logs.Bare(pod.Namespace+"/"+pod.Name))
	sockets, err := p.sockets(logs.Span(logs.Target(n.logger, "dns"), "dns_proxy", name))
	if err != nil {
		cancel()
		return nil, errors.Join(err, captured.Abandon(context.Background()))
	}
	p.proxy = dataplane.Start(n.proxyConfig(), p.pod, sockets, n.shared(logs.Span(logs.Target(n.logger, "proxy"), "proxy", name)))
	if p.dns != nil {
		err = p.dns.Serve(captured.DNSPacketConns(), captured.DNSListeners())
	}
	p.tasks.Go(func() { p.prefetch(alive) })
	if err == nil {
		err = p.warm(ctx)
	}
	if err == nil {
		err = captured.OnEnd(capture.Endings{Idle: p.proxy.Retire, Severed: p.proxy.Sever})
	}
	if err == nil {
		err = captured.Enable(ctx)
	}
	if err != nil {
		p.proxy.Stop(min(n.cfg.Drain, calledOffGrace))
		p.silence(0)
		p.letGo()
		return nil, errors.Join(err, captured.Abandon(context.Background()))
	}
	n.succession.serves(cookie, p)
	return p, nil
}

// calledOffGrace is what connections have to end that came while the hooks were
// put in force, when that fails or is called off. There are seldom any.
const calledOffGrace = time.Second

// sockets are the ways to the proxy and from it, with the DNS server that the
// names of SOCKS clients need; nothing serves yet.
func (p *podProxy) sockets(dnsLog *slog.Logger) (dataplane.Sockets, error) {
	cfg, captured := p.node.cfg, p.capture
	s := dataplane.Sockets{
		Dial:        captured.Dial,
		Deliver:     captured.Deliver,
		DeliverNow:  captured.DeliverNow,
		Delivered:   captured.Delivered,
		Transparent: captured.Transparent(),
	}
	if cfg.Proxy {
		s.Outbound = captured.Listener(capture.Outbound)
		s.Plaintext = captured.Listener(capture.Plaintext)
		s.HBONE = captured.Listener(capture.HBONE)
	}
	if cfg.Proxy && cfg.SOCKS5 {
		l, err := captured.Listen(netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), PortSOCKS5))
		if err != nil {
			return dataplane.Sockets{}, fmt.Errorf("SOCKS5: %w", err)
		}
		s.SOCKS = ownListener{l}
	}
	if cfg.DNSProxy {
		p.dns = p.newDNS(dnsLog)
		s.Resolve = p.dns.Resolve
	}
	return s, nil
}

// newDNS is the pod's DNS server, which does not serve yet.
func (p *podProxy) newDNS(log *slog.Logger) *dnsproxy.Server {
	return dnsproxy.New(p.dnsConfig(log))
}

func (p *podProxy) dnsConfig(log *slog.Logger) dnsproxy.Config {
	n := p.node
	return dnsproxy.Config{
		Domain:             n.cfg.ClusterDomain,
		PreferredNamespace: n.cfg.PreferredNamespace,
		SearchOfSource:     n.cfg.Dedicated, // contract 11.3
		IPv6:               n.cfg.IPv6,
		Client: func(ctx context.Context) (*mesh.Workload, error) {
			if w := dataplane.WaitWorkload(ctx, n.store, n.cfg.LocalNode, p.pod); w != nil {
				return w, nil
			}
			return nil, fmt.Errorf("unknown workload %s/%s", p.pod.Namespace, p.pod.Name)
		},
		View:    n.store.View(),
		Source:  n.resolv,
		Cache:   n.cfg.dnsCache(),
		Hosts:   n.hosts,
		Dial:    p.dialDNS,
		Metrics: n.dnsMetrics,
		Logger:  log,
		Access:  logs.Target(n.logger, "dns"),
	}
}

// dialDNS reaches an upstream nameserver from the pod's namespace.
func (p *podProxy) dialDNS(ctx context.Context, network string, addr netip.AddrPort) (net.Conn, error) {
	if strings.HasPrefix(network, "tcp") {
		c, err := p.capture.Dial(ctx, addr)
		if err != nil {
			return nil, err
		}
		return c, nil
	}
	return p.capture.DialUDP(ctx, addr)
}

// warm waits, while another process serves the pod, until this one can do as
// well: with the pod's workload and certificate. There is a limit, since the
// other may not have them either.
func (p *podProxy) warm(ctx context.Context) error {
	ctx, done := context.WithDeadline(ctx, p.node.began.Add(warmLimit))
	defer done()
	if !p.capture.Succeeds() {
		return nil
	}
	err := p.certified(ctx)
	if err == nil || time.Since(p.node.began) >= warmLimit || !p.capture.Succeeds() {
		return nil
	}
	return fmt.Errorf("the process before serves the pod on: %w", err)
}

// certified waits for the pod's certificate.
func (p *podProxy) certified(ctx context.Context) error {
	w := dataplane.WaitWorkload(ctx, p.node.store, p.node.cfg.LocalNode, p.pod)
	if w == nil {
		return fmt.Errorf("workload %s/%s has not come: %w", p.pod.Namespace, p.pod.Name, ctx.Err())
	}
	_, err := p.node.certs.Certificate(ctx, w.Identity(), certs.Warmup)
	return err
}

// prefetch has a certificate ready before the first connection wants it, if
// the pod's workload comes.
func (p *podProxy) prefetch(alive context.Context) {
	shared := p.node.shared(p.node.logger)
	w := shared.AwaitWorkload(alive, p.node.proxyConfig(), p.pod)
	if w == nil {
		return
	}
	p.holds = w.Identity()
	p.node.identities.hold(p.holds)
	p.node.certs.Prefetch(p.holds)
}

// letGo forgets the pod's certificate if no other pod has the same identity.
func (p *podProxy) letGo() {
	if !p.holds.IsZero() && p.node.identities.release(p.holds) {
		p.node.certs.Forget(p.holds)
	}
	p.holds = identity.ID{}
}

// Stop ends the pod's proxy and blocks until it has ended. What becomes of
// capture depends on why (see [inpod.StopMode]): it stays closed, unless the
// pod is no longer ours to capture.
func (p *podProxy) Stop(mode inpod.StopMode) error {
	var grace time.Duration
	if mode == inpod.Drain || mode == inpod.Remove {
		grace = p.node.cfg.Drain
	}
	if mode == inpod.Remove {
		if err := p.capture.Leave(); err != nil { // Remove meets the same
			logs.Target(p.node.logger, "capture").Warn("new connections of a removed pod wait", slog.String("error", err.Error()))
		}
	}
	p.quiet.Do(func() { p.silence(grace) })
	p.node.succession.forgets(p.netns, p)
	switch mode {
	case inpod.Park:
		return p.capture.Park()
	case inpod.Remove:
		p.letGo()
		return p.capture.Remove(context.Background())
	default: // Drain, and Forget: whoever comes next finds the pod captured
		p.letGo()
		return p.capture.Release()
	}
}

// Hurry has a Stop wait for connections no longer.
func (p *podProxy) Hurry() {
	if p.proxy != nil {
		p.proxy.Hurry()
	}
}

// silence ends what serves the pod, after giving connections their time.
func (p *podProxy) silence(grace time.Duration) {
	p.cancel()
	if grace > 0 {
		p.vacate(grace)
	}
	ctx, done := context.WithTimeout(context.Background(), grace)
	defer done()
	if p.dns != nil {
		p.dns.Quiet()
	}
	if p.proxy != nil { // its SOCKS clients may have names to be looked up yet
		p.proxy.Stop(grace)
	}
	if p.dns != nil {
		_ = p.dns.Drain(ctx) // what is left then is closed, an answer less
		p.dns.Close()
	}
	p.tasks.Wait()
}

// vacate has nobody left in the queues of sockets that are about to close.
func (p *podProxy) vacate(limit time.Duration) {
	ctx, done := context.WithTimeout(context.Background(), limit)
	defer done()
	if err := p.capture.Vacate(ctx); err != nil {
		logs.Target(p.node.logger, "capture").Warn("connections that have just come may be lost", slog.String("error", err.Error()))
	}
}

// Health is whether the pod's capture holds.
func (p *podProxy) Health() error { return p.capture.Health() }

// identities counts the pods that have an identity, so that its certificate is
// not renewed for ever after the last has gone (contract 7.6).
type identities struct {
	mu   sync.Mutex
	pods map[identity.ID]int // guarded by mu
}

func (h *identities) hold(id identity.ID) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.pods == nil {
		h.pods = map[identity.ID]int{}
	}
	h.pods[id]++
}

// release reports whether it was the last.
func (h *identities) release(id identity.ID) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.pods[id]--
	if h.pods[id] > 0 {
		return false
	}
	delete(h.pods, id)
	return true
}

var _ inpod.Proxy = (*podProxy)(nil)
