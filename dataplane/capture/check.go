// SPDX-License-Identifier: Apache-2.0

package capture

import (
	"context"
	"crypto/rand"
	"crypto/subtle"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ztunnel-go/ztunnel/bpf/redirect"
	"github.com/ztunnel-go/ztunnel/internal/sock"
)

// canaryTimeout bounds one check; what it waits for happens on lo.
const canaryTimeout = 2 * time.Second

// Where two processes share a port, each canary has an even chance, and less
// time: the other process may be one that hangs.
const (
	sharedAttempts = 12
	sharedTimeout  = 200 * time.Millisecond
)

// canaryHops keeps a canary that is not captured from going further than the
// pod's node.
const canaryHops = 1

// nonceLen is enough never to be guessed.
const nonceLen = 16

// Canaries go to addresses that nobody may use (RFC 5737, RFC 3849).
func canaryTargets() [2]netip.Addr {
	return [2]netip.Addr{netip.AddrFrom4([4]byte{192, 0, 2, 1}), netip.MustParseAddr("2001:db8::1")}
}

// canaryFor is the target of src's family.
func canaryFor(src netip.Addr) netip.Addr {
	if src.Is4() {
		return canaryTargets()[0]
	}
	return canaryTargets()[1]
}

// canaries are a pod's test connections, seen from the side where they arrive.
type canaries struct {
	pod   *Pod
	nonce [nonceLen]byte
}

func newCanaries(p *Pod) *canaries {
	c := &canaries{pod: p}
	rand.Read(c.nonce[:]) // never fails since Go 1.24
	return c
}

// isTarget says whether a connection or packet to dst can only be a canary.
func (c *canaries) isTarget(dst netip.AddrPort) bool {
	t := canaryTargets()
	return (dst.Addr() == t[0] || dst.Addr() == t[1]) &&
		(dst.Port() == Outbound.Port() || dst.Port() == dnsServerPort)
}

func (c *canaries) isNonce(b []byte) bool { return subtle.ConstantTimeCompare(b, c.nonce[:]) == 1 }

// arrived answers a canary: it gets its nonce back. Anything else is reset.
func (c *canaries) arrived(conn *net.TCPConn) {
	c.pod.tasks.Go(func() { // ends at its deadline at the latest
		got := make([]byte, nonceLen)
		_ = conn.SetDeadline(time.Now().Add(canaryTimeout))
		_, err := io.ReadFull(conn, got)
		if err == nil && c.isNonce(got) {
			_, _ = conn.Write(got) // one that is not answered is a check that failed
		}
		_ = sock.CloseReset(conn)
	})
}

// verify runs every check. If one fails the rules are put in order once and all
// run again.
func (p *Pod) verify(ctx context.Context) error {
	if p.isLeft() {
		return nil // it is the other process's to prove
	}
	err := p.check(ctx)
	if err == nil || ctx.Err() != nil {
		return err
	}
	if p.isLeft() {
		return nil // in between
	}
	if p.tier == TierEBPF {
		p.node.events.repaired.Add(1)
		if repair := p.repair(); repair != nil {
			err = errors.Join(err, repair)
		} else {
			err = p.check(ctx)
		}
	}
	if err != nil && p.isLeft() {
		return nil
	}
	if err != nil {
		p.node.events.unhealthy.Add(1)
	}
	return err
}

func (p *Pod) check(ctx context.Context) error {
	if p.tier == TierIstioCNI {
		return p.checkRedirect(ctx)
	}
	if p.proven { // else Add has just done it
		if err := p.follow(); err != nil {
			return err
		}
	}
	sources := p.sources()
	if len(sources) == 0 && !p.proven {
		return errNoAddress
	}
	for _, src := range sources {
		if err := p.note(outboundCheck, p.checkOutbound(ctx, src)); err != nil {
			return fmt.Errorf("outbound canary: %w", err)
		}
		if err := p.note(inboundCheck, p.checkInbound(src)); err != nil {
			return fmt.Errorf("inbound canary: %w", err)
		}
		if err := p.note(deliveryCheck, p.checkDelivery(ctx, src)); err != nil {
			return fmt.Errorf("delivery canary: %w", err)
		}
		if !p.node.cfg.DNS {
			continue
		}
		if err := p.note(dnsCheck, p.checkDNS(ctx, src)); err != nil {
			return fmt.Errorf("DNS canary: %w", err)
		}
	}
	return p.node.sweeps.run(func() error { return p.note(sweepCheck, p.sweep()) })
}

// strangers makes sockets as an application of the pod would.
func (p *Pod) strangers() *sock.Factory { return &sock.Factory{NS: p.ns} }

// checkOutbound connects as an application does and wants to be answered by
// our own listener.
func (p *Pod) checkOutbound(ctx context.Context, src netip.Addr) error {
	before := p.captured()
	to := netip.AddrPortFrom(canaryFor(src), Outbound.Port())
	c, err := p.strangers().DialTCP(ctx, sock.Dial{Dst: to, Hops: canaryHops, Timeout: canaryTimeout})
	if err != nil {
		if p.tier == TierEBPF && p.captured() == before && ctx.Err() == nil {
			return fmt.Errorf("the connect program did not run for a socket of this process, so the proxy is not inside the cgroup %s, and pods may not be either: %w", p.node.place.cgroup, err)
		}
		return err
	}
	return p.echo(c, canaryTimeout)
}

// echo sends the nonce and wants it back.
func (p *Pod) echo(c net.Conn, within time.Duration) error {
	defer c.Close()
	c.SetDeadline(time.Now().Add(within))
	if _, err := c.Write(p.canaries.nonce[:]); err != nil {
		return err
	}
	got := make([]byte, nonceLen)
	if _, err := io.ReadFull(c, got); err != nil {
		return fmt.Errorf("no answer from our listener: %w", err)
	}
	if !p.canaries.isNonce(got) {
		return errors.New("somebody else answered")
	}
	return nil
}

// captured is how many connects the node has captured so far.
func (p *Pod) captured() uint64 {
	if p.node.bpf == nil {
		return 0
	}
	counts, err := p.node.bpf.Counts()
	if err != nil {
		return 0
	}
	for _, c := range counts {
		if c.Hook == "connect" && c.Name == "captured" {
			return c.Value
		}
	}
	return 0
}

// outsideIfindex stands for any device but lo.
const outsideIfindex = 2

// checkInbound asks the steering program about a connection from outside.
func (p *Pod) checkInbound(src netip.Addr) error {
	if err := p.steer.Attached(p.ns.Fd()); err != nil {
		return err
	}
	const somePort, highPort = 80, 50000
	for role, port := range map[Role]uint16{Plaintext: somePort, HBONE: HBONE.Port()} {
		want, err := socketCookie(p.listeners[role].tcp)
		if err != nil {
			return err
		}
		got, err := p.steer.Ask(redirect.Packet{
			From: netip.AddrPortFrom(canaryFor(src), highPort), To: netip.AddrPortFrom(src, port), Ifindex: outsideIfindex})
		if err != nil {
			return err
		}
		if got.Drop || got.Socket != want {
			return fmt.Errorf("a connection to port %d would not reach the %v listener", port, role)
		}
	}
	return nil
}

// checkDelivery delivers to a listener of its own as a client from afar, and
// then to nobody.
func (p *Pod) checkDelivery(ctx context.Context, src netip.Addr) error {
	app, err := p.strangers().ListenTCP(sock.Listen{Addr: netip.AddrPortFrom(src, 0)})
	if err != nil {
		return err
	}
	defer app.Close()
	to, client := canonical(app.Addr()), canaryFor(src)
	ctx, cancel := context.WithTimeout(ctx, canaryTimeout)
	defer cancel()
	c, err := p.Deliver(ctx, client, to)
	if err != nil {
		return err
	}
	defer func() { _ = sock.CloseReset(c) }()
	app.SetDeadline(time.Now().Add(canaryTimeout))
	got, err := app.AcceptTCP()
	if err != nil {
		return fmt.Errorf("not delivered: %w", err)
	}
	defer func() { _ = sock.CloseReset(got) }()
	if from := canonical(got.RemoteAddr()).Addr(); p.node.cfg.SpoofSource && from != client {
		return fmt.Errorf("delivered from %v instead of %v", from, client)
	}
	app.Close()
	if c, err := p.Deliver(ctx, client, to); !errors.Is(err, unix.ECONNREFUSED) {
		if err == nil {
			c.Close()
		}
		return fmt.Errorf("a closed port was not refused: %v", err)
	}
	return nil
}

// checkDNS sends a packet that the DNS sockets answer themselves.
func (p *Pod) checkDNS(ctx context.Context, src netip.Addr) error {
	if src.Is6() && len(p.dnsPackets) < 2 {
		return nil
	}
	to := netip.AddrPortFrom(canaryFor(src), dnsServerPort)
	c, err := p.strangers().DialUDP(ctx, sock.Dial{Dst: to, Hops: canaryHops})
	if err != nil {
		return err
	}
	return p.echo(c, canaryTimeout)
}

// A budget keeps what is dear to the node, the same for all pods, within a
// small part of the time.
type budget struct {
	mu   sync.Mutex
	next time.Time // guarded by mu; when it may be spent again
}

// sweepShare is one over the part of the time that sweeps may take: each walks
// the table of all connections of the machine, whichever pod it is for.
const sweepShare = 50

// run calls fn unless it is too early for another call; then a later check does
// it.
func (b *budget) run(fn func() error) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	began := time.Now()
	if began.Before(b.next) {
		return nil
	}
	err := fn()
	now := time.Now()
	b.next = now.Add(sweepShare * now.Sub(began))
	return err
}

// rememberSockets notes which sockets are older than the enrolment.
func (p *Pod) rememberSockets() error {
	if n, err := tcpInUse(p.ns); err == nil && n == len(p.listeners)+len(p.dnsListeners) {
		return nil // there are only our own: the usual case, found out for less
	}
	sockets, err := tcpSockets(p.ns, everyState, -1)
	if err != nil {
		return err
	}
	p.old = map[uint64]bool{}
	for _, s := range sockets {
		p.old[s.cookie] = true
	}
	return nil
}

// sweep looks for connections that no program has seen: all sockets that
// connect or are accepted while the pod is enrolled have a role. One without,
// unless it is older, was opened past the programs, so others may be.
func (p *Pod) sweep() error {
	sockets, err := tcpSockets(p.ns, 1<<tcpEstablished, p.node.bpf.SocketsMap())
	if err != nil {
		return err
	}
	for _, s := range sockets {
		if s.role == 0 && !p.old[s.cookie] && !s.remote.Addr().IsLoopback() {
			return fmt.Errorf("connection %v -> %v was opened past the programs: is the pod inside the cgroup %s?", s.local, s.remote, p.node.place.cgroup)
		}
	}
	return nil
}

// destroyCaptured ends every connection of the pod that depends on our rules.
func (p *Pod) destroyCaptured() error {
	p.mu.Lock()
	own := p.own
	p.mu.Unlock()
	return destroyMarked(p.ns, own, p.node.bpf.SocketsMap())
}

// checkRedirect proves that istio-cni's rules bring outbound connections here.
func (p *Pod) checkRedirect(ctx context.Context) error {
	src, err := p.anySource()
	if errors.Is(err, errNoAddress) && p.proven {
		return nil
	}
	if err != nil {
		return err
	}
	if err := p.note(redirectCheck, p.redirectsToUs(ctx, src)); err != nil {
		return fmt.Errorf("istio-cni's rules do not redirect to us: %w", err)
	}
	return nil
}

// redirectsToUs tries again where the port may be shared with another process,
// as during an upgrade: the kernel gives each of the two about half of all
// connections.
func (p *Pod) redirectsToUs(ctx context.Context, src netip.Addr) error {
	if p.node.cfg.PortReuse {
		to := netip.AddrPortFrom(canaryFor(src), Outbound.Port())
		for range sharedAttempts {
			c, err := p.strangers().DialTCP(ctx, sock.Dial{Dst: to, Hops: canaryHops, Timeout: sharedTimeout})
			if err == nil && p.echo(c, sharedTimeout) == nil {
				return nil
			}
		}
	}
	return p.checkOutbound(ctx, src)
}

// anySource is one of the pod's addresses, read afresh.
func (p *Pod) anySource() (netip.Addr, error) {
	r, err := newRouter(p.ns, false)
	if err != nil {
		return netip.Addr{}, err
	}
	defer r.close()
	_, src4, src6, err := r.addresses()
	switch {
	case err != nil:
		return netip.Addr{}, err
	case src4.IsValid():
		return src4, nil
	case src6.IsValid():
		return src6, nil
	}
	return netip.Addr{}, errNoAddress
}

// errNoAddress: there is nothing to prove capture with. A pod that had one and
// lost it is on its way out, and no reason to call the node unready.
var errNoAddress = errors.New("the pod has no address")
