// SPDX-License-Identifier: Apache-2.0

package capture

import (
	"context"
	"errors"
	"net"
	"net/netip"

	"golang.org/x/sys/unix"

	"github.com/ztunnel-go/ztunnel/bpf/redirect"
	"github.com/ztunnel-go/ztunnel/internal/sock"
)

// sockets makes the proxy's own sockets in the pod's namespace.
func (p *Pod) sockets() *sock.Factory {
	f := &sock.Factory{NS: p.ns, Keepalive: p.node.cfg.Keepalive}
	if p.tier == TierEBPF {
		f.Own = p.node.bpf.Own
	}
	return f
}

// connections makes sockets that connect, from the pod's stock of them.
func (p *Pod) connections() *sock.Factory {
	p.stocked.Do(func() {
		f := p.sockets()
		if p.ns != nil {
			f.Stock = sock.NewStock(*f)
		}
		p.dialer = f
	})
	return p.dialer
}

// closeStock lets go of sockets that nobody wants any more.
func (p *Pod) closeStock() {
	if f := p.connections(); f.Stock != nil {
		f.Stock.Close()
	}
}

// Dial connects from the pod's namespace to the network, without being
// captured. Errors are those of [sock.Factory.DialTCP].
func (p *Pod) Dial(ctx context.Context, dst netip.AddrPort) (*net.TCPConn, error) {
	return p.connections().DialTCP(ctx, sock.Dial{Dst: dst, Mark: p.node.cfg.Mark})
}

// DialUDP is [Pod.Dial] for datagrams; nothing is sent.
func (p *Pod) DialUDP(ctx context.Context, dst netip.AddrPort) (net.Conn, error) {
	c, err := p.sockets().DialUDP(ctx, sock.Dial{Dst: dst, Mark: p.node.cfg.Mark})
	if err != nil {
		return nil, err
	}
	return c, nil
}

// Listen makes a listener of the proxy's own at an address of the pod, for
// those who dial it by that address: nothing is redirected to it. It is the
// caller's to close. The error is that of binding, [unix.EADDRINUSE] for one
// where the port is taken.
func (p *Pod) Listen(at netip.AddrPort) (*net.TCPListener, error) {
	l := sock.Listen{Addr: at, ReusePort: p.node.cfg.PortReuse}
	if p.tier == TierIstioCNI {
		l.Mark = p.node.cfg.Mark // see listen
	}
	if l.ReusePort {
		p.migrateRequests()
	}
	return p.sockets().ListenTCP(l)
}

// deliveryAttempts bounds how often another source port is tried when the one
// the kernel chose belongs to a live connection of the same client: one in
// 28,000 per such connection.
const deliveryAttempts = 5

// Deliver connects to an application of the pod, as client (contract 2.5),
// unless client is the destination itself or the address is not to be kept. A
// closed port is refused at once.
func (p *Pod) Deliver(ctx context.Context, client netip.Addr, dst netip.AddrPort) (*net.TCPConn, error) {
	d, keep := p.delivery(client, dst)
	for attempt := 1; ; attempt++ {
		c, err := p.connections().DialTCP(ctx, d)
		// The connect program refuses what would hit a live connection.
		if keep && p.tier == TierEBPF && errors.Is(err, unix.EPERM) && attempt < deliveryAttempts {
			continue
		}
		p.delivered(err)
		return c, err
	}
}

// delivery is how an application is connected to, and whether as if from the
// client.
func (p *Pod) delivery(client netip.Addr, dst netip.AddrPort) (d sock.Dial, keep bool) {
	d = sock.Dial{Dst: dst, Mark: p.node.cfg.Mark}
	keep = p.node.cfg.SpoofSource && client.IsValid() && client != dst.Addr() && client.Is4() == dst.Addr().Is4()
	if keep {
		d.Src = client.WithZone("")
		if p.tier == TierEBPF {
			d.Mark = redirect.MarkDelivery
		}
	}
	return d, keep
}

// DeliverNow is Deliver for event loops: it does not wait, and says
// [sock.ErrLater] where Deliver would. What becomes of the connection is to be
// told to Delivered.
func (p *Pod) DeliverNow(client netip.Addr, dst netip.AddrPort) (*sock.Dialing, error) {
	d, keep := p.delivery(client, dst)
	c, err := p.connections().DialNow(d)
	if keep && p.tier == TierEBPF && errors.Is(err, unix.EPERM) {
		return nil, sock.ErrLater // which tries again
	}
	return c, err
}

// Delivered hears whether an application could be connected to.
func (p *Pod) Delivered(err error) { p.delivered(err) }
