// SPDX-License-Identifier: Apache-2.0

package route

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/ztunnel-go/ztunnel/internal/identity"
	"github.com/ztunnel-go/ztunnel/internal/mesh"
)

// build makes a view of workloads and services, in the order given.
func build(things ...any) mesh.View {
	s := mesh.NewStore()
	s.Apply(func(u *mesh.Update) {
		for _, thing := range things {
			switch v := thing.(type) {
			case *mesh.Workload:
				u.PutWorkload(v)
			case *mesh.Service:
				u.PutService(v)
			default:
				panic(fmt.Sprintf("a %T is not part of a mesh", thing))
			}
		}
	})
	return s.View()
}

// workload makes one named by its UID, in namespace ns, of account name.
func workload(name string, protocol mesh.Protocol, ip string, more ...func(*mesh.Workload)) *mesh.Workload {
	w := &mesh.Workload{
		UID: name, Name: name, Namespace: "ns", TrustDomain: "td", ServiceAccount: name,
		Protocol: protocol, Capacity: 1, Services: map[mesh.NamespacedHostname]map[uint16]uint16{},
	}
	for _, one := range strings.Fields(ip) {
		w.IPs = append(w.IPs, netip.MustParseAddr(one))
	}
	for _, change := range more {
		change(w)
	}
	return w
}

func hbone(name, ip string, more ...func(*mesh.Workload)) *mesh.Workload {
	return workload(name, mesh.HBONE, ip, more...)
}

func plain(name, ip string, more ...func(*mesh.Workload)) *mesh.Workload {
	return workload(name, mesh.TCP, ip, more...)
}

func in(host string, ports ...uint16) func(*mesh.Workload) {
	return func(w *mesh.Workload) { w.Services[key(host)] = portMap(ports) }
}

func behind(waypoint string) func(*mesh.Workload) {
	return func(w *mesh.Workload) { w.Waypoint = gatewayTo(waypoint) }
}

func inNetwork(network, gateway string) func(*mesh.Workload) {
	return func(w *mesh.Workload) {
		w.Network = network
		if gateway != "" {
			w.NetworkGateway = gatewayTo(gateway)
		}
	}
}

func withTunnel(kind mesh.TunnelKind, port uint16) func(*mesh.Workload) {
	return func(w *mesh.Workload) { w.ApplicationTunnel = &mesh.ApplicationTunnel{Kind: kind, Port: port} }
}

// service makes one in namespace ns with VIPs "network/ip", or "ip" for the
// empty network.
func service(host, vips string, ports []uint16, more ...func(*mesh.Service)) *mesh.Service {
	s := &mesh.Service{Name: host, Namespace: "ns", Hostname: host, Ports: portMap(ports)}
	for _, one := range strings.Fields(vips) {
		network, ip, ok := strings.Cut(one, "/")
		if !ok {
			network, ip = "", one
		}
		s.VIPs = append(s.VIPs, mesh.NetworkAddr{Network: network, Addr: netip.MustParseAddr(ip)})
	}
	for _, change := range more {
		change(s)
	}
	return s
}

func via(waypoint string) func(*mesh.Service) {
	return func(s *mesh.Service) { s.Waypoint = gatewayTo(waypoint) }
}

func balanced(mode mesh.BalanceMode, scopes ...mesh.Scope) func(*mesh.Service) {
	return func(s *mesh.Service) { s.LoadBalancer = &mesh.LoadBalancer{Mode: mode, Preferences: scopes} }
}

func sans(names ...string) func(*mesh.Service) {
	return func(s *mesh.Service) { s.SubjectAltNames = names }
}

// gatewayTo reads "network/ip:port", or "host:port" in namespace ns.
func gatewayTo(s string) *mesh.GatewayAddress {
	g := &mesh.GatewayAddress{}
	if network, addr, ok := strings.Cut(s, "/"); ok {
		ap := netip.MustParseAddrPort(addr)
		g.Address, g.HBONEMTLSPort = mesh.NetworkAddr{Network: network, Addr: ap.Addr()}, ap.Port()
		return g
	}
	host, port, _ := strings.Cut(s, ":")
	g.Hostname = key(host)
	if _, err := fmt.Sscan(port, &g.HBONEMTLSPort); err != nil {
		panic(err)
	}
	return g
}

func key(host string) mesh.NamespacedHostname {
	return mesh.NamespacedHostname{Namespace: "ns", Hostname: host}
}

// portMap reads pairs.
func portMap(ports []uint16) map[uint16]uint16 {
	m := map[uint16]uint16{}
	for i := 0; i < len(ports); i += 2 {
		m[ports[i]] = ports[i+1]
	}
	return m
}

// first picks the first that may be picked.
func first(candidates []Candidate) int {
	for i, c := range candidates {
		if c.Weight > 0 {
			return i
		}
	}
	return -1
}

// ask decides for a client at 10.0.0.1 in namespace ns.
func ask(v mesh.View, dst string) Outcome {
	return Decide(v, query(dst), first)
}

func query(dst string) Query {
	return Query{
		Source:   hbone("client", "10.0.0.1"),
		SourceIP: netip.MustParseAddr("10.0.0.1"),
		Dst:      netip.MustParseAddrPort(dst),
		Explain:  true,
	}
}

// tell puts an outcome into one line:
//
//	TCP 10.0.0.2:80 next=pod service=svc
//	HBONE 10.0.0.2:15008 asks=10.0.0.2:80 next=pod expects=pod
//	refuse: text
func tell(o Outcome) string {
	var b strings.Builder
	b.WriteString(o.Kind.String())
	switch o.Kind {
	case Refuse:
		return b.String() + ": " + o.Err.Error()
	case Resolve:
		return b.String() + " " + o.Resolve
	}
	b.WriteString(" " + o.Dial.String())
	if o.Authority != "" {
		b.WriteString(" asks=" + o.Authority)
	}
	if o.NextHop != nil {
		b.WriteString(" next=" + o.NextHop.UID)
	}
	if o.Service != nil {
		b.WriteString(" service=" + o.Service.Hostname)
	}
	if o.Expect != nil {
		b.WriteString(" expects=" + accounts(o.Expect))
	}
	if o.Kind == DoubleTunnel {
		b.WriteString(" inner=" + accounts(o.InnerExpect))
	}
	return b.String()
}

func accounts(ids []identity.ID) string {
	names := make([]string, len(ids))
	for i, id := range ids {
		names[i] = id.ServiceAccount()
	}
	return strings.Join(names, ",")
}

// A row is one case of a table: what is asked and what comes of it.
type row struct {
	name, dst, want string
}

func hold(t *testing.T, v mesh.View, rows []row) {
	t.Helper()
	for _, r := range rows {
		o := ask(v, r.dst)
		if got := tell(o); got != r.want {
			t.Errorf("%s: %s\ngot  %s\nwant %s\nsteps:\n  %s", r.name, r.dst, got, r.want, strings.Join(o.Steps, "\n  "))
		}
		if len(o.Steps) == 0 {
			t.Errorf("%s: nothing explains it", r.name)
		}
	}
}
