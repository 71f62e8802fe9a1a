// SPDX-License-Identifier: Apache-2.0

package certs_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/ztunnel-go/ztunnel/internal/certs"
	"github.com/ztunnel-go/ztunnel/internal/identity"
)

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

// times has the authority answer with err from now on, and returns a function
// that lists when it was asked since.
func (b *bench) times(err error) func() []time.Time {
	var mu sync.Mutex
	var at []time.Time // guarded by mu
	b.ca.Before(func(context.Context, identity.ID) error {
		mu.Lock()
		defer mu.Unlock()
		at = append(at, time.Now())
		return err
	})
	return func() []time.Time {
		synctest.Wait()
		mu.Lock()
		defer mu.Unlock()
		return at
	}
}

func TestPausesGrowAndASuccessForgetsThem(t *testing.T) {
	inBubble(t, 24*time.Hour, certs.Config{}, func(t *testing.T, b *bench) {
		asked := b.times(errors.New("down"))
		if b.getErr("a") == nil {
			t.Fatal("no error")
		}
		time.Sleep(30 * time.Minute)
		at := asked()
		for i, want := range []float64{1, 2, 4, 8, 16, 32, 64, 128, 150, 150} {
			pause := at[i+1].Sub(at[i])
			if pause.Seconds() < want*0.8-0.001 || pause.Seconds() > want*1.2+0.001 {
				t.Errorf("pause %d is %v, want about %v s", i, pause, want)
			}
		}
		constant := 0
		for i := range at[1:] {
			if at[i].Sub(at[0]) < 15*time.Minute {
				continue
			}
			constant++
			if pause := at[i+1].Sub(at[i]); pause != 150*time.Second {
				t.Errorf("after a quarter of an hour the pause is %v", pause)
			}
		}
		if constant < 4 {
			t.Errorf("%d pauses in the last quarter of an hour", constant)
		}

		b.ca.Before(nil)
		time.Sleep(3 * time.Minute)
		b.get("a")
		asked = b.times(errors.New("down"))
		time.Sleep(13 * time.Hour) // past half of its life: the renewal fails
		if at = asked(); at[1].Sub(at[0]) > 1200*time.Millisecond {
			t.Errorf("the first pause after a success is %v", at[1].Sub(at[0]))
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
			t.Errorf("warned while the certificate was good: %s", b.logged())
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
		b.ca.Before(func(context.Context, identity.ID) error {
			<-release // an issuer that does not hear the context
			return nil
		})
		b.waiting("a", certs.RealTime)
		b.ca.Before(nil)
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
		if text := b.logged(); text != "" {
			t.Errorf("closing was logged as a failure: %s", text)
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
