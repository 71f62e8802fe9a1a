// SPDX-License-Identifier: Apache-2.0

package engine

import (
	"io"
	"net"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/ztunnel-go/ztunnel/dataplane/hbone/record"
	"github.com/ztunnel-go/ztunnel/dataplane/hbone/wire"
	"github.com/ztunnel-go/ztunnel/dataplane/reactor"
	"github.com/ztunnel-go/ztunnel/dataplane/relay"
)

// A turnCounter finds the most that is moved in one turn of its loop. It is used
// on the loop alone.
type turnCounter struct {
	loop         *reactor.Loop
	armed        bool
	moved, total int
	most, turns  int
}

func (c *turnCounter) count(n int) {
	if !c.armed {
		c.armed = true
		c.loop.AtEnd(c)
	}
	c.moved += n
	c.total += n
}

// EndTurn ends the sum.
func (c *turnCounter) EndTurn() {
	c.most = max(c.most, c.moved)
	c.turns++
	c.armed, c.moved = false, 0
}

// A stream whose sender and receiver never wait gets, out of one turn of a loop,
// a batch of records one way, and the other way a read of the tunnel's socket
// and what had waited for the application; then it is others' turn.
func TestATurnMovesABoundedPartOfABusyStream(t *testing.T) {
	const total = 32 << 20
	r := newRig(t)
	set := wire.Settings{StreamWindow: 256 << 10}
	served := make(chan *Stream, 1)
	release := make(chan struct{})
	client, _ := r.tunnels(set, func(q *Request) {
		served <- q.Accept(nil)
		<-release
	})
	s, _, err := client.Open(within(t), wire.Request{Authority: "10.0.0.2:80"})
	if err != nil {
		t.Fatal(err)
	}
	join := func(s *Stream, ours bool) (app *net.TCPConn, c *turnCounter, done chan error) {
		app, inner := pair(t)
		c, done = &turnCounter{loop: s.t.lane.loop}, make(chan error, 1)
		s.Join(relay.Join{FD: take(t, inner), Client: ours, Counts: relay.Counts{Sent: c.count}, Done: func(err error) { done <- err }})
		return app, c, done
	}
	far, in, farDone := join(await(t, served), false)
	near, out, nearDone := join(s, true)
	close(release)
	var receiver sync.WaitGroup
	receiver.Go(func() {
		if n, err := io.Copy(io.Discard, far); err != nil || n != total {
			t.Errorf("got %d bytes, %v", n, err)
		}
		far.Close()
	})
	if _, err := near.Write(make([]byte, total)); err != nil {
		t.Fatal(err)
	}
	near.CloseWrite()
	receiver.Wait()
	await(t, nearDone)
	await(t, farDone)
	for name, tc := range map[string]struct {
		c     *turnCounter
		limit int
	}{
		"sent":     {out, records * record.MaxContent},
		"received": {in, len(in.loop.Buf) + record.MaxLength + int(set.StreamWindow)},
	} {
		turned := make(chan struct{})
		tc.c.loop.Do(func() { tc.c.loop.Do(func() { close(turned) }) }) // the last turn is over, and the counter rests
		await(t, turned)
		if tc.c.total != total || tc.c.most > tc.limit || tc.c.most == 0 {
			t.Errorf("%s: %d bytes in one of %d turns, want at most %d", name, tc.c.most, tc.c.turns, tc.limit)
		}
	}
}

// A pod that asks seldom is answered soon, beside one on the same loop that
// sends all it can. How soon is the machine's affair as well, so the best of
// some rounds counts: starvation would spoil each.
func TestAQuietPodIsAnsweredBesideABusyOne(t *testing.T) {
	const soon, rounds, questions = 100 * time.Millisecond, 5, 200
	r := newRig(t)
	group, err := reactor.Start(1)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(group.Close)
	r.engine = New(group)
	quiet, busy := through(r, wire.Settings{}), through(r, wire.Settings{})
	var apps sync.WaitGroup
	apps.Go(func() {
		defer quiet.far.Close()
		io.Copy(quiet.far, struct{ io.Reader }{quiet.far}) // without splice, whose pipes outlive the test
	})
	idle := slowest(t, quiet.near, questions)
	var taken int64
	apps.Go(func() {
		defer busy.far.Close()
		taken, _ = io.Copy(io.Discard, busy.far)
	})
	apps.Go(func() {
		b := make([]byte, 256<<10)
		for {
			if _, err := busy.near.Write(b); err != nil {
				return
			}
		}
	})
	best := time.Hour
	for range rounds {
		if best = min(best, slowest(t, quiet.near, questions)); best < soon {
			break
		}
	}
	busy.near.Close()
	quiet.near.Close()
	for _, done := range []chan error{busy.nearDone, quiet.nearDone, busy.farDone} {
		await(t, done)
	}
	apps.Wait()
	t.Logf("of %d questions all but one in a hundred were answered within %v, and within %v beside %d MiB", questions, idle, best, taken>>20)
	if best >= soon && best >= 10*idle {
		t.Errorf("beside a busy pod it takes %v, else %v", best, idle)
	}
	if taken == 0 {
		t.Error("the busy pod was not busy")
	}
}

// slowest is the 99th percentile of round trips of 64 bytes.
func slowest(t *testing.T, c net.Conn, n int) time.Duration {
	t.Helper()
	all := make([]time.Duration, n)
	b := make([]byte, 64)
	for i := range all {
		began := time.Now()
		if _, err := c.Write(b); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(c, b); err != nil {
			t.Fatal(err)
		}
		all[i] = time.Since(began)
	}
	slices.Sort(all)
	return all[n*99/100-1]
}
