// SPDX-License-Identifier: Apache-2.0

// Package report tells what became of connections: one value per connection,
// and closing it writes the metrics and the access-log line, once (contract
// 12.3 to 12.6, 14.4).
//
// It decides nothing and knows no sockets; who the two ends are and why a
// connection ended is handed in. It also owns the baggage header, since what
// a peer says of itself there becomes labels here. It imports internal/mesh,
// internal/identity, internal/logs and, in metrics.go, the Prometheus client.
package report

import (
	"context"
	"log/slog"
	"net/netip"
	"sync/atomic"
	"time"

	"github.com/ztunnel-go/ztunnel/dataplane/reason"
	"github.com/ztunnel-go/ztunnel/internal/identity"
	"github.com/ztunnel-go/ztunnel/internal/logs"
	"github.com/ztunnel-go/ztunnel/internal/mesh"
)

// A Side says which end of a connection reports it.
type Side uint8

const (
	Source      Side = iota // the pod opened the connection
	Destination             // the pod accepted it
)

// String is the value of the label reporter.
func (s Side) String() string {
	if s == Destination {
		return "destination"
	}
	return "source"
}

// direction is the value of the access log's field of that name.
func (s Side) direction() string {
	if s == Destination {
		return "inbound"
	}
	return "outbound"
}

// Params is what is known of a connection when it is opened.
type Params struct {
	Reporter Side

	// Src is the client and Dst the other end of the socket: outbound what was
	// dialled, inbound the local address, on 15006 the original destination.
	Src, Dst netip.AddrPort

	// HBONEAddr is the authority of the CONNECT; empty without one.
	HBONEAddr string

	// Source is the client's workload; nil if it is unknown. Then
	// SourceBaggage stands in for it, if the peer sent any.
	Source        *mesh.Workload
	SourceBaggage *Baggage

	// Destination is the next hop's workload (outbound) or the local one
	// (inbound); nil if it is unknown. DestinationBaggage, which only an inner
	// tunnel has, overrides it.
	Destination        *mesh.Workload
	DestinationBaggage *Baggage

	// Service is the service that the client meant; nil if none is known.
	Service *mesh.Service

	// Began is since when the connection's duration counts, where it is opened
	// late; zero: since it is opened.
	Began time.Time

	// MutualTLS says that the connection is in a tunnel. The source's identity
	// counts only then.
	MutualTLS      bool
	SourceIdentity identity.ID
	// DestinationIdentity is the one that an inner tunnel proved; zero means
	// the identity of Destination.
	DestinationIdentity identity.ID
}

// A Reporter makes a [Conn] of each connection. One serves all pods of a node.
type Reporter struct {
	metrics *Metrics
	access  *slog.Logger
	extras  Extras
}

// Extras is what lines have behind the reference's keys.
type Extras struct {
	Reasons bool // the name of the reason (ACCESS_LOG_REASON)
	TCPInfo bool // what [Conn.Ended] was told (ACCESS_LOG_TCP_INFO)
}

// New returns a reporter that counts in m and writes access lines to logger
// under the target access, without spans (contract 14.4).
func New(m *Metrics, logger *slog.Logger) *Reporter {
	return &Reporter{metrics: m, access: logs.Target(logger, "access")}
}

// With is a reporter like r whose lines have more.
func (r *Reporter) With(extras Extras) *Reporter {
	with := *r
	with.extras = extras
	return &with
}

// Extras is what [Reporter.With] was told.
func (r *Reporter) Extras() Extras { return r.extras }

// because adds the reason if it is wanted.
func (r *Reporter) because(attrs []slog.Attr, why reason.Reason) []slog.Attr {
	if !r.extras.Reasons {
		return attrs
	}
	return append(attrs, slog.String("reason", why.String()))
}

// A Conn is one open connection. Its Add methods may be called from any
// number of goroutines, also with Close.
type Conn struct {
	reporter       *Reporter
	params         Params
	series         *series
	opened         time.Time
	sent, received atomic.Uint64 // bytes
	closed         atomic.Bool
	ends           *Ends // written before Close, by whoever calls it
}

// Open counts a connection as opened, which makes its byte counters appear
// with the value 0, and writes a debug line. It comes before policy and before
// dialling, so a refused connection has been opened too (contract 12.6).
func (r *Reporter) Open(p Params) *Conn {
	c := &Conn{reporter: r, params: p, opened: p.Began}
	if c.opened.IsZero() {
		c.opened = time.Now()
	}
	c.series = r.metrics.traffic.take(labelsOf(&p, reason.FlagNone))
	c.series.opened.Add(1)
	if r.access.Enabled(context.Background(), slog.LevelDebug) {
		r.access.LogAttrs(context.Background(), slog.LevelDebug, "connection opened", c.attrs()...)
	}
	return c
}

// AddReceived counts n bytes from the client to the server, whichever side
// reports.
func (c *Conn) AddReceived(n int) {
	c.received.Add(uint64(n))
	c.series.received.Add(uint64(n))
}

// AddSent counts n bytes from the server to the client.
func (c *Conn) AddSent(n int) {
	c.sent.Add(uint64(n))
	c.series.sent.Add(uint64(n))
}

// Received is the count of bytes from the client so far.
func (c *Conn) Received() uint64 { return c.received.Load() }

// Sent is the count of bytes to the client so far.
func (c *Conn) Sent() uint64 { return c.sent.Load() }

// Close counts the connection as closed, and as failed unless the reason's flag
// is [reason.FlagNone], and writes its access line: at error if err is not nil,
// which may be so without a flag (contract 12.5, drain). Calls after the first
// do nothing.
func (c *Conn) Close(why reason.Reason, err error) {
	if c.closed.Swap(true) {
		return
	}
	c.count(why.Flag())
	c.reporter.metrics.end(c.params.Reporter, why)

	level := slog.LevelInfo
	if err != nil {
		level = slog.LevelError
	}
	access := c.reporter.access
	if !access.Enabled(context.Background(), level) {
		return
	}
	// The log tells what this side sent; the metrics take the client's view
	// whoever reports (contract 14.4).
	sent, received := c.received.Load(), c.sent.Load()
	if c.params.Reporter == Destination {
		sent, received = received, sent
	}
	attrs := append(c.attrs(),
		slog.Uint64("bytes_sent", sent),
		slog.Uint64("bytes_recv", received),
		slog.String("duration", milliseconds(time.Since(c.opened))))
	if err != nil {
		attrs = append(attrs, slog.String("error", err.Error()))
	}
	attrs = c.ends.append(c.reporter.because(attrs, why))
	access.LogAttrs(context.Background(), level, "connection complete", attrs...)
}

// count counts the end of the connection.
func (c *Conn) count(flag reason.Flag) {
	traffic := c.reporter.metrics.traffic
	defer traffic.give(c.series)
	if flag == reason.FlagNone {
		c.series.closed.Add(1)
		return
	}
	final := traffic.take(labelsOf(&c.params, flag))
	defer traffic.give(final)
	final.closed.Add(1)
	final.failed.Add(1)
}

// An Early is a connection that was refused before it was tracked.
type Early struct {
	Reporter Side
	Src, Dst netip.AddrPort // Dst is left out if it is not valid
	Why      reason.Reason
	Err      error
}

// Denied writes the line of a connection that ended before it could be opened.
// No metric of the reference's knows of it (contract 12.6).
func (r *Reporter) Denied(e Early) {
	r.Refused(e.Reporter, e.Why)
	attrs := make([]slog.Attr, 0, 4)
	attrs = append(attrs, slog.Any("src.addr", e.Src))
	if e.Dst.IsValid() {
		attrs = append(attrs, slog.Any("dst.addr", e.Dst))
	}
	attrs = append(attrs, slog.String("direction", e.Reporter.direction()), slog.String("error", e.Err.Error()))
	attrs = r.because(attrs, e.Why)
	r.access.LogAttrs(context.Background(), slog.LevelWarn, "connection failed", attrs...)
}

// Refused counts a connection that ended before it could be opened, and of
// which others write a line.
func (r *Reporter) Refused(side Side, why reason.Reason) { r.metrics.end(side, why) }

// SocketOpened counts an accepted socket; a tunnel is one, however many
// streams it has (contract 12.2). SocketClosed must follow.
func (r *Reporter) SocketOpened(side Side) { r.metrics.socket(side, 1) }

// SocketClosed takes back one SocketOpened.
func (r *Reporter) SocketClosed(side Side) { r.metrics.socket(side, -1) }

// HostLookup counts that a connection of source needed the address of a
// workload that has none, only a name (contract 3.8, 12.2); asked says that it
// was not in a cache.
func (r *Reporter) HostLookup(source *mesh.Workload, hostname string, asked bool) {
	r.metrics.lookups.add(source, hostname, asked)
}
