// SPDX-License-Identifier: Apache-2.0

package capture

import (
	"fmt"
	"log/slog"
	"slices"
)

// An olderEnded is what became of the connections from before the enrolment.
type olderEnded struct {
	count int
	err   error
}

// Ended is how many connections of a pod that was found running were ended
// because they were older than its capture; the error says why some may live
// on, in plaintext and past all policy.
func (p *Pod) Ended() (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.ended.count, p.ended.err
}

// endOlder ends what a late pod has open past the programs: an application that
// keeps a connection for days would go on in plaintext for as long. A pod that
// an earlier process has captured has no such connections, but others that
// look the same: those that the programs let pass, such as the host's.
//
// That a kernel without SOCK_DESTROY (CONFIG_INET_DIAG_DESTROY) leaves them is
// told and is no reason to capture the pod's new connections either.
func (p *Pod) endOlder() {
	if !p.info.Late || p.inherited || len(p.old) == 0 {
		return
	}
	count, err := p.destroyOlder()
	if err != nil {
		err = fmt.Errorf("connections from before the pod was captured go on: %w", err)
		p.node.log.Warn("older connections of a pod could not be ended", slog.String("pod", p.name()), slog.Any("err", err))
	}
	if count > 0 {
		p.node.log.Info("ended connections from before a pod was captured", slog.String("pod", p.name()), slog.Int("connections", count))
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.ended = olderEnded{count, err}
}

func (p *Pod) destroyOlder() (int, error) {
	sockets, err := tcpSockets(p.ns, everyState&^(1<<tcpListen|1<<tcpTimeWait), p.node.bpf.SocketsMap())
	if err != nil {
		return 0, err
	}
	p.mu.Lock()
	own := p.own
	p.mu.Unlock()
	older := slices.DeleteFunc(sockets, func(s tcpSocket) bool {
		remote := s.remote.Addr()
		return s.role != 0 || !p.old[s.cookie] || remote.IsUnspecified() || remote.IsLoopback() || slices.Contains(own, remote)
	})
	if err := destroy(p.ns, older); err != nil {
		return 0, err
	}
	return len(older), nil
}
