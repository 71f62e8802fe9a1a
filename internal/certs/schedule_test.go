// SPDX-License-Identifier: Apache-2.0

package certs

import (
	"testing"
	"time"
)

func TestWhenToRenew(t *testing.T) {
	now := time.Date(2026, 8, 1, 12, 0, 0, 0, time.UTC)
	for _, tc := range []struct {
		name            string
		before, after   time.Duration // from now
		earliest, limit time.Duration // from now
	}{
		{"a new one", 0, 24 * time.Hour, 12*time.Hour - 72*time.Minute, 12 * time.Hour},
		{"valid since a while, for clocks that differ", -5 * time.Minute, 24 * time.Hour, 10 * time.Hour, 12 * time.Hour},
		{"not valid yet", time.Hour, 25 * time.Hour, 11 * time.Hour, 13 * time.Hour},
		{"past half: half of what is left", -20 * time.Hour, 4 * time.Hour, 2 * time.Hour, 2 * time.Hour},
		{"about to expire", -time.Hour, time.Second, time.Second, time.Second},
		{"expired", -2 * time.Hour, -time.Hour, time.Second, time.Second},
		{"the wrong way round", 2 * time.Hour, time.Hour, time.Hour, time.Hour},
		{"the wrong way round and past", -time.Hour, -2 * time.Hour, time.Second, time.Second},
	} {
		for range 100 {
			at := refreshAt(now.Add(tc.before), now.Add(tc.after), now).Sub(now)
			if at < tc.earliest || at > tc.limit {
				t.Errorf("%s: in %v, want %v to %v", tc.name, at, tc.earliest, tc.limit)
				break
			}
		}
	}
}
