// SPDX-License-Identifier: Apache-2.0

package handover

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	pb "github.com/ztunnel-go/ztunnel/dataplane/handover/handoverpb"
)

// A Pod is where tunnels of one pod come from. One goroutine calls it.
type Pod interface {
	// Stop takes out some tunnels, which stand still from then on; later says
	// how many could not be stopped now, and may be another time.
	Stop(Limit) (lot []*Tunnel, later int)
	// Resume goes on with tunnels here. Those that the other process refused are
	// not to be offered again.
	Resume(lot []*Tunnel, refused bool)
	// Forget is for tunnels that have begun elsewhere, or are lost.
	Forget(lot []*Tunnel)
}

// A Limit is how much a lot may be.
type Limit struct {
	Tunnels     int
	Descriptors int           // a lot of one tunnel may have more
	Time        time.Duration // of stopping
}

func lotLimit() Limit { return Limit{Tunnels: 64, Descriptors: 128, Time: 2 * time.Millisecond} }

const (
	helloTime   = 2 * time.Second        // for each side's first message
	sendTime    = 500 * time.Millisecond // for a message to fit into the socket
	restoreTime = 300 * time.Millisecond // for the new one to read a lot
	beginTime   = 2 * time.Second        // from Commit to Begun
	fenceTime   = 5 * time.Second        // for a process that was killed to be gone
	firstPass   = 5 * time.Second        // for tunnels of a pod that are busy
	retryStep   = 3 * time.Millisecond
	lateStep    = 50 * time.Millisecond // between looks for what has become possible
	maxFailures = 3                     // lots in a row that were aborted
)

// OldConfig is what [Listen] needs.
type OldConfig struct {
	// Path is of the socket. Its directory is made if it is missing.
	Path string
	// Version is told to the other side, for its log.
	Version string
	// Generation is how many processes in a row have handed over to this one.
	Generation uint64
	// Pod finds a pod by its network namespace's cookie; nil: there is none.
	Pod func(netns uint64) Pod
	// Descriptors is about how many there are to hand over.
	Descriptors func() int
	// Logger and Metrics hear what becomes of it. Metrics may be nil.
	Logger  *slog.Logger
	Metrics *Metrics
}

// An Old waits for the process that is to follow this one, and gives it what it
// asks for. One conversation is held at a time.
type Old struct {
	cfg      OldConfig
	listener *net.UnixListener
	ctx      context.Context
	cancel   context.CancelFunc
	running  sync.WaitGroup // the accept loop and its conversations; ends with Close
	talking  chan struct{}  // holds one while there is a conversation
}

// Listen takes the place of whoever listened at the path before.
func Listen(cfg OldConfig) (*Old, error) {
	if err := safeDirectory(filepath.Dir(cfg.Path)); err != nil {
		return nil, err
	}
	temporary := fmt.Sprintf("%s.%d", cfg.Path, os.Getpid())
	if err := os.Remove(temporary); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	l, err := net.ListenUnix("unixpacket", &net.UnixAddr{Name: temporary, Net: "unixpacket"})
	if err != nil {
		return nil, err
	}
	l.SetUnlinkOnClose(false) // the path is the next one's by then
	if err = os.Chmod(temporary, 0o600); err == nil {
		err = os.Rename(temporary, cfg.Path)
	}
	if err != nil {
		l.Close()
		_ = os.Remove(temporary) // the error is the one to tell
		return nil, err
	}
	o := &Old{cfg: cfg, listener: l, talking: make(chan struct{}, 1)}
	o.ctx, o.cancel = context.WithCancel(context.Background())
	o.running.Go(o.accept) // ends when the listener is closed
	return o, nil
}

// safeDirectory makes the directory, or refuses one in which others could put
// another socket.
func safeDirectory(dir string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	info, err := os.Stat(dir)
	if err != nil {
		return err
	}
	owner := info.Sys().(*syscall.Stat_t).Uid
	if int(owner) != os.Geteuid() || info.Mode().Perm()&0o022 != 0 {
		return fmt.Errorf("%s is of user %d with mode %v: others could put another socket there", dir, owner, info.Mode().Perm())
	}
	return nil
}

// Close ends the wait, and the conversation if there is one: a lot under way is
// finished or taken back first.
func (o *Old) Close() {
	o.cancel()
	o.listener.Close()
	o.running.Wait()
}

// Talks reports whether a successor is connected.
func (o *Old) Talks() bool { return len(o.talking) > 0 }

func (o *Old) accept() {
	for {
		conn, err := o.listener.AcceptUnix()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			o.cfg.Logger.Warn("handover: accept", slog.String("error", err.Error()))
			continue
		}
		select {
		case o.talking <- struct{}{}:
			o.running.Go(func() {
				defer func() { <-o.talking }()
				o.converse(conn)
			})
		default:
			l := &link{conn: conn}
			_ = l.send(welcome(&pb.Welcome{Refused: "another process is taking over"}), nil, sendTime)
			conn.Close()
		}
	}
}

func welcome(w *pb.Welcome) *pb.Message { return &pb.Message{Kind: &pb.Message_Welcome{Welcome: w}} }

// converse speaks with a successor until either side has enough.
func (o *Old) converse(conn *net.UnixConn) {
	defer conn.Close()
	stop := context.AfterFunc(o.ctx, func() { _ = conn.SetReadDeadline(time.Unix(1, 0)) }) // looks at ctx
	defer stop()
	log := o.cfg.Logger
	p, err := identify(conn)
	if err != nil {
		log.Warn("handover refused", slog.String("error", err.Error()))
		return
	}
	defer p.close()
	g := &giver{old: o, link: &link{conn: conn}, peer: p, pods: map[uint64]Pod{}}
	if err := g.greet(); err != nil {
		log.Warn("handover refused", slog.Int("peer", p.pid), slog.String("error", err.Error()))
		return
	}
	if err := g.serve(); err != nil && o.ctx.Err() == nil {
		log.Warn("handover ended early; what is here stays, and drains", slog.Int("peer", p.pid), slog.String("error", err.Error()))
	}
	log.Info("handover ended", slog.Int("peer", p.pid), slog.Int("tunnels", g.tunnels), slog.Int("connections", g.connections),
		slog.Duration("longest_stop", g.longest))
}

// A giver is one conversation of an old process.
type giver struct {
	old  *Old
	link *link
	peer *peer

	format   uint32
	features []Feature
	pods     map[uint64]Pod // that the new one serves
	asked    []uint64       // pods whose first pass is to come
	seq      uint64
	failures int

	tunnels, connections int
	longest              time.Duration
}

// greet agrees on a format.
func (g *giver) greet() error {
	got, err := g.link.receive(time.Now().Add(helloTime))
	if err != nil {
		return err
	}
	defer got.close()
	hello := got.GetHello()
	w := &pb.Welcome{Version: g.old.cfg.Version, Generation: g.old.cfg.Generation}
	switch {
	case hello == nil:
		w.Refused = "no hello"
	case hello.FormatMin > Format || hello.FormatMax < OldestFormat:
		w.Refused = fmt.Sprintf("formats %d to %d, and we %d to %d", hello.FormatMin, hello.FormatMax, OldestFormat, Format)
	default:
		g.format = min(hello.FormatMax, Format)
		w.Format = g.format
		for _, f := range features() {
			if slices.Contains(hello.Features, uint32(f)) {
				g.features = append(g.features, f)
				w.Features = append(w.Features, uint32(f))
			}
		}
		if g.old.cfg.Descriptors != nil {
			w.Descriptors = uint32(max(g.old.cfg.Descriptors(), 0))
		}
	}
	if err := g.link.send(welcome(w), nil, sendTime); err != nil {
		return err
	}
	if w.Refused != "" {
		return errors.New(w.Refused)
	}
	hideMemory(g.old.cfg.Logger)
	g.old.cfg.Logger.Info("handover begins", slog.Int("peer", g.peer.pid), slog.String("version", hello.Version))
	return nil
}

// serve gives what is asked for, and what becomes possible later, until the new
// one hangs up.
func (g *giver) serve() error {
	for {
		for len(g.asked) > 0 {
			netns := g.asked[0]
			g.asked = g.asked[1:]
			if err := g.first(netns); err != nil {
				return err
			}
		}
		for netns, pod := range g.pods {
			if _, err := g.pass(netns, pod); err != nil {
				return err
			}
		}
		if g.old.ctx.Err() != nil {
			return g.old.ctx.Err()
		}
		got, err := g.link.receive(time.Now().Add(lateStep))
		switch {
		case isTimeout(err):
		case isEnd(err):
			return nil
		case err != nil:
			return err
		default:
			g.hear(got)
		}
	}
}

// hear keeps what is asked for; all else comes too late to matter.
func (g *giver) hear(got packet) {
	got.close()
	if t := got.GetTake(); t != nil {
		g.asked = append(g.asked, t.Netns)
	}
}

// first is the first pass over a pod: it waits for what is busy.
func (g *giver) first(netns uint64) error {
	pod := g.old.cfg.Pod(netns)
	done := &pb.Done{Netns: netns}
	before, before2 := g.tunnels, g.connections
	if pod != nil {
		g.pods[netns] = pod
		for deadline := time.Now().Add(firstPass); ; time.Sleep(retryStep) {
			later, err := g.pass(netns, pod)
			if err != nil {
				return err
			}
			done.Left = uint32(later)
			if later == 0 || time.Now().After(deadline) || g.old.ctx.Err() != nil {
				break
			}
		}
	}
	done.Tunnels, done.Connections = uint32(g.tunnels-before), uint32(g.connections-before2)
	return g.link.send(&pb.Message{Kind: &pb.Message_Done{Done: done}}, nil, sendTime)
}

// pass gives all that can be given now, and says how many tunnels may later.
func (g *giver) pass(netns uint64, pod Pod) (later int, err error) {
	for {
		began := time.Now()
		lot, left := pod.Stop(lotLimit())
		if len(lot) == 0 {
			return left, nil
		}
		if err := g.give(netns, pod, lot, began); err != nil {
			return left, err
		}
	}
}

// hideMemory keeps secrets out of core dumps, and this process from being looked
// at by others of its user.
func hideMemory(log *slog.Logger) {
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
		log.Warn("handover: PR_SET_DUMPABLE", slog.String("error", err.Error()))
	}
}
