// SPDX-License-Identifier: Apache-2.0

package ca_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/x509"
	"errors"
	"io/fs"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/ztunnel-go/ztunnel/internal/ca"
	"github.com/ztunnel-go/ztunnel/internal/ca/catest"
	"github.com/ztunnel-go/ztunnel/internal/certs/certstest"
	"github.com/ztunnel-go/ztunnel/internal/control"
	"github.com/ztunnel-go/ztunnel/internal/identity"
)

func TestACertificateIsFetched(t *testing.T) {
	s := newIstiod(t)
	c := openIstiod(t, s.config())
	b := c.get()
	if b.Identity() != certstest.ID(t, wanted) {
		t.Errorf("the certificate is %v's", b.Identity())
	}
	if got, want := serials(b.Roots), serials(s.authority.Roots()); got != want {
		t.Errorf("roots %s, want %s", got, want)
	}
	if len(b.Chain) != 1 || b.Leaf != b.Chain[0] {
		t.Errorf("a chain of %d", len(b.Chain))
	}
	if c.get().Leaf.PublicKey.(*ecdsa.PublicKey).Equal(b.Leaf.PublicKey) {
		t.Error("one key for two requests")
	}
}

func TestWhatIsAsked(t *testing.T) {
	s := newIstiod(t)
	cfg := s.config()
	cfg.Channel.Token = control.Token{Literal: "a.b.c"}
	cfg.Channel.ClusterID = "Kubernetes"
	cfg.Channel.Headers = []control.Header{{Name: "x-tenant", Value: "blue"}}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if _, err := openIstiod(t, cfg).Issue(ctx, certstest.ID(t, wanted)); err != nil {
		t.Fatal(err)
	}
	r := s.Requests()[0]
	if got := r.Message.GetValidityDuration(); got != 86400 {
		t.Errorf("validity %d s, want a day", got)
	}
	fields := r.Message.GetMetadata().GetFields()
	if got := fields["ImpersonatedIdentity"].GetStringValue(); got != wanted || len(fields) != 1 {
		t.Errorf("metadata %v", fields)
	}
	for name, want := range map[string]string{
		"authorization": "Bearer a.b.c", "clusterid": "Kubernetes", "x-tenant": "blue", ":authority": istiodName + ":15012",
	} {
		if got := strings.Join(r.Header.Get(name), "|"); got != want {
			t.Errorf("%s: %q, want %q", name, got, want)
		}
	}
	for _, name := range []string{"grpc-timeout", "grpc-encoding"} {
		if got := r.Header.Get(name); len(got) != 0 {
			t.Errorf("%s is sent: %q", name, got)
		}
	}
}

func TestTheCSR(t *testing.T) {
	s := newIstiod(t)
	openIstiod(t, s.config()).get()
	csr := s.Requests()[0].CSR
	if csr.Version != 0 {
		t.Errorf("version %d, want 0, which is PKCS#10 v1", csr.Version)
	}
	if len(csr.Subject.Names) != 0 {
		t.Errorf("subject %v", csr.Subject)
	}
	if csr.SignatureAlgorithm != x509.ECDSAWithSHA256 {
		t.Errorf("signed with %v", csr.SignatureAlgorithm)
	}
	if key, ok := csr.PublicKey.(*ecdsa.PublicKey); !ok || key.Curve != elliptic.P256() {
		t.Errorf("a key of type %T", csr.PublicKey)
	}
	if len(csr.Extensions) != 1 || !csr.Extensions[0].Critical || csr.Extensions[0].Id.String() != "2.5.29.17" {
		t.Errorf("extensions %v, want the critical name alone", csr.Extensions)
	}
	if len(csr.URIs) != 1 || csr.URIs[0].String() != wanted || len(csr.DNSNames)+len(csr.IPAddresses)+len(csr.EmailAddresses) != 0 {
		t.Errorf("names %v %v %v %v", csr.URIs, csr.DNSNames, csr.IPAddresses, csr.EmailAddresses)
	}
}

// With no token nothing says who we are, and in dedicated mode nobody is
// impersonated.
func TestWhatIsNotAsked(t *testing.T) {
	s := newIstiod(t)
	cfg := s.config()
	cfg.Impersonate, cfg.TTL, cfg.Channel.ClusterID = false, 1500*time.Millisecond, "Kubernetes"
	openIstiod(t, cfg).get()
	r := s.Requests()[0]
	if r.Message.Metadata != nil {
		t.Errorf("metadata %v", r.Message.Metadata)
	}
	if got := r.Message.GetValidityDuration(); got != 1 {
		t.Errorf("validity %d, want whole seconds", got)
	}
	for _, name := range []string{"authorization", "clusterid"} {
		if got := r.Header.Get(name); len(got) != 0 {
			t.Errorf("%s is sent without a token: %q", name, got)
		}
	}
}

func TestIntermediatesComeBetweenLeafAndRoots(t *testing.T) {
	s := newIstiod(t)
	other := certstest.Issuer(t, time.Hour)
	s.authority.AlsoTrust(other.Root())
	mid, second := certstest.Issuer(t, time.Hour).Root(), certstest.Issuer(t, time.Hour).Root()
	s.Answers(func(ctx context.Context, r catest.Request) ([]string, error) {
		usual, err := s.Sign(ctx, r)
		if err != nil {
			return nil, err
		}
		// Of an intermediate's text only the first certificate counts.
		return []string{usual[0], catest.PEM(mid, second), catest.PEM(second), usual[1]}, nil
	})
	b := openIstiod(t, s.config()).get()
	if got, want := serials(b.Chain[1:]), serials([]*x509.Certificate{mid, second}); got != want {
		t.Errorf("intermediates %s, want %s", got, want)
	}
	if got, want := serials(b.Roots), serials(s.authority.Roots()); got != want {
		t.Errorf("roots %s, want %s", got, want)
	}
}

// answersWith has s answer the texts that f makes of the usual ones.
func (s *istiod) answersWith(f func(leaf, roots string) []string) {
	s.Answers(func(ctx context.Context, r catest.Request) ([]string, error) {
		usual, err := s.Sign(ctx, r)
		if err != nil {
			return nil, err
		}
		return f(usual[0], usual[1]), nil
	})
}

func TestAnswersThatWillNotDo(t *testing.T) {
	const broken = "-----BEGIN CERTIFICATE-----\nMAA=\n-----END CERTIFICATE-----\n"
	const noRoot = "failed to create CSR: invalid root certificate: no root certificate present"
	stranger := certstest.Issuer(t, time.Hour).Bundle(wanted)
	for name, tc := range map[string]struct {
		answer func(leaf, roots string) []string
		want   string // the error
		level  string // and what is logged
		log    string
	}{
		"nothing":               {func(_, _ string) []string { return nil }, "chain returned from CA is empty for: " + wanted, "", ""},
		"a leaf alone":          {func(leaf, _ string) []string { return []string{leaf} }, noRoot, "WARN", "no chain certs for: " + wanted},
		"roots that are empty":  {func(leaf, _ string) []string { return []string{leaf, ""} }, noRoot, "", ""},
		"roots that are broken": {func(leaf, _ string) []string { return []string{leaf, broken} }, noRoot, "WARN", "left out"},
		"another's key": {func(_, roots string) []string { return []string{catest.PEM(stranger.Leaf), roots} },
			"failed to create CSR: certificate bundle: the key is not the one in the certificate", "", ""},
		"no leaf in it": {func(_, roots string) []string { return []string{"leaf", roots} },
			"failed to create CSR: certificate 1 of the chain: no certificate in PEM form", "", ""},
		"no intermediate in it": {func(leaf, roots string) []string { return []string{leaf, "", roots} },
			"failed to create CSR: certificate 2 of the chain: no certificate in PEM form", "", ""},
	} {
		t.Run(name, func(t *testing.T) {
			s := newIstiod(t)
			s.answersWith(tc.answer)
			c := openIstiod(t, s.config())
			c.fails(tc.want)
			if tc.level != "" {
				c.said(tc.level, tc.log)
			}
		})
	}
}

func TestARootThatCannotBeReadIsLeftOut(t *testing.T) {
	s := newIstiod(t)
	s.answersWith(func(leaf, roots string) []string {
		return []string{leaf, "-----BEGIN CERTIFICATE-----\nMAA=\n-----END CERTIFICATE-----\n" + roots}
	})
	c := openIstiod(t, s.config())
	if b := c.get(); len(b.Roots) != 1 {
		t.Errorf("%d roots", len(b.Roots))
	}
	c.said("WARN", "a root certificate of the CA is left out")
}

func TestTheCertificateMustBeForWhomItWasAsked(t *testing.T) {
	s := newIstiod(t)
	s.Answers(func(ctx context.Context, r catest.Request) ([]string, error) {
		r.Identity = certstest.ID(t, "spiffe://cluster.local/ns/default/sa/other")
		return s.Sign(ctx, r)
	})
	c := openIstiod(t, s.config())
	c.fails("did not find expected SAN: " + wanted)
	c.said("ERROR", "expected identity "+wanted+", got spiffe://cluster.local/ns/default/sa/other")

	cfg := s.config()
	cfg.Impersonate = false // who we are is the authority's to say then
	openIstiod(t, cfg).get()
}

func TestRefusalsReadAsTheReferenceHasThem(t *testing.T) {
	s := newIstiod(t)
	c := openIstiod(t, s.config())
	for code, words := range map[codes.Code]string{
		codes.Unknown:           "Unknown error",
		codes.Internal:          "Internal error",
		codes.InvalidArgument:   "Client specified an invalid argument",
		codes.PermissionDenied:  "The caller does not have permission to execute the specified operation",
		codes.Unauthenticated:   "The request does not have valid authentication credentials",
		codes.ResourceExhausted: "Some resource has been exhausted",
		codes.Code(99):          "Unknown error",
	} {
		s.Answers(func(context.Context, catest.Request) ([]string, error) { return nil, status.Error(code, "because") })
		c.fails("signing gRPC error (" + words + "): because")
	}
}

// What fails at start is what no later try would mend.
func TestTheChannelIsMadeAtStart(t *testing.T) {
	s := newIstiod(t)
	missing := s.config()
	missing.Channel.Roots = control.Roots{File: filepath.Join(t.TempDir(), "root-cert.pem")}
	if _, err := ca.OpenIstiod(missing); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("without the root file: %v", err)
	}
	for name, change := range map[string]func(*control.Config){
		"plain http":       func(c *control.Config) { c.Address = "http://istiod:15012" },
		"no roots":         func(c *control.Config) { c.Roots.Inline = "" },
		"a bad other name": func(c *control.Config) { c.AltHostname = "not a name" },
	} {
		cfg := s.config()
		change(&cfg.Channel)
		if c, err := ca.OpenIstiod(cfg); err == nil {
			c.Close()
			t.Errorf("%s: accepted", name)
		}
	}
	if len(s.Requests()) != 0 {
		t.Error("the authority was asked at start")
	}
}

func TestNobodyIsAskedFor(t *testing.T) {
	s := newIstiod(t)
	c := openIstiod(t, s.config())
	if _, err := c.Issue(t.Context(), identity.ID{}); err == nil || !strings.HasPrefix(err.Error(), "failed to create CSR: ") {
		t.Errorf("error %v", err)
	}
	if len(s.Requests()) != 0 {
		t.Error("the authority was asked")
	}
}

func TestAnEndedCallerIsToldSo(t *testing.T) {
	s := newIstiod(t)
	s.Answers(func(ctx context.Context, _ catest.Request) ([]string, error) {
		<-ctx.Done()
		return nil, ctx.Err()
	})
	c := openIstiod(t, s.config())
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	_, err := c.Issue(ctx, certstest.ID(t, wanted))
	if want := "signing gRPC error (Deadline expired before operation could complete): context deadline exceeded"; err == nil || err.Error() != want {
		t.Errorf("error %v, want %q", err, want)
	}

	var done sync.WaitGroup
	asked := len(s.Requests())
	done.Go(func() { c.failsWith("signing gRPC error (The operation was cancelled): ", "") })
	for len(s.Requests()) == asked {
		time.Sleep(time.Millisecond)
	}
	if err := c.Close(); err != nil {
		t.Errorf("close: %v", err)
	}
	done.Wait()
	if err := c.Close(); err != nil {
		t.Errorf("second close: %v", err)
	}
	c.fails("certificate authority: the channel is closed")
}
