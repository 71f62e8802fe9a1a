// SPDX-License-Identifier: Apache-2.0

package hbone

import (
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/http2/hpack"
)

func TestABudget(t *testing.T) {
	start := time.Unix(1000, 0)
	var b budget
	for i := range budgetBurst {
		if !b.spend(1, start) {
			t.Fatalf("spent after %d", i)
		}
	}
	if b.spend(1, start) {
		t.Error("no bound")
	}
	b = budget{last: start}
	if !b.spend(1, start.Add(time.Second)) || b.left != budgetRefill-1 {
		t.Errorf("left %d after a second", b.left)
	}
	if b.spend(costNoise, start.Add(-time.Hour)); b.left > budgetBurst {
		t.Error("time went back, and units came")
	}
	if b.spend(0, start.Add(1000*time.Hour)); b.left != budgetBurst {
		t.Errorf("saved %d", b.left)
	}
	b = budget{left: 0, last: start}
	b.earn(3)
	if b.left != 3*budgetData {
		t.Errorf("earned %d", b.left)
	}
}

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

func TestBlocksDecode(t *testing.T) {
	dec := hpack.NewDecoder(4096, nil)
	for _, list := range [][]field{
		Request{Authority: "10.0.0.1:80"}.fields(),
		Request{Authority: "a:1", Baggage: strings.Repeat("k8s.pod.name=x,", 300), Forwarded: "\x00\xff"}.fields(),
		responseFields(200, nil),
		responseFields(503, nil),
		{{"x", strings.Repeat("~", 126)}, {"y", strings.Repeat("~", 127)}, {"z", strings.Repeat("~", 128)}, {"w", strings.Repeat("~", 40000)}},
	} {
		got, err := dec.DecodeFull(appendBlock(nil, list))
		if err != nil || len(got) != len(list) {
			t.Fatalf("%v: %v", list, err)
		}
		for i, f := range got {
			if f.Name != list[i].name || f.Value != list[i].value {
				t.Errorf("got %v, want %v", f, list[i])
			}
		}
	}
}
