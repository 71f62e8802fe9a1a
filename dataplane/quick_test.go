// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"net"
	"net/netip"

	"golang.org/x/sys/unix"

	"github.com/ztunnel-go/ztunnel/dataplane/capture"
	"github.com/ztunnel-go/ztunnel/internal/sock"
)

// The lan's pods are asked by event loops too, so that every test of this
// package that has an engine takes that way where it can be taken.

// Prompt has connections accepted on an event loop, where there is one.
func (a *acceptor) Prompt() (*capture.Prompt, error) {
	return capture.PromptOf(a.l, func(fd int, peer netip.AddrPort) (*capture.Socket, error) {
		dst, known, err := a.destination(peer.String())
		if err != nil || !known {
			unix.Close(fd)
			return nil, err
		}
		return &capture.Socket{FD: fd, Peer: shown(net.TCPAddrFromAddrPort(peer)), Dst: dst}, nil
	})
}

// deliverNow is deliverTo for event loops. A pod that is held is not ready.
func (p *pod) deliverNow(client netip.Addr, dst netip.AddrPort) (*sock.Dialing, error) {
	p.mu.Lock()
	app, ok := p.apps[dst.Port()]
	hold := p.hold
	p.mu.Unlock()
	if hold != nil || dst.Addr() != p.ip {
		return nil, sock.ErrLater
	}
	if !ok {
		app = closedPort(p.ip)
	}
	f := sock.Factory{Own: func(fd int) error { // which is before it connects
		return unix.Bind(fd, &unix.SockaddrInet4{Addr: loopback(client).As4()})
	}}
	return f.DialNow(sock.Dial{Dst: netip.MustParseAddrPort(app)})
}
