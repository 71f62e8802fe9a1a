// SPDX-License-Identifier: Apache-2.0

package handover

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	pb "github.com/ztunnel-go/ztunnel/dataplane/handover/handoverpb"
)

/* One lot, by who gives
 *
 *	stopped --Lot--> sent --Restored--> --Commit--> --Begun--> forgotten
 *	   |              |        |                       |
 *	   +--------------+--------+---- Abort, or the other is dead: resumed
 *
 * Before Commit the new one may not begin as long as this process lives: to
 * resume, it is enough that it will hear of it. After Commit it may have begun
 * as soon as Begun can be read here, and never without.
 */

// give hands over one lot. The error ends the conversation; what was in the lot
// has an owner in any case.
func (g *giver) give(netns uint64, pod Pod, lot []*Tunnel, began time.Time) error {
	lot, unknown := g.understood(lot)
	pod.Resume(unknown, true)
	g.old.cfg.Metrics.some(gave, resultRefused, unknown)
	if len(lot) == 0 {
		return nil
	}
	g.seq++
	size, refused, err := g.offer(netns, lot)
	if err != nil {
		return g.takeBack(pod, lot, err)
	}
	var accepted, rejected []*Tunnel
	for n, t := range lot {
		if why, no := refused[uint32(n)]; no {
			g.old.cfg.Logger.Warn("a tunnel stays, and drains", slog.Any("peer", t.Remote), slog.String("error", why))
			rejected = append(rejected, t)
		} else {
			accepted = append(accepted, t)
		}
	}
	pod.Resume(rejected, true) // nobody else will go on with them
	g.old.cfg.Metrics.some(gave, resultRefused, rejected)
	if len(accepted) == 0 {
		return nil
	}
	if err := g.commit(); err != nil {
		return g.takeBack(pod, accepted, err)
	}
	return g.awaitBegun(pod, accepted, began, size)
}

// understood parts what the new one knows enough for from the rest.
func (g *giver) understood(lot []*Tunnel) (known, unknown []*Tunnel) {
	for _, t := range lot {
		missing := slices.ContainsFunc(t.needs(), func(f Feature) bool { return !slices.Contains(g.features, f) })
		if missing {
			unknown = append(unknown, t)
		} else {
			known = append(known, t)
		}
	}
	return known, unknown
}

// offer sends a lot and waits for what the new one says of it.
func (g *giver) offer(netns uint64, lot []*Tunnel) (size int, refused map[uint32]string, err error) {
	image, err := Encode(lot, g.format)
	if err != nil {
		return 0, nil, err
	}
	size = len(image)
	sum := sha256.Sum256(image)
	file, err := memoryFile(image)
	clear(image)
	if err != nil {
		return 0, nil, err
	}
	defer file.Close()
	fds := []int{int(file.Fd())}
	for _, t := range lot {
		fds = append(fds, t.FDs...)
	}
	m := &pb.Message{Kind: &pb.Message_Lot{Lot: &pb.Lot{
		Seq: g.seq, Netns: netns, Tunnels: uint32(len(lot)), Descriptors: uint32(len(fds) - 1),
		Length: uint64(size), Sha256: sum[:],
	}}}
	if err := g.link.send(m, nil, sendTime); err != nil {
		return 0, nil, err
	}
	for part := range slices.Chunk(fds, maxRights) {
		m := &pb.Message{Kind: &pb.Message_Descriptors{Descriptors: &pb.Descriptors{Seq: g.seq}}}
		if err := g.link.send(m, part, sendTime); err != nil {
			return 0, nil, err
		}
	}
	answer, err := g.await(restoreTime, func(m *pb.Message) bool { return m.GetRestored().GetSeq() == g.seq })
	if err != nil {
		return 0, nil, fmt.Errorf("no answer to a lot: %w", err)
	}
	refused = map[uint32]string{}
	for _, r := range answer.GetRestored().Refused {
		refused[r.Index] = r.Why
	}
	return size, refused, nil
}

// errAborted is the new one's word that it will not begin with a lot.
var errAborted = errors.New("the new process gives up")

// await returns the message that is wanted. What else is said is kept, or is of
// an earlier lot.
func (g *giver) await(limit time.Duration, want func(*pb.Message) bool) (*pb.Message, error) {
	deadline := time.Now().Add(limit)
	for {
		got, err := g.link.receive(deadline)
		if isTimeout(err) && time.Now().Before(deadline) { // Close had it look up; it is still waited for
			continue
		}
		if err != nil {
			return nil, err
		}
		if a := got.GetAbort(); a != nil && a.Seq == g.seq {
			got.close()
			return nil, fmt.Errorf("%w: %s", errAborted, a.Why)
		}
		if want(got.Message) {
			got.close()
			return got.Message, nil
		}
		g.hear(got)
	}
}

func (g *giver) commit() error {
	return g.link.send(&pb.Message{Kind: &pb.Message_Commit{Commit: &pb.Commit{Seq: g.seq}}}, nil, sendTime)
}

// takeBack resumes a lot that was not committed. That needs the new one to have
// heard of it, or to be able to do nothing any more: as long as this process
// lives the new one does not begin by itself, but this process may die.
func (g *giver) takeBack(pod Pod, lot []*Tunnel, cause error) error {
	m := &pb.Message{Kind: &pb.Message_Abort{Abort: &pb.Abort{Seq: g.seq, Why: cause.Error()}}}
	if err := g.link.send(m, nil, sendTime); err != nil && !hungUp(err) && !g.peer.fence(fenceTime) {
		g.lose(pod, lot, "the new process neither hears nor ends")
		return err
	}
	pod.Resume(lot, false)
	g.old.cfg.Metrics.lot(gave, resultAborted, lot)
	g.old.cfg.Logger.Warn("handover of a lot failed, its connections go on here", slog.Int("peer", g.peer.pid),
		slog.Int("tunnels", len(lot)), slog.Int("connections", connections(lot)), slog.String("error", cause.Error()))
	if g.failures++; isEnd(cause) || hungUp(cause) || g.failures >= maxFailures {
		return cause
	}
	return nil
}

// awaitBegun is after Commit: the lot is the new one's as soon as it says so. If
// it says nothing, what it may have said before it died is decisive.
func (g *giver) awaitBegun(pod Pod, lot []*Tunnel, began time.Time, size int) error {
	begun := func(m *pb.Message) bool { return m.GetBegun().GetSeq() == g.seq }
	_, err := g.await(beginTime, begun)
	if err != nil && !errors.Is(err, errAborted) && !isEnd(err) {
		g.old.cfg.Logger.Warn("the new process has a lot and does not begin: it is stopped", slog.Int("peer", g.peer.pid))
		if !g.peer.fence(fenceTime) {
			g.lose(pod, lot, "the new process neither begins nor ends")
			return err
		}
		if _, last := g.await(beginTime, begun); last == nil {
			g.lose(pod, lot, "the new process had begun, and was stopped")
			return err
		}
	}
	if err != nil {
		return g.takeBackCommitted(pod, lot, err)
	}
	stopped := time.Since(began)
	pod.Forget(lot)
	g.failures = 0
	g.tunnels += len(lot)
	g.connections += connections(lot)
	g.longest = max(g.longest, stopped)
	g.old.cfg.Metrics.lot(gave, resultDone, lot)
	g.old.cfg.Metrics.stopped(stopped, size)
	return nil
}

// takeBackCommitted resumes a lot of which it is certain that nobody has begun,
// or ever will.
func (g *giver) takeBackCommitted(pod Pod, lot []*Tunnel, cause error) error {
	pod.Resume(lot, false)
	g.old.cfg.Metrics.lot(gave, resultAborted, lot)
	g.old.cfg.Logger.Warn("the new process has not begun, connections go on here", slog.Int("peer", g.peer.pid),
		slog.Int("tunnels", len(lot)), slog.Int("connections", connections(lot)), slog.String("error", cause.Error()))
	return cause
}

// lose is for tunnels that nobody may go on with.
func (g *giver) lose(pod Pod, lot []*Tunnel, why string) {
	g.old.cfg.Metrics.lot(gave, resultLost, lot)
	g.old.cfg.Logger.Error("connections are lost in a handover", slog.Int("peer", g.peer.pid),
		slog.Int("tunnels", len(lot)), slog.Int("connections", connections(lot)), slog.String("error", why))
	pod.Forget(lot)
}

// isEnd reports whether err says that the other side has said all it ever will.
func isEnd(err error) bool { return errors.Is(err, io.EOF) }

// hungUp reports whether err, of sending, says that the other side has closed
// the socket, or is dead.
func hungUp(err error) bool { return errors.Is(err, unix.EPIPE) || errors.Is(err, unix.ECONNRESET) }
