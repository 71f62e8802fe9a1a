// SPDX-License-Identifier: Apache-2.0

package report

import (
	"time"

	"github.com/ztunnel-go/ztunnel/dataplane/reason"
)

// A Past is what is known of a connection that goes on in another process.
type Past struct {
	Params         Params
	Opened         time.Time
	Sent, Received uint64
}

// Move ends the connection here without a trace: whoever goes on with it has it
// counted as closed, and writes its line. Each process counts the bytes that it
// has carried itself. It reports false if the connection was closed before.
func (c *Conn) Move() (Past, bool) {
	if c.closed.Swap(true) {
		return Past{}, false
	}
	c.reporter.metrics.traffic.give(c.series)
	return Past{Params: c.params, Opened: c.opened, Sent: c.sent.Load(), Received: c.received.Load()}, true
}

// Resume goes on with a connection that another process has opened, and counted
// as opened.
func (r *Reporter) Resume(p Past) *Conn {
	c := &Conn{reporter: r, params: p.Params, opened: p.Opened}
	c.sent.Store(p.Sent)
	c.received.Store(p.Received)
	c.series = r.metrics.traffic.take(labelsOf(&p.Params, reason.FlagNone))
	return c
}
