// SPDX-License-Identifier: Apache-2.0

package main

import (
	"math/rand/v2"
	"time"
)

// A plan is what both sides of a connection are to do.
type plan struct {
	kind   string
	flows  [2]flow // what the client sends, what the server sends
	closer role    // closes, without waiting for the other's FIN, when it has sent and got all
	reset  role    // resets when both have got all, or midway
	midway bool    // through what it was to send
	dns    bool    // it is a question to a nameserver
}

// A flow is one direction.
type flow struct {
	bytes int64
	piece int           // bytes of a write
	pause time.Duration // after each
	take  int           // bytes of a read, at most
	rest  time.Duration // after each
	idle  time.Duration // in the middle of the sending
	after bool          // begins when the other direction is over
}

// slowest is how long a side may lawfully be silent, whatever it waits for.
func (p plan) slowest() time.Duration {
	var d time.Duration
	for _, f := range p.flows {
		d += f.idle + f.pause
		if f.rest > 0 {
			d += time.Duration(f.bytes/int64(f.take)+1) * f.rest
		}
		if f.pause > 0 {
			d += time.Duration(f.bytes/int64(f.piece)+1) * f.pause
		}
	}
	return d
}

const kib, mib = 1 << 10, 1 << 20

func plain(bytes int64) flow { return flow{bytes: bytes, piece: 64 * kib, take: 64 * kib} }

// A kind makes plans, weight times as often as one with 1.
type kind struct {
	name   string
	weight int
	make   func(*rand.Rand) plan
}

func anySize(r *rand.Rand, limit int) int64 { return 1 + r.Int64N(int64(1)<<(1+r.IntN(limit))) }

func ms(r *rand.Rand, from, to int) time.Duration {
	return time.Duration(from+r.IntN(to-from)) * time.Millisecond
}

func someone(r *rand.Rand) role { return role(r.IntN(2)) }

// kinds are all kinds of connections, or those that are over soon.
func kinds(quick bool) []kind {
	if quick {
		return quickKinds()
	}
	return append(quickKinds(), slowKinds()...)
}

func quickKinds() []kind {
	return []kind{
		{"short", 30, func(r *rand.Rand) plan { return both(plain(anySize(r, 12)), plain(anySize(r, 12))) }},
		{"nothing sent", 3, func(*rand.Rand) plan { return both(plain(0), plain(0)) }},
		{"closed by a side", 14, func(r *rand.Rand) plan {
			p := both(plain(anySize(r, 17)), plain(anySize(r, 17)))
			p.closer = someone(r)
			return p
		}},
		{"half-closed by the client", 8, func(r *rand.Rand) plan {
			p := both(plain(anySize(r, 18)), plain(anySize(r, 18)))
			p.flows[server].after = true
			return p
		}},
		{"half-closed by the server", 8, func(r *rand.Rand) plan {
			p := both(plain(anySize(r, 18)), plain(anySize(r, 18)))
			p.flows[client].after = true
			return p
		}},
		{"reset at the end", 8, func(r *rand.Rand) plan {
			p := both(plain(anySize(r, 17)), plain(anySize(r, 17)))
			p.reset = someone(r)
			return p
		}},
		{"reset midway", 8, func(r *rand.Rand) plan {
			p := both(plain(anySize(r, 21)), plain(anySize(r, 21)))
			p.reset, p.midway = someone(r), true
			return p
		}},
		{"bulk up", 2, func(r *rand.Rand) plan { return both(plain(8*mib+anySize(r, 25)), plain(32)) }},
		{"bulk down", 2, func(r *rand.Rand) plan { return both(plain(32), plain(8*mib+anySize(r, 25))) }},
		{"bulk both ways", 2, func(r *rand.Rand) plan { return both(plain(4*mib+anySize(r, 24)), plain(4*mib+anySize(r, 24))) }},
	}
}

func slowKinds() []kind {
	return []kind{
		{"idle", 30, func(r *rand.Rand) plan {
			p := both(plain(anySize(r, 14)+2), plain(anySize(r, 14)+2))
			for i := range p.flows {
				p.flows[i].piece, p.flows[i].idle = int(p.flows[i].bytes+1)/2, ms(r, 3000, 12000)
			}
			return p
		}},
		{"slow reader", 20, func(r *rand.Rand) plan {
			p := both(plain(100), plain(100))
			p.flows[someone(r)] = flow{bytes: 2*mib + anySize(r, 21), piece: 64 * kib, take: 16*kib + r.IntN(64*kib), rest: ms(r, 5, 30)}
			return p
		}},
		{"trickle", 15, func(r *rand.Rand) plan {
			p := both(plain(anySize(r, 8)), plain(anySize(r, 8)))
			for i := range p.flows {
				p.flows[i].piece, p.flows[i].pause, p.flows[i].take = 1+r.IntN(9), ms(r, 1, 40), 1+r.IntN(100)
			}
			return p
		}},
	}
}

func both(out, back flow) plan { return plan{flows: [2]flow{out, back}, closer: nobody, reset: nobody} }

// choose picks one by weight.
func choose(r *rand.Rand, all []kind) plan {
	total := 0
	for _, k := range all {
		total += k.weight
	}
	n := r.IntN(total)
	for _, k := range all {
		if n -= k.weight; n < 0 {
			p := k.make(r)
			p.kind = k.name
			return p
		}
	}
	panic("soak: weights changed") // unreachable: n is below their sum
}
