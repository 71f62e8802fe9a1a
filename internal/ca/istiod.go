// SPDX-License-Identifier: Apache-2.0

package ca

import (
	"context"
	"crypto/ecdsa"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/connectivity"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/ztunnel-go/ztunnel/internal/ca/capb"
	"github.com/ztunnel-go/ztunnel/internal/certs"
	"github.com/ztunnel-go/ztunnel/internal/control"
	"github.com/ztunnel-go/ztunnel/internal/identity"
)

// createCertificate is the one method of Istio's certificate service.
const createCertificate = "/istio.v1.auth.IstioCertificateService/CreateCertificate"

// errNoRoot ends an answer that leaves nothing to check peers against
// (contract 7.1). The answer's parts are at fault, and not our request; the
// text is the reference's.
var errNoRoot = errors.New("failed to create CSR: invalid root certificate: no root certificate present")

// IstiodConfig says how an authority of Istio's kind is asked.
type IstiodConfig struct {
	// Channel leads to it. Roots in a file are followed as the file changes.
	Channel control.Config
	// TTL is the life that is asked for, in whole seconds (SECRET_TTL). Zero is
	// [DefaultTTL].
	TTL time.Duration
	// Impersonate names in each request whom the certificate is for, since we
	// authenticate as somebody else, and insists that the answer is for that
	// one. It is set in shared mode alone (contract 7.1).
	Impersonate bool
	// Logger is told what an error cannot carry; nil: nobody.
	Logger *slog.Logger
}

// Istiod asks an authority that speaks Istio's certificate service. It may be
// used by several goroutines. [Istiod.Close] ends it.
type Istiod struct {
	cfg IstiodConfig
	log *slog.Logger

	ctx    context.Context // ends with Close
	cancel context.CancelFunc
	calls  sync.WaitGroup // one for each request; they end with ctx

	mu      sync.Mutex
	current *channel    // guarded by mu; nil once closed
	roots   os.FileInfo // guarded by mu; of the root file when current was made; nil without a file
}

var _ certs.Issuer = (*Istiod)(nil)

// A channel is one connection and how many calls use it; both counts are
// guarded by the client's lock. It is closed when it is retired and the last
// call has ended.
type channel struct {
	conn    *grpc.ClientConn
	calls   int
	retired bool
}

// OpenIstiod makes the channel. It does not connect: the first request does.
// What fails here is local and will not mend by itself: the address, the root
// certificates, the alternate name.
func OpenIstiod(cfg IstiodConfig) (*Istiod, error) {
	c := &Istiod{cfg: cfg, log: cfg.Logger}
	c.ctx, c.cancel = context.WithCancel(context.Background())
	if c.cfg.TTL == 0 {
		c.cfg.TTL = DefaultTTL
	}
	if c.log == nil {
		c.log = slog.New(slog.DiscardHandler)
	}
	if err := c.dialLocked(); err != nil { // nobody else has c yet
		return nil, fmt.Errorf("certificate authority: %w", err) // callers may ask for fs.ErrNotExist
	}
	return c, nil
}

// Close ends the requests that are under way, waits for them and ends the
// channel. Later calls do nothing.
func (c *Istiod) Close() error {
	c.mu.Lock()
	ch := c.current
	c.current = nil
	c.mu.Unlock()
	c.cancel()
	c.calls.Wait()
	if ch == nil {
		return nil
	}
	return ch.conn.Close()
}

// Issue implements [certs.Issuer]: a new key, one request, and no second try.
func (c *Istiod) Issue(ctx context.Context, id identity.ID) (*certs.Bundle, error) {
	key, csr, err := newRequest(id)
	if err != nil {
		return nil, fmt.Errorf("failed to create CSR: %v", err)
	}
	req := &capb.IstioCertificateRequest{Csr: string(csr), ValidityDuration: int64(c.cfg.TTL / time.Second)}
	if c.cfg.Impersonate {
		req.Metadata = &structpb.Struct{Fields: map[string]*structpb.Value{
			"ImpersonatedIdentity": structpb.NewStringValue(id.String()),
		}}
	}
	resp, err := c.call(ctx, req)
	if err != nil {
		return nil, err
	}
	return c.bundle(id, key, resp.GetCertChain())
}

// call makes the request. Its error reads as contract 7.1 has it.
func (c *Istiod) call(ctx context.Context, req *capb.IstioCertificateRequest) (*capb.IstioCertificateResponse, error) {
	ch, err := c.acquire()
	if err != nil {
		return nil, err
	}
	defer c.release(ch)
	// The deadline is ours alone: gRPC would send it along as grpc-timeout,
	// which the reference does not.
	inner, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	defer context.AfterFunc(ctx, cancel)()
	defer context.AfterFunc(c.ctx, cancel)()
	resp := new(capb.IstioCertificateResponse)
	err = ch.conn.Invoke(inner, createCertificate, req, resp)
	if err == nil {
		return resp, nil
	}
	if ctx.Err() != nil {
		err = status.FromContextError(ctx.Err()).Err()
	}
	s := status.Convert(err)
	return nil, fmt.Errorf("signing gRPC error (%s): %s", describe(s.Code()), s.Message())
}

// bundle makes a certificate to work with of an answer, or says what is wrong
// with it (contract 7.1).
func (c *Istiod) bundle(id identity.ID, key *ecdsa.PrivateKey, texts []string) (*certs.Bundle, error) {
	if len(texts) == 0 {
		return nil, fmt.Errorf("chain returned from CA is empty for: %v", id)
	}
	if len(texts) == 1 {
		c.log.Warn(fmt.Sprintf("no chain certs for: %v", id))
	}
	a, err := parseAnswer(texts)
	if err != nil {
		return nil, fmt.Errorf("failed to create CSR: %v", err)
	}
	for _, err := range a.skipped {
		c.log.Warn(fmt.Sprintf("a root certificate of the CA is left out: %v", err))
	}
	if len(a.roots) == 0 {
		return nil, errNoRoot
	}
	b, err := certs.NewBundle(key, a.chain, a.roots)
	if err != nil {
		return nil, fmt.Errorf("failed to create CSR: %v", err)
	}
	if got := b.Identity(); c.cfg.Impersonate && got != id {
		c.log.Error(fmt.Sprintf("expected identity %v, got %v", id, got))
		return nil, fmt.Errorf("did not find expected SAN: %v", id)
	}
	return b, nil
}

// acquire lends the channel for one call. It is made anew first if the file
// of root certificates has changed, or if the last attempt to connect has
// failed: gRPC would answer at once with that failure, for as long as it
// pauses, and the pauses between attempts are certs.Manager's to choose.
func (c *Istiod) acquire() (*channel, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.current == nil {
		return nil, errors.New("certificate authority: the channel is closed")
	}
	rootsChanged := !c.rootsUnchangedLocked()
	if rootsChanged || c.current.conn.GetState() == connectivity.TransientFailure {
		// The file is read anew in either case. What cannot be used now is tried
		// again at the next call, and the old channel serves until then.
		if err := c.dialLocked(); err != nil {
			c.log.Warn(fmt.Sprintf("certificate authority: %v; keeping the previous channel", err))
		}
	}
	c.current.calls++
	c.calls.Add(1)
	return c.current, nil
}

// release gives a channel back.
func (c *Istiod) release(ch *channel) {
	c.mu.Lock()
	ch.calls--
	last := ch.retired && ch.calls == 0
	c.mu.Unlock()
	if last {
		_ = ch.conn.Close() // it fails only for a channel that was closed before
	}
	c.calls.Done()
}

// dialLocked makes the current channel with the roots as they are now, and
// retires the one before. On an error nothing has changed. The caller holds
// mu.
func (c *Istiod) dialLocked() error {
	var roots os.FileInfo
	if path := c.cfg.Channel.Roots.File; path != "" {
		var err error
		// Before the file is read: what changes in between is seen next time.
		if roots, err = os.Stat(path); err != nil {
			return fmt.Errorf("root certificates: %w", err)
		}
	}
	conn, err := control.Dial(c.cfg.Channel)
	if err != nil {
		return err
	}
	old := c.current
	c.current, c.roots = &channel{conn: conn}, roots
	if old != nil {
		old.retired = true
		if old.calls == 0 {
			_ = old.conn.Close() // it fails only for a channel that was closed before
		}
	}
	return nil
}

// rootsUnchangedLocked reports whether the root file is the one that the
// channel was made from. A ConfigMap is changed by a symlink that points
// elsewhere, which Stat follows to another inode. The caller holds mu.
func (c *Istiod) rootsUnchangedLocked() bool {
	if c.roots == nil {
		return true
	}
	now, err := os.Stat(c.cfg.Channel.Roots.File)
	return err == nil && os.SameFile(now, c.roots) && now.Size() == c.roots.Size() && now.ModTime().Equal(c.roots.ModTime())
}

// describe names a status as the reference does, in whose words operators
// know the errors of the CA (contract 7.1).
func describe(code codes.Code) string {
	words := map[codes.Code]string{
		codes.OK:                 "The operation completed successfully",
		codes.Canceled:           "The operation was cancelled",
		codes.InvalidArgument:    "Client specified an invalid argument",
		codes.DeadlineExceeded:   "Deadline expired before operation could complete",
		codes.NotFound:           "Some requested entity was not found",
		codes.AlreadyExists:      "Some entity that we attempted to create already exists",
		codes.PermissionDenied:   "The caller does not have permission to execute the specified operation",
		codes.ResourceExhausted:  "Some resource has been exhausted",
		codes.FailedPrecondition: "The system is not in a state required for the operation's execution",
		codes.Aborted:            "The operation was aborted",
		codes.OutOfRange:         "Operation was attempted past the valid range",
		codes.Unimplemented:      "Operation is not implemented or not supported",
		codes.Internal:           "Internal error",
		codes.Unavailable:        "The service is currently unavailable",
		codes.DataLoss:           "Unrecoverable data loss or corruption",
		codes.Unauthenticated:    "The request does not have valid authentication credentials",
	}
	if text, ok := words[code]; ok {
		return text
	}
	return "Unknown error"
}
