// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"syscall"
	"testing"

	"github.com/ztunnel-go/ztunnel/dataplane/hbone"
	"github.com/ztunnel-go/ztunnel/dataplane/live"
	"github.com/ztunnel-go/ztunnel/dataplane/rbac"
	"github.com/ztunnel-go/ztunnel/dataplane/reason"
	"github.com/ztunnel-go/ztunnel/dataplane/relay"
)

func ended(cause error) context.Context {
	ctx, cancel := context.WithCancelCause(context.Background())
	cancel(cause)
	return ctx
}

// syscallError is what a socket's error looks like.
func syscallError(op string, errno syscall.Errno) error {
	return &net.OpError{Op: op, Net: "tcp", Err: os.NewSyscallError(op, errno)}
}

// A judgement is a row of contract 12.5 and its text of 14.6.
type judgement struct {
	name string
	ctx  context.Context
	err  error
	why  reason.Reason
	flag reason.Flag
	text string // empty: no error
}

func (j judgement) check(t *testing.T, judge func(context.Context, error) (reason.Reason, error)) {
	t.Helper()
	ctx := j.ctx
	if ctx == nil {
		ctx = context.Background()
	}
	why, err := judge(ctx, j.err)
	text := ""
	if err != nil {
		text = err.Error()
	}
	if why != j.why || why.Flag() != j.flag || text != j.text {
		t.Errorf("%s: %v %s %q, want %v %s %q", j.name, why, why.Flag(), text, j.why, j.flag, j.text)
	}
}

const (
	drained = "connection closed due to connection drain"
	changed = "connection closed due to policy change"
)

func TestUpstreamFailures(t *testing.T) {
	refused, timeout := syscallError("connect", syscall.ECONNREFUSED), syscallError("dial", syscall.ETIMEDOUT)
	reset := &hbone.ResetError{Code: hbone.RefusedStream, Remote: true}
	for _, j := range []judgement{
		{"refused", nil, refused, reason.ConnectRefused, reason.FlagConnect, "io error: Connection refused (os error 111)"},
		{"timeout", nil, timeout, reason.ConnectLate, reason.FlagConnect, "io error: deadline has elapsed"},
		{"no route", nil, syscallError("connect", syscall.EHOSTUNREACH), reason.ConnectUnreachable, reason.FlagConnect, "io error: No route to host (os error 113)"},
		{"tunnel refused", nil, &hbone.DialError{Err: refused}, reason.ConnectRefused, reason.FlagConnect, "io error: Connection refused (os error 111)"},
		{"tunnel timeout", nil, &hbone.DialError{Err: timeout}, reason.TunnelConnectLate, reason.FlagNetworkPolicy,
			"connection timed out, maybe a NetworkPolicy is blocking HBONE port 15008: deadline has elapsed"},
		{"no certificate", nil, fmt.Errorf("open: %w", &identityError{errors.New("signing gRPC error (x): y")}), reason.CertificateUnavailable, reason.FlagIdentityError,
			"identity error: signing gRPC error (x): y"},
		{"TLS", nil, &hbone.TLSError{Err: errors.New("identity verification error: who?")}, reason.TLSFailed, reason.FlagConnect, "io error: identity verification error: who?"},
		{"TLS timeout", nil, &hbone.TLSError{Err: errors.Join(context.DeadlineExceeded, io.EOF)}, reason.TLSLate, reason.FlagConnect, "io error: deadline has elapsed"},
		{"TLS reset", nil, &hbone.TLSError{Err: syscallError("read", syscall.ECONNRESET)}, reason.TLSPeerGone, reason.FlagConnect, "io error: Connection reset by peer (os error 104)"},
		{"stream reset", nil, &hbone.HandshakeError{Err: reset}, reason.TunnelRefused, reason.FlagH2HandshakeFailure, "http2 handshake failed: stream reset by peer: REFUSED_STREAM"},
		{"401", nil, &hbone.StatusError{Code: 401}, reason.PeerDenied, reason.FlagConnect, "http status: 401 Unauthorized"},
		{"503", nil, &hbone.StatusError{Code: 503}, reason.PeerCannotReach, reason.FlagConnect, "http status: 503 Service Unavailable"},
		{"pool", nil, hbone.ErrDraining, reason.PoolDraining, reason.FlagConnect, "pool draining"},
		{"drain", ended(ErrDrained), refused, reason.Drained, reason.FlagNone, drained},
	} {
		j.check(t, outboundFailure)
	}
}

func TestEndsOfConnections(t *testing.T) {
	resetErr := &relay.Error{Sending: true, Err: syscallError("write", syscall.ECONNRESET)}
	complaint := &relay.Error{Err: &hbone.ResetError{Code: hbone.ProtocolError, Remote: true}}
	denied := &rbac.DeniedError{Policy: "ns/p", Reason: "explicitly denied by: ns/p"}
	for _, j := range []judgement{
		{"well", nil, nil, reason.Ended, reason.FlagNone, ""},
		{"well, and then cut", ended(live.ErrPolicyChange), nil, reason.Ended, reason.FlagNone, ""},
		{"reset", nil, resetErr, reason.Reset, reason.FlagNone, ""},
		{"complaint", nil, complaint, reason.StreamError, reason.FlagConnect, "receive: stream reset by peer: PROTOCOL_ERROR"},
		{"application", nil, &deliveryError{syscallError("connect", syscall.ECONNREFUSED)}, reason.ApplicationRefused, reason.FlagConnect, "connection failed: Connection refused (os error 111)"},
		{"application timeout", nil, &deliveryError{os.ErrDeadlineExceeded}, reason.ApplicationLate, reason.FlagConnect, "connection failed: deadline has elapsed"},
		{"application resets the dial", nil, &deliveryError{syscallError("connect", syscall.ECONNRESET)}, reason.ApplicationFailed, reason.FlagConnect, "connection failed: Connection reset by peer (os error 104)"},
		{"policy", nil, denied, reason.PolicyDenied, reason.FlagDeny, denied.Error()},
		{"cut", ended(live.ErrPolicyChange), complaint, reason.PolicyChanged, reason.FlagDeny, changed},
		{"cut while dialling", ended(live.ErrPolicyChange), &deliveryError{context.Canceled}, reason.PolicyChanged, reason.FlagDeny, changed},
		{"drain", ended(ErrDrained), resetErr, reason.Drained, reason.FlagNone, drained},
		{"gone", ended(errGone), &deliveryError{context.Canceled}, reason.ClientGone, reason.FlagNone, ""},
	} {
		j.check(t, endOf)
	}
}
