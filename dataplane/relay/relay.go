// SPDX-License-Identifier: Apache-2.0

// Package relay carries bytes between two connections until both directions
// have ended, and what TCP says with them: an end as an end, a reset as a
// reset.
//
//	client --- sent ---> upstream
//	client <- received - upstream
//
// What one side does reaches the other so (design 5, "TCP truth"; the
// reference turns resets into ends, contract 4.8):
//
//	end of a direction (FIN, END_STREAM)    CloseWrite; the other direction goes on
//	reset (RST, RST_STREAM, lost tunnel)    Reset, after what came before it was delivered
//	RST_STREAM(NO_ERROR)                    an end, and nothing more is written there
//	end of the context                      Reset of both
//
// What came before a reset is delivered as long as the receiver takes it, for
// at most [linger]; a plain TCP path gives no more. A direction that waits
// holds no buffer.
//
// Goroutines do that ([Copy], [Carry]), or event loops, for two TCP connections
// ([Loops]) and for those that know how to ([Joiner]).
//
// It knows no protocol: a tunnel's stream and a TCP connection are both a
// [Conn]. Imports dataplane/reactor, internal/sock and x/sys; imported by
// dataplane and by dataplane/engine, whose streams are Joiners.
package relay

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"syscall"
	"time"
)

// A Conn is one side of a connection. A Conn may also be an io.WriterTo, which
// spares a buffer, and may have
//
//	OnBroken(func(error))
//
// which tells of a reset that no Read is there to see; its function does not
// wait.
type Conn interface {
	io.Reader
	io.Writer
	// CloseWrite ends the direction towards the peer.
	CloseWrite() error
	// Reset ends both directions at once, and lets the peer know: RST, or
	// RST_STREAM. It does not wait, and ends every Read and Write.
	Reset()
	// Close ends what is open. It may be called after Reset, and again.
	Close() error
}

// Counts hears of bytes as they are delivered, and of the end. Nil functions
// are not called.
type Counts struct {
	Sent     func(n int) // from client to upstream
	Received func(n int) // from upstream to client
	Ends     *Ends       // is told how both sides ended; nil: nobody wants to know
	Owner    any         // who is behind the functions, for a Joiner that is taken elsewhere; may be nil
}

// linger is how long bytes that came before a reset may wait for a receiver
// that does not read. A kernel keeps as much for an application as fits its
// receive buffer; without a bound a stalled one would keep a dead connection.
const linger = 5 * time.Second

// An Error is what ended a direction, worded as contract 4.8 has it.
type Error struct {
	Sending bool // from client to upstream; else the other way
	Err     error
}

func (e *Error) Error() string {
	if e.Sending {
		return fmt.Sprintf("send: %v", e.Err)
	}
	return fmt.Sprintf("receive: %v", e.Err)
}

func (e *Error) Unwrap() error { return e.Err }

// A ClosingError is a side that could not be closed after all was carried.
type ClosingError struct{ Err error }

func (e *ClosingError) Error() string { return fmt.Sprintf("while closing connection: %v", e.Err) }
func (e *ClosingError) Unwrap() error { return e.Err }

// Quiet reports whether err, from [Copy], passes for success in logs and
// metrics (contract 4.8): a connection or its tunnel that was reset or lost
// without complaint.
func Quiet(err error) bool {
	if err == nil {
		return true
	}
	var verdict interface{ Quiet() bool }
	if errors.As(err, &verdict) {
		return verdict.Quiet()
	}
	return isReset(err) || errors.Is(err, io.ErrUnexpectedEOF)
}

// isReset reports whether err is how a TCP connection breaks.
func isReset(err error) bool {
	return errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE) || errors.Is(err, syscall.ENOTCONN)
}

// Copy relays between client and upstream until both directions have ended,
// and closes both. It returns nil if both ended well, the cause of ctx if that
// ended first, and otherwise an [*Error]; if both directions failed, that of
// sending. Use [Quiet] to tell resets from complaints.
func Copy(ctx context.Context, client, upstream Conn, counts Counts) error {
	return copyFor(ctx, client, upstream, counts, patience{linger: linger, stall: stallCheck})
}

// patience is how long a reset waits; tests have less of it.
type patience struct{ linger, stall time.Duration }

func copyFor(ctx context.Context, client, upstream Conn, counts Counts, wait patience) error {
	s := &session{client: client, upstream: upstream, wait: wait, ends: counts.Ends}
	send := &direction{s: s, src: client, dst: upstream, count: counts.Sent, sending: true}
	receive := &direction{s: s, src: upstream, dst: client, count: counts.Received}
	send.back, receive.back = receive, send

	stop := context.AfterFunc(ctx, s.cut)
	receive.watch()
	send.watch()

	var receiving sync.WaitGroup
	receiving.Go(receive.run) // ends when the direction does
	send.run()
	receiving.Wait()
	stop()
	return s.finish(ctx)
}
