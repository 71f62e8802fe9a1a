// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"syscall"

	"github.com/ztunnel-go/ztunnel/dataplane/capture"
	"github.com/ztunnel-go/ztunnel/dataplane/hbone"
	"github.com/ztunnel-go/ztunnel/dataplane/rbac"
	"github.com/ztunnel-go/ztunnel/dataplane/reason"
	"github.com/ztunnel-go/ztunnel/dataplane/relay"
	"github.com/ztunnel-go/ztunnel/dataplane/report"
	"github.com/ztunnel-go/ztunnel/internal/revocation"
)

// This file turns an error into what operators see: its reason, which has the
// flag of the metrics (contract 12.5), and the text of the log (contract
// 14.6). Which error is which reason is in why.go.

// An identityError is a certificate that could not be had.
type identityError struct{ err error }

func (e *identityError) Error() string { return "identity error: " + e.err.Error() }

// A deliveryError is an application of the pod that could not be reached.
type deliveryError struct{ err error }

func (e *deliveryError) Error() string { return "connection failed: " + ioText(e.err) }

// errGone ends what was begun for a client that did not wait for it.
var errGone = reason.New(reason.ClientGone, "client disconnected before it was answered")

// denied tells of a connection that ended before it was tracked.
func (p *Proxy) denied(side report.Side, c *capture.Conn, err error) {
	p.shared.Reporter.Denied(report.Early{Reporter: side, Src: c.Peer, Dst: c.Dst, Why: Why(err), Err: err})
}

// outboundFailure judges an upstream that could not be had.
func outboundFailure(ctx context.Context, err error) (reason.Reason, error) {
	if why, cause, ended := endedBy(ctx); ended {
		return why, cause
	}
	var (
		identity  *identityError
		dial      *hbone.DialError
		handshake *hbone.HandshakeError
		status    *hbone.StatusError
	)
	why := Why(err)
	switch {
	case errors.As(err, &identity):
		return why, identity
	case errors.As(err, &dial) && dial.Timeout():
		return why, dial
	case errors.As(err, &dial):
		return why, ioError(dial.Err)
	case errors.As(err, &handshake):
		return why, handshake
	case errors.As(err, &status), errors.Is(err, hbone.ErrDraining):
		return why, err
	}
	return why, ioError(err) // of TLS too (contract 12.5)
}

// endOf judges how a connection ended that had both its ends, or on the way
// to its application. What we ended it for comes before what broke because of
// that.
func endOf(ctx context.Context, err error) (reason.Reason, error) {
	if err == nil {
		return reason.Ended, nil
	}
	if why, cause, ended := endedBy(ctx); ended {
		return why, cause
	}
	var (
		denied   *rbac.DeniedError
		delivery *deliveryError
	)
	switch {
	case errors.As(err, &denied):
		return denied.Why(), denied
	case errors.As(err, &delivery):
		return whyDelivery(delivery.err), delivery
	case errors.Is(err, revocation.ErrPeerRevoked):
		return reason.PeerRevoked, revocation.ErrPeerRevoked
	case errors.Is(err, ErrSevered): // as a drain
		return reason.Severed, ErrSevered
	case relay.Quiet(err): // a peer that went away without complaint (contract 4.8)
		return whyQuiet(err), nil
	}
	return whyCarried(err), err
}

// endedBy says whether somebody of ours ended the connection, and how that is
// told.
func endedBy(ctx context.Context) (reason.Reason, error, bool) {
	cause := context.Cause(ctx)
	if cause == nil {
		return reason.Unknown, nil, false
	}
	why, known := reason.Of(cause)
	switch {
	case why == reason.ClientGone: // as quiet as a client that goes later
		return why, nil, true
	case !known: // whatever it is, we ended it
		why = reason.Drained
	}
	return why, cause, true // of a drain closed counts, failed does not, and the log is an error (contract 12.5)
}

func ioError(err error) error { return fmt.Errorf("io error: %s", ioText(err)) }

// ioText is an operating system error in the words that log searches know:
// "Connection refused (os error 111)", or "deadline has elapsed".
func ioText(err error) string {
	var timeout net.Error
	if errors.As(err, &timeout) && timeout.Timeout() || errors.Is(err, context.DeadlineExceeded) {
		return "deadline has elapsed"
	}
	var errno syscall.Errno
	if errors.As(err, &errno) {
		text := errno.Error()
		return fmt.Sprintf("%s%s (os error %d)", strings.ToUpper(text[:1]), text[1:], int(errno))
	}
	return err.Error()
}
