// SPDX-License-Identifier: Apache-2.0

package capture

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/netip"

	"github.com/ztunnel-go/ztunnel/internal/netns"
)

var errLater = errors.New("capture: not built yet")

// Node is the node's part of capture.
type Node struct{}

// Open loads what the node needs.
func Open(ctx context.Context, cfg Config, log *slog.Logger) (*Node, error) { return nil, errLater }

// Add prepares a pod.
func (n *Node) Add(ctx context.Context, info PodInfo, ns *netns.NS) (*Pod, error) {
	return nil, errLater
}

// Counters are all counters.
func (n *Node) Counters() []Counter { return nil }

// Close leaves capture in force.
func (n *Node) Close() error { return nil }

// Cleanup removes every trace.
func Cleanup(ctx context.Context, cfg Config) error { return errLater }

// Pod is one pod.
type Pod struct{}

// Tier says who captures.
func (p *Pod) Tier() Tier { return 0 }

// Listener of a role.
func (p *Pod) Listener(r Role) *Listener { return nil }

// DNSPacketConns are the sockets of the DNS server.
func (p *Pod) DNSPacketConns() []net.PacketConn { return nil }

// DNSListeners are the TCP listeners of the DNS server.
func (p *Pod) DNSListeners() []net.Listener { return nil }

// Enable puts capture in force.
func (p *Pod) Enable(ctx context.Context) error { return errLater }

// Health is the latest verdict.
func (p *Pod) Health() error { return nil }

// Dial connects towards the network.
func (p *Pod) Dial(ctx context.Context, dst netip.AddrPort) (*net.TCPConn, error) {
	return nil, errLater
}

// DialUDP connects towards the network.
func (p *Pod) DialUDP(ctx context.Context, dst netip.AddrPort) (net.Conn, error) {
	return nil, errLater
}

// Deliver connects to the pod's application.
func (p *Pod) Deliver(ctx context.Context, client netip.Addr, dst netip.AddrPort) (*net.TCPConn, error) {
	return nil, errLater
}

// Remove ends capture of the pod.
func (p *Pod) Remove(ctx context.Context) error { return errLater }

// Release stops serving.
func (p *Pod) Release() error { return nil }

// Listener yields captured connections.
type Listener struct{}

// Accept waits for the next one.
func (l *Listener) Accept() (*Conn, error) { return nil, errLater }

// Close stops accepting.
func (l *Listener) Close() error { return nil }

// Addr is where it is bound.
func (l *Listener) Addr() net.Addr { return nil }
