// SPDX-License-Identifier: Apache-2.0

package delta

import (
	"errors"
	"io"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// Each row of contract 8.6, and what grpc-go says in the same situations.
func TestEndings(t *testing.T) {
	streamed := func(code codes.Code, text string) ending {
		return ending{phase: phaseStream, err: status.Error(code, text), heard: true}
	}
	for _, tc := range []struct {
		name   string
		end    ending
		reason Reason
		// waits are those of three such endings in a row, in ms.
		waits [3]int64
	}{
		{"connection refused", ending{phase: phaseOpening, err: status.Error(codes.Unavailable, "connection error: desc = \"x\"")}, ConnectionError, [3]int64{20, 40, 80}},
		{"refused in headers", ending{phase: phaseOpening, err: status.Error(codes.Unauthenticated, "authentication failure")}, ConnectionError, [3]int64{20, 40, 80}},
		{"unknown", streamed(codes.Unknown, "h2 protocol error"), Reconnect, [3]int64{10, 10, 10}},
		{"cancelled", streamed(codes.Canceled, "x"), Reconnect, [3]int64{10, 10, 10}},
		{"deadline", streamed(codes.DeadlineExceeded, "x"), Reconnect, [3]int64{10, 10, 10}},
		{"closing", streamed(codes.Unavailable, "transport is closing"), Reconnect, [3]int64{10, 10, 10}},
		{"goaway", streamed(codes.Unavailable, "closing; received prior goaway: code: NO_ERROR"), Reconnect, [3]int64{10, 10, 10}},
		{"connection lost", streamed(codes.Unavailable, "error reading from server: EOF"), Reconnect, [3]int64{10, 10, 10}},
		{"unavailable", streamed(codes.Unavailable, "server not ready"), Error, [3]int64{20, 40, 80}},
		{"internal", streamed(codes.Internal, "x"), Error, [3]int64{20, 40, 80}},
		{"unauthenticated", streamed(codes.Unauthenticated, "x"), Error, [3]int64{20, 40, 80}},
		{"too large", streamed(codes.ResourceExhausted, "x"), Error, [3]int64{20, 40, 80}},
		{"bad root certificates", ending{phase: phaseLocal, err: errors.New("root certificates: none")}, Error, [3]int64{20, 40, 80}},
		{"clean end", ending{phase: phaseStream, err: io.EOF, heard: true}, Complete, [3]int64{0, 0, 0}},
		{"clean end of nothing", ending{phase: phaseStream, err: io.EOF}, Complete, [3]int64{20, 40, 80}},
		{"clean end without headers", ending{phase: phaseOpening, err: io.EOF}, Complete, [3]int64{20, 40, 80}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if got := tc.end.reason(); got != tc.reason {
				t.Errorf("reason %s, want %s", got, tc.reason)
			}
			var b backoff
			for i, want := range tc.waits {
				if got := b.after(tc.end, time.Second).Milliseconds(); got != want {
					t.Errorf("wait %d is %d ms, want %d", i, got, want)
				}
			}
		})
	}
}

func TestWaitingGrowsToALimitAndBeginsAnew(t *testing.T) {
	refused := ending{phase: phaseOpening, err: status.Error(codes.Unavailable, "")}
	lost := ending{phase: phaseStream, err: status.Error(codes.Unknown, ""), heard: true}
	failed := ending{phase: phaseStream, err: status.Error(codes.Internal, ""), heard: true}
	var b backoff
	var last time.Duration
	for range 20 {
		last = b.after(refused, 0)
	}
	if last != 15*time.Second {
		t.Errorf("waits %v at most, want 15s", last)
	}
	if got := b.after(failed, time.Second); got != 15*time.Second {
		t.Errorf("a short stream ended the waiting: %v", got)
	}
	if got := b.after(failed, time.Minute); got != 20*time.Millisecond {
		t.Errorf("after a long stream %v, want 20ms", got)
	}
	for range 20 {
		b.after(refused, 0)
	}
	if got := b.after(lost, 0); got != 10*time.Millisecond {
		t.Errorf("after a lost connection %v, want 10ms", got)
	}
	if got := b.after(refused, 0); got != 20*time.Millisecond {
		t.Errorf("after a lost connection, refused: %v, want 20ms", got)
	}
}

func TestStatusesAreDescribedAsTheReferenceDoes(t *testing.T) {
	for _, tc := range []struct {
		err  error
		want string
	}{
		{status.Error(codes.Canceled, "gone"), `status: Cancelled, message: "gone"`},
		{status.Error(codes.Unauthenticated, "authentication failure: no"),
			`status: Unauthenticated, message: "authentication failure: no" (hint: check the control plane logs for more information)`},
		{status.Error(codes.Unavailable, "dial tcp: lookup istiod on 10.0.0.10:53: no such host"),
			`status: Unavailable, message: "dial tcp: lookup istiod on 10.0.0.10:53: no such host" (hint: is the DNS server reachable?)`},
	} {
		if got := describe(tc.err); got != tc.want {
			t.Errorf("got  %s\nwant %s", got, tc.want)
		}
	}
}

// Local errors do not spin, and closing does not wait for a wait to end.
func TestAPersistentLocalErrorIsTriedAgainSlowly(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log lines
		seen := &counts{}
		cfg := Config{Observer: seen}
		cfg.Control.Address = "http://istiod:15012"
		c := Open(cfg, log.logger())
		time.Sleep(10 * time.Minute)
		synctest.Wait()
		c.Close()
		c.Close()
		// 20 ms doubled to 15 s take ten tries, then four a minute.
		if n := seen.ended(Error); n < 40 || n > 55 {
			t.Errorf("%d tries in ten minutes", n)
		}
		if !strings.Contains(log.String(), "XDS client error: control plane address") {
			t.Errorf("logged %q", log.String())
		}
	})
}
