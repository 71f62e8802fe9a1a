// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"errors"
	"syscall"

	"github.com/ztunnel-go/ztunnel/dataplane/reason"
)

// ErrSevered is why connections ended whose pod has lost its network.
var ErrSevered = reason.New(reason.Severed, "connection closed: the pod's network is gone")

// Retire is for a pod whose applications have stopped to listen: peers are
// asked, by GOAWAY, for no more streams on the tunnels that they have, which
// end with those there are. Listeners stay, and new tunnels are taken. So are
// all others as soon as a connection finds an application again; until then a
// tunnel is let go as soon as one has not.
func (p *Proxy) Retire() {
	p.retired.Store(true)
	p.drainTunnels()
}

// learnDelivery keeps tunnels from outliving the pod: of one that no
// application answers, the peer had better have none to hold on to.
func (p *Proxy) learnDelivery(err error) {
	switch {
	case !p.retired.Load():
	case err == nil:
		p.retired.Store(false)
	case errors.Is(err, syscall.ECONNREFUSED):
		p.drainTunnels()
	}
}

// Sever is for a pod whose network is gone, when its connections are about to
// break: what breaks from now on is told to have ended for that.
func (p *Proxy) Sever() { p.severed.Store(true) }

// Hurry ends the grace of a Stop, under way or to come.
func (p *Proxy) Hurry() { p.hurryOnce.Do(func() { close(p.hurried) }) }
