// SPDX-License-Identifier: Apache-2.0

package inpod

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
)

// A ledger says what becomes of pods, in the fewest words: what the agent has
// said of each, and when.
type ledger struct {
	states   map[string]State    // up or parked; absent: gone
	named    map[string]struct{} // on this connection, before its snapshot
	deleted  map[string]struct{} // the same
	complete bool                // its snapshot has come
}

func (l *ledger) begin() {
	l.named, l.deleted, l.complete = map[string]struct{}{}, map[string]struct{}{}, false
}

func (l *ledger) name(uid string) {
	l.named[uid] = struct{}{}
	delete(l.deleted, uid)
}

func (l *ledger) add(uid string) {
	l.name(uid)
	l.states[uid] = StateUp
}

func (l *ledger) keep(uid string) {
	l.name(uid)
	if _, known := l.states[uid]; known {
		l.states[uid] = StateUp
	}
}

func (l *ledger) del(uid string) {
	delete(l.named, uid)
	if l.complete {
		delete(l.states, uid)
	} else {
		l.deleted[uid] = struct{}{}
	}
}

func (l *ledger) snapshot() {
	l.complete = true
	for uid := range l.states {
		_, named := l.named[uid]
		_, deleted := l.deleted[uid]
		switch {
		case named:
		case deleted:
			delete(l.states, uid)
		default:
			l.states[uid] = StateParked
		}
	}
}

func (l *ledger) String() string {
	var all []string
	for uid, state := range l.states {
		all = append(all, uid+" "+string(state))
	}
	slices.Sort(all)
	return strings.Join(all, ", ")
}

// TestPodsComeStayAndGoInAnyOrder has agents say what they may in random order,
// over several connections, and compares with a ledger after each word.
func TestPodsComeStayAndGoInAnyOrder(t *testing.T) {
	for seed := range uint64(150) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			random := rand.New(rand.NewPCG(seed, 0))
			play(t, func(s script) {
				l := &ledger{states: map[string]State{}}
				l.begin()
				var said []string
				for range 4 { // connections
					for step := range 10 {
						uid := string(rune('a' + random.IntN(4)))
						word := random.IntN(3)
						switch {
						case step == 5:
							said = append(said, "snapshot")
							l.snapshot()
							s.snapshot()
						case word == 0:
							said = append(said, "add "+uid)
							l.add(uid)
							s.add(uid)
						case word == 1 && step < 5:
							said = append(said, "keep "+uid)
							l.keep(uid)
							s.keep(uid)
						default:
							said = append(said, "del "+uid)
							l.del(uid)
							s.del(uid)
						}
						if got, want := s.states(), l.String(); got != want {
							s.Fatalf("after %s: %s; want %s", strings.Join(said, ", "), got, want)
						}
					}
					said = append(said, "reconnect")
					l.begin()
					s.reconnect()
				}
			})
		})
	}
}
