// SPDX-License-Identifier: Apache-2.0

package relay

import (
	"context"

	"github.com/ztunnel-go/ztunnel/internal/sock"
)

// A Joiner is a Conn that carries bytes to and from a socket by itself: a
// stream on an event loop, which then has the socket beside it.
type Joiner interface {
	Conn
	// Join carries bytes until both directions have ended, as [Copy] does. It
	// does not wait.
	Join(Join)
}

// A Join says what a [Joiner] is to be joined with, and who hears of it. Its
// functions must not wait.
type Join struct {
	FD      int             // a non-blocking stream socket, which is the Joiner's from then on
	Client  bool            // the socket is the client's, and the Joiner its upstream; or the other way round
	Context context.Context // its end resets both sides; nil: it does not end
	Counts  Counts
	// Done is called once, when both are closed, with what Copy would return.
	// It may be called before Join returns.
	Done func(error)
}

// Carry is [Copy] for those who need not wait: done is called once, with what
// Copy would return, and that may be before Carry returns or long after it, on
// another goroutine, where it must not wait. If one side is a [Joiner] and the
// other a TCP connection, no goroutine is needed.
func Carry(ctx context.Context, client, upstream Conn, counts Counts, done func(error)) {
	how := Join{Context: ctx, Counts: counts, Done: done}
	stream, ok := upstream.(Joiner)
	socket, plain := client.(*tcp)
	if how.Client = ok; !ok {
		stream, ok = client.(Joiner)
		socket, plain = upstream.(*tcp)
	}
	if !ok || !plain {
		done(Copy(ctx, client, upstream, counts))
		return
	}
	fd, err := sock.TakeFD(socket.c)
	if err != nil {
		client.Reset()
		upstream.Reset()
		done(err)
		return
	}
	how.FD = fd
	stream.Join(how)
}
