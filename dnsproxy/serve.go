// SPDX-License-Identifier: Apache-2.0

package dnsproxy

import (
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"time"
)

const (
	// udpQueryBuffer is the longest query taken by UDP: as long as the
	// longest answer to a client without EDNS.
	udpQueryBuffer = plainUDPLimit

	// maxPackets is how many UDP queries of a pod may be in hand. It is above
	// maxForwarded, so that names of the mesh are answered while upstream is
	// dead.
	maxPackets = 2 * maxForwarded

	// maxConns is how many TCP connections a pod may hold. Each may make us
	// hold a query of 64 KiB for tcpIdle.
	maxConns = 256

	// tcpIdle is how long a connection may be silent (contract 11.1), and how
	// long a client may take to read an answer.
	tcpIdle = 5 * time.Second

	// retryPause is the pause after a socket failed for no reason of its own,
	// such as a lack of descriptors.
	retryPause = 50 * time.Millisecond
)

// readPackets takes the queries of one UDP socket. Those that take the short
// way are answered at once, all others each in a goroutine.
func (s *Server) readPackets(pc net.PacketConn) {
	buf := make([]byte, udpQueryBuffer)
	var w scratch
	for {
		n, addr, err := pc.ReadFrom(buf)
		if err != nil {
			if !s.goOn("read DNS query", err) {
				return
			}
			continue
		}
		if !s.answerable(addr) {
			s.metrics.drop(dropSource)
			continue
		}
		if answer := s.quick(buf[:n], &w); answer != nil {
			respond(pc, answer, addr)
			continue
		}
		query := append([]byte(nil), buf[:n]...)
		if s.packets.Add(1) > maxPackets {
			s.packets.Add(-1)
			s.metrics.drop(dropBusy)
			respond(pc, s.refuse(query), addr)
			continue
		}
		s.work.Go(func() { // ends with s.ctx, or the timeouts of upstream
			defer s.packets.Add(-1)
			respond(pc, s.handle(s.ctx, query, "udp"), addr)
		})
	}
}

func respond(pc net.PacketConn, answer []byte, addr net.Addr) {
	if answer != nil {
		pc.WriteTo(answer, addr) // a client that is gone, or a socket closed: nobody to tell
	}
}

// answerable refuses sources that no answer can reach (contract 11.1).
func (s *Server) answerable(addr net.Addr) bool {
	src, ok := addr.(interface{ AddrPort() netip.AddrPort })
	if !ok {
		s.warn("DNS query of an unknown kind of address ignored", slog.Any("address", addr))
		return false
	}
	from := src.AddrPort()
	ip := from.Addr().Unmap()
	broadcast := netip.AddrFrom4([4]byte{255, 255, 255, 255})
	if from.Port() == 0 || !ip.IsValid() || ip.IsUnspecified() || ip == broadcast {
		s.warn("DNS query from an address that cannot be answered ignored", slog.Any("address", from))
		return false
	}
	return true
}

// goOn decides whether a loop goes on after its socket failed. It pauses, so
// that a lasting failure does not spin.
func (s *Server) goOn(doing string, err error) bool {
	if !s.serving() {
		return false
	}
	if errors.Is(err, net.ErrClosed) {
		s.log.Error(doing+": the socket was closed by somebody else", slog.Any("error", err))
		return false
	}
	s.warn(doing, slog.Any("error", err))
	select {
	case <-time.After(retryPause):
	case <-s.ctx.Done():
	}
	return true
}

// accept takes the connections of one TCP socket, each into a goroutine.
func (s *Server) accept(l net.Listener) {
	for {
		c, err := l.Accept()
		if err != nil {
			if !s.goOn("accept DNS connection", err) {
				return
			}
			continue
		}
		if !s.track(c) {
			s.metrics.drop(dropConnections)
			c.Close()
			continue
		}
		s.work.Go(func() { // ends when c is idle, fails, or is closed
			defer s.untrack(c)
			s.serveConn(c)
		})
	}
}

func (s *Server) track(c net.Conn) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.state != stateServing || len(s.conns) >= maxConns {
		return false
	}
	s.conns[c] = struct{}{}
	return true
}

func (s *Server) untrack(c net.Conn) {
	s.mu.Lock()
	delete(s.conns, c)
	s.mu.Unlock()
	c.Close()
}

// awaitQuery sets the deadline of the next read, unless reading has ended: a
// draining server set a deadline that must stand.
func (s *Server) awaitQuery(c net.Conn) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.state != stateServing {
		return false
	}
	return c.SetReadDeadline(time.Now().Add(tcpIdle)) == nil
}

// serveConn answers the queries of a connection one after another, in their
// order (contract 11.1).
func (s *Server) serveConn(c net.Conn) {
	for s.awaitQuery(c) {
		query, err := readFrame(c)
		if err != nil {
			return
		}
		answer := s.handle(s.ctx, query, "tcp")
		if answer == nil {
			continue
		}
		c.SetWriteDeadline(time.Now().Add(tcpIdle))
		if err := writeFrame(c, answer); err != nil {
			return
		}
	}
}
