// SPDX-License-Identifier: Apache-2.0

package main

import "math/bits"

// A histogram counts durations in steps of three per cent, without allocating.
type histogram struct {
	counts [64 * steps]int64
	total  int64
}

// steps of a factor of two.
const steps = 32

// slot is where a duration is counted: exactly below steps, then by its
// highest bits.
func slot(nanos int64) int {
	n := uint64(max(nanos, 0))
	if n < steps {
		return int(n)
	}
	shift := bits.Len64(n) - 6 // leaves six bits, of which the first is set
	return (shift+1)*steps + int(n>>shift) - steps
}

// least is the shortest duration of a slot.
func least(slot int) int64 {
	if slot < steps {
		return int64(slot)
	}
	return int64(slot%steps+steps) << (slot/steps - 1)
}

func (h *histogram) note(nanos int64) {
	h.counts[slot(nanos)]++
	h.total++
}

func (h *histogram) add(other *histogram) {
	for i, n := range other.counts {
		h.counts[i] += n
	}
	h.total += other.total
}

// quantile is the duration that a part of all do not exceed, to three per cent.
func (h *histogram) quantile(part float64) int64 {
	want := int64(part * float64(h.total))
	var seen int64
	for i, n := range h.counts {
		if seen += n; n > 0 && seen > want {
			return least(i)
		}
	}
	return 0
}
