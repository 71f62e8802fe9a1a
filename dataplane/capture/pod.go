// SPDX-License-Identifier: Apache-2.0

package capture

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/ztunnel-go/ztunnel/bpf/redirect"
	"github.com/ztunnel-go/ztunnel/internal/netns"
	"github.com/ztunnel-go/ztunnel/internal/sock"
)

// checkInterval is how often a pod's capture is proven again.
const checkInterval = 15 * time.Second

/* The life of a pod
 *
 *	Add -> Enable -+-> Remove            capture ends, after Leave at once for what is new
 *	               +-> Park -> Remove    it stays, closed, and ends later
 *	               +-> Release           it stays, closed, for the next process
 *	               +-> Abandon           Enable failed: the first or the last of these
 *
 * In Add order: steering program, listeners, addresses, rules. Enable puts the
 * listeners into their slots and then writes the enrolment, which diverts the
 * first connection; it is taken out first.
 */

// A Pod is one pod's capture. Its methods may be called by several goroutines;
// Add, Enable and those that end it by one at a time.
type Pod struct {
	node     *Node
	info     PodInfo
	ns       *netns.NS // the pod's duplicate; nil in TierPlain, which is in our own
	cookie   uint64    // tier A
	tier     Tier
	canaries *canaries

	listeners    [roles]*Listener
	dnsPackets   []net.PacketConn
	dnsListeners []net.Listener
	slots        []slotted // of all these; tier A

	ending    ending
	steer     *redirect.Pod   // tier A
	inherited bool            // an earlier process had enrolled the pod
	old       map[uint64]bool // sockets from before the enrolment, by cookie; set by Enable before the checks run
	proven    bool            // the checks have held once; set by Enable
	ended     olderEnded      // set by Enable, guarded by mu

	stocked sync.Once
	dialer  *sock.Factory // set by stocked: see connections

	mu      sync.Mutex
	router  *router           // tier A; guarded by mu
	src     [2]netip.Addr     // v4, v6: zero where there is none; guarded by mu
	own     []netip.Addr      // guarded by mu
	health  error             // guarded by mu
	last    [checkKinds]Check // guarded by mu; zero: not made yet
	vacated bool              // guarded by mu; see Vacate, Leave, Listener.Close
	since   time.Time         // guarded by mu; when we saw that another process has the pod; zero: it has not

	stop    context.CancelFunc
	running context.Context // ends with stop
	tasks   sync.WaitGroup  // watch, keepChecking, canaries; end when stop is called
	release sync.Once
	err     error // of Release
}

func newPod(n *Node, info PodInfo, ns *netns.NS) *Pod {
	p := &Pod{node: n, info: info, ns: ns}
	p.running, p.stop = context.WithCancel(context.Background())
	p.canaries = newCanaries(p)
	p.ending.wake = make(chan struct{}, 1)
	return p
}

// open makes everything that the tier needs.
func (p *Pod) open(ctx context.Context) error {
	if p.tier == TierEBPF {
		if err := p.prepare(); err != nil {
			return err
		}
	}
	for r := range roles {
		if err := p.listen(r); err != nil {
			return err
		}
	}
	if p.node.cfg.DNS {
		if err := p.listenDNS(); err != nil {
			return err
		}
	}
	if p.tier == TierIstioCNI {
		return nil
	}
	if err := p.follow(); err != nil {
		return err
	}
	p.hold()
	return p.watch()
}

// hold has connections wait while no proxy runs.
func (p *Pod) hold() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if err := p.router.hold(p.steer.Hold()); err != nil {
		p.node.log.Warn("while no proxy runs, connections of a pod will be refused instead of held",
			slog.String("pod", p.name()), slog.Any("err", err))
	}
}

// prepare opens the namespace's netlink and attaches the steering program.
func (p *Pod) prepare() (err error) {
	if p.inherited, err = p.node.bpf.IsEnrolled(p.cookie); err != nil {
		return err
	}
	if p.router, err = newRouter(p.ns, p.node.cfg.DNS); err != nil {
		return err
	}
	p.steer, err = p.node.bpf.Pod(p.cookie, p.ns.Fd(), p.node.cfg.DNS)
	return err
}

// follow reads the pod's addresses and puts programs, rules and routes in
// accord with them.
func (p *Pod) follow() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.router == nil {
		return net.ErrClosed
	}
	own, src4, src6, err := p.router.addresses()
	if err != nil {
		return err
	}
	p.own, p.src = own, [2]netip.Addr{src4, src6}
	if err := p.steer.SetAddresses(own); err != nil {
		return err
	}
	return p.router.ensure(src4, src6)
}

// sources are the addresses that connections leave from, one per family that
// has one.
func (p *Pod) sources() []netip.Addr {
	p.mu.Lock()
	defer p.mu.Unlock()
	var out []netip.Addr
	for _, a := range p.src {
		if a.IsValid() {
			out = append(out, a)
		}
	}
	return out
}

// watch follows changes of the pod's addresses until the pod is released.
func (p *Pod) watch() error {
	updates := make(chan netlink.AddrUpdate, 16)
	err := p.ns.Do(func() error { // the socket belongs to where it is made
		return netlink.AddrSubscribeWithOptions(updates, p.running.Done(), netlink.AddrSubscribeOptions{
			// An overrun loses updates; the periodic check reads all of them.
			ErrorCallback: func(error) {},
		})
	})
	if err != nil {
		return fmt.Errorf("watch addresses: %w", err)
	}
	p.tasks.Go(func() { // ends when netlink closes updates, after stop
		for range updates {
			if err := p.follow(); err != nil && p.running.Err() == nil && !errors.Is(err, redirect.ErrReplaced) {
				p.node.log.Warn("follow the addresses of a pod", slog.String("pod", p.name()), slog.Any("err", err))
			}
		}
	})
	return nil
}

func (p *Pod) name() string { return p.info.Namespace + "/" + p.info.Name }

// Tier says who captures this pod.
func (p *Pod) Tier() Tier { return p.tier }

// Listener is the one of a role.
func (p *Pod) Listener(r Role) *Listener { return p.listeners[r] }

// DNSPacketConns are the sockets for the DNS server, one or two; none if DNS is
// not captured. An address that ReadFrom gives implements
// interface{ AddrPort() netip.AddrPort }, the client's; WriteTo to it answers
// from the server that was asked.
func (p *Pod) DNSPacketConns() []net.PacketConn { return p.dnsPackets }

// DNSListeners are the same for TCP; a connection's local address is the server
// that was asked.
func (p *Pod) DNSListeners() []net.Listener { return p.dnsListeners }

// keepChecking proves capture again and again.
func (p *Pod) keepChecking(ctx context.Context) {
	tick := time.NewTicker(checkInterval)
	defer tick.Stop()
	succession := time.NewTicker(successionInterval)
	defer succession.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-succession.C:
			p.takeBack()
			p.lookAfter()
			continue
		case <-tick.C:
		}
		err := p.verify(ctx)
		if ctx.Err() != nil {
			return
		}
		p.setHealth(err)
		p.stir() // an event may have been lost
	}
}

// setHealth records a verdict and says so when it changes. A check that was
// called off, because the pod is told again or goes, is not worth a line.
func (p *Pod) setHealth(err error) {
	p.mu.Lock()
	was := p.health
	p.health = err
	p.mu.Unlock()
	switch {
	case errors.Is(err, context.Canceled):
	case err != nil && was == nil:
		p.node.log.Error("capture of a pod does not hold", slog.String("pod", p.name()), slog.Any("err", err))
	case err == nil && was != nil:
		p.node.log.Info("capture of a pod holds again", slog.String("pod", p.name()))
	}
}

// Health is the latest verdict of the checks; nil: capture holds.
func (p *Pod) Health() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.health
}

// Counters are the pod's share of those of sk_lookup; none in tier C.
func (p *Pod) Counters() ([]Counter, error) {
	if p.steer == nil {
		return nil, nil
	}
	counts, err := p.steer.Counts()
	return counters(counts), err
}

// Leave ends the capture of what is opened from now on, and leaves what is open
// as it is. Nothing is proven any more. Remove must follow.
func (p *Pod) Leave() error {
	if p.steer == nil {
		return nil
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.vacated = true
	err := p.steer.Unenroll(p.router.freeDNS)
	if errors.Is(err, redirect.ErrReplaced) {
		return nil // the pod is the newer process's
	}
	if err != nil {
		return fmt.Errorf("end capture of pod %s: %w", p.name(), err)
	}
	return nil
}

// Remove ends the pod's capture without a byte in plaintext: no new socket is
// captured, the proxy's sockets and those of applications that carry our marks
// are ended, and only then rules and programs go. Where the kernel cannot end
// sockets the rules stay until the namespace ends. The connections that the
// proxy accepted should be closed before. It runs to its end whatever becomes of
// ctx: half of it would be worse than none.
func (p *Pod) Remove(_ context.Context) error {
	errs := []error{p.quiet()}
	if p.steer != nil {
		errs = append(errs, p.withdraw())
	}
	errs = append(errs, p.Release())
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("remove capture of pod %s: %w", p.name(), err)
	}
	return nil
}

func (p *Pod) withdraw() error {
	err := p.steer.Unenroll(nil)
	if errors.Is(err, redirect.ErrReplaced) {
		return nil // the pod is the newer process's
	}
	if err != nil {
		return err
	}
	if err := p.destroyCaptured(); err != nil {
		p.node.log.Warn("sockets of a removed pod could not be ended; their rules stay",
			slog.String("pod", p.name()), slog.Any("err", err))
		return nil
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	err = p.steer.Remove(p.router.remove)
	if errors.Is(err, redirect.ErrReplaced) {
		return nil // it has just become so
	}
	if err == nil {
		p.node.forget(p.cookie)
	}
	return err
}

// Park stops serving the pod and keeps what Remove needs. In tier A its capture
// stays, closed. Remove or Release must follow.
func (p *Pod) Park() error { return p.quiet() }

// Abandon undoes Add, also after an Enable that failed: nothing of the pod's
// capture is left, unless an earlier process had captured the pod. Then it
// stays so, closed, since to let go would be to let out what was protected.
func (p *Pod) Abandon(ctx context.Context) error {
	if p.steer != nil && !p.inherited {
		return p.Remove(ctx)
	}
	return p.Release()
}

// quiet ends the pod's goroutines and closes its listeners. Later calls do
// nothing.
func (p *Pod) quiet() error {
	p.stop()
	var errs []error
	for _, l := range p.listeners {
		if l != nil {
			errs = append(errs, l.Close())
		}
	}
	for _, c := range p.dnsPackets {
		errs = append(errs, ignoreClosed(c.Close()))
	}
	for _, l := range p.dnsListeners {
		errs = append(errs, ignoreClosed(l.Close()))
	}
	p.tasks.Wait()
	p.closeStock()
	return errors.Join(errs...)
}

func ignoreClosed(err error) error {
	if errors.Is(err, net.ErrClosed) {
		return nil
	}
	return err
}

// Release stops serving the pod. In tier A its capture stays, closed:
// connections wait for the next process. Later calls return what the first
// did.
func (p *Pod) Release() error {
	p.release.Do(func() {
		errs := []error{p.quiet()}
		if p.steer != nil {
			errs = append(errs, p.steer.Close())
		}
		p.mu.Lock()
		p.router.close()
		p.router = nil
		p.mu.Unlock()
		if p.ns != nil {
			errs = append(errs, p.ns.Close())
		}
		p.err = errors.Join(errs...)
	})
	return p.err
}
