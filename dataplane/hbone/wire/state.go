// SPDX-License-Identifier: Apache-2.0

package wire

import (
	"fmt"
	"slices"
)

// PastState is a [Past] as plain values, for another process. Nil slices are
// a Past that knows nothing.
type PastState struct{ Ended, Skipped []uint32 }

// State is what p remembers.
func (p *Past) State() PastState {
	return PastState{slices.Clone(p.ended[:]), slices.Clone(p.skipped[:])}
}

// PastOf goes on with what another process remembered. If that remembered
// another number of streams nothing is known: see [FateOurs].
func PastOf(s PastState) (p Past) {
	if len(s.Ended) == len(p.ended) && len(s.Skipped) == len(p.skipped) {
		copy(p.ended[:], s.Ended)
		copy(p.skipped[:], s.Skipped)
	}
	return p
}

// Check says what makes a decoder that somebody wrote down impossible.
func (d *Decoder) Check() error {
	size := 0
	for _, f := range d.Table {
		size += f.size()
	}
	if d.Less < 0 || d.Less > TableSize || d.Size != size || size > TableSize-d.Less {
		return fmt.Errorf("a header table of %d bytes that says %d and %d less", size, d.Size, d.Less)
	}
	return nil
}
