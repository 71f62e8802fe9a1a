// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"syscall"

	"github.com/ztunnel-go/ztunnel/dataplane/hbone"
	"github.com/ztunnel-go/ztunnel/dataplane/live"
	"github.com/ztunnel-go/ztunnel/dataplane/rbac"
	"github.com/ztunnel-go/ztunnel/dataplane/relay"
	"github.com/ztunnel-go/ztunnel/dataplane/report"
	"github.com/ztunnel-go/ztunnel/internal/revocation"
)

// This file is the one table that turns an error into what operators see: the
// flag of the metrics (contract 12.5) and the text of the log (contract 14.6).

// An identityError is a certificate that could not be had.
type identityError struct{ err error }

func (e *identityError) Error() string { return "identity error: " + e.err.Error() }

// A deliveryError is an application of the pod that could not be reached.
type deliveryError struct{ err error }

func (e *deliveryError) Error() string { return "connection failed: " + ioText(e.err) }

// errGone ends what was begun for a client that did not wait for it.
var errGone = errors.New("client disconnected before it was answered")

// outboundFailure judges an upstream that could not be had.
func outboundFailure(ctx context.Context, err error) (report.Flag, error) {
	if flag, cause, ended := endedBy(ctx); ended {
		return flag, cause
	}
	var (
		identity  *identityError
		dial      *hbone.DialError
		handshake *hbone.HandshakeError
		status    *hbone.StatusError
	)
	switch {
	case errors.As(err, &identity):
		return report.FlagIdentityError, identity
	case errors.As(err, &dial) && dial.Timeout():
		return report.FlagNetworkPolicy, dial
	case errors.As(err, &dial):
		return report.FlagConnect, ioError(dial.Err)
	case errors.As(err, &handshake):
		return report.FlagH2HandshakeFailure, handshake
	case errors.As(err, &status), errors.Is(err, hbone.ErrDraining):
		return report.FlagConnect, err
	}
	return report.FlagConnect, ioError(err) // of TLS too (contract 12.5)
}

// endOf judges how a connection ended that had both its ends, or on the way
// to its application. What we ended it for comes before what broke because of
// that.
func endOf(ctx context.Context, err error) (report.Flag, error) {
	if err == nil {
		return report.FlagNone, nil
	}
	if flag, cause, ended := endedBy(ctx); ended {
		return flag, cause
	}
	var (
		denied   *rbac.DeniedError
		delivery *deliveryError
	)
	switch {
	case errors.As(err, &denied):
		return report.FlagDeny, denied
	case errors.As(err, &delivery):
		return report.FlagConnect, delivery
	case errors.Is(err, revocation.ErrPeerRevoked):
		return report.FlagCertificateRevoked, revocation.ErrPeerRevoked
	case errors.Is(err, ErrSevered): // as a drain
		return report.FlagNone, ErrSevered
	case relay.Quiet(err): // a peer that went away without complaint (contract 4.8)
		return report.FlagNone, nil
	}
	return report.FlagConnect, err
}

// endedBy says whether somebody of ours ended the connection, and how that is
// told.
func endedBy(ctx context.Context) (report.Flag, error, bool) {
	cause := context.Cause(ctx)
	switch {
	case cause == nil:
		return "", nil, false
	case errors.Is(cause, live.ErrPolicyChange):
		return report.FlagDeny, cause, true
	case errors.Is(cause, errGone): // as quiet as a client that goes later
		return report.FlagNone, nil, true
	default: // drain: closed counts, failed does not, the log is an error (contract 12.5)
		return report.FlagNone, cause, true
	}
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
