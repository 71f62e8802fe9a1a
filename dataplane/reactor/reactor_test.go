// SPDX-License-Identifier: Apache-2.0

package reactor

import (
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ztunnel-go/ztunnel/internal/sock"
	"github.com/ztunnel-go/ztunnel/test/leak"
)

const patience = 20 * time.Second

func start(t *testing.T, n int) *Group {
	t.Helper()
	leak.Check(t)
	g, err := Start(n)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(g.Close)
	return g
}

// on runs f on l and waits for it.
func on(t *testing.T, l *Loop, f func()) {
	t.Helper()
	done := make(chan struct{})
	if !l.Do(func() { defer close(done); f() }) {
		t.Fatal("the loop is closed")
	}
	await(t, done)
}

func await(t *testing.T, done <-chan struct{}) {
	t.Helper()
	select {
	case <-done:
	case <-time.After(patience):
		t.Fatal("never")
	}
}

func pair(t *testing.T) (a, b int) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	return fds[0], fds[1]
}

type handler func(Events)

func (h handler) Ready(e Events) { h(e) }

type alarm func(*Timer)

func (a alarm) Expired(t *Timer) { a(t) }

type ender func()

func (e ender) EndTurn() { e() }

func TestFunctionsRunInOrderOnTheirLoop(t *testing.T) {
	g := start(t, 2)
	var wg sync.WaitGroup
	got := make(map[int][]int) // touched by one loop only
	l := g.Loops()[1]
	for who := range 4 {
		wg.Go(func() {
			for i := range 1000 {
				l.Do(func() { got[who] = append(got[who], i) })
			}
		})
	}
	wg.Wait()
	on(t, l, func() {})
	for who, list := range got {
		if len(list) != 1000 {
			t.Fatalf("%d ran of %d", len(list), who)
		}
		for i, v := range list {
			if i != v {
				t.Fatalf("%d ran in place of %d", v, i)
			}
		}
	}
}

func TestALoopThatIsClosedTakesNothing(t *testing.T) {
	g := start(t, 1)
	l := g.Pick()
	var ran atomic.Int32
	for range 100 {
		l.Do(func() { ran.Add(1) })
	}
	g.Close()
	if ran.Load() != 100 {
		t.Errorf("%d ran of what was queued", ran.Load())
	}
	if l.Do(func() { t.Error("ran after the end") }) {
		t.Error("took a function after the end")
	}
}

func TestASourceHearsOfWhatItWants(t *testing.T) {
	l := start(t, 1).Pick()
	a, b := pair(t)
	defer unix.Close(a)
	defer unix.Close(b)
	var s Source
	got := make(chan Events, 100)
	on(t, l, func() {
		if err := s.Watch(l, a, 0, handler(func(e Events) { got <- e; s.Want(s.Wanted() &^ e) })); err != nil {
			t.Error(err)
		}
	})
	if _, err := unix.Write(b, []byte("x")); err != nil {
		t.Fatal(err)
	}
	on(t, l, func() {}) // two turns, in which nothing may come
	on(t, l, func() {})
	if len(got) != 0 {
		t.Fatalf("heard %b", <-got)
	}
	for _, e := range []Events{Writable, Readable} {
		on(t, l, func() { s.Want(e) })
		if heard := <-got; heard != e {
			t.Errorf("heard %b, want %b", heard, e)
		}
	}
	on(t, l, s.Stop)
	on(t, l, s.Stop)
}

// Two sources are ready in one batch, and the first to be told puts another
// descriptor in the place of the second, often with its very number.
func TestAnEventNeverReachesASuccessor(t *testing.T) {
	l := start(t, 1).Pick()
	for range 200 {
		var sources [2]Source
		var peers, fds [2]int
		for i := range 2 {
			fds[i], peers[i] = pair(t)
		}
		told := 0
		done := make(chan struct{})
		replace := func(other int) handler {
			return func(Events) {
				if told++; told > 1 {
					return
				}
				sources[other].Stop()
				unix.Close(fds[other])
				unix.Close(peers[other])
				fds[other], peers[other] = pair(t) // silent
				err := sources[other].Watch(l, fds[other], Readable, handler(func(Events) { t.Error("an event of the predecessor") }))
				if err != nil {
					t.Error(err)
				}
				sources[1-other].Stop()
				l.Do(func() { close(done) })
			}
		}
		on(t, l, func() {
			for i := range 2 {
				unix.Write(peers[i], []byte("x"))
				if err := sources[i].Watch(l, fds[i], Readable, replace(1-i)); err != nil {
					t.Error(err)
				}
			}
		})
		await(t, done)
		on(t, l, func() {
			for i := range 2 {
				sources[i].Stop()
				unix.Close(fds[i])
				unix.Close(peers[i])
			}
		})
	}
}

func TestWatchingWhatCannotBeWatchedFails(t *testing.T) {
	l := start(t, 1).Pick()
	on(t, l, func() {
		var s Source
		if err := s.Watch(l, 1<<20, Readable, handler(nil)); err == nil || s.Watching() {
			t.Errorf("watches nothing: %v", err)
		}
		if len(l.free) != 1 {
			t.Error("its place is lost")
		}
	})
}

func TestTheEndOfATurnComesAfterItsEventsAndFunctions(t *testing.T) {
	l := start(t, 1).Pick()
	var order []string
	done := make(chan struct{})
	on(t, l, func() {
		l.Do(func() { order = append(order, "next turn") })
		l.AtEnd(ender(func() {
			order = append(order, "end")
			l.AtEnd(ender(func() { order = append(order, "end of end") }))
			l.Do(func() { close(done) })
		}))
		order = append(order, "function")
	})
	await(t, done)
	on(t, l, func() {})
	if len(order) < 4 || order[0] != "function" || order[len(order)-1] == "function" {
		t.Errorf("order %q", order)
	}
	for i, want := range []string{"function", "end", "end of end", "next turn"} {
		if order[i] != want {
			t.Fatalf("order %q", order)
		}
	}
}

func TestTimersFireInOrderAndOnce(t *testing.T) {
	l := start(t, 1).Pick()
	rng := rand.New(rand.NewPCG(1, 2))
	const n = 500
	list := make([]Timer, n)
	var fired []Time
	cancelled := 0
	done := make(chan struct{})
	note := alarm(func(tm *Timer) {
		fired = append(fired, l.Now())
		if len(fired) == n-cancelled {
			close(done)
		}
	})
	on(t, l, func() {
		for i := range list {
			l.Set(&list[i], l.Now().Add(time.Duration(rng.IntN(50))*time.Millisecond), note)
		}
		for i := range list { // half of them are moved, some are taken back
			switch rng.IntN(4) {
			case 0, 1:
				l.Set(&list[i], l.Now().Add(time.Duration(rng.IntN(50))*time.Millisecond), note)
			case 2:
				l.Cancel(&list[i])
				cancelled++
			}
		}
		for i := range l.timers.heap {
			if p := (i+1)/2 - 1; p >= 0 && l.timers.heap[p].At > l.timers.heap[i].At {
				t.Error("no heap")
			}
		}
	})
	await(t, done)
	on(t, l, func() {
		if len(l.timers.heap) != 0 {
			t.Errorf("%d left", len(l.timers.heap))
		}
	})
}

func TestATimerWakesASleepingLoop(t *testing.T) {
	l := start(t, 1).Pick()
	var tm Timer
	fired := make(chan Time, 1)
	var set Time
	on(t, l, func() {
		set = l.Now()
		l.Set(&tm, set.Add(30*time.Millisecond), alarm(func(*Timer) { fired <- l.clock.now() }))
	})
	select {
	case at := <-fired:
		if at < set.Add(30*time.Millisecond) {
			t.Errorf("fired %v early", time.Duration(set.Add(30*time.Millisecond)-at))
		}
	case <-time.After(patience):
		t.Fatal("never fired")
	}
}

func TestTimeIsTheKernels(t *testing.T) {
	c := newClock()
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts); err != nil {
		t.Fatal(err)
	}
	if d := time.Duration(c.now()) - time.Duration(ts.Nano()); d < -time.Second || d > patience {
		t.Errorf("%v apart", d)
	}
}

// A handler that always has more to do shares the loop with one that asks
// seldom.
func TestABusySourceDoesNotStarveAQuietOne(t *testing.T) {
	l := start(t, 1).Pick()
	busy, far := pair(t)
	quiet, asker := pair(t)
	for _, fd := range []int{busy, far, quiet, asker} {
		defer unix.Close(fd)
	}
	var a, b Source
	turns := 0
	on(t, l, func() {
		unix.Write(far, []byte("never read")) // ready for ever
		err := a.Watch(l, busy, Readable, handler(func(Events) { turns++ }))
		if err == nil {
			err = b.Watch(l, quiet, Readable, handler(func(Events) {
				var p [1]byte
				sock.ReadNow(quiet, p[:])
				sock.WriteNow(quiet, p[:])
			}))
		}
		if err != nil {
			t.Error(err)
		}
	})
	if err := unix.SetNonblock(asker, false); err != nil {
		t.Fatal(err)
	}
	for i := range 100 {
		p := []byte{byte(i)}
		unix.Write(asker, p)
		if n, err := unix.Read(asker, p); n != 1 || err != nil || p[0] != byte(i) {
			t.Fatalf("answer %d: %d %v", i, n, err)
		}
	}
	on(t, l, func() {
		if turns < 100 {
			t.Errorf("the busy one had %d turns", turns)
		}
		a.Stop()
		b.Stop()
	})
}

func TestABusyTurnIsShared(t *testing.T) {
	g := start(t, 1)
	l := g.Pick()
	const busy = 100
	shares := make(chan int, busy)
	on(t, l, func() {
		for range busy {
			a, b := pair(t)
			src := &Source{}
			err := src.Watch(l, a, Readable, handler(func(Events) {
				shares <- l.Share()
				src.Stop()
				unix.Close(a)
				unix.Close(b)
			}))
			if err != nil {
				t.Error(err)
			}
			if _, err := unix.Write(b, []byte{1}); err != nil {
				t.Error(err)
			}
		}
		if l.ready = 1; l.Share() != turnSize {
			t.Errorf("a source on its own may move %d bytes, want %d", l.Share(), turnSize)
		}
	})
	total := 0
	for range busy {
		total += <-shares
	}
	if limit := busy*leastShare + turnSize; total > limit {
		t.Errorf("%d busy sources may move %d bytes in one turn, want at most %d", busy, total, limit)
	}
}

func TestASlabKeepsWhatItGave(t *testing.T) {
	s := Slab{Size: 10, Keep: 1}
	a, b := s.Get(), s.Get()
	s.Put(a[:3])
	s.Put(b)
	s.Put(make([]byte, 11))
	if got := s.Get(); len(got) != 10 || &got[0] != &a[0] {
		t.Error("another buffer")
	}
	if got := s.Get(); len(got) != 10 || &got[0] == &b[0] {
		t.Error("kept more than it should")
	}
}
