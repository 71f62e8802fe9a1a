// SPDX-License-Identifier: Apache-2.0

//go:debug fips140=on

package dataplane

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/ztunnel-go/ztunnel/dataplane/balance"
	"github.com/ztunnel-go/ztunnel/dataplane/capture"
	"github.com/ztunnel-go/ztunnel/dataplane/report"
	"github.com/ztunnel-go/ztunnel/dataplane/route"
	"github.com/ztunnel-go/ztunnel/internal/certs"
	"github.com/ztunnel-go/ztunnel/internal/certs/certstest"
	"github.com/ztunnel-go/ztunnel/internal/logs"
	"github.com/ztunnel-go/ztunnel/internal/mesh"
	"github.com/ztunnel-go/ztunnel/internal/metrics"
	"github.com/ztunnel-go/ztunnel/test/leak"
)

// patience bounds whatever a test waits for.
const patience = 10 * time.Second

// A lan joins pods that live in one process. Host 10.x.y.z of it is
// 127.x.y.z, and its ports are wherever the kernel put them.
type lan struct {
	t     *testing.T
	store *mesh.Store
	ca    *certstest.Authority
	// demand is whom pods that are started from now on ask for what the mesh
	// does not hold; nil: nobody.
	demand func(context.Context, string) error

	gate     *Gate             // of all pods that are started from now on
	balance  *balance.Table    // of all pods that are started from now on
	balanced *metrics.Registry // what is counted of it

	// connecting is held by who connects, and taken by servers before they
	// serve: to connect to one that resets at once would fail at times.
	connecting sync.RWMutex

	mu   sync.Mutex
	pods map[netip.Addr]*pod                       // guarded by mu
	at   map[netip.AddrPort]func() (string, error) // guarded by mu; servers outside pods
}

func newLAN(t *testing.T) *lan {
	t.Helper()
	leak.Check(t)
	n := &lan{
		t: t, store: mesh.NewStore(), ca: certstest.Issuer(t, time.Hour),
		pods: map[netip.Addr]*pod{}, at: map[netip.AddrPort]func() (string, error){},
	}
	n.balanceBy(balance.Config{})
	return n
}

// balanceBy has the pods that are started from now on choose endpoints by cfg.
func (n *lan) balanceBy(cfg balance.Config) {
	n.balanced = metrics.New("test")
	cfg.Metrics = balance.NewMetrics(n.balanced.Registerer())
	n.balance = balance.New(cfg)
}

func addr(s string) netip.Addr         { return netip.MustParseAddr(s) }
func addrPort(s string) netip.AddrPort { return netip.MustParseAddrPort(s) }

// loopback is where a host of the lan really is.
func loopback(host netip.Addr) netip.Addr {
	b := host.As4()
	b[0] = 127
	return netip.AddrFrom4(b)
}

// shown is the address on the lan of what is really at a loopback address.
func shown(a net.Addr) netip.AddrPort {
	ap := a.(*net.TCPAddr).AddrPort()
	b := ap.Addr().Unmap().As4()
	b[0] = 10
	return netip.AddrPortFrom(netip.AddrFrom4(b), ap.Port())
}

// dialReal connects host from to a real address.
func dialReal(ctx context.Context, from netip.Addr, to string) (*net.TCPConn, error) {
	d := net.Dialer{LocalAddr: net.TCPAddrFromAddrPort(netip.AddrPortFrom(loopback(from), 0))}
	d.SetMultipathTCP(false)
	c, err := d.DialContext(ctx, "tcp", to)
	if err != nil {
		return nil, err
	}
	return c.(*net.TCPConn), nil
}

// listen is a listener of a host, at any port.
func listen(t *testing.T, host netip.Addr) *net.TCPListener {
	t.Helper()
	var cfg net.ListenConfig
	cfg.SetMultipathTCP(false)
	l, err := cfg.Listen(t.Context(), "tcp", netip.AddrPortFrom(loopback(host), 0).String())
	if err != nil {
		t.Fatal(err)
	}
	return l.(*net.TCPListener)
}

// dial is the way from one host to another: to a pod's proxy, to a server
// outside, or to a closed port.
func (n *lan) dial(ctx context.Context, from netip.Addr, to netip.AddrPort) (*net.TCPConn, error) {
	n.mu.Lock()
	p, outside := n.pods[to.Addr()], n.at[to]
	n.mu.Unlock()
	switch {
	case p != nil && to.Port() == route.HBONEPort:
		return p.hbone.dial(ctx, from, to)
	case p != nil:
		return p.plaintext.dial(ctx, from, to)
	case outside != nil:
		real, err := outside()
		if err != nil {
			return nil, err
		}
		return n.connect(ctx, from, real)
	}
	return n.connect(ctx, from, closedPort(to.Addr()))
}

func (n *lan) connect(ctx context.Context, from netip.Addr, real string) (*net.TCPConn, error) {
	n.connecting.RLock()
	defer n.connecting.RUnlock()
	return dialReal(ctx, from, real)
}

// closedPort is one where nobody listens: all ours are ephemeral.
func closedPort(host netip.Addr) string { return netip.AddrPortFrom(loopback(host), 1).String() }

// An acceptor is a listener whose connections were going wherever who dials
// says.
type acceptor struct {
	l *net.TCPListener

	// mu is held while one connects, so that nothing becomes of a connection
	// before it is there.
	mu   sync.Mutex
	dst  map[string]netip.AddrPort // guarded by mu; by who connected
	errs []error                   // guarded by mu; what Accept returns first
}

func newAcceptor(t *testing.T, host netip.Addr) *acceptor {
	t.Helper()
	return &acceptor{l: listen(t, host), dst: map[string]netip.AddrPort{}}
}

func (a *acceptor) dial(ctx context.Context, from netip.Addr, dst netip.AddrPort) (*net.TCPConn, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	c, err := dialReal(ctx, from, a.l.Addr().String())
	if err == nil {
		a.dst[c.LocalAddr().String()] = dst
	}
	return c, err
}

func (a *acceptor) fail(errs ...error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.errs = append(a.errs, errs...)
}

func (a *acceptor) Accept() (*capture.Conn, error) {
	for {
		c, err := a.l.AcceptTCP()
		if err != nil {
			return nil, err
		}
		conn, err := a.admit(c)
		if err != nil || conn == nil {
			c.Close()
		}
		if err != nil || conn != nil {
			return conn, err
		}
	}
}

func (a *acceptor) admit(c *net.TCPConn) (*capture.Conn, error) {
	dst, known, err := a.destination(c.RemoteAddr().String())
	if err != nil || !known {
		return nil, err
	}
	return &capture.Conn{TCPConn: c, Peer: shown(c.RemoteAddr()), Dst: dst}, nil
}

// destination knows nothing of a connection whose dial was given up.
func (a *acceptor) destination(from string) (dst netip.AddrPort, known bool, err error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	dst, known = a.dst[from]
	delete(a.dst, from)
	if known && len(a.errs) > 0 {
		err = a.errs[0]
		a.errs = a.errs[1:]
	}
	return dst, known, err
}

func (a *acceptor) Close() error {
	if err := a.l.Close(); !errors.Is(err, net.ErrClosed) {
		return err
	}
	return nil
}

func (a *acceptor) Addr() net.Addr { return a.l.Addr() }

// A pod is a host with a proxy.
type pod struct {
	*Proxy
	lan      *lan
	ip       netip.Addr
	certs    *certs.Manager
	registry *metrics.Registry
	out      *output

	outboundListener, plaintext, hbone, socksListener *acceptor

	mu   sync.Mutex
	apps map[uint16]string // guarded by mu; where the application's ports really are
	hold chan struct{}     // guarded by mu; deliveries wait for it
}

// member is the workload of a pod: 10.0.0.<n> in the mesh, with labels.
func member(name, ip string, change ...func(*mesh.Workload)) *mesh.Workload {
	w := &mesh.Workload{
		UID: "c1//Pod/ns/" + name, Name: name, Namespace: "ns", TrustDomain: "cluster.local", ServiceAccount: name,
		Protocol: mesh.HBONE, Capacity: 1, IPs: []netip.Addr{addr(ip)},
		WorkloadName: name + "-dep", WorkloadType: mesh.Deployment, CanonicalName: name, CanonicalRevision: "v1", ClusterID: "c1",
	}
	for _, c := range change {
		c(w)
	}
	return w
}

func (n *lan) put(things ...any) {
	n.store.Apply(func(u *mesh.Update) {
		for _, thing := range things {
			switch v := thing.(type) {
			case *mesh.Workload:
				u.PutWorkload(v)
			case *mesh.Service:
				u.PutService(v)
			case *mesh.Policy:
				u.PutPolicy(v.Key(), v)
			default:
				n.t.Fatalf("a %T is not part of a mesh", thing)
			}
		}
	})
}

// start runs the proxy of a pod whose workload is w, which the mesh need not
// know yet.
func (n *lan) start(w *mesh.Workload, change ...func(*Config)) *pod {
	n.t.Helper()
	return n.startWith(w, func(*Sockets) {}, change...)
}

// startWith is start with other sockets.
func (n *lan) startWith(w *mesh.Workload, equip func(*Sockets), change ...func(*Config)) *pod {
	n.t.Helper()
	t := n.t
	p := &pod{
		lan: n, ip: w.IPs[0], registry: metrics.New("test"), out: newOutput(t), apps: map[uint16]string{},
		outboundListener: newAcceptor(t, w.IPs[0]),
		plaintext:        newAcceptor(t, w.IPs[0]),
		hbone:            newAcceptor(t, w.IPs[0]),
		socksListener:    newAcceptor(t, w.IPs[0]),
	}
	p.certs = certs.New(n.ca, certs.Config{}, nil)
	cfg := Config{ResponseBaggage: true, Illegal: route.IllegalPorts{15001, 15006, 15008}, WorkloadWait: 2 * time.Second}
	for _, c := range change {
		c(&cfg)
	}
	logger := p.out.log.Logger()
	sockets := Sockets{
		Outbound: p.outboundListener, Plaintext: p.plaintext, HBONE: p.hbone, SOCKS: p.socksListener, Transparent: true,
		Dial:    func(ctx context.Context, to netip.AddrPort) (*net.TCPConn, error) { return n.dial(ctx, p.ip, to) },
		Deliver: p.deliverTo, DeliverNow: p.deliverNow, Delivered: func(error) {},
	}
	equip(&sockets)
	p.Proxy = Start(cfg, Pod{UID: w.UID, Name: w.Name, Namespace: w.Namespace, ServiceAccount: w.ServiceAccount}, sockets, Shared{
		Store: n.store, Certs: p.certs, Lookup: lookup, Balance: n.balance,
		Engine: theEngine, Gate: n.gate, Demand: n.demand, Metrics: NewMetrics(p.registry.Registerer()),
		Reporter: report.New(report.NewMetrics(p.registry), logger),
		Logger:   logs.Span(logs.Target(logger, "proxy"), "proxy", slog.Any("wl", logs.Bare("ns/"+w.Name))),
	})
	n.mu.Lock()
	n.pods[p.ip] = p
	n.mu.Unlock()
	t.Cleanup(func() {
		p.Stop(0)
		p.certs.Close()
	})
	return p
}

// lookup knows one name.
// lookup has never heard of a name before.
func lookup(ctx context.Context, hostname string) (addrs []netip.Addr, asked bool, err error) {
	switch hostname {
	case "outside.example":
		return []netip.Addr{addr("10.9.9.9")}, true, nil
	case "slow.example":
		<-ctx.Done()
		return nil, true, ctx.Err()
	}
	return nil, true, errors.New("no such host")
}

func (p *pod) deliverTo(ctx context.Context, client netip.Addr, dst netip.AddrPort) (*net.TCPConn, error) {
	p.mu.Lock()
	app, ok := p.apps[dst.Port()]
	hold := p.hold
	p.mu.Unlock()
	if hold != nil {
		select {
		case <-hold:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	if dst.Addr() != p.ip {
		return nil, errors.New("this is another pod's address: " + dst.String())
	}
	if !ok {
		app = closedPort(p.ip)
	}
	return p.lan.connect(ctx, client, app)
}

// app serves connections to a port of the pod.
func (p *pod) app(port uint16, serve func(*net.TCPConn)) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.apps[port] = p.lan.serve(p.ip, serve)
}

// outside serves connections to an address that is no pod's.
func (n *lan) outside(at string, serve func(*net.TCPConn)) {
	real := n.serve(addrPort(at).Addr(), serve)
	n.mu.Lock()
	defer n.mu.Unlock()
	n.at[addrPort(at)] = func() (string, error) { return real, nil }
}

// unreachable has connections to an address fail.
func (n *lan) unreachable(at string, err error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.at[addrPort(at)] = func() (string, error) { return "", err }
}

// serve runs a server on a host until the test ends, which waits for it.
func (n *lan) serve(host netip.Addr, serve func(*net.TCPConn)) string {
	n.t.Helper()
	l := listen(n.t, host)
	var running sync.WaitGroup
	running.Go(func() {
		for {
			c, err := l.AcceptTCP()
			if err != nil {
				return
			}
			n.connecting.Lock()   // whoever connects has connected
			n.connecting.Unlock() //nolint:staticcheck // nothing to guard
			running.Go(func() {
				defer c.Close()
				serve(c)
			})
		}
	})
	n.t.Cleanup(func() {
		l.Close()
		running.Wait()
	})
	return l.Addr().String()
}

// echo sends back what it gets, and then its end.
func echo(c *net.TCPConn) {
	io.Copy(struct{ io.Writer }{c}, struct{ io.Reader }{c}) // without splice, whose pipes the runtime keeps
	c.CloseWrite()
}

// connect opens a captured connection from the pod's application.
func (p *pod) connect(to string) *net.TCPConn {
	p.lan.t.Helper()
	return p.lan.client(func(ctx context.Context) (*net.TCPConn, error) {
		return p.outboundListener.dial(ctx, p.ip, addrPort(to))
	})
}

// from opens a connection from a host that has no proxy.
func (n *lan) from(host, to string) *net.TCPConn {
	n.t.Helper()
	return n.client(func(ctx context.Context) (*net.TCPConn, error) { return n.dial(ctx, addr(host), addrPort(to)) })
}

func (n *lan) client(dial func(context.Context) (*net.TCPConn, error)) *net.TCPConn {
	n.t.Helper()
	c, err := dial(n.t.Context())
	if err != nil {
		n.t.Fatal(err)
	}
	c.SetDeadline(time.Now().Add(patience))
	n.t.Cleanup(func() { c.Close() })
	return c
}

// say sends text and reads as much back.
func say(t *testing.T, c net.Conn, text string) {
	t.Helper()
	if _, err := io.WriteString(c, text); err != nil {
		t.Fatal(err)
	}
	got := make([]byte, len(text))
	if _, err := io.ReadFull(c, got); err != nil || string(got) != text {
		t.Fatalf("said %q and heard %q, %v", text, got, err)
	}
}

// finish ends c's side and wants the other's end.
func finish(t *testing.T, c *net.TCPConn) {
	t.Helper()
	c.CloseWrite()
	if rest, err := io.ReadAll(c); err != nil || len(rest) > 0 {
		t.Fatalf("at the end: %q, %v", rest, err)
	}
	c.Close()
}

// wantReset waits for the reset of a connection on which nothing was said.
func wantReset(t *testing.T, c net.Conn) {
	t.Helper()
	b, err := io.ReadAll(c)
	if len(b) > 0 || !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("got %q, %v; want a reset", b, err)
	}
}

// An output is what a proxy logs, each line once it was logged.
type output struct {
	t   *testing.T
	log *logs.Log

	mu  sync.Mutex
	buf bytes.Buffer // guarded by mu
}

func newOutput(t *testing.T) *output {
	t.Helper()
	o := &output{t: t}
	log, err := logs.New(logs.Config{Output: o, Filter: "debug"})
	if err != nil {
		t.Fatal(err)
	}
	if err := log.Close(); err != nil { // which ends buffering
		t.Fatal(err)
	}
	o.log = log
	return o
}

func (o *output) Write(b []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.buf.Write(b)
}

// varying is what differs from run to run.
var varying = []struct{ from, to string }{
	{`(?m)^[^\t]+\t`, ""}, // the time
	{`(src\.addr|peer|address)=([\d.]+):\d+`, "$1=$2:PORT"},
	{`duration="\d+ms"`, `duration="Nms"`},
	{`id=[0-9a-f]{32}`, "id=TRACE"},
}

// lines are those that contain every text, without what differs each time.
func (o *output) lines(texts ...string) []string {
	o.mu.Lock()
	all := o.buf.String()
	o.mu.Unlock()
	for _, v := range varying {
		all = regexp.MustCompile(v.from).ReplaceAllString(all, v.to)
	}
	var found []string
	for line := range strings.Lines(all) {
		if !slices.ContainsFunc(texts, func(text string) bool { return !strings.Contains(line, text) }) {
			found = append(found, strings.TrimSuffix(line, "\n"))
		}
	}
	return found
}

// await waits for a line that contains every text.
func (o *output) await(texts ...string) string {
	o.t.Helper()
	for end := time.Now().Add(patience); ; time.Sleep(time.Millisecond) {
		if found := o.lines(texts...); len(found) > 0 {
			return found[0]
		}
		if time.Now().After(end) {
			o.t.Fatalf("no line with %q in:\n%s", texts, strings.Join(o.lines(), "\n"))
		}
	}
}

// count is a metric of the traffic, over all series whose labels have the
// values given as name=value.
func (p *pod) count(metric string, labels ...string) float64 {
	p.lan.t.Helper()
	return p.lan.sum(p.registry, metric, labels...)
}

// retries is how often a connection was tried once more.
func (n *lan) retries() float64 { return n.sum(n.balanced, "ztunnel_connect_retries_total") }

func (n *lan) sum(registry *metrics.Registry, metric string, labels ...string) float64 {
	n.t.Helper()
	var scrape bytes.Buffer
	if err := registry.Expose(&scrape); err != nil {
		n.t.Fatal(err)
	}
	sum := 0.0
	for line := range strings.Lines(scrape.String()) {
		line = strings.TrimSpace(line)
		space := strings.LastIndexByte(line, ' ')
		name, set, _ := strings.Cut(strings.TrimSuffix(line[:max(space, 0)], "}"), "{")
		lacks := func(want string) bool {
			label, value, _ := strings.Cut(want, "=")
			return !strings.Contains(","+set+",", fmt.Sprintf(",%s=%q,", label, value))
		}
		if name != metric || slices.ContainsFunc(labels, lacks) {
			continue
		}
		number, err := strconv.ParseFloat(line[space+1:], 64)
		if err != nil {
			n.t.Fatal(err)
		}
		sum += number
	}
	return sum
}

// counts are opened, closed and failed, of which closed and failed have the
// flag.
func (p *pod) counts(flag string) [3]float64 {
	p.lan.t.Helper()
	label := "response_flags=" + flag
	return [3]float64{
		p.count("istio_tcp_connections_opened_total"),
		p.count("istio_tcp_connections_closed_total", label),
		p.count("istio_tcp_connections_failed_total", label),
	}
}

// eventually waits until a condition holds.
func eventually(t *testing.T, what string, holds func() bool) {
	t.Helper()
	for end := time.Now().Add(patience); !holds(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("not so after %v: %s", patience, what)
		}
	}
}

var errTimeout = &net.OpError{Op: "dial", Net: "tcp", Err: os.ErrDeadlineExceeded}
