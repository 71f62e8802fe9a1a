// SPDX-License-Identifier: Apache-2.0

package capture

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

/* How a pod ends, as the kernel tells it
 *
 *	listens --last application closes its listener--> idle --delivery succeeds--> listens
 *	linked  --last device but lo is removed---------> severed
 *
 * Nobody tells of a pod that terminates before its network is gone (the node
 * agent's delete mostly comes after), but an application that is told to end
 * closes its listener. Each event only makes us look: what counts is what
 * inet_diag lists then. Events come from the sockops program in tier A and from
 * the kernel's broadcasts of destroyed sockets for listeners that it does not
 * know; a refused delivery is one, too, and so is each periodic check.
 */

// Endings are told as a pod ends. A function that is nil is not called; they
// are called by one goroutine at a time, and must not call back into the pod.
type Endings struct {
	// Idle: no application of the pod listens any more, after at least one has.
	// One that begins to again makes the pod as it was.
	Idle func()
	// Severed: the pod's last device but lo is gone, and the proxy's
	// connections through it are about to end. It is called once.
	Severed func()
}

const (
	// lookDelay is between an event and the look. What is told of is still to
	// be found at first, and whoever restarts is back by then, or has several
	// listeners to close. It also bounds what a pod can make us look.
	lookDelay = 20 * time.Millisecond
	// ownPorts are those of the proxy's listeners where they have no role
	// (contract 2.1).
	firstOwnPort, lastOwnPort = 15001, 15080
)

// An ending is a pod's state of it.
type ending struct {
	told   Endings
	wake   chan struct{} // room for one: whoever wakes it twice is looked at once
	listen atomic.Bool   // an application has listened since the last Idle

	mu    sync.Mutex
	ports []uint16 // guarded by mu; of applications' listeners, at the last look

	deaths *os.File       // of sockets; owned by watchListeners, nil unless needed
	reader sync.WaitGroup // of deaths
}

// OnEnd has e told of from now on, until Park, Remove or Release. Call it once,
// before Enable.
func (p *Pod) OnEnd(e Endings) error {
	if p.tier == TierPlain {
		return nil // its end is the process's
	}
	p.ending.told = e
	if err := p.watchLinks(); err != nil {
		return err
	}
	p.node.watch(p)
	p.tasks.Go(p.watchListeners) // ends with running
	p.stir()
	return nil
}

// stir makes the pod's applications looked at, soon.
func (p *Pod) stir() {
	select {
	case p.ending.wake <- struct{}{}:
	default:
	}
}

// delivered learns from what became of a connection to an application.
func (p *Pod) delivered(err error) {
	e := &p.ending
	switch {
	case err == nil && !e.listen.Load():
		e.listen.Store(true)
		p.stir() // we may have to hear of its end
	case err != nil && errors.Is(err, unix.ECONNREFUSED) && e.listen.Load():
		p.stir()
	}
}

func (p *Pod) watchListeners() {
	defer p.node.unwatch(p)
	defer p.hearDeaths(false)
	for {
		select {
		case <-p.running.Done():
			return
		case <-p.ending.wake:
		}
		select {
		case <-p.running.Done():
			return
		case <-time.After(lookDelay):
		}
		if err := p.look(); err != nil && p.running.Err() == nil {
			p.node.log.Debug("look at the listeners of a pod", slog.String("pod", p.name()), slog.Any("err", err))
		}
	}
}

// look finds out whether applications listen.
func (p *Pod) look() error {
	ports, untold, err := p.applications()
	if err == nil && p.hearDeaths(untold) {
		ports, _, err = p.applications() // one may have gone before we could hear of it
	}
	if err != nil {
		return err
	}
	p.ending.mu.Lock()
	p.ending.ports = ports
	p.ending.mu.Unlock()
	if len(ports) > 0 {
		p.ending.listen.Store(true)
		return nil
	}
	if p.ending.listen.Swap(false) && p.ending.told.Idle != nil {
		p.node.log.Debug("no application of a pod listens any more", slog.String("pod", p.name()))
		p.ending.told.Idle()
	}
	return nil
}

// applications are the ports on which the pod's applications listen for others
// than themselves. untold: of the end of one, no program tells.
func (p *Pod) applications() (ports []uint16, untold bool, err error) {
	storage := -1
	if p.tier == TierEBPF {
		storage = p.node.bpf.SocketsMap()
	}
	sockets, err := tcpSockets(p.ns, 1<<tcpListen, storage)
	if err != nil {
		return nil, false, err
	}
	for _, s := range sockets {
		if s.local.Addr().IsLoopback() || p.isOwn(s) {
			continue
		}
		ports = append(ports, s.local.Port())
		untold = untold || s.role != roleListener
	}
	return ports, untold, nil
}

// isOwn says whether a listener is the proxy's, of whichever process. One that
// is made to look so is taken for ours: its pod's peers are told of its end
// later.
func (p *Pod) isOwn(s tcpSocket) bool {
	if p.tier == TierEBPF {
		return s.role == roleOwn
	}
	return s.mark == p.node.cfg.Mark && s.local.Port() >= firstOwnPort && s.local.Port() <= lastOwnPort
}

// hearDeaths has the kernel tell of sockets that are destroyed, or not. It
// costs each socket of the namespace about two microseconds, so it is for where
// no program tells. It reports whether that has begun just now.
func (p *Pod) hearDeaths(want bool) bool {
	e := &p.ending
	switch {
	case want == (e.deaths != nil):
		return false
	case !want:
		e.deaths.Close()
		e.reader.Wait()
		e.deaths = nil
		return false
	}
	deaths, err := destroyedSockets(p.ns)
	if err != nil {
		p.node.log.Debug("the end of a pod's listeners is noticed late", slog.String("pod", p.name()), slog.Any("err", err))
		return false
	}
	e.deaths = deaths
	e.reader.Go(func() { // ends when deaths is closed
		b := make([]byte, 1<<13)
		for {
			n, err := deaths.Read(b)
			if errors.Is(err, os.ErrClosed) {
				return
			}
			if err != nil || p.wasListener(b[:n]) { // errors are messages lost
				p.stir()
			}
		}
	})
	return true
}

// wasListener says whether a destroyed socket may have been an application's
// listener. One that was reset has lost its peer's address as well.
func (p *Pod) wasListener(msg []byte) bool {
	if len(msg) < unix.NLMSG_HDRLEN {
		return false
	}
	s, ok := parseSocket(msg[unix.NLMSG_HDRLEN:])
	p.ending.mu.Lock()
	defer p.ending.mu.Unlock()
	return ok && slices.Contains(p.ending.ports, s.local.Port())
}

// watch has the pod hear of what the programs tell.
func (n *Node) watch(p *Pod) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.ending[p] = struct{}{}
}

func (n *Node) unwatch(p *Pod) {
	n.mu.Lock()
	defer n.mu.Unlock()
	delete(n.ending, p)
}

// hear tells pods of listeners that the programs have seen end, until ctx ends.
func (n *Node) hear(ctx context.Context) {
	err := n.bpf.Unheard(ctx, func(cookie uint64) {
		n.mu.Lock()
		defer n.mu.Unlock()
		for p := range n.ending {
			if p.cookie == cookie {
				p.stir()
			}
		}
	})
	if err != nil {
		n.log.Warn("the end of applications' listeners is noticed late", slog.Any("err", err))
	}
}
