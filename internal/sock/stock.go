// SPDX-License-Identifier: Apache-2.0

package sock

import (
	"fmt"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// stockMost is how many sockets of one family are ready at most. Each is a
	// descriptor and some 2.5 KiB of the kernel's.
	stockMost = 16
	// stockIdle is after how long without a taker a stock is given up, and
	// stockHurry how soon after the last one the next batch is a larger one.
	stockIdle  = 5 * time.Second
	stockHurry = time.Second
)

// A Stock keeps TCP sockets of a factory's namespace ready, flagged and with
// the options that all have: to make one takes a thread that enters the
// namespace and comes back, so that one visit had better make several. Nothing
// is made ahead of the first taker, and nothing kept for long after the last.
// Methods may be called by several goroutines.
type Stock struct {
	f Factory

	mu      sync.Mutex
	ready   [2][]int    // guarded by mu: IPv4 and IPv6
	batch   int         // guarded by mu: how many the next visit makes
	filled  time.Time   // guarded by mu: when the last one ended
	filling [2]bool     // guarded by mu: a visit is under way
	taken   bool        // guarded by mu: since idle was set
	idle    *time.Timer // guarded by mu; nil: nothing is ready
	closed  bool        // guarded by mu
	visits  sync.WaitGroup
}

// NewStock returns an empty stock of sockets as f makes them. Close it.
func NewStock(f Factory) *Stock {
	f.Stock = nil
	return &Stock{f: f}
}

func stockIndex(family int) int {
	if family == unix.AF_INET6 {
		return 1
	}
	return 0
}

// take returns a ready socket of a family, -1 if there is none, and sees to it
// that there are more the next time.
func (s *Stock) take(family int) int {
	at := stockIndex(family)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return -1
	}
	s.taken = true
	fd, left := -1, s.ready[at]
	if n := len(left); n > 0 {
		fd, s.ready[at] = left[n-1], left[:n-1]
	}
	if len(s.ready[at])*2 <= s.batch && !s.filling[at] {
		s.refillLocked(family)
	}
	return fd
}

// refillLocked has a batch made; twice the last one if that was used up soon.
func (s *Stock) refillLocked(family int) {
	switch {
	case time.Since(s.filled) > stockHurry:
		s.batch = 2
	default:
		s.batch = min(2*s.batch, stockMost)
	}
	at, n := stockIndex(family), s.batch
	s.filling[at] = true
	s.visits.Go(func() { // ends by itself
		made := s.visit(family, n)
		s.mu.Lock()
		defer s.mu.Unlock()
		s.filling[at], s.filled = false, time.Now()
		if s.closed {
			closeAll(made)
			return
		}
		s.ready[at] = append(s.ready[at], made...)
		if s.idle == nil {
			s.taken = false
			s.idle = time.AfterFunc(stockIdle, s.unused)
		}
	})
}

// visit makes up to n sockets. What goes wrong is told to who makes the next
// one by himself.
func (s *Stock) visit(family, n int) []int {
	made := make([]int, 0, n)
	_ = s.f.inside(func() error {
		for range n {
			fd, err := unix.Socket(family, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
			if err != nil {
				return err
			}
			made = append(made, fd)
		}
		return nil
	})
	for i, fd := range made {
		if err := s.f.furnish(fd); err != nil {
			closeAll(made[i:])
			return made[:i]
		}
	}
	return made
}

// unused gives up what nobody has taken for a while.
func (s *Stock) unused() {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.closed:
	case s.taken:
		s.taken = false
		s.idle.Reset(stockIdle)
	default:
		s.dropLocked()
	}
}

func (s *Stock) dropLocked() {
	for at := range s.ready {
		closeAll(s.ready[at])
		s.ready[at] = nil
	}
	s.idle = nil
}

// Close gives up what is there, and waits for what is being made.
func (s *Stock) Close() {
	s.mu.Lock()
	s.closed = true
	if s.idle != nil {
		s.idle.Stop()
	}
	s.dropLocked()
	s.mu.Unlock()
	s.visits.Wait()
}

func closeAll(fds []int) {
	for _, fd := range fds {
		unix.Close(fd)
	}
}

// furnish gives a new TCP socket what every one of f has.
func (f *Factory) furnish(fd int) error {
	if f.Own != nil {
		if err := f.Own(fd); err != nil {
			return fmt.Errorf("flag socket as own: %w", err)
		}
	}
	if err := unix.SetsockoptInt(fd, unix.SOL_TCP, unix.TCP_NODELAY, 1); err != nil {
		return os.NewSyscallError("setsockopt TCP_NODELAY", err)
	}
	return f.Keepalive.Set(fd)
}
