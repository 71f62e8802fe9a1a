// SPDX-License-Identifier: Apache-2.0

package delta

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"strings"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

const (
	// minBackoff is where waiting starts, doubled before it is used, and
	// maxBackoff where it stops growing (contract 8.6).
	minBackoff = 10 * time.Millisecond
	maxBackoff = 15 * time.Second
)

// A phase is how far a stream had come.
type phase uint8

const (
	phaseLocal   phase = iota // before or beside the network: our own mistake
	phaseOpening              // until the server's headers are there
	phaseStream               // afterwards
)

// An ending is the way in which a stream ended.
type ending struct {
	phase phase
	err   error // io.EOF: the server ended it, and all was well
	heard bool  // there was at least one response
}

func (e ending) clean() bool { return e.phase != phaseLocal && errors.Is(e.err, io.EOF) }

// reason sorts an ending into the table of contract 8.6.
func (e ending) reason() Reason {
	switch {
	case e.clean():
		return Complete
	case e.phase == phaseLocal:
		return Error
	case e.phase == phaseOpening:
		return ConnectionError
	}
	s := status.Convert(e.err)
	switch s.Code() {
	case codes.Unknown, codes.Canceled, codes.DeadlineExceeded:
		return Reconnect
	case codes.Unavailable:
		if connectionLost(s.Message()) {
			return Reconnect
		}
	}
	return Error
}

// connectionLost tells a connection that went away from a server that says
// that it is not available. The first two texts are contract 8.6's; the others
// are what grpc-go says where the reference's library has code Unknown.
func connectionLost(message string) bool {
	for _, text := range []string{
		"transport is closing", "received prior goaway",
		"closing transport due to", "error reading from server", "server is draining the connection",
	} {
		if strings.Contains(message, text) {
			return true
		}
	}
	return false
}

// A backoff is how long to wait before the next stream.
type backoff struct{ b time.Duration }

// after says how long to wait after an ending of a stream that lasted so long.
//
// Two things are not as in the reference. Local errors wait like others, where
// it spins. And after a stream that lasted longer than the longest wait,
// waiting begins anew, as it otherwise does only after some kinds of endings:
// whoever was served for a day is not to wait for what happened before.
func (b *backoff) after(e ending, lasted time.Duration) time.Duration {
	if lasted > maxBackoff && e.heard {
		b.b = 0
	}
	if b.b == 0 {
		b.b = minBackoff
	}
	switch reason := e.reason(); {
	case reason == Complete && e.heard:
		b.b = minBackoff
		return 0
	case reason == Reconnect:
		b.b = minBackoff
		return b.b
	default: // and a server that accepts streams only to end them
		b.b = min(maxBackoff, 2*b.b)
		return b.b
	}
}

// log tells of an ending in the reference's words.
func (e ending) log(logger *slog.Logger, address string, wait time.Duration) {
	switch {
	case e.clean():
		logger.Warn("XDS client complete")
	case e.phase == phaseLocal:
		logger.Warn(fmt.Sprintf("XDS client error: %v, retrying in %v", e.err, wait))
	case e.phase == phaseOpening:
		logger.Warn(fmt.Sprintf("XDS client connection error: gRPC connection error connecting to %s: %s, retrying in %v",
			address, describe(e.err), wait))
	case e.reason() == Reconnect:
		logger.Debug(fmt.Sprintf("XDS client terminated: gRPC error %s, retrying in %v", describe(e.err), wait))
	default:
		logger.Warn(fmt.Sprintf("XDS client error: gRPC error %s, retrying in %v", describe(e.err), wait))
	}
}

// describe writes a status as the reference does, with its hints.
func describe(err error) string {
	s := status.Convert(err)
	text := fmt.Sprintf("status: %s, message: %q", codeName(s.Code()), s.Message())
	if strings.Contains(s.Message(), "authentication failure") {
		text += " (hint: check the control plane logs for more information)"
	}
	if nameResolutionFailed(s.Message()) {
		text += " (hint: is the DNS server reachable?)"
	}
	return text
}

// nameResolutionFailed recognises package net's words: "dial tcp: lookup HOST
// on SERVER: ...".
func nameResolutionFailed(message string) bool {
	return strings.Contains(message, "dial tcp: lookup ") || strings.Contains(message, "Temporary failure in name resolution")
}

// codeName is the name that the reference's library has for a code.
func codeName(c codes.Code) string {
	switch c {
	case codes.OK:
		return "Ok"
	case codes.Canceled:
		return "Cancelled"
	default:
		return c.String()
	}
}
