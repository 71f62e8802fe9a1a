// SPDX-License-Identifier: Apache-2.0

package relay

import (
	"context"
	"net"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ztunnel-go/ztunnel/dataplane/reactor"
	"github.com/ztunnel-go/ztunnel/internal/sock"
)

// Loops carry bytes between plain connections on event loops, without a
// goroutine for any of them. Make them with [NewLoops]; nil has goroutines do
// it.
type Loops struct {
	group *reactor.Group
	lanes map[*reactor.Loop]*lane // is not changed
}

// A lane is what a loop lends to the pairs that it carries.
type lane struct {
	loop   *reactor.Loop
	pieces reactor.Slab // bytes that somebody did not take
	pipes  []pipe       // empty
	tidy   reactor.Timer
}

// pieceSize is what one read takes at most. More of it would not stay in the
// processor's nearer caches until it is written.
const pieceSize = 64 << 10

// NewLoops makes Loops of a group, which outlives all that they carry.
func NewLoops(group *reactor.Group) *Loops {
	l := &Loops{group: group, lanes: map[*reactor.Loop]*lane{}}
	for _, loop := range group.Loops() {
		l.lanes[loop] = &lane{loop: loop, pieces: reactor.Slab{Size: pieceSize, Keep: 64}}
	}
	return l
}

// Close gives back the pipes that nobody uses. It comes after the group's.
func (l *Loops) Close() {
	for _, lane := range l.lanes {
		for _, p := range lane.pipes {
			p.close()
		}
		lane.pipes = nil
	}
}

// Carry is [Carry], and needs no goroutine for two TCP connections either.
func (l *Loops) Carry(ctx context.Context, client, upstream Conn, counts Counts, done func(error)) {
	a, ok := client.(*tcp)
	b, too := upstream.(*tcp)
	if l == nil || !ok || !too {
		Carry(ctx, client, upstream, counts, done)
		return
	}
	near, err := sock.TakeFD(a.c)
	if err != nil {
		upstream.Reset()
		done(err)
		return
	}
	far, err := sock.TakeFD(b.c)
	if err != nil {
		closeHard(near)
		done(err)
		return
	}
	p := &pair{lane: l.lanes[l.group.Pick()], ctx: ctx, counts: counts, done: done}
	p.client.join(p, near, &p.upstream)
	p.upstream.join(p, far, &p.client)
	if !p.lane.loop.Do(p.begin) {
		closeHard(near)
		closeHard(far)
		done(net.ErrClosed)
	}
}

// closeHard closes a socket by a reset, if it is not dead already.
func closeHard(fd int) {
	_ = unix.SetsockoptLinger(fd, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1})
	unix.Close(fd)
}

// A pipe is where bytes are that splice(2) has taken from one socket and not
// yet given to the other.
type pipe struct{ r, w int }

// keepPipes is how many empty ones a loop keeps, and keepPipesFor for how long:
// each is two descriptors.
const (
	keepPipes    = 16
	keepPipesFor = time.Second
)

// Expired is when pipes have been kept long enough. Those that are used all the
// time are soon made again.
func (l *lane) Expired(*reactor.Timer) {
	for _, p := range l.pipes {
		p.close()
	}
	l.pipes = l.pipes[:0]
}

// pipe lends an empty pipe; false: there is none to be had.
func (l *lane) pipe() (pipe, bool) {
	if n := len(l.pipes); n > 0 {
		p := l.pipes[n-1]
		l.pipes = l.pipes[:n-1]
		return p, true
	}
	var fds [2]int
	if unix.Pipe2(fds[:], unix.O_CLOEXEC|unix.O_NONBLOCK) != nil {
		return pipe{}, false
	}
	_, _ = unix.FcntlInt(uintptr(fds[0]), unix.F_SETPIPE_SZ, spliceMax) // fails beyond a user's limit: then less is moved at once
	return pipe{fds[0], fds[1]}, true
}

// back takes a pipe back, which is empty.
func (l *lane) back(p pipe) {
	if len(l.pipes) < keepPipes {
		l.pipes = append(l.pipes, p)
		if l.tidy.At == 0 {
			l.loop.Set(&l.tidy, l.loop.Now().Add(keepPipesFor), l)
		}
		return
	}
	p.close()
}

func (p pipe) close() {
	unix.Close(p.r)
	unix.Close(p.w)
}
