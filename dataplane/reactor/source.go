// SPDX-License-Identifier: Apache-2.0

package reactor

import (
	"os"

	"golang.org/x/sys/unix"
)

// A Source is a descriptor that a loop watches. It is a part of its handler,
// and is used on the loop alone. The zero value watches nothing.
type Source struct {
	loop   *Loop
	fd     int
	slot   uint32 // 0: not watched
	events Events
}

// Watch begins: h hears of fd's events, of those asked for and of those that
// come unasked. A source watches one descriptor at a time.
func (s *Source) Watch(l *Loop, fd int, events Events, h Handler) error {
	if s.slot != 0 {
		panic("a source that watches already")
	}
	var at uint32
	if n := len(l.free); n > 0 {
		at = l.free[n-1]
		l.free = l.free[:n-1]
	} else {
		at = uint32(len(l.slots))
		l.slots = append(l.slots, slot{})
	}
	l.slots[at].handler = h
	*s = Source{loop: l, fd: fd, slot: at, events: events}
	if err := s.control(unix.EPOLL_CTL_ADD); err != nil {
		s.release()
		return err
	}
	return nil
}

// Want changes what is asked for. It does nothing if nothing changes, or
// nothing is watched.
func (s *Source) Want(events Events) {
	if s.slot == 0 || s.events == events {
		return
	}
	s.events = events
	if err := s.control(unix.EPOLL_CTL_MOD); err != nil {
		panic("epoll_ctl: " + err.Error()) // it is there: it was added
	}
}

// Wanted is what is asked for.
func (s *Source) Wanted() Events { return s.events }

// Watching reports whether there is anything watched.
func (s *Source) Watching() bool { return s.slot != 0 }

// Stop ends the watch. Events that are on their way reach nobody. The
// descriptor stays open; Stop comes before it is closed.
func (s *Source) Stop() {
	if s.slot == 0 {
		return
	}
	_ = s.control(unix.EPOLL_CTL_DEL)
	s.release()
}

func (s *Source) release() {
	at := &s.loop.slots[s.slot]
	at.handler = nil
	at.generation++
	s.loop.free = append(s.loop.free, s.slot)
	s.slot, s.events = 0, 0
}

func (s *Source) control(op int) error {
	return os.NewSyscallError("epoll_ctl", unix.EpollCtl(s.loop.ep, op, s.fd, &unix.EpollEvent{
		Events: uint32(s.events), Fd: int32(s.slot), Pad: int32(s.loop.slots[s.slot].generation)}))
}
