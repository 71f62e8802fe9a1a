// SPDX-License-Identifier: Apache-2.0

package relay

import (
	"errors"
	"io"
	"net"
	"sync"

	"github.com/ztunnel-go/ztunnel/internal/sock"
)

// A Party is who ended a connection first.
type Party string

const (
	Client   Party = "client"
	Upstream Party = "upstream"
	Proxy    Party = "proxy" // policy, a drain, a revoked peer
)

// An Ending is how one side ended.
type Ending string

const (
	Open    Ending = "open"    // it had not ended when the proxy closed it
	FIN     Ending = "fin"     // it said all it had to say; END_STREAM of a stream
	RST     Ending = "rst"     // it reset the connection; RST_STREAM of a stream
	Timeout Ending = "timeout" // it stopped answering
	Lost    Ending = "lost"    // the tunnel that it was in ended
)

// rank orders endings: of two of one side, the higher is told.
func (e Ending) rank() int {
	for i, other := range [...]Ending{Open, FIN, Lost, RST, Timeout} {
		if e == other {
			return i
		}
	}
	return 0
}

// An End is one side of a connection at its end.
type End struct {
	How  Ending
	TCP  sock.TCPInfo // of the side's socket; of a stream, of its tunnel's
	Seen bool         // TCP could be asked for
}

// Ends is who ended a connection first, and how both sides did. Who wants to
// know gives one to [Counts]; it is complete when Copy returns or Done is
// called. Methods may be called by any goroutine, and on nil do nothing.
type Ends struct {
	mu               sync.Mutex
	first            Party // guarded by mu; empty: nobody yet
	client, upstream End   // guarded by mu
}

// Told is what became of it: who was first, and both ends.
func (e *Ends) Told() (first Party, client, upstream End) {
	e.mu.Lock()
	defer e.mu.Unlock()
	first, client, upstream = e.first, e.client, e.upstream
	for _, end := range []*End{&client, &upstream} {
		if end.How == "" {
			end.How = Open
		}
	}
	if first == "" {
		first = Proxy
	}
	return first, client, upstream
}

// Saw notes what a read or write of one side came to; nil and io.EOF are FIN.
// What only says that we had closed that side ourselves is not noted.
func (e *Ends) Saw(client bool, err error) {
	if e == nil {
		return
	}
	how, by := endingOf(err), Upstream
	if client {
		by = Client
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	switch how {
	case "":
		return
	case Open:
		by = Proxy
	}
	if e.first == "" {
		e.first = by
	}
	if end := e.side(client); how.rank() > end.How.rank() {
		end.How = how
	}
}

// Cut notes that the proxy ends the connection.
func (e *Ends) Cut() { e.Saw(false, ours{}) }

// Look takes a side's TCP_INFO once.
func (e *Ends) Look(client bool, info func() (sock.TCPInfo, error)) {
	if e == nil {
		return
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	end := e.side(client)
	if end.Seen {
		return
	}
	got, err := info()
	end.TCP, end.Seen = got, err == nil
}

// side is one End; e.mu is held.
func (e *Ends) side(client bool) *End {
	if client {
		return &e.client
	}
	return &e.upstream
}

// ours is an end of our own making.
type ours struct{}

func (ours) Error() string { return "ended by the proxy" }
func (ours) Ours() bool    { return true }

// endingOf reads an error: see [Ends.Saw]. Open means that it is ours, and
// nothing that it is no news.
func endingOf(err error) Ending {
	var (
		clean   interface{ Clean() bool }
		own     interface{ Ours() bool }
		timeout interface{ Timeout() bool }
		lost    interface{ Lost() bool }
	)
	switch {
	case err == nil, errors.Is(err, io.EOF):
		return FIN
	case errors.Is(err, net.ErrClosed):
		return ""
	case errors.As(err, &clean) && clean.Clean():
		return FIN
	case errors.As(err, &own) && own.Ours():
		return Open
	case errors.As(err, &timeout) && timeout.Timeout():
		return Timeout
	case errors.As(err, &lost) && lost.Lost():
		return Lost
	}
	return RST
}

// An informer is a Conn that can ask the kernel about its socket.
type informer interface {
	TCPInfo() (sock.TCPInfo, error)
}

// look is [Ends.Look] at a Conn that may be none.
func (e *Ends) look(client bool, c Conn) {
	if e == nil {
		return
	}
	if i, ok := c.(informer); ok {
		e.Look(client, i.TCPInfo)
	}
}
