// SPDX-License-Identifier: Apache-2.0

package wire

import "time"

// What frames cost that move no user's byte. A peer with a reason sends few of
// them, or sends them in proportion to data, which pays for them; one that
// sends nothing else runs out (ping, settings, empty-frame and rapid-reset
// floods; CVE-2019-9512 to 9518, CVE-2023-44487).
const (
	CostNoise    = 1 // PING, PRIORITY, WINDOW_UPDATE, empty DATA, unknown types
	CostSettings = 5 // each must be acknowledged, and may touch every stream
	CostReset    = 5 // a stream opened for nothing: 200 at once, 20 a second
)

// Rapid is how soon a reset must follow its request to cost: clients that lose
// patience with a slow server wait longer, and may do so in numbers.
const Rapid = 250 * time.Millisecond

const (
	budgetBurst  = 1000 // units saved up at most
	budgetRefill = 100  // units a second
	budgetData   = 2    // units for each DATA frame, either way: an update for the tunnel, one for the stream
)

// A Budget is what a peer may still cost us without moving data. It is a
// value: no lock, no clock. The zero value is full.
type Budget struct {
	Left int
	Last int64 // of the latest refill, in nanoseconds of whatever clock; 0: there was none
}

// Earn credits DATA frames that moved.
func (b *Budget) Earn(frames int) { b.Left = min(b.Left+frames*budgetData, budgetBurst) }

// Spend takes cost at the time now, in nanoseconds, and reports whether it was
// there.
func (b *Budget) Spend(cost int, now int64) bool {
	if b.Last == 0 {
		b.Left, b.Last = budgetBurst, now
	}
	if units := int(min(now-b.Last, int64(time.Minute)) * budgetRefill / int64(time.Second)); units > 0 {
		b.Left = min(b.Left+units, budgetBurst)
		b.Last = now
	}
	b.Left -= cost
	return b.Left >= 0
}
