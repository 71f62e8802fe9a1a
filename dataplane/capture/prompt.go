// SPDX-License-Identifier: Apache-2.0

package capture

import (
	"errors"
	"net"
	"net/netip"

	"golang.org/x/sys/unix"

	"github.com/ztunnel-go/ztunnel/internal/sock"
)

// A Prompt is a listener for event loops: nothing waits, and connections are
// descriptors that the runtime has not seen. It has a descriptor of its own, so
// that connections queue as long as either is open.
type Prompt struct {
	fd    int
	admit func(fd int, peer netip.AddrPort) (*Socket, error)
}

// Prompt opens l to an event loop. Close it before l.
func (l *Listener) Prompt() (*Prompt, error) { return PromptOf(l.tcp, l.admitNow) }

// PromptOf is for listeners of others. admit makes a Socket of each connection,
// whose descriptor is its from then on; nil with no error: it was not for us.
func PromptOf(tcp *net.TCPListener, admit func(fd int, peer netip.AddrPort) (*Socket, error)) (*Prompt, error) {
	fd, err := sock.DupFD(tcp)
	if err != nil {
		return nil, err
	}
	return &Prompt{fd, admit}, nil
}

// FD is to be watched for connections.
func (p *Prompt) FD() int { return p.fd }

// Close gives the descriptor back. Nobody may watch it any more.
func (p *Prompt) Close() error { return unix.Close(p.fd) }

// A Socket is a captured connection as a non-blocking descriptor, which belongs
// to whoever has the Socket.
type Socket struct {
	FD        int
	Peer, Dst netip.AddrPort // as of [Conn]

	keepalive sock.Keepalive
}

// Accept is the next connection, nil if there is none. Its errors are of that
// connection, or the machine's.
func (p *Prompt) Accept() (*Socket, error) {
	for {
		fd, peer, err := sock.AcceptNow(p.fd)
		if errors.Is(err, unix.EAGAIN) {
			return nil, nil
		}
		if err != nil {
			return nil, err
		}
		s, err := p.admit(fd, peer)
		if s != nil || err != nil {
			return s, err
		}
	}
}

// admitNow is [Listener.admit] for what is no TCPConn yet. The descriptor is
// taken care of in any case.
func (l *Listener) admitNow(fd int, peer netip.AddrPort) (*Socket, error) {
	dst, err := sock.LocalAddr(fd)
	if err != nil {
		unix.Close(fd)
		return nil, err
	}
	if l.pod.tier != TierEBPF {
		if to, err := sock.OriginalDstOf(fd); err == nil {
			dst = to
		}
	}
	if l.pod.tier != TierPlain && l.pod.canaries.isTarget(dst) {
		c, err := sock.Hand(fd)
		if err == nil {
			l.pod.canaries.arrived(c)
		}
		return nil, err
	}
	return &Socket{FD: fd, Peer: peer, Dst: dst, keepalive: l.pod.node.cfg.Keepalive}, nil
}

// Conn moves s to the runtime's poller. It is closed on error.
func (s *Socket) Conn() (*Conn, error) {
	c, err := sock.Hand(s.FD)
	if err != nil {
		return nil, err
	}
	if err := s.keepalive.Apply(c); err != nil {
		c.Close()
		return nil, err
	}
	return &Conn{TCPConn: c, Peer: s.Peer, Dst: s.Dst}, nil
}
