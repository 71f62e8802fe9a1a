// SPDX-License-Identifier: Apache-2.0

package hbone

import "time"

// What frames cost that move no user's byte. A peer with a reason sends few of
// them, or sends them in proportion to data, which pays for them; one that
// sends nothing else runs out (ping, settings, empty-frame and rapid-reset
// floods; CVE-2019-9512 to 9518, CVE-2023-44487).
const (
	costNoise    = 1 // PING, PRIORITY, WINDOW_UPDATE, empty DATA, unknown types
	costSettings = 5 // each must be acknowledged, and may touch every stream
	costReset    = 5 // a stream opened for nothing: 200 at once, 20 a second
)

// rapid is how soon a reset must follow its request to cost: clients that lose
// patience with a slow server wait longer, and may do so in numbers.
const rapid = 250 * time.Millisecond

const (
	budgetBurst  = 1000 // units saved up at most
	budgetRefill = 100  // units a second
	budgetData   = 2    // units for each DATA frame, either way: an update for the tunnel, one for the stream
)

// A budget is what a peer may still cost us without moving data. It is a
// value: no lock, no clock.
type budget struct {
	left int
	last time.Time // of the latest refill
}

// earn credits DATA frames that moved.
func (b *budget) earn(frames int) { b.left = min(b.left+frames*budgetData, budgetBurst) }

// spend takes cost at the time now, and reports whether it was there.
func (b *budget) spend(cost int, now time.Time) bool {
	if b.last.IsZero() {
		b.left, b.last = budgetBurst, now
	}
	if units := int(min(now.Sub(b.last), time.Minute) * budgetRefill / time.Second); units > 0 {
		b.left = min(b.left+units, budgetBurst)
		b.last = now
	}
	b.left -= cost
	return b.left >= 0
}
