// SPDX-License-Identifier: Apache-2.0

package app

import (
	"context"
	"fmt"
	"net/netip"

	"github.com/ztunnel-go/ztunnel/dataplane"
	"github.com/ztunnel-go/ztunnel/dataplane/inpod"
	"github.com/ztunnel-go/ztunnel/dataplane/live"
	"github.com/ztunnel-go/ztunnel/dataplane/reason"
	"github.com/ztunnel-go/ztunnel/dataplane/route"
	"github.com/ztunnel-go/ztunnel/dnsproxy"
	"github.com/ztunnel-go/ztunnel/internal/admin"
	"github.com/ztunnel-go/ztunnel/internal/certs"
	"github.com/ztunnel-go/ztunnel/internal/logs"
	"github.com/ztunnel-go/ztunnel/internal/mesh"
	"github.com/ztunnel-go/ztunnel/internal/metrics"
)

// bindServers takes the ports of the three HTTP servers. Readiness answers
// from now on; until serve has run it says what is waited for.
func (n *node) bindServers(context.Context) error {
	log := logs.Target(n.logger, "ztunnel::hyper_util")
	wildcard := netip.IPv6Unspecified()
	if !n.cfg.IPv6 {
		wildcard = netip.IPv4Unspecified()
	}
	for _, s := range []struct {
		component string
		server    **admin.Server
		listen    func(component string) (*admin.Server, error)
	}{
		{"admin", &n.admin, func(component string) (*admin.Server, error) {
			if n.cfg.AdminSocket != "" {
				return admin.ListenUnix(component, n.cfg.AdminSocket, log)
			}
			return admin.Listen(component, n.cfg.adminAddrs(), log)
		}},
		{"stats", &n.stats, func(component string) (*admin.Server, error) {
			return admin.Listen(component, []netip.AddrPort{netip.AddrPortFrom(wildcard, n.cfg.StatsPort)}, log)
		}},
		{"readiness", &n.readiness, func(component string) (*admin.Server, error) {
			return admin.Listen(component, []netip.AddrPort{netip.AddrPortFrom(wildcard, n.cfg.ReadinessPort)}, log)
		}},
	} {
		server, err := s.listen(s.component)
		if err != nil {
			return err
		}
		*s.server = server
		n.onClose(s.component, func() error { return shutdown(server) })
	}
	n.registerTasks()
	n.readiness.Serve(admin.Readiness(n.ready))
	return nil
}

// adminAddrs are where the admin pages are without a socket of their own.
func (c *Config) adminAddrs() []netip.AddrPort {
	loopback := []netip.AddrPort{netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), c.AdminPort)}
	if c.IPv6Localhost {
		loopback = append(loopback, netip.AddrPortFrom(netip.IPv6Loopback(), c.AdminPort))
	}
	return loopback
}

// registerTasks says what the readiness page waits for.
func (n *node) registerTasks() {
	n.registry.Refused(func(yield func(string, uint64)) {
		yield("admin", n.admin.Refused())
		yield("stats", n.stats.Refused())
		yield("readiness", n.readiness.Refused())
	})
	n.ready = admin.NewTasks(logs.Target(n.logger, "ztunnel::readiness"))
	if !n.cfg.Dedicated {
		n.enrolled = n.ready.Register(admin.TaskInPod)
	}
	n.state = n.ready.Register(admin.TaskState)
	if n.cfg.Proxy {
		n.starting = append(n.starting, n.ready.Register(admin.TaskProxy))
	}
	if n.cfg.DNSProxy {
		n.starting = append(n.starting, n.ready.Register(admin.TaskDNS))
	}
}

// shutdown lets requests in flight finish, for as long as a slow reader may
// be worth waiting for.
func shutdown(s *admin.Server) error {
	ctx, done := context.WithTimeout(context.Background(), serverGrace)
	defer done()
	return s.Shutdown(ctx)
}

// serve opens the pages: everything they show is there.
func (n *node) serve() {
	log := logs.Target(n.logger, "ztunnel::admin")
	pages := admin.Pages{
		Dump: admin.Dump{
			View:         n.store.View(),
			Certificates: n.dumpCertificates,
			Config:       func() any { return n.cfg },
			Version:      func() any { return n.version },
			Static:       n.dumpStatic,
			Warnings:     n.warnings,
		},
		Log:      n.log,
		Shutdown: n.stop.quit,
		Route:    n.explain,
		Explain:  n.explainNamed,
		Live:     func() any { return n.liveByPod() },
		Logger:   log,
	}
	if !n.cfg.Dedicated { // which has neither pods nor programs
		pages.Dump.Pods = n.dumpPods
		pages.Pods = func() any { return n.podPage() }
		pages.BPF = func() any { return n.bpfPage() }
	}
	n.admin.Serve(pages.Handler())
	n.stats.Serve(admin.Stats(n.registry, metrics.ContentType, log))
	for _, task := range n.starting {
		task.Done()
	}
}

func (n *node) warnings() []string {
	if !n.cfg.Control.FakeCA {
		return nil
	}
	return []string{fmt.Sprintf("FAKE_CA is on: certificates are signed by the embedded authority in %s", n.cfg.Control.EmbeddedCADir)}
}

func (n *node) dumpCertificates() []admin.Certificate {
	states := n.certs.States()
	out := make([]admin.Certificate, len(states))
	for i, s := range states {
		out[i] = admin.Certificate{
			Identity: s.Identity.String(), State: s.State,
			Chain: certificateInfos(s.Chain), Roots: certificateInfos(s.Roots),
		}
	}
	return out
}

func certificateInfos(in []certs.Info) []admin.CertificateInfo {
	out := make([]admin.CertificateInfo, len(in))
	for i, c := range in {
		out[i] = admin.CertificateInfo{PEM: c.PEM, SerialNumber: c.SerialNumber, ValidFrom: c.ValidFrom, Expiration: c.ExpirationTime}
	}
	return out
}

func (n *node) dumpStatic() admin.Static {
	static := n.local.Static()
	out := admin.Static{Workloads: static.Workloads, Policies: static.Policies}
	for _, s := range static.Services {
		out.Services = append(out.Services, admin.StaticService{Service: s.Service, Endpoints: s.Endpoints})
	}
	return out
}

func (n *node) dumpPods() []admin.Pod {
	statuses := n.inpod.Pods()
	out := make([]admin.Pod, len(statuses))
	for i, s := range statuses {
		out[i] = dumpPod(s)
	}
	return out
}

func dumpPod(s inpod.Status) admin.Pod {
	pod := admin.Pod{
		UID: s.Pod.UID, Name: s.Pod.Name, Namespace: s.Pod.Namespace,
		ServiceAccount: s.Pod.ServiceAccount, State: dumpState(s.State),
	}
	if s.Err != nil {
		pod.Health = s.Err.Error()
	}
	if p, ok := s.Proxy.(*podProxy); ok {
		pod.Capture = p.capture.Tier().String()
		pod.Connections = connectionsOf(p.proxy.Live())
	}
	return pod
}

// dumpState is a state in the reference's words, which has none for a pod that
// is parked: its proxy has ended, and so it is shown (contract 13.4).
func dumpState(s inpod.State) string {
	switch s {
	case inpod.StateUp, inpod.StatePending:
		return string(s)
	}
	return "Draining"
}

func connectionsOf(s live.Snapshot) *admin.Connections {
	c := &admin.Connections{}
	for _, in := range s.Inbound {
		c.Inbound = append(c.Inbound, admin.InboundConnection{
			Src: in.Src, ActualDst: in.ActualDst, OriginalDst: in.Service, Protocol: string(in.Protocol),
		})
	}
	for _, out := range s.Outbound {
		c.Outbound = append(c.Outbound, admin.OutboundConnection{
			Src: out.Src, ActualDst: out.ActualDst, OriginalDst: out.OriginalDst, Protocol: string(out.Protocol),
		})
	}
	return c
}

// liveByPod is /debug/live: every open connection with its age, by pod.
func (n *node) liveByPod() map[string]live.Snapshot {
	out := map[string]live.Snapshot{}
	if d := n.dedicated; d != nil {
		out[d.pod.UID] = d.live()
		return out
	}
	for _, s := range n.inpod.Pods() {
		if p, ok := s.Proxy.(*podProxy); ok {
			out[s.Pod.UID] = p.proxy.Live()
		}
	}
	return out
}

// explain is /debug/route: what would become of a connection from an address
// to another, and why. A choice among endpoints is made anew each time.
func (n *node) explain(src netip.Addr, dst netip.AddrPort) ([]string, error) {
	view := n.store.View()
	source := view.WorkloadAt(mesh.NetworkAddr{Network: n.cfg.Network, Addr: src})
	if source == nil {
		err := reason.Errorf(reason.WorkloadUnknown, "no workload has the address %v in network %q", src, n.cfg.Network)
		return because(nil, err), err
	}
	if err := route.IllegalPorts(n.cfg.IllegalPorts).Outbound(dst); err != nil {
		return because(nil, err), err
	}
	out := route.Decide(view, route.Query{
		Source: source, SourceIP: src, Network: n.cfg.Network, Dst: dst, Explain: true,
		OnDemand: n.cfg.Control.OnDemand && n.feed != nil,
	}, n.balance.Choose)
	lines := append([]string{fmt.Sprintf("source: %s (%s)", source.UID, source.Identity())}, out.Steps...)
	lines = append(lines, "outcome: "+out.Kind.String())
	for _, w := range out.Warnings {
		lines = append(lines, "warning: "+w)
	}
	return because(append(lines, outcomeLines(out)...), out.Err), out.Err
}

// because adds what operators are told of an error's reason.
func because(lines []string, err error) []string {
	if err == nil {
		return lines
	}
	why := dataplane.Why(err)
	lines = append(lines, "reason: "+why.String(), "means: "+why.Means())
	if why.Look() != "" {
		lines = append(lines, "look at: "+why.Look())
	}
	return lines
}

func outcomeLines(out route.Outcome) []string {
	var lines []string
	add := func(there bool, format string, args ...any) {
		if there {
			lines = append(lines, fmt.Sprintf(format, args...))
		}
	}
	add(out.Dial.IsValid(), "dial: %v", out.Dial)
	add(out.Authority != "", "authority: %s", out.Authority)
	if out.NextHop != nil {
		add(true, "next hop: %s", out.NextHop.UID)
	}
	if out.Service != nil {
		add(true, "service: %s", out.Service.Key())
	}
	add(len(out.Expect) > 0, "expected identities: %v", out.Expect)
	add(out.Resolve != "", "to be resolved first: %s", out.Resolve)
	add(out.Learn != "", "to be asked for first: %s", out.Learn)
	return lines
}

// resolverOf is the resolver configuration as the config dump shows it.
func resolverOf(r dnsproxy.ResolvConf) Resolver {
	return Resolver{
		Search: r.Search, Nameservers: r.Nameservers, Ndots: r.Ndots,
		Attempts: r.Attempts, Timeout: r.Timeout, EDNS0: r.EDNS,
	}
}
