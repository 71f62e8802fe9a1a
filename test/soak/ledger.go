// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"hash"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"sync"
	"syscall"
	"time"
)

// A role is a side of a connection.
type role int

const (
	client role = iota
	server
	nobody
)

func (r role) String() string { return [...]string{"client", "server", "nobody"}[r] }

func (r role) other() role { return 1 - r }

// An ending is how a side saw its connection end.
type ending string

const (
	never    ending = "never began"
	finished ending = "FIN both ways"
	closed   ending = "closed it"
	didReset ending = "reset it"
	wasReset ending = "was reset"
	stalled  ending = "stalled"
	refused  ending = "was refused"
	died     ending = "its pod died"
	failed   ending = "failed"
)

// A side is what one side of a connection has in the book.
type side struct {
	sent, received  int64
	sentSum, gotSum hash.Hash
	how             ending
	err             error         // where how alone does not tell
	at              time.Time     // of the end, or of the first error
	got             chan struct{} // closed when all that was expected has come, or nothing more will
	done            chan struct{} // closed at the end
	once            sync.Once     // of got
}

func (s *side) gotAll() { s.once.Do(func() { close(s.got) }) }

// An entry is one connection, or one question to a nameserver.
type entry struct {
	id     uint64
	plan   plan
	route  string
	from   *pod
	target *pod // nil: the machine outside, or whoever the service chose; see to
	anyOf  bool // the service chose it
	port   uint16
	addr   netip.AddrPort // that was dialled

	mu          sync.Mutex
	to          *pod           // guarded by mu; who has accepted it
	local       netip.AddrPort // guarded by mu; of the client
	began       time.Time
	established time.Time // guarded by mu; zero: never
	sides       [2]*side
}

// A ledger is the book.
type ledger struct {
	mu      sync.Mutex
	entries []*entry // guarded by mu; by id
}

func (l *ledger) open(e *entry) *entry {
	for r := range e.sides {
		e.sides[r] = &side{how: never, got: make(chan struct{}), done: make(chan struct{}), sentSum: sha256.New(), gotSum: sha256.New()}
	}
	e.began = time.Now()
	l.mu.Lock()
	defer l.mu.Unlock()
	e.id = uint64(len(l.entries))
	l.entries = append(l.entries, e)
	return e
}

func (l *ledger) find(id uint64) *entry {
	l.mu.Lock()
	defer l.mu.Unlock()
	if id >= uint64(len(l.entries)) {
		return nil
	}
	return l.entries[id]
}

func (l *ledger) all() []*entry {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.entries[:len(l.entries):len(l.entries)]
}

// content is what a side sends on a connection.
func content(id uint64, r role, n int64) io.Reader {
	var seed [32]byte
	copy(seed[:], "what the soak sends")
	binary.BigEndian.PutUint64(seed[20:], id)
	seed[31] = byte(r)
	return io.LimitReader(rand.NewChaCha8(seed), n)
}

// A greeting is the first that a client says, so that the server finds the
// entry; the server says accepted.
const (
	magic    = "soak"
	greeting = len(magic) + 8
	accepted = 'K'
)

// patience is how long a side waits for the other to move. The machine may be
// busy; SYNs that meet no listener are repeated after 1, 3, 7 and 15 s.
const patience = 40 * time.Second

// note keeps the first end of a side.
func (e *entry) note(r role, how ending, err error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	s := e.sides[r]
	if s.how == never {
		s.how, s.err, s.at = how, err, time.Now()
	}
}

// over says that a side has nothing more to say.
func (e *entry) over(r role) {
	e.sides[r].gotAll()
	close(e.sides[r].done)
}

// classify is the ending that an error stands for.
func classify(err error) ending {
	var n net.Error
	switch {
	case errors.Is(err, syscall.ECONNREFUSED):
		return refused
	case errors.Is(err, syscall.ECONNRESET), errors.Is(err, syscall.EPIPE):
		return wasReset
	case errors.Is(err, net.ErrClosed):
		return died
	case errors.Is(err, os.ErrDeadlineExceeded), errors.As(err, &n) && n.Timeout():
		return stalled
	}
	return failed
}

// play does a side's part on an open connection until both directions have
// ended, and closes it.
func (e *entry) play(ctx context.Context, c *net.TCPConn, r role) {
	defer c.Close()
	var reading sync.WaitGroup
	var rerr error
	reading.Go(func() {
		rerr = e.receive(c, r)
		e.sides[r].gotAll()
	})
	werr := e.send(ctx, c, r)
	switch {
	case werr != nil:
	case e.plan.reset == r:
		if !e.plan.midway {
			e.awaitBoth(ctx)
		}
		e.note(r, didReset, nil)
		_ = c.SetLinger(0)
		c.Close()
	case e.plan.closer == r:
		await(ctx, e.sides[r].got)
		e.note(r, closed, nil)
		c.Close()
	case e.plan.reset == nobody:
		werr = c.CloseWrite()
	}
	reading.Wait()
	if werr == nil || classify(werr) == died && rerr != nil {
		werr = rerr
	}
	if werr != nil {
		e.note(r, classify(werr), werr)
		return
	}
	e.note(r, finished, nil)
}

func await(ctx context.Context, c <-chan struct{}) {
	select {
	case <-c:
	case <-ctx.Done():
	case <-time.After(patience):
	}
}

// awaitBoth returns when both sides have got all, or one has ended.
func (e *entry) awaitBoth(ctx context.Context) {
	await(ctx, e.sides[client].got)
	await(ctx, e.sides[server].got)
}

// send sends a side's bytes, and does not end the direction.
func (e *entry) send(ctx context.Context, c *net.TCPConn, r role) error {
	f, s := e.plan.flows[r], e.sides[r]
	if f.after {
		await(ctx, s.got)
	}
	total := f.bytes
	if e.plan.reset == r && e.plan.midway {
		total /= 2
	}
	src := content(e.id, r, total)
	buf := make([]byte, f.piece)
	rested := false
	for s.sent < total {
		n, err := io.ReadFull(src, buf[:min(int64(len(buf)), total-s.sent)])
		if err != nil {
			return fmt.Errorf("content: %w", err)
		}
		_ = c.SetWriteDeadline(time.Now().Add(patience + e.plan.slowest()))
		n, err = c.Write(buf[:n])
		s.sentSum.Write(buf[:n])
		e.mu.Lock()
		s.sent += int64(n)
		e.mu.Unlock()
		if err != nil {
			return err
		}
		if !rested && f.idle > 0 && s.sent >= total/2 {
			rested = true
			sleep(ctx, f.idle)
		}
		sleep(ctx, f.pause)
	}
	return nil
}

func sleep(ctx context.Context, d time.Duration) {
	if d <= 0 {
		return
	}
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}

// receive takes what comes until the end.
func (e *entry) receive(c *net.TCPConn, r role) error {
	f, s := e.plan.flows[r.other()], e.sides[r]
	buf := make([]byte, f.take)
	for {
		_ = c.SetReadDeadline(time.Now().Add(patience + e.plan.slowest()))
		n, err := c.Read(buf)
		s.gotSum.Write(buf[:n])
		e.mu.Lock()
		s.received += int64(n)
		e.mu.Unlock()
		if s.received >= f.bytes {
			s.gotAll()
		}
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
		if s.received < f.bytes {
			time.Sleep(f.rest)
		}
	}
}
