// SPDX-License-Identifier: Apache-2.0

package certs_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/ztunnel-go/ztunnel/internal/certs"
	"github.com/ztunnel-go/ztunnel/internal/certs/certstest"
	"github.com/ztunnel-go/ztunnel/internal/identity"
	"github.com/ztunnel-go/ztunnel/test/leak"
)

// A bench is a manager in a synctest bubble, with the authority behind it and
// what it logged.
type bench struct {
	*certs.Manager
	t   *testing.T
	ca  *certstest.Authority
	log *bytes.Buffer
}

// logged is what the manager said so far. It speaks after it has let go of
// those who wait, so this waits for it.
func (b *bench) logged() string {
	synctest.Wait()
	return b.log.String()
}

// inBubble runs f with a manager whose clock is the bubble's. The bubble fails
// the test if a goroutine is left when f is done.
func inBubble(t *testing.T, ttl time.Duration, cfg certs.Config, f func(t *testing.T, b *bench)) {
	t.Helper()
	leak.Check(t)
	synctest.Test(t, func(t *testing.T) {
		b := &bench{t: t, ca: certstest.Issuer(t, ttl), log: new(bytes.Buffer)}
		b.Manager = certs.New(b.ca, cfg, slog.New(slog.NewTextHandler(b.log, nil)))
		defer b.Close()
		f(t, b)
	})
}

func (b *bench) id(name string) identity.ID {
	return certstest.ID(b.t, "spiffe://cluster.local/ns/default/sa/"+name)
}

func (b *bench) get(name string) *certs.Bundle {
	b.t.Helper()
	got, err := b.Certificate(b.t.Context(), b.id(name), certs.RealTime)
	if err != nil {
		b.t.Fatalf("certificate of %s: %v", name, err)
	}
	return got
}

func (b *bench) getErr(name string) error {
	_, err := b.Certificate(b.t.Context(), b.id(name), certs.RealTime)
	return err
}

// waiting has the certificate of name asked for in the background, and returns
// when the manager has noted it.
func (b *bench) waiting(name string, p certs.Priority) <-chan error {
	got := make(chan error, 1)
	id := b.id(name)
	go func() {
		_, err := b.Certificate(b.t.Context(), id, p)
		got <- err
	}()
	synctest.Wait()
	return got
}

func (b *bench) state() string {
	b.t.Helper()
	var s []string
	for _, state := range b.States() {
		s = append(s, state.Identity.ServiceAccount()+": "+state.State)
	}
	return strings.Join(s, "; ")
}

func (b *bench) asked() string {
	var s []string
	for _, id := range b.ca.Calls() {
		s = append(s, id.ServiceAccount())
	}
	return strings.Join(s, " ")
}

// gate has every request to the authority wait until it is let through; each
// send on the channel lets one through.
func (b *bench) gate() chan<- struct{} {
	pass := make(chan struct{})
	b.ca.Before(func(ctx context.Context, _ identity.ID) error {
		select {
		case <-pass:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	})
	return pass
}

func (b *bench) fail(err error) {
	b.ca.Before(func(context.Context, identity.ID) error { return err })
}

func TestManyWaitersShareOneRequest(t *testing.T) {
	inBubble(t, time.Hour, certs.Config{}, func(t *testing.T, b *bench) {
		pass := b.gate()
		var waiters []<-chan error
		for range 20 {
			waiters = append(waiters, b.waiting("a", certs.RealTime))
		}
		pass <- struct{}{}
		for _, w := range waiters {
			if err := <-w; err != nil {
				t.Error(err)
			}
		}
		b.get("a")
		if b.asked() != "a" {
			t.Errorf("asked for %q", b.asked())
		}
	})
}

func TestRenewsAtHalfOfLife(t *testing.T) {
	inBubble(t, time.Hour, certs.Config{}, func(t *testing.T, b *bench) {
		first := b.get("a")
		time.Sleep(26 * time.Minute) // half is 30, and a renewal comes at most 3 early
		if b.get("a") != first {
			t.Error("renewed long before half of its life")
		}
		time.Sleep(4*time.Minute + time.Second)
		synctest.Wait()
		second := b.get("a")
		if second == first {
			t.Error("not renewed at half of its life")
		}
		time.Sleep(31 * time.Minute)
		if b.get("a") == second {
			t.Error("the renewed certificate was not renewed")
		}
	})
}

func TestALookupDoesNotWaitForARenewal(t *testing.T) {
	inBubble(t, time.Hour, certs.Config{}, func(t *testing.T, b *bench) {
		first := b.get("a")
		b.gate()
		for b.asked() == "a" {
			time.Sleep(time.Second)
		}
		now := time.Now()
		if b.get("a") != first || time.Since(now) != 0 {
			t.Error("a certificate that was there was not returned at once")
		}
	})
}

func TestTheMoreUrgentComesFirst(t *testing.T) {
	inBubble(t, time.Hour, certs.Config{Concurrency: 1}, func(t *testing.T, b *bench) {
		pass := b.gate()
		b.waiting("busy", certs.Background)
		b.waiting("background", certs.Background)
		b.waiting("warm1", certs.Warmup)
		b.Prefetch(b.id("warm2"))
		b.Prefetch(b.id("raised"))
		b.waiting("real1", certs.RealTime)
		b.waiting("real2", certs.RealTime)
		b.waiting("raised", certs.RealTime) // after its prefetch a connection comes
		b.waiting("real1", certs.Background)
		for range 7 {
			pass <- struct{}{}
			synctest.Wait()
		}
		// raised was asked for before real1 was: between equals the earlier goes.
		if want := "busy raised real1 real2 warm1 warm2 background"; b.asked() != want {
			t.Errorf("asked for %q, want %q", b.asked(), want)
		}
	})
}

func TestAsksAtMostEightAtOnce(t *testing.T) {
	inBubble(t, 24*time.Hour, certs.Config{}, func(t *testing.T, b *bench) {
		pass := b.gate()
		for i := range 20 {
			b.Prefetch(b.id(fmt.Sprint(i)))
		}
		for done := range 20 {
			synctest.Wait()
			if got, want := len(b.ca.Calls()), min(done+8, 20); got != want {
				t.Fatalf("after %d answers %d were asked, want %d", done, got, want)
			}
			pass <- struct{}{}
		}
	})
}

func TestPrefetchOfWhatIsThereAsksNothing(t *testing.T) {
	inBubble(t, time.Hour, certs.Config{}, func(t *testing.T, b *bench) {
		b.Prefetch(b.id("a"))
		b.Prefetch(b.id("a"))
		synctest.Wait()
		if b.state() != "a: Available" {
			t.Error(b.state())
		}
		b.get("a")
		b.Prefetch(b.id("a"))
		synctest.Wait()
		if b.asked() != "a" {
			t.Errorf("asked for %q", b.asked())
		}
	})
}

func TestUnavailableIsReturnedAtOnceUntilARetrySucceeds(t *testing.T) {
	inBubble(t, time.Hour, certs.Config{}, func(t *testing.T, b *bench) {
		down := errors.New("signing gRPC error (Unknown error): client error (Connect)")
		b.fail(down)
		if err := b.getErr("a"); err != down {
			t.Fatalf("first answer: %v", err)
		}
		now := time.Now()
		if err := b.getErr("a"); err != down || time.Since(now) != 0 || b.asked() != "a" {
			t.Errorf("second answer %v after %v, asked %q", err, time.Since(now), b.asked())
		}
		if want := "a: Unavailable: " + down.Error(); b.state() != want {
			t.Errorf("state %q", b.state())
		}
		want := `level=WARN msg="certificate fetch failed (signing gRPC error (Unknown error): client error (Connect)) and no valid existing certificate; will retry in `
		if !strings.Contains(b.logged(), want) {
			t.Errorf("log: %s", b.logged())
		}
		b.ca.Before(nil)
		time.Sleep(1200 * time.Millisecond)
		synctest.Wait()
		b.get("a")
	})
}

func TestPausesGrowAndASuccessForgetsThem(t *testing.T) {
	inBubble(t, 24*time.Hour, certs.Config{}, func(t *testing.T, b *bench) {
		var at []time.Time
		fail := true
		b.ca.Before(func(context.Context, identity.ID) error {
			at = append(at, time.Now())
			if fail {
				return errors.New("down")
			}
			return nil
		})
		if b.getErr("a") == nil {
			t.Fatal("no error")
		}
		time.Sleep(30 * time.Minute)
		synctest.Wait()
		start := at[0]
		for i, want := range []float64{1, 2, 4, 8, 16, 32, 64, 128, 150, 150} {
			pause := at[i+1].Sub(at[i]).Seconds()
			if at[i].Sub(start) >= 15*time.Minute {
				want = 150
			}
			if pause < want*0.8-0.001 || pause > want*1.2+0.001 {
				t.Errorf("pause %d is %v s, want about %v s", i, pause, want)
			}
		}
		for i := range at[1:] {
			if at[i].Sub(start) >= 15*time.Minute && at[i+1].Sub(at[i]) != 150*time.Second {
				t.Errorf("after a quarter of an hour the pause is %v", at[i+1].Sub(at[i]))
			}
		}

		fail = false
		time.Sleep(3 * time.Minute)
		b.get("a")
		fail = true
		at = nil
		time.Sleep(13 * time.Hour) // past half of its life: renewal fails
		synctest.Wait()
		if first := at[1].Sub(at[0]); first > 1200*time.Millisecond {
			t.Errorf("the first pause after a success is %v", first)
		}
	})
}

func TestAFailedRenewalKeepsTheCertificateUntilItExpires(t *testing.T) {
	inBubble(t, time.Hour, certs.Config{}, func(t *testing.T, b *bench) {
		first := b.get("a")
		b.fail(errors.New("down"))
		time.Sleep(59 * time.Minute)
		synctest.Wait()
		if b.get("a") != first || b.state() != "a: Available" {
			t.Errorf("state is %q", b.state())
		}
		until := first.Leaf.NotAfter.UTC().Format(time.RFC3339)
		want := `level=INFO msg="certificate renewal failed (down); retaining existing valid certificate until ` + until + `; next retry at 2000-`
		if !strings.Contains(b.logged(), want) {
			t.Errorf("log: %s", b.logged())
		}
		if strings.Contains(b.logged(), "WARN") {
			t.Errorf("warned while the certificate was good: %s", b.log)
		}
		time.Sleep(time.Minute + time.Second) // a retry falls on the moment of expiry
		synctest.Wait()
		if err := b.getErr("a"); err == nil || err.Error() != "down" {
			t.Errorf("an expired certificate: %v", err)
		}
		b.ca.Before(nil)
		time.Sleep(3 * time.Minute)
		b.get("a")
	})
}

func TestAnAuthorityThatDoesNotAnswerIsAFailure(t *testing.T) {
	inBubble(t, time.Hour, certs.Config{}, func(t *testing.T, b *bench) {
		b.gate()
		now := time.Now()
		if err := b.getErr("a"); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("error %v", err)
		}
		if time.Since(now) != time.Minute {
			t.Errorf("waited %v", time.Since(now))
		}
	})
}

func TestForgettingTellsThoseWhoWait(t *testing.T) {
	inBubble(t, time.Hour, certs.Config{Concurrency: 1}, func(t *testing.T, b *bench) {
		pass := b.gate()
		busy, queued := b.waiting("busy", certs.RealTime), b.waiting("queued", certs.RealTime)
		for _, name := range []string{"busy", "queued", "unknown"} {
			b.Forget(b.id(name))
		}
		for _, w := range []<-chan error{busy, queued} {
			if err := <-w; err != certs.ErrForgotten || err.Error() != "the identity is no longer needed" {
				t.Errorf("a waiter got %v", err)
			}
		}
		synctest.Wait()
		if b.state() != "" || b.asked() != "busy" {
			t.Errorf("state %q, asked %q", b.state(), b.asked())
		}
		again := b.waiting("busy", certs.RealTime) // wanted anew: asked for anew
		pass <- struct{}{}
		if err := <-again; err != nil {
			t.Error(err)
		}
	})
}

func TestAForgottenCertificateIsNotRenewed(t *testing.T) {
	inBubble(t, time.Hour, certs.Config{}, func(t *testing.T, b *bench) {
		first := b.get("a")
		b.Forget(b.id("a"))
		time.Sleep(2 * time.Hour)
		if b.asked() != "a" || b.state() != "" {
			t.Errorf("asked %q, state %q", b.asked(), b.state())
		}
		if b.get("a") == first {
			t.Error("the forgotten certificate came back")
		}
	})
}

// A result that arrives after its identity was forgotten must not be taken for
// the answer to a later request.
func TestALateResultIsDiscarded(t *testing.T) {
	inBubble(t, time.Hour, certs.Config{}, func(t *testing.T, b *bench) {
		release := make(chan struct{})
		deaf := true
		b.ca.Before(func(context.Context, identity.ID) error {
			if deaf {
				deaf = false
				<-release // an issuer that does not hear the context
			}
			return nil
		})
		b.waiting("a", certs.RealTime)
		b.Forget(b.id("a"))
		second := b.get("a")
		close(release)
		synctest.Wait()
		if b.get("a") != second {
			t.Error("the late result replaced the current certificate")
		}
	})
}

func TestCloseEndsWaitersAndJoins(t *testing.T) {
	inBubble(t, time.Hour, certs.Config{}, func(t *testing.T, b *bench) {
		b.gate()
		w := b.waiting("a", certs.RealTime)
		b.Close()
		b.Close()
		if err := <-w; err != certs.ErrClosed {
			t.Errorf("the waiter got %v", err)
		}
		b.Prefetch(b.id("b"))
		if err := b.getErr("a"); err != certs.ErrClosed {
			t.Errorf("after Close: %v", err)
		}
		if b.log.Len() > 0 {
			t.Errorf("closing was logged as a failure: %s", b.log)
		}
	})
}

func TestACallerMayStopWaiting(t *testing.T) {
	inBubble(t, time.Hour, certs.Config{}, func(t *testing.T, b *bench) {
		pass := b.gate()
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, err := b.Certificate(ctx, b.id("a"), certs.RealTime); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("error %v", err)
		}
		pass <- struct{}{} // the request goes on for the next one
		b.get("a")
		if b.asked() != "a" {
			t.Errorf("asked %q", b.asked())
		}
	})
}

func TestNobodyHasNoCertificate(t *testing.T) {
	inBubble(t, time.Hour, certs.Config{}, func(t *testing.T, b *bench) {
		if _, err := b.Certificate(t.Context(), identity.ID{}, certs.RealTime); err == nil {
			t.Error("nobody got a certificate")
		}
	})
}

// Hours of lookups, failures and forgetting: whoever asks gets a certificate
// that is valid and its own, and each identity is renewed about as often as
// its life demands.
func TestManyLookupsOverManyLives(t *testing.T) {
	inBubble(t, 10*time.Minute, certs.Config{}, func(t *testing.T, b *bench) {
		var workers sync.WaitGroup
		for w := range 8 {
			workers.Go(func() {
				for i := range 200 {
					name := fmt.Sprint((w + i) % 5)
					got, err := b.Certificate(t.Context(), b.id(name), certs.RealTime)
					switch {
					case errors.Is(err, certs.ErrForgotten):
					case err != nil:
						t.Errorf("%s: %v", name, err)
					case got.Identity() != b.id(name) || time.Now().After(got.Leaf.NotAfter):
						t.Errorf("%s got the certificate of %v, valid until %v", name, got.Identity(), got.Leaf.NotAfter)
					}
					if w == 0 && i%50 == 49 {
						b.Forget(b.id(name))
					}
					time.Sleep(time.Duration(rand.IntN(20)) * time.Second)
				}
			})
		}
		workers.Wait()
		// Some 200 x 10 s and renewals every 4.5 to 5 minutes: 7 or 8 for each of 5.
		if n := len(b.ca.Calls()); n < 25 || n > 75 {
			t.Errorf("%d requests", n)
		}
	})
}
