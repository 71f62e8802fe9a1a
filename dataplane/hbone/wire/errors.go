// SPDX-License-Identifier: Apache-2.0

package wire

import (
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"strconv"

	"golang.org/x/net/http2"
)

// A Code is an HTTP/2 error code (RFC 9113, section 7).
type Code uint32

// The codes that callers meet or choose.
const (
	NoError         Code = 0x0
	ProtocolError   Code = 0x1
	InternalError   Code = 0x2
	FlowControl     Code = 0x3
	SettingsTimeout Code = 0x4
	StreamClosed    Code = 0x5
	FrameSize       Code = 0x6
	RefusedStream   Code = 0x7
	Cancel          Code = 0x8
	Compression     Code = 0x9
	// ConnectError says that the TCP connection behind a CONNECT stream was
	// reset (RFC 9113, section 8.5).
	ConnectError    Code = 0xa
	EnhanceYourCalm Code = 0xb
)

// String is the name the RFC gives to c.
func (c Code) String() string { return http2.ErrCode(c).String() }

// ErrDraining is what a pool returns once the pool drains or is closed
// (contract 14.6).
var ErrDraining = errors.New("pool draining")

// ErrUnavailable is what a tunnel returns when the tunnel takes no more
// streams: it is going away, full, or out of stream ids.
var ErrUnavailable = errors.New("tunnel takes no more streams")

// A DialError is a TCP connection to a peer that could not be made. A timeout
// reads as contract 4.7 has it, since a NetworkPolicy that forgot port 15008
// is its usual cause.
type DialError struct{ Err error }

func (e *DialError) Error() string {
	if e.Timeout() {
		return "connection timed out, maybe a NetworkPolicy is blocking HBONE port 15008: deadline has elapsed"
	}
	return fmt.Sprintf("io error: %v", e.Err)
}

func (e *DialError) Unwrap() error { return e.Err }

// Timeout reports whether nobody answered.
func (e *DialError) Timeout() bool {
	var ne net.Error
	return errors.As(e.Err, &ne) && ne.Timeout() || errors.Is(e.Err, os.ErrDeadlineExceeded)
}

// A TLSError is a TLS handshake that failed, at either side. Err is what
// crypto/tls or the check of the peer's identity said, and its text is all
// there is: the two sides word it differently (contract 4.2, 4.3).
type TLSError struct{ Err error }

func (e *TLSError) Error() string { return e.Err.Error() }
func (e *TLSError) Unwrap() error { return e.Err }

// A HandshakeError is a tunnel that ended before its peer had shown that it
// speaks HTTP/2, or a stream that ended before its CONNECT was answered.
type HandshakeError struct{ Err error }

func (e *HandshakeError) Error() string { return fmt.Sprintf("http2 handshake failed: %v", e.Err) }
func (e *HandshakeError) Unwrap() error { return e.Err }

// A StatusError is a CONNECT that was answered with anything but 200.
type StatusError struct{ Code int }

func (e *StatusError) Error() string {
	if text := http.StatusText(e.Code); text != "" {
		return fmt.Sprintf("http status: %d %s", e.Code, text)
	}
	return "http status: " + strconv.Itoa(e.Code)
}

// A ResetError is a stream that ended before both sides had finished.
type ResetError struct {
	Code   Code
	Remote bool  // the peer sent RST_STREAM; else we did, or the tunnel was lost
	Cause  error // why the tunnel was lost; nil if only this stream ended

	// Unseen says that the peer has certainly not acted on the stream,
	// so that opening it again elsewhere is safe (RFC 9113, section 8.7).
	Unseen bool
}

func (e *ResetError) Error() string {
	switch {
	case e.Cause != nil:
		return fmt.Sprintf("tunnel lost: %v", e.Cause)
	case e.Remote:
		return fmt.Sprintf("stream reset by peer: %v", e.Code)
	}
	return fmt.Sprintf("stream reset: %v", e.Code)
}

func (e *ResetError) Unwrap() error { return e.Cause }

// Unprocessed reports whether the peer has certainly not acted on the stream.
func (e *ResetError) Unprocessed() bool { return e.Unseen }

// Quiet reports whether contract 4.8 lets such an end pass for success in
// logs and metrics: the peer or the tunnel went away without complaint.
func (e *ResetError) Quiet() bool {
	if e.Cause != nil {
		var goaway *GoAwayError
		var ended *EndedError
		return !errors.As(e.Cause, &ended) && (!errors.As(e.Cause, &goaway) || goaway.Code == NoError)
	}
	switch e.Code {
	case NoError, Cancel, StreamClosed, ConnectError:
		return true
	}
	return false
}

// Lost reports whether the tunnel has ended, and not only the stream.
func (e *ResetError) Lost() bool { return e.Cause != nil }

// Ours reports whether this side ended the stream or its tunnel.
func (e *ResetError) Ours() bool {
	var goaway *GoAwayError
	var ended *EndedError
	switch {
	case e.Cause == nil:
		return !e.Remote
	case errors.As(e.Cause, &goaway):
		return !goaway.Remote
	}
	return errors.As(e.Cause, &ended) || errors.Is(e.Cause, ErrClosed)
}

// Clean reports whether the peer only wants no more, having said all it had to
// say (RFC 9113, section 8.1).
func (e *ResetError) Clean() bool { return e.Remote && e.Code == NoError }

// A GoAwayError is a tunnel that one side ended with GOAWAY.
type GoAwayError struct {
	Code   Code
	Remote bool   // the peer said so; else we did
	Reason string // what we found wrong, or the peer's debug text
}

func (e *GoAwayError) Error() string {
	who := "sent"
	if e.Remote {
		who = "received"
	}
	if e.Reason == "" {
		return fmt.Sprintf("GOAWAY %s: %v", who, e.Code)
	}
	return fmt.Sprintf("GOAWAY %s: %v (%s)", who, e.Code, e.Reason)
}

// An EndedError is the cause of streams whose tunnel was ended by End.
type EndedError struct{ Cause error }

func (e *EndedError) Error() string { return e.Cause.Error() }
func (e *EndedError) Unwrap() error { return e.Cause }

// ErrPingTimeout is the cause of streams lost because the peer answered no
// PING (contract 4.4).
var ErrPingTimeout error = pingTimeout{}

type pingTimeout struct{}

func (pingTimeout) Error() string { return "HBONE ping timeout" }
func (pingTimeout) Timeout() bool { return true }

// ErrClosed is the cause of streams lost because their tunnel was closed on
// this side.
var ErrClosed = errors.New("tunnel closed")

// Complaint is a breach of the protocol that ends the tunnel: a [*GoAwayError]
// of ours.
func Complaint(code Code, format string, args ...any) error {
	return &GoAwayError{Code: code, Reason: fmt.Sprintf(format, args...)}
}
