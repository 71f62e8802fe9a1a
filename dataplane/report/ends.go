// SPDX-License-Identifier: Apache-2.0

package report

import (
	"log/slog"
	"time"
)

// Ends is what a line tells of the end of a connection that had both its sides.
type Ends struct {
	First            string // who ended it first: client, upstream, proxy
	Client, Upstream End
}

// An End is how one side ended, and what the kernel knew of it then.
type End struct {
	How         string        // open, fin, rst, timeout, lost
	Known       bool          // the rest is
	SRTT        time.Duration // smoothed round-trip time
	MinRTT      time.Duration // 0: none was measured
	Retransmits uint32        // segments sent again
	Lost        uint32        // segments taken for lost at the end
}

// Ended is told before [Conn.Close], for its line.
func (c *Conn) Ended(e Ends) { c.ends = &e }

// append adds the ends to a line, if there are any.
func (e *Ends) append(attrs []slog.Attr) []slog.Attr {
	if e == nil {
		return attrs
	}
	attrs = append(attrs, slog.String("closed_first", e.First))
	return e.Upstream.append("upstream.", e.Client.append("client.", attrs))
}

func (e *End) append(side string, attrs []slog.Attr) []slog.Attr {
	attrs = append(attrs, slog.String(side+"end", e.How))
	if !e.Known {
		return attrs
	}
	return append(attrs,
		slog.Int64(side+"srtt_us", e.SRTT.Microseconds()),
		slog.Int64(side+"min_rtt_us", e.MinRTT.Microseconds()),
		slog.Uint64(side+"retransmits", uint64(e.Retransmits)),
		slog.Uint64(side+"lost", uint64(e.Lost)))
}
