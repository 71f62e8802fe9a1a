// SPDX-License-Identifier: Apache-2.0

// Package catest is Istio's certificate service in memory, signed for by
// certstest: for the tests of package ca, and for any server that plays the
// control plane.
//
// It remembers what it was asked, and can be told to answer something else.
// It checks no token and opens no socket: whoever registers it does. Only
// tests import it.
package catest

import (
	"context"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"slices"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/ztunnel-go/ztunnel/internal/ca/capb"
	"github.com/ztunnel-go/ztunnel/internal/certs"
	"github.com/ztunnel-go/ztunnel/internal/certs/certstest"
	"github.com/ztunnel-go/ztunnel/internal/identity"
)

// A Request is one call as it came.
type Request struct {
	Header   metadata.MD // the names are in lower case
	Message  *capb.IstioCertificateRequest
	CSR      *x509.CertificateRequest
	Identity identity.ID // whom it is for: the impersonated, else the CSR's
}

// An Answer is what a call gets: the texts of cert_chain, or a gRPC error.
type Answer func(ctx context.Context, r Request) ([]string, error)

// A Service answers CreateCertificate. It may be used by several goroutines.
type Service struct {
	authority *certstest.Authority

	mu       sync.Mutex
	requests []Request // guarded by mu
	answer   Answer    // guarded by mu; nil: Sign
}

// New returns a service that signs as authority.
func New(authority *certstest.Authority) *Service { return &Service{authority: authority} }

// Requests are the calls so far, in the order of their arrival. Those whose
// CSR cannot be read are refused and not listed.
func (s *Service) Requests() []Request {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.requests)
}

// Answers has f answer from now on. nil takes it away.
func (s *Service) Answers(f Answer) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.answer = f
}

// Sign is the usual answer: a leaf for the identity that is asked for, and
// the authority's roots. The authority may have been told to fail or to wait.
func (s *Service) Sign(ctx context.Context, r Request) ([]string, error) {
	ttl := time.Duration(r.Message.GetValidityDuration()) * time.Second
	leaf, err := s.authority.Certify(ctx, r.Identity, r.CSR.PublicKey, ttl)
	if err != nil {
		if _, ok := status.FromError(err); ok {
			return nil, err
		}
		return nil, status.Error(codes.Internal, err.Error())
	}
	return []string{PEM(leaf), PEM(s.authority.Roots()...)}, nil
}

// PEM writes certificates one after the other, as the service does.
func PEM(cs ...*x509.Certificate) string {
	var b strings.Builder
	for _, c := range cs {
		// A strings.Builder takes everything.
		_ = pem.Encode(&b, &pem.Block{Type: "CERTIFICATE", Bytes: c.Raw})
	}
	return b.String()
}

// Register adds the service to a gRPC server.
func (s *Service) Register(r grpc.ServiceRegistrar) {
	r.RegisterService(&grpc.ServiceDesc{
		ServiceName: "istio.v1.auth.IstioCertificateService",
		HandlerType: (*any)(nil),
		Methods:     []grpc.MethodDesc{{MethodName: "CreateCertificate", Handler: handle}},
		Metadata:    "ca.proto",
	}, s)
}

// handle has the form that gRPC wants of generated code.
func handle(srv any, ctx context.Context, decode func(any) error, intercept grpc.UnaryServerInterceptor) (any, error) {
	message := new(capb.IstioCertificateRequest)
	if err := decode(message); err != nil {
		return nil, err
	}
	call := func(ctx context.Context, m any) (any, error) {
		return srv.(*Service).create(ctx, m.(*capb.IstioCertificateRequest))
	}
	if intercept == nil {
		return call(ctx, message)
	}
	info := &grpc.UnaryServerInfo{Server: srv, FullMethod: "/istio.v1.auth.IstioCertificateService/CreateCertificate"}
	return intercept(ctx, message, info, call)
}

func (s *Service) create(ctx context.Context, m *capb.IstioCertificateRequest) (*capb.IstioCertificateResponse, error) {
	r := Request{Message: m}
	r.Header, _ = metadata.FromIncomingContext(ctx)
	var err error
	if r.CSR, err = readCSR(m.GetCsr()); err != nil {
		return nil, status.Errorf(codes.InvalidArgument, "CSR: %v", err)
	}
	if r.Identity, err = subject(m, r.CSR); err != nil {
		return nil, status.Error(codes.InvalidArgument, err.Error())
	}
	s.mu.Lock()
	s.requests = append(s.requests, r)
	answer := s.answer
	s.mu.Unlock()
	if answer == nil {
		answer = s.Sign
	}
	chain, err := answer(ctx, r)
	if err != nil {
		return nil, err
	}
	return &capb.IstioCertificateResponse{CertChain: chain}, nil
}

func readCSR(text string) (*x509.CertificateRequest, error) {
	block, rest := pem.Decode([]byte(text))
	if block == nil || block.Type != "CERTIFICATE REQUEST" || strings.TrimSpace(string(rest)) != "" {
		return nil, errors.New("not one CERTIFICATE REQUEST in PEM form")
	}
	csr, err := x509.ParseCertificateRequest(block.Bytes)
	if err != nil {
		return nil, err
	}
	return csr, csr.CheckSignature()
}

// subject is whom a certificate is for. The real authority takes the caller's
// own identity from its token where nobody is impersonated; here the CSR says
// it.
func subject(m *capb.IstioCertificateRequest, csr *x509.CertificateRequest) (identity.ID, error) {
	if v := m.GetMetadata().GetFields()["ImpersonatedIdentity"]; v != nil {
		return identity.Parse(v.GetStringValue())
	}
	uris := certs.URIs(&x509.Certificate{Extensions: csr.Extensions})
	if len(uris) != 1 {
		return identity.ID{}, errors.New("the CSR does not name one URI")
	}
	return identity.Parse(uris[0])
}
