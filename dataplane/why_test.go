// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/ztunnel-go/ztunnel/dataplane/hbone"
	"github.com/ztunnel-go/ztunnel/dataplane/hbone/record"
	"github.com/ztunnel-go/ztunnel/dataplane/live"
	"github.com/ztunnel-go/ztunnel/dataplane/rbac"
	"github.com/ztunnel-go/ztunnel/dataplane/reason"
	"github.com/ztunnel-go/ztunnel/dataplane/relay"
	"github.com/ztunnel-go/ztunnel/dataplane/route"
	"github.com/ztunnel-go/ztunnel/dataplane/socks"
	"github.com/ztunnel-go/ztunnel/internal/certs"
	"github.com/ztunnel-go/ztunnel/internal/mtls"
	"github.com/ztunnel-go/ztunnel/internal/revocation"
)

// A step judges errors that occur there.
type step func(error) reason.Reason

func carrying(err error) reason.Reason {
	why, _ := endOf(context.Background(), err)
	return why
}

func delivering(err error) reason.Reason { return carrying(&deliveryError{err}) }

// A because is an error, the step where it occurs, and its reason. from names
// what package made it, if that exports the error.
type because struct {
	from string
	at   step
	err  error
	want reason.Reason
}

func tcpErrors() []because {
	var all []because
	for errno, want := range map[syscall.Errno]reason.Reason{
		syscall.ECONNREFUSED: reason.ConnectRefused, syscall.ETIMEDOUT: reason.ConnectLate, syscall.EHOSTUNREACH: reason.ConnectUnreachable,
		syscall.ENETUNREACH: reason.ConnectUnreachable, syscall.EMFILE: reason.NoResources, syscall.EADDRNOTAVAIL: reason.NoResources,
		syscall.ENOBUFS: reason.NoResources, syscall.EPERM: reason.ConnectFailed, syscall.ECONNRESET: reason.ConnectFailed,
	} {
		err := syscallError("connect", errno)
		all = append(all, because{"", Why, err, want})
		if want != reason.ConnectLate {
			all = append(all, because{"wire.DialError", Why, &hbone.DialError{Err: err}, want})
		}
	}
	return append(all,
		because{"wire.DialError", Why, &hbone.DialError{Err: context.DeadlineExceeded}, reason.TunnelConnectLate},
		because{"", Why, net.ErrClosed, reason.ConnectFailed},
		because{"", delivering, syscallError("connect", syscall.ECONNREFUSED), reason.ApplicationRefused},
		because{"", delivering, syscallError("connect", syscall.ETIMEDOUT), reason.ApplicationLate},
		because{"", delivering, syscallError("connect", syscall.EHOSTUNREACH), reason.ApplicationFailed},
		because{"", delivering, syscallError("socket", syscall.EMFILE), reason.NoResources},
	)
}

func tlsErrors() []because {
	var all []because
	for _, e := range []struct {
		from string
		err  error
		want reason.Reason
	}{
		{"mtls.SANMismatchError", &mtls.SANMismatchError{}, reason.TLSPeerIdentity},
		{"mtls.TrustDomainMismatchError", &mtls.TrustDomainMismatchError{}, reason.TLSTrustDomain},
		{"revocation.RevokedError", &revocation.RevokedError{}, reason.TLSRevoked},
		{"revocation.UnverifiedError", &revocation.UnverifiedError{Authority: &x509.Certificate{}}, reason.TLSRevoked},
		{"", fmt.Errorf("verify peer: %w", x509.UnknownAuthorityError{}), reason.TLSCertificate},
		{"", fmt.Errorf("verify peer: %w", x509.CertificateInvalidError{Cert: &x509.Certificate{}}), reason.TLSCertificate},
		{"", tls.AlertError(48), reason.TLSAlert},
		{"", &net.OpError{Op: "remote error", Err: errors.New("tls: bad certificate")}, reason.TLSAlert},
		{"record.AlertError", &record.AlertError{Alert: 42, Remote: true}, reason.TLSAlert},
		{"record.ErrSuite", record.ErrSuite, reason.TLSFailed},
		{"record.ErrKeyLimit", record.ErrKeyLimit, reason.TLSFailed},
		{"", context.DeadlineExceeded, reason.TLSLate},
		{"", io.EOF, reason.TLSPeerGone},
		{"", io.ErrUnexpectedEOF, reason.TLSPeerGone},
		{"", syscallError("read", syscall.ECONNRESET), reason.TLSPeerGone},
		{"", tls.RecordHeaderError{Msg: "first record does not look like a TLS handshake"}, reason.TLSFailed},
		{"", ErrDrained, reason.Drained},
	} {
		all = append(all, because{e.from, Why, &hbone.TLSError{Err: e.err}, e.want}, because{e.from, whyTLS, e.err, e.want})
	}
	return append(all, because{"wire.TLSError", Why, &hbone.TLSError{Err: errors.New("x")}, reason.TLSFailed})
}

func tunnelErrors() []because {
	lost := func(err error) error {
		return &relay.Error{Err: &hbone.ResetError{Code: hbone.InternalError, Cause: err}}
	}
	return []because{
		{"wire.HandshakeError", Why, &hbone.HandshakeError{Err: &hbone.ResetError{Code: hbone.RefusedStream}}, reason.TunnelRefused},
		{"wire.StatusError", Why, &hbone.StatusError{Code: 401}, reason.PeerDenied},
		{"", Why, &hbone.StatusError{Code: 503}, reason.PeerCannotReach},
		{"", Why, &hbone.StatusError{Code: 400}, reason.PeerStatus},
		{"wire.ErrDraining", Why, hbone.ErrDraining, reason.PoolDraining},
		{"wire.ErrUnavailable", Why, hbone.ErrUnavailable, reason.TunnelFull},
		{"wire.ErrClosed", Why, hbone.ErrClosed, reason.ConnectFailed},
		{"wire.ResetError", Why, &hbone.ResetError{Code: hbone.Cancel}, reason.StreamError},
		{"wire.GoAwayError", Why, &hbone.GoAwayError{Code: hbone.ProtocolError}, reason.TunnelError},
		{"revocation.ErrPeerRevoked", Why, revocation.ErrPeerRevoked, reason.TLSRevoked},
		{"", Why, &beyondError{&hbone.StatusError{Code: 403}}, reason.PeerDenied},

		{"relay.Error", carrying, &relay.Error{Err: &hbone.ResetError{Code: hbone.ProtocolError, Remote: true}}, reason.StreamError},
		{"", carrying, &relay.Error{Err: &hbone.ResetError{Code: hbone.Cancel, Remote: true}}, reason.Reset},
		{"", carrying, &relay.Error{Err: syscallError("read", syscall.ECONNRESET)}, reason.Reset},
		{"", carrying, lost(io.ErrUnexpectedEOF), reason.TunnelLost},
		{"wire.ErrPingTimeout", carrying, lost(hbone.ErrPingTimeout), reason.TunnelLost},
		{"", carrying, lost(&hbone.GoAwayError{Code: hbone.ProtocolError}), reason.TunnelError},
		{"wire.EndedError", carrying, lost(&hbone.EndedError{Cause: errors.New("x")}), reason.TunnelError},
		{"", carrying, lost(&hbone.EndedError{Cause: revocation.ErrPeerRevoked}), reason.PeerRevoked},
		{"", carrying, &relay.Error{Err: syscallError("read", syscall.ETIMEDOUT)}, reason.PeerTimedOut},
		{"", carrying, &relay.Error{Err: syscallError("write", syscall.EIO)}, reason.CopyFailed},
		{"", carrying, net.ErrClosed, reason.CopyFailed},
		{"relay.ClosingError", carrying, &relay.ClosingError{Err: syscall.EIO}, reason.CloseFailed},
		{"", carrying, nil, reason.Ended},
	}
}

func otherErrors(t *testing.T) []because {
	pod := Pod{Name: "p"}
	illegal := route.IllegalPorts{15001}.Inbound(15001)
	_, authority := route.ParseTarget("x")
	negotiated := func(said string, lookup error) error {
		near, far := net.Pipe()
		defer near.Close()
		defer far.Close()
		go func() {
			_, _ = io.WriteString(far, said[:3]) // the near end closes
			_, _ = io.ReadFull(far, make([]byte, 2))
			_, _ = io.WriteString(far, said[3:])
			_ = far.Close()
		}()
		_, err := socks.Negotiate(t.Context(), near, func(context.Context, string) (netip.Addr, error) { return netip.Addr{}, lookup })
		return err
	}
	return []because{
		{"", Why, &identityError{errors.New("signing gRPC error (x): y")}, reason.CertificateUnavailable},
		{"certs.ErrForgotten", Why, &identityError{certs.ErrForgotten}, reason.IdentityForgotten},
		{"certs.ErrClosed", whyCertificate, certs.ErrClosed, reason.CertificateUnavailable},
		{"", Why, &unknownWorkloadError{pod}, reason.WorkloadUnknown},
		{"", Why, errTooManyInquiries, reason.ControlPlaneBusy},
		{"dataplane.ErrDrained", Why, ErrDrained, reason.Drained},
		{"dataplane.ErrSevered", carrying, ErrSevered, reason.Severed},
		{"route.ErrRecursive", Why, illegal, reason.RecursiveCall},
		{"", Why, authority, reason.BadAuthority},
		{"rbac.DeniedError", Why, &rbac.DeniedError{Policy: "ns/p"}, reason.PolicyDenied},
		{"rbac.DeniedError", carrying, &rbac.DeniedError{}, reason.PolicyNotAllowed},
		{"live.ErrPolicyChange", Why, live.ErrPolicyChange, reason.PolicyChanged},
		{"socks.Error", whySOCKS, negotiated("\x05\x01\x00\x05\x02\x00\x01", nil), reason.SOCKSRefused},
		{"", whySOCKS, negotiated("\x05\x01\x00\x05\x01\x00\x03\x01x\x00\x50", errors.New("no such name")), reason.SOCKSName},
		{"", whySOCKS, negotiated("\x05\x01\x00\x05", nil), reason.SOCKSBroken},
		{"", whySOCKS, net.ErrClosed, reason.SOCKSBroken},
	}
}

func TestEveryErrorHasItsReason(t *testing.T) {
	told := map[string]bool{}
	for _, b := range append(append(tcpErrors(), tlsErrors()...), append(tunnelErrors(), otherErrors(t)...)...) {
		told[b.from] = true
		if got := b.at(b.err); got != b.want {
			t.Errorf("%q (%T) is %v, want %v", b.err, b.err, got, b.want)
		}
	}
	for _, dir := range []string{
		".", "hbone/wire", "hbone/record", "relay", "rbac", "live", "route", "socks",
		"../internal/certs", "../internal/mtls", "../internal/revocation",
	} {
		for _, name := range exportedErrors(t, dir) {
			if !told[name] {
				t.Errorf("no reason is tried for %s", name)
			}
		}
	}
}

func TestAnErrorThatNobodyThoughtOfIsUnknownAndFails(t *testing.T) {
	for _, at := range []step{Why, carrying, delivering} {
		if got := at(errors.New("x")); got != reason.Unknown || got.Flag() != reason.FlagConnect {
			t.Errorf("it is %v %s", got, got.Flag())
		}
	}
}

// TestErrorsOfOursNameTheirReason finds errors that are made without one where
// decisions about connections are made.
func TestErrorsOfOursNameTheirReason(t *testing.T) {
	for _, dir := range []string{".", "route", "live"} {
		eachFile(t, dir, func(fset *token.FileSet, file *ast.File) {
			ast.Inspect(file, func(n ast.Node) bool {
				if f, ok := n.(*ast.FuncDecl); ok && f.Name.Name == "ioError" {
					return false // rewords an error that has been judged
				}
				call, ok := n.(*ast.SelectorExpr)
				if !ok {
					return true
				}
				pkg, _ := call.X.(*ast.Ident)
				if pkg != nil && (pkg.Name == "errors" && call.Sel.Name == "New" || pkg.Name == "fmt" && call.Sel.Name == "Errorf") {
					t.Errorf("%v: an error without a reason", fset.Position(n.Pos()))
				}
				return true
			})
		})
	}
}

// exportedErrors are the errors that a package shows, with its name.
func exportedErrors(t *testing.T, dir string) []string {
	var found []string
	eachFile(t, dir, func(_ *token.FileSet, file *ast.File) {
		for _, d := range file.Decls {
			gen, ok := d.(*ast.GenDecl)
			if !ok {
				continue
			}
			for _, spec := range gen.Specs {
				for _, name := range errorNames(spec) {
					found = append(found, file.Name.Name+"."+name)
				}
			}
		}
	})
	return found
}

func errorNames(spec ast.Spec) []string {
	var names []string
	switch spec := spec.(type) {
	case *ast.TypeSpec:
		if spec.Name.IsExported() && strings.HasSuffix(spec.Name.Name, "Error") {
			names = append(names, spec.Name.Name)
		}
	case *ast.ValueSpec:
		for _, n := range spec.Names {
			if strings.HasPrefix(n.Name, "Err") {
				names = append(names, n.Name)
			}
		}
	}
	return names
}

func eachFile(t *testing.T, dir string, f func(*token.FileSet, *ast.File)) {
	t.Helper()
	paths, err := filepath.Glob(filepath.Join(dir, "*.go"))
	if err != nil || len(paths) == 0 {
		t.Fatalf("%s: %v", dir, err)
	}
	for _, path := range paths {
		if strings.HasSuffix(path, "_test.go") {
			continue
		}
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		fset := token.NewFileSet()
		file, err := parser.ParseFile(fset, path, text, parser.SkipObjectResolution)
		if err != nil {
			t.Fatal(err)
		}
		f(fset, file)
	}
}
