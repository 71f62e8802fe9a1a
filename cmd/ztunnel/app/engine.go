// SPDX-License-Identifier: Apache-2.0

package app

import (
	"context"
	"log/slog"

	"github.com/ztunnel-go/ztunnel/dataplane"
	"github.com/ztunnel-go/ztunnel/dataplane/engine"
	"github.com/ztunnel-go/ztunnel/dataplane/hbone/record"
	"github.com/ztunnel-go/ztunnel/dataplane/reactor"
	"github.com/ztunnel-go/ztunnel/internal/logs"
)

// buildEngine makes the gate before handshakes, and starts the event loops that carry tunnels, as many as there are
// worker threads. Where the standard library keeps its ciphers to itself
// (GODEBUG fips140=only), goroutines over crypto/tls do.
func (n *node) buildEngine(context.Context) error {
	n.gate = &dataplane.Gate{All: int(n.cfg.HBONE.Handshakes), PerSource: int(n.cfg.HBONE.HandshakesPerSource)}
	if n.cfg.Engine == "std" {
		return nil
	}
	if err := record.Available(); err != nil {
		logs.Target(n.logger, "ztunnel::app").Warn("TLS_ENGINE=std is used", slog.String("error", err.Error()))
		return nil
	}
	group, err := reactor.Start(n.cfg.Threads)
	if err != nil {
		return err
	}
	n.engine = engine.New(group)
	n.onClose("engine", func() error {
		group.Close()
		n.engine.Close()
		return nil
	})
	return nil
}
