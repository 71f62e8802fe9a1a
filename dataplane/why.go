// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"net"
	"net/http"
	"slices"
	"syscall"

	"github.com/ztunnel-go/ztunnel/dataplane/hbone"
	"github.com/ztunnel-go/ztunnel/dataplane/reason"
	"github.com/ztunnel-go/ztunnel/dataplane/relay"
	"github.com/ztunnel-go/ztunnel/internal/certs"
	"github.com/ztunnel-go/ztunnel/internal/mtls"
	"github.com/ztunnel-go/ztunnel/internal/revocation"
)

/* Which error is which reason, of errors that do not say so themselves
 *
 *	Why          what was refused, or could not reach its next hop
 *	whyDelivery  an application that could not be reached
 *	whyCarried   a connection that broke while bytes were carried
 *	whyQuiet     the same, where nobody complains
 *
 * The same error may be different things at different steps: a reset is a
 * failure for whoever connects, and an end for whoever was connected.
 */

// Why names the reason of an error of any step before bytes are carried.
// [reason.Unknown] is one that nobody has thought of.
func Why(err error) reason.Reason {
	var (
		identity  *identityError
		dial      *hbone.DialError
		handshake *hbone.HandshakeError
		status    *hbone.StatusError
		secure    *hbone.TLSError
		reset     *hbone.ResetError
		goaway    *hbone.GoAwayError
	)
	switch {
	case errors.As(err, &identity):
		return whyCertificate(identity.err)
	case errors.As(err, &dial):
		if dial.Timeout() {
			return reason.TunnelConnectLate
		}
		return whyConnect(dial.Err)
	case errors.As(err, &handshake):
		return reason.TunnelRefused
	case errors.As(err, &status):
		return whyStatus(status.Code)
	case errors.Is(err, hbone.ErrDraining):
		return reason.PoolDraining
	case errors.Is(err, hbone.ErrUnavailable):
		return reason.TunnelFull
	case errors.As(err, &secure):
		return whyTLS(secure.Err)
	case errors.Is(err, revocation.ErrPeerRevoked): // between the handshake and its use
		return reason.TLSRevoked
	}
	if why, ok := reason.Of(err); ok {
		return why
	}
	switch {
	case errors.As(err, &goaway), errors.As(err, &reset) && reset.Cause != nil:
		return reason.TunnelError
	case reset != nil:
		return reason.StreamError
	}
	return whyConnect(err)
}

// whyCertificate is a certificate that could not be had.
func whyCertificate(err error) reason.Reason {
	why, ok := reason.Of(err)
	switch {
	case ok:
		return why
	case errors.Is(err, certs.ErrForgotten):
		return reason.IdentityForgotten
	}
	return reason.CertificateUnavailable
}

// whyStatus is the answer of a peer that did not want a CONNECT.
func whyStatus(code int) reason.Reason {
	switch code {
	case http.StatusUnauthorized, http.StatusForbidden:
		return reason.PeerDenied
	case http.StatusBadGateway, http.StatusServiceUnavailable, http.StatusGatewayTimeout:
		return reason.PeerCannotReach
	}
	return reason.PeerStatus
}

// whyConnect is a TCP connection that was not made.
func whyConnect(err error) reason.Reason {
	var errno syscall.Errno
	switch {
	case timedOut(err):
		return reason.ConnectLate
	case errors.As(err, &errno):
	case errors.Is(err, net.ErrClosed), errors.Is(err, hbone.ErrClosed), errors.Is(err, io.EOF),
		errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, context.Canceled):
		return reason.ConnectFailed
	default:
		return reason.Unknown
	}
	switch errno {
	case syscall.ECONNREFUSED:
		return reason.ConnectRefused
	case syscall.EHOSTUNREACH, syscall.ENETUNREACH, syscall.EHOSTDOWN, syscall.ENETDOWN:
		return reason.ConnectUnreachable
	}
	if lacking(errno) {
		return reason.NoResources
	}
	return reason.ConnectFailed
}

// lacking reports whether errno is want of something that a node has only so
// many of.
func lacking(errno syscall.Errno) bool {
	return slices.Contains([]syscall.Errno{
		syscall.EMFILE, syscall.ENFILE, syscall.ENOBUFS, syscall.ENOMEM, syscall.EADDRNOTAVAIL, syscall.EAGAIN,
	}, errno)
}

func timedOut(err error) bool {
	var timeout net.Error
	return errors.As(err, &timeout) && timeout.Timeout() || errors.Is(err, context.DeadlineExceeded)
}

// whyTLS is a handshake that failed, at either side.
func whyTLS(err error) reason.Reason {
	if why, ok := reason.Of(err); ok { // we ended it
		return why
	}
	var (
		identity    *mtls.SANMismatchError
		domain      *mtls.TrustDomainMismatchError
		revoked     *revocation.RevokedError
		unverified  *revocation.UnverifiedError
		unknownRoot x509.UnknownAuthorityError
		invalid     x509.CertificateInvalidError
		name        x509.HostnameError
		alert       tls.AlertError
		remote      *net.OpError
		errno       syscall.Errno
	)
	switch {
	case errors.As(err, &identity):
		return reason.TLSPeerIdentity
	case errors.As(err, &domain):
		return reason.TLSTrustDomain
	case errors.As(err, &revoked), errors.As(err, &unverified), errors.Is(err, revocation.ErrPeerRevoked):
		return reason.TLSRevoked
	case errors.As(err, &unknownRoot), errors.As(err, &invalid), errors.As(err, &name):
		return reason.TLSCertificate
	case timedOut(err):
		return reason.TLSLate
	case errors.As(err, &alert), errors.As(err, &remote) && remote.Op == "remote error":
		return reason.TLSAlert
	case errors.As(err, &errno) && lacking(errno):
		return reason.NoResources
	case relay.Quiet(err), errors.Is(err, io.EOF), errors.Is(err, net.ErrClosed):
		return reason.TLSPeerGone
	}
	return reason.TLSFailed
}

// whyDelivery is an application of the pod that could not be reached.
func whyDelivery(err error) reason.Reason {
	switch why := whyConnect(err); why {
	case reason.ConnectRefused:
		return reason.ApplicationRefused
	case reason.ConnectLate:
		return reason.ApplicationLate
	case reason.NoResources, reason.Unknown:
		return why
	}
	return reason.ApplicationFailed
}

// whyQuiet is an end of which nobody complains: see [relay.Quiet].
func whyQuiet(err error) reason.Reason {
	var reset *hbone.ResetError
	if errors.As(err, &reset) && reset.Cause != nil || errors.Is(err, io.ErrUnexpectedEOF) {
		return reason.TunnelLost
	}
	return reason.Reset
}

// whyCarried is what broke while bytes were carried.
func whyCarried(err error) reason.Reason {
	var (
		closing *relay.ClosingError
		reset   *hbone.ResetError
		errno   syscall.Errno
	)
	switch {
	case errors.As(err, &closing):
		return reason.CloseFailed
	case errors.As(err, &reset) && reset.Cause != nil:
		return reason.TunnelError
	case reset != nil:
		return reason.StreamError
	case timedOut(err):
		return reason.PeerTimedOut
	case errors.As(err, &errno), errors.Is(err, net.ErrClosed), errors.Is(err, hbone.ErrClosed), errors.Is(err, io.EOF):
		return reason.CopyFailed
	}
	return reason.Unknown
}

// whySOCKS is a negotiation that came to nothing.
func whySOCKS(err error) reason.Reason {
	if why, ok := reason.Of(err); ok {
		return why
	}
	return reason.SOCKSBroken
}
