// SPDX-License-Identifier: Apache-2.0

package wire

import (
	"math"
	"math/rand/v2"
	"testing"
)

// A pastByMap is what a Past is, without its bounds.
type pastByMap map[uint32]Fate

func (m pastByMap) open(last, id uint32) {
	for at := last + 1; at < id; at++ {
		if at%2 == 1 {
			m[at] = FateSkipped
		}
	}
	m[id] = FateOurs
}

func TestThePastOfTheLatestStreamsIsKnown(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	var past Past
	known, last := pastByMap{}, uint32(0)
	for range 20000 {
		switch {
		case last > 0 && random.IntN(2) == 0:
			id := last - uint32(random.IntN(int(min(last, 4*pastStreams))))
			past.End(last, id)
			if id%2 == 1 {
				known[id] = FateEnded
			}
		default:
			id := (last + 1) | 1
			if random.IntN(20) == 0 {
				id += 2 * uint32(random.IntN(3*pastStreams))
			}
			past.Open(last, id)
			known.open(last, id)
			last = id
		}
		id := last - uint32(random.IntN(int(min(last, 4*pastStreams))))
		want := known[id]
		if last-id >= 2*pastStreams {
			want = FateOurs // forgotten
		}
		if got := past.Of(last, id); got != want {
			t.Fatalf("stream %d of %d: %v, want %v", id, last, got, want)
		}
	}
}

func TestThePastHasLimits(t *testing.T) {
	var past Past
	past.Open(0, 1)
	past.End(1, 2) // ours to open
	past.End(1, 3) // not open yet
	past.Open(1, 3)
	if a, b := past.Of(3, 2), past.Of(3, 3); a != FateOurs || b != FateOurs {
		t.Errorf("got %v, %v", a, b)
	}
	const highest = math.MaxInt32 // RFC 9113, section 5.1.1
	past.Open(3, highest)
	if a, b, c := past.Of(highest, highest), past.Of(highest, highest-2), past.Of(highest, 3); a != FateOurs || b != FateSkipped || c != FateOurs {
		t.Errorf("got %v, %v, %v", a, b, c)
	}
	// A process that follows another one knows nothing of what that one saw.
	var next Past
	next.Open(101, 103)
	if a := next.Of(103, 99); a != FateOurs {
		t.Errorf("got %v", a)
	}
}
