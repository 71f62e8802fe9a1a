// SPDX-License-Identifier: Apache-2.0

package inpod

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/ztunnel-go/ztunnel/internal/zds"
)

const (
	// connectDelay doubles from here up to maxDelay while nobody listens.
	connectDelay = 20 * time.Millisecond
	// helloDelay is the first wait after a greeting that could not be written,
	// helloDelayAgain after one that follows a session that worked.
	helloDelay      = 500 * time.Millisecond
	helloDelayAgain = 5 * time.Millisecond
	maxDelay        = 15 * time.Second
	// helloJitter spreads these waits by so much either way.
	helloJitter = 0.2
)

// A backoff is a wait that doubles.
type backoff struct{ next time.Duration }

func (b *backoff) delay() time.Duration {
	d := b.next
	b.next = min(2*d, maxDelay)
	return d
}

// Run follows the agent until ctx ends, and reconnects whenever it must. The
// one error it returns is a *[ProtocolError], after which the process should
// exit with status 1; the end of ctx is none. Pods go on being served when it
// has returned, until Close.
func (e *Enrollment) Run(ctx context.Context) error {
	connect := backoff{connectDelay}
	hello := backoff{helloDelay}
	for ctx.Err() == nil {
		session, err := e.dial(ctx, e.cfg.Socket)
		var greeting *zds.HelloError
		var wait time.Duration
		switch {
		case err == nil:
			served, fatal := e.follow(ctx, session)
			if fatal != nil {
				e.log.Error(fmt.Sprintf("WorkloadProxyManager run error: %v", fatal))
				return fatal
			}
			if served {
				connect, hello = backoff{connectDelay}, backoff{helloDelayAgain}
				continue // at once: pods may be waiting
			}
			// An agent that closes before it says anything, or says nonsense
			// first, would have us spin.
			wait = connect.delay()
		case ctx.Err() != nil:
			continue
		case errors.As(err, &greeting):
			d := hello.delay()
			wait = d + time.Duration((2*rand.Float64()-1)*helloJitter*float64(d))
			e.log.Warn(fmt.Sprintf("failed to announce to the Istio CNI node agent over %q, details: %v, retrying in %v", e.cfg.Socket, err, wait))
		default:
			wait = connect.delay()
			e.log.Warn(fmt.Sprintf("failed to connect to the Istio CNI node agent over %q, is the node agent healthy? details: %v, retrying in %v", e.cfg.Socket, err, wait))
		}
		sleep(ctx, wait)
	}
	return nil
}

// follow handles one connection. It reports whether anything sensible was
// said; the error is a *ProtocolError.
func (e *Enrollment) follow(ctx context.Context, s *zds.Session) (served bool, _ error) {
	defer s.Close()
	e.log.Info("handling new stream")
	e.begin()
	defer e.end()
	ctx, cancel := context.WithCancel(ctx)
	var looking sync.WaitGroup
	looking.Go(func() { e.lookForMissing(ctx, cancel) })
	defer looking.Wait()
	defer cancel()
	for {
		req, err := s.Next(ctx)
		if err != nil {
			e.lost(ctx, s, err)
			return served, nil
		}
		served = true
		refused := e.handle(ctx, req)
		var fatal *ProtocolError
		if errors.As(refused, &fatal) {
			_ = s.Ack(fmt.Errorf("failure to process message : %w", refused)) // we exit either way
			return served, fatal
		}
		if ctx.Err() != nil {
			return served, nil
		}
		if err := s.Ack(refused); err != nil {
			e.log.Warn(fmt.Sprintf("process stream ended: %v", err))
			return served, nil
		}
	}
}

// lookForMissing ends a conversation, by cancel, that lacks pods.
func (e *Enrollment) lookForMissing(ctx context.Context, cancel func()) {
	if e.cfg.Missing == nil {
		return
	}
	for ctx.Err() == nil {
		sleep(ctx, missingInterval)
		e.mu.Lock()
		told := e.snapshot
		e.mu.Unlock()
		if told && ctx.Err() == nil && e.cfg.Missing() {
			e.log.Warn("pods were told to another proxy that is gone, asking the node agent for all again")
			cancel()
		}
	}
}

// lost tells why there is no next request, to the log and to the agent.
func (e *Enrollment) lost(ctx context.Context, s *zds.Session, err error) {
	var nonsense *zds.MessageError
	switch {
	case ctx.Err() != nil:
	case errors.Is(err, io.EOF):
		e.log.Info("process stream ended with eof")
	case errors.As(err, &nonsense):
		e.log.Warn(fmt.Sprintf("failure to read message : %v", err))
		_ = s.Ack(fmt.Errorf("failure to read message : %w", err)) // the session ends either way
	default:
		e.log.Warn(fmt.Sprintf("process stream ended: %v", err))
	}
}

func sleep(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
}
