// SPDX-License-Identifier: Apache-2.0

package app

import (
	"context"
	"net/netip"
	"sync"

	"github.com/ztunnel-go/ztunnel/dataplane"
	"github.com/ztunnel-go/ztunnel/dataplane/capture"
	"github.com/ztunnel-go/ztunnel/dataplane/live"
	"github.com/ztunnel-go/ztunnel/internal/logs"
	"github.com/ztunnel-go/ztunnel/internal/sock"
)

/* Dedicated mode (PROXY_MODE=dedicated)
 *
 * The process serves the one workload of PROXY_WORKLOAD_INFO, in its own
 * network namespace. There is no node agent, no listener for ourselves, and
 * nothing is captured by us: rules that others make lead to our ports, or
 * clients ask by SOCKS5 and DNS. No certificate is fetched before it is needed,
 * and the authority is asked as the workload itself (contract 7.1, 7.6, 18).
 */

// A dedicated is the proxy of the one workload. It binds long before it serves.
type dedicated struct {
	*podProxy
	bound   dataplane.Sockets
	serving chan struct{} // closed when podProxy.proxy is what it will be
}

// buildDedicated binds all ports. What connects from now on waits for
// serveDedicated.
func (n *node) buildDedicated(context.Context) error {
	who := dataplane.Pod{UID: n.cfg.Workload.Namespace + "/" + n.cfg.Workload.Name, Name: n.cfg.Workload.Name, Namespace: n.cfg.Workload.Namespace, ServiceAccount: n.cfg.Workload.ServiceAccount}
	own, err := capture.Plain(n.cfg.plain(), capture.PodInfo{UID: who.UID, Name: who.Name, Namespace: who.Namespace},
		logs.Target(n.logger, "capture"))
	if err != nil {
		return err
	}
	p := &podProxy{node: n, capture: own, pod: who, cancel: func() {}}
	d := &dedicated{podProxy: p, serving: make(chan struct{})}
	if d.bound, err = p.sockets(logs.Target(n.logger, "dns")); err != nil {
		_ = own.Release() // err is what counts
		return err
	}
	n.dedicated = d
	n.onClose("proxy", n.closeDedicated)
	logs.Target(n.logger, "ztunnel::app").Info("proxy mode enabled")
	return nil
}

// plain is what package capture wants of the environment in dedicated mode.
func (c *Config) plain() capture.PlainConfig {
	out := capture.PlainConfig{Proxy: c.Proxy, Keepalive: c.keepalive(), IPv6: c.IPv6, SpoofSource: c.Sockets.OriginalSource}
	if c.Sockets.PacketMark != nil {
		out.Mark = *c.Sockets.PacketMark
	}
	switch at := c.DNSProxyAddr; {
	case !c.DNSProxy:
	case !at.Localhost:
		out.DNS = []netip.AddrPort{at.Addr}
	default:
		out.DNS = []netip.AddrPort{netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), at.Port)}
		if c.IPv6Localhost {
			out.DNS = append(out.DNS, netip.AddrPortFrom(netip.IPv6Loopback(), at.Port))
		}
	}
	return out
}

func (c *Config) keepalive() sock.Keepalive {
	return sock.Keepalive{
		Enabled: c.Sockets.Keepalive, Time: c.Sockets.KeepaliveTime, Interval: c.Sockets.KeepaliveInterval,
		Retries: int(c.Sockets.KeepaliveRetries), UserTimeout: c.Sockets.UserTimeout,
	}
}

// serveDedicated begins to accept and answer, and blocks until ctx ends.
func (n *node) serveDedicated(ctx context.Context) error {
	p := n.dedicated
	if p.dns != nil {
		if err := p.dns.Serve(p.capture.DNSPacketConns(), p.capture.DNSListeners()); err != nil {
			return err
		}
	}
	if n.cfg.Proxy {
		p.proxy = dataplane.Start(n.proxyConfig(), p.pod, p.bound, n.shared(logs.Target(n.logger, "proxy")))
	}
	close(p.serving)
	<-ctx.Done()
	return nil
}

// closeDedicated drains, while nobody is told any more that we are ready.
func (n *node) closeDedicated() (err error) {
	var telling sync.WaitGroup
	telling.Go(func() { err = shutdown(n.readiness) })
	p := n.dedicated
	if p.proxy == nil && p.bound.SOCKS != nil { // stopped before it began
		_ = p.bound.SOCKS.Close()
	}
	p.silence(n.cfg.Drain)
	released := p.capture.Release()
	telling.Wait()
	if err == nil {
		err = released
	}
	return err
}

// live shows the open connections.
func (d *dedicated) live() live.Snapshot {
	select {
	case <-d.serving:
	default:
		return live.Snapshot{}
	}
	if d.proxy == nil { // ENABLE_PROXY=false
		return live.Snapshot{}
	}
	return d.proxy.Live()
}
