// SPDX-License-Identifier: Apache-2.0

package mesh

import (
	"maps"
	"math/rand/v2"
	"testing"
)

// Hashes of a few bits put everything on one path: the trie must be right when
// they say nothing.
func TestATrieWithPoorHashes(t *testing.T) {
	r := rand.New(rand.NewPCG(5, 6))
	for _, mask := range []uint32{0, 1, 0xf0000000, 0x0000ffff, 0xffffffff} {
		var now trie[int]
		var kept []struct {
			trie[int]
			want map[int]int
		}
		want := map[int]int{} // value: how often
		hash := func(v int) uint32 { return uint32(v) * 2654435761 & mask }
		for e := range edit(400) {
			for range r.IntN(20) {
				v := r.IntN(300)
				is := func(o int) bool { return o == v }
				switch {
				case r.IntN(100) < 60-int(e)/10:
					now.add(e+1, hash(v), v)
					want[v]++
				default:
					if now.remove(e+1, hash(v), is) != (want[v] > 0) {
						t.Fatal("a removal that is not told as what it was")
					}
					delete(want, v)
				}
			}
			if e%50 == 0 {
				kept = append(kept, struct {
					trie[int]
					want map[int]int
				}{now, maps.Clone(want)})
			}
		}
		for _, k := range append(kept, struct {
			trie[int]
			want map[int]int
		}{now, want}) {
			got, size := map[int]int{}, 0
			k.all(func(v int) bool { got[v]++; size++; return true })
			if !maps.Equal(got, k.want) || size != k.size {
				t.Fatalf("mask %x: %d of %d, want %d", mask, len(got), k.size, len(k.want))
			}
		}
	}
}
