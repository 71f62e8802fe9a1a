// SPDX-License-Identifier: Apache-2.0

package certs_test

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/ztunnel-go/ztunnel/internal/certs"
	"github.com/ztunnel-go/ztunnel/internal/identity"
)

func TestTheRosterIsFollowed(t *testing.T) {
	inBubble(t, time.Hour, certs.Config{Concurrency: 1}, func(t *testing.T, b *bench) {
		r := certs.NewRoster(b.Manager)
		update := func(known map[string]bool) {
			ids := map[identity.ID]bool{}
			for name, ahead := range known {
				ids[b.id(name)] = ahead
			}
			r.Update(ids)
			synctest.Wait()
		}
		b.get("self") // never on the roster
		want := func(asked, state string) {
			t.Helper()
			if got := b.asked(); got != asked {
				t.Errorf("asked for %q, want %q", got, asked)
			}
			if got := b.state(); got != state {
				t.Errorf("states %q, want %q", got, state)
			}
		}
		update(map[string]bool{"near": true, "far": false})
		want("self near", "near: Available; self: Available")
		update(map[string]bool{"near": true, "far": false})
		want("self near", "near: Available; self: Available")
		b.get("far") // on demand
		update(map[string]bool{"near": true, "far": true})
		want("self near far", "far: Available; near: Available; self: Available")
		update(map[string]bool{"far": true})
		want("self near far", "far: Available; self: Available")
		update(nil)
		want("self near far", "self: Available")
		update(map[string]bool{"near": true})
		want("self near far near", "near: Available; self: Available")
	})
}
