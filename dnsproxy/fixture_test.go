// SPDX-License-Identifier: Apache-2.0

package dnsproxy

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/miekg/dns"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/ztunnel-go/ztunnel/internal/mesh"
)

const (
	here  = "network1"
	there = "network2"
)

func addr(s string) netip.Addr { return netip.MustParseAddr(s) }

// vips reads addresses; "network/address" is on that network, others here.
func vips(addrs ...string) []mesh.NetworkAddr {
	var out []mesh.NetworkAddr
	for _, a := range addrs {
		network, ip, ok := strings.Cut(a, "/")
		if !ok {
			network, ip = here, a
		}
		out = append(out, mesh.NetworkAddr{Network: network, Addr: addr(ip)})
	}
	return out
}

func service(key string, addrs ...string) *mesh.Service {
	ns, host, _ := strings.Cut(key, "/")
	name, _, _ := strings.Cut(host, ".")
	return &mesh.Service{Name: name, Namespace: ns, Hostname: host, VIPs: vips(addrs...)}
}

func with(svc *mesh.Service, change func(*mesh.Service)) *mesh.Service {
	change(svc)
	return svc
}

func families(f mesh.IPFamilies) func(*mesh.Service) {
	return func(s *mesh.Service) { s.IPFamilies = &f }
}

func canonical(s *mesh.Service) { s.Canonical = true }
func hidden(s *mesh.Service)    { s.Visibility = mesh.NamespaceOnly }

// endpoint is a workload of one service.
func endpoint(uid, service string, addrs ...string) *mesh.Workload {
	key, _ := mesh.ParseNamespacedHostname(service)
	w := &mesh.Workload{
		UID: uid, Name: uid, Namespace: key.Namespace, Network: here,
		Services: map[mesh.NamespacedHostname]map[uint16]uint16{key: {80: 80}},
	}
	for _, a := range addrs {
		w.IPs = append(w.IPs, addr(a))
	}
	return w
}

func store(services []*mesh.Service, workloads ...*mesh.Workload) *mesh.Store {
	s := mesh.NewStore()
	s.Apply(func(u *mesh.Update) {
		for _, svc := range services {
			u.PutService(svc)
		}
		for _, w := range workloads {
			u.PutWorkload(w)
		}
	})
	return s
}

func client() *mesh.Workload {
	return &mesh.Workload{
		UID: "client", Name: "client", Namespace: "ns1", Network: here,
		CanonicalName: "clients", CanonicalRevision: "v1",
	}
}

func knownClient(context.Context) (*mesh.Workload, error) { return client(), nil }

// dial connects on this machine.
func dial(ctx context.Context, network string, addr netip.AddrPort) (net.Conn, error) {
	return new(net.Dialer).DialContext(ctx, network, addr.String())
}

// sorted stands in for chance.
func sorted(a []netip.Addr) { slices.SortFunc(a, netip.Addr.Compare) }

// A rig is a server on loopback sockets and its metrics.
type rig struct {
	t       *testing.T
	server  *Server
	udp     net.Addr
	tcp     net.Addr
	metrics *prometheus.Registry
}

func start(t *testing.T, cfg Config) *rig {
	t.Helper()
	if cfg.Client == nil {
		cfg.Client = knownClient
	}
	if cfg.View == (mesh.View{}) {
		cfg.View = mesh.NewStore().View()
	}
	if cfg.Dial == nil {
		cfg.Dial = dial
	}
	if cfg.Shuffle == nil {
		cfg.Shuffle = sorted
	}
	reg := prometheus.NewPedanticRegistry()
	cfg.Metrics = NewMetrics(reg)
	pc, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	r := &rig{t: t, server: New(cfg), udp: pc.LocalAddr(), tcp: l.Addr(), metrics: reg}
	if err := r.server.Serve([]net.PacketConn{wrapped{pc}}, []net.Listener{l}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(r.server.Close)
	return r
}

// wrapped hides that a socket is a *net.UDPConn, as capture's sockets do.
type wrapped struct{ net.PacketConn }

type wrappedAddr struct{ *net.UDPAddr }

func (w wrapped) ReadFrom(b []byte) (int, net.Addr, error) {
	n, a, err := w.PacketConn.ReadFrom(b)
	if err != nil {
		return n, nil, err
	}
	return n, wrappedAddr{a.(*net.UDPAddr)}, nil
}

func (w wrapped) WriteTo(b []byte, a net.Addr) (int, error) {
	return w.PacketConn.WriteTo(b, a.(wrappedAddr).UDPAddr)
}

// raw sends bytes and returns the bytes that come back, or nil if none do
// before a query that is sent after them was answered.
func (r *rig) raw(protocol string, packet []byte) []byte {
	r.t.Helper()
	c, err := net.Dial(protocol, map[string]net.Addr{"udp": r.udp, "tcp": r.tcp}[protocol].String())
	if err != nil {
		r.t.Fatal(err)
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(20 * time.Second))
	mark := question("localhost", dns.TypeA)
	mark.Id = 0xbeef
	marker, _ := mark.Pack()
	read := func() ([]byte, error) {
		if protocol == "tcp" {
			return readFrame(c)
		}
		b := make([]byte, 65535)
		n, err := c.Read(b)
		return b[:n], err
	}
	write := func(b []byte) {
		if protocol == "tcp" {
			err = writeFrame(c, b)
		} else {
			_, err = c.Write(b)
		}
		if err != nil {
			r.t.Fatal(err)
		}
	}
	write(packet)
	write(marker)
	// By UDP the two are handled side by side: when the mark's answer is there
	// and nothing is in hand, the other's is there too, if there is one.
	var answer []byte
	for answers := 0; ; answers++ {
		if answers == 1 && protocol == "udp" && answer == nil {
			for r.server.packets.Load() > 0 {
				time.Sleep(time.Millisecond)
			}
			c.SetReadDeadline(time.Now().Add(20 * time.Millisecond))
		}
		b, err := read()
		switch {
		case err != nil && answers == 1:
			return nil
		case err != nil:
			r.t.Fatalf("read answer: %v", err)
		case !strings.HasPrefix(string(b), "\xbe\xef"):
			answer = b
		case protocol == "tcp":
			return answer
		}
		if answer != nil && protocol == "udp" {
			return answer
		}
	}
}

// ask sends a query and reads the answer.
func (r *rig) ask(protocol string, q *dns.Msg) *dns.Msg {
	r.t.Helper()
	c := dns.Client{Net: protocol, Timeout: 20 * time.Second, UDPSize: 65535}
	m, _, err := c.Exchange(q, map[string]net.Addr{"udp": r.udp, "tcp": r.tcp}[protocol].String())
	if err != nil {
		r.t.Fatalf("ask %s by %s: %v", q.Question[0].Name, protocol, err)
	}
	return m
}

func question(name string, qtype uint16) *dns.Msg {
	return new(dns.Msg).SetQuestion(dns.Fqdn(name), qtype)
}

// show is an answer in one line: code, flags, records as owner/type/value.
func show(m *dns.Msg) string {
	out := dns.RcodeToString[m.Rcode]
	for _, f := range []struct {
		set  bool
		name string
	}{{m.Authoritative, "aa"}, {m.Truncated, "tc"}, {m.RecursionAvailable, "ra"}, {m.AuthenticatedData, "ad"}} {
		if f.set {
			out += " " + f.name
		}
	}
	for _, rr := range m.Answer {
		h := rr.Header()
		value := strings.TrimPrefix(rr.String(), h.String())
		out += fmt.Sprintf(" %s/%s/%s", h.Name, dns.TypeToString[h.Rrtype], value)
	}
	return out
}

// upstreamServer is a fake upstream on one port, by UDP and TCP.
type upstreamServer struct {
	addr     netip.AddrPort
	udp, tcp atomic.Int64 // queries seen
}

// fakeUpstream serves answers of a function; nil means silence.
func fakeUpstream(t testing.TB, answer func(q *dns.Msg, tcp bool) *dns.Msg) *upstreamServer {
	t.Helper()
	u := new(upstreamServer)
	var pc net.PacketConn
	var l net.Listener
	var err error
	for range 20 { // the port of one may be taken for the other
		if pc, err = net.ListenPacket("udp", "127.0.0.1:0"); err != nil {
			t.Fatal(err)
		}
		if l, err = net.Listen("tcp", pc.LocalAddr().String()); err == nil {
			break
		}
		pc.Close()
	}
	if err != nil {
		t.Fatal(err)
	}
	u.addr = pc.LocalAddr().(*net.UDPAddr).AddrPort()
	h := dns.HandlerFunc(func(w dns.ResponseWriter, q *dns.Msg) {
		_, tcp := w.RemoteAddr().(*net.TCPAddr)
		if tcp {
			u.tcp.Add(1)
		} else {
			u.udp.Add(1)
		}
		if m := answer(q, tcp); m != nil {
			w.WriteMsg(m)
		}
	})
	for _, s := range []*dns.Server{{PacketConn: pc, Handler: h}, {Listener: l, Handler: h}} {
		started, ended := make(chan struct{}), make(chan struct{})
		s.NotifyStartedFunc = func() { close(started) }
		go func() {
			defer close(ended)
			s.ActivateAndServe()
		}()
		<-started
		t.Cleanup(func() {
			s.Shutdown()
			<-ended
		})
	}
	return u
}

// rr reads records in the form of zone files.
func rr(lines ...string) []dns.RR {
	var out []dns.RR
	for _, l := range lines {
		r, err := dns.NewRR(l)
		if err != nil {
			panic(err)
		}
		out = append(out, r)
	}
	return out
}

// answerWith makes an answer with a code and records.
func answerWith(q *dns.Msg, rcode int, lines ...string) *dns.Msg {
	m := new(dns.Msg).SetRcode(q, rcode)
	m.Answer = rr(lines...)
	return m
}

// world is an upstream with a few names. What is in no case is NXDOMAIN.
func world(q *dns.Msg, _ bool) *dns.Msg {
	soa := rr("example.org. 60 IN SOA ns.example.org. admin.example.org. 1 1 1 1 30")
	var m *dns.Msg
	switch q.Question[0].Name + " " + dns.TypeToString[q.Question[0].Qtype] {
	case "www.example.org. A":
		m = answerWith(q, dns.RcodeSuccess, "www.example.org. 300 IN A 192.0.2.1")
	case "alias.example.org. A":
		m = answerWith(q, dns.RcodeSuccess,
			"alias.example.org. 300 IN CNAME two.example.org.",
			"two.example.org. 300 IN CNAME www.example.org.",
			"www.example.org. 300 IN A 192.0.2.1")
		m.Ns = rr("example.org. 300 IN NS ns.example.org.")
		m.Extra = rr("ns.example.org. 300 IN A 192.0.2.53")
		m.SetEdns0(4096, true)
		m.Authoritative, m.AuthenticatedData = true, true
	case "www.google.com. NS", "example.org. NS":
		m = answerWith(q, dns.RcodeSuccess, q.Question[0].Name+" 300 IN NS ns.example.org.")
	case "www.example.org. AAAA":
		m = answerWith(q, dns.RcodeSuccess)
		m.Ns = soa
	default:
		m = answerWith(q, dns.RcodeNameError)
		m.Ns = soa
	}
	return m
}

func (u *upstreamServer) config() Upstream {
	return Upstream{Nameservers: []netip.AddrPort{u.addr}, Timeout: 2 * time.Second}
}

var errUnknownClient = errors.New("no such workload")

// counts reads the four families of the contract, one line for each series.
func (r *rig) counts() map[string]float64 { return r.series("istio_") }

// ours reads the families that are ours.
func (r *rig) ours() map[string]float64 { return r.series("ztunnel_") }

func (r *rig) series(prefix string) map[string]float64 {
	r.t.Helper()
	families, err := r.metrics.Gather()
	if err != nil {
		r.t.Fatal(err)
	}
	out := map[string]float64{}
	for _, f := range families {
		if !strings.HasPrefix(f.GetName(), prefix) {
			continue
		}
		for _, m := range f.GetMetric() {
			var labels []string
			for _, l := range m.GetLabel() {
				labels = append(labels, l.GetValue())
			}
			key := f.GetName() + " " + strings.Join(labels, ",")
			if h := m.GetHistogram(); h != nil {
				out[key] = float64(h.GetSampleCount())
			} else {
				out[key] = m.GetCounter().GetValue()
			}
		}
	}
	return out
}

// records collects log lines.
func records(level slog.Level) (*slog.Logger, func() string) {
	var b syncBuilder
	return slog.New(slog.NewTextHandler(&b, &slog.HandlerOptions{
		Level: level,
		ReplaceAttr: func(_ []string, a slog.Attr) slog.Attr {
			if a.Key == slog.TimeKey {
				return slog.Attr{}
			}
			return a
		},
	})), b.String
}

// oneName is a mesh whose only name is "a".
func oneName() *mesh.Store { return store([]*mesh.Service{service("ns1/a", "1.1.1.1")}) }
