// SPDX-License-Identifier: Apache-2.0

package hbone

import (
	"math/rand/v2"
	"testing"
)

// A queue against a plain slice, on random input.
func TestAQueueIsASlice(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	var q queue
	var plain []byte
	for range 20000 {
		switch rng.IntN(4) {
		case 0, 1:
			k := getChunk()
			k.w = 1 + rng.IntN(chunkSize)
			if rng.IntN(2) == 0 {
				k.w = 1 + rng.IntN(100)
			}
			for i := range k.w {
				k.buf[i] = byte(rng.Uint32())
			}
			plain = append(plain, k.buf[:k.w]...)
			q.push(k)
		case 2:
			p := make([]byte, rng.IntN(3*chunkSize))
			n := q.read(p)
			if string(p[:n]) != string(plain[:n]) || n < min(len(p), len(plain)) {
				t.Fatal("read something else")
			}
			plain = plain[n:]
		case 3:
			if k := q.pop(); k != nil {
				if string(k.buf[k.r:k.w]) != string(plain[:k.w-k.r]) {
					t.Fatal("popped something else")
				}
				plain = plain[k.w-k.r:]
				putChunk(k)
			}
		}
		if q.size != len(plain) {
			t.Fatalf("size %d, want %d", q.size, len(plain))
		}
		if q.size > 1<<20 {
			if n := q.drop(); n != len(plain) {
				t.Fatalf("dropped %d of %d", n, len(plain))
			}
			plain = nil
		}
	}
}
