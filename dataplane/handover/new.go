// SPDX-License-Identifier: Apache-2.0

package handover

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	pb "github.com/ztunnel-go/ztunnel/dataplane/handover/handoverpb"
)

const (
	partTime   = 2 * time.Second // between the messages of a lot
	commitTime = 5 * time.Second // from Restored to Commit
	deathTime  = time.Second     // from the end of a socket to the end of its process
)

// NewConfig is what [Dial] needs.
type NewConfig struct {
	// Path is of the socket.
	Path string
	// Version is told to the other side, for its log.
	Version string
	// Check says why a tunnel cannot go on here; it changes nothing and does not
	// wait.
	Check func(netns uint64, t *Tunnel) error
	// Begin goes on with tunnels, which it owns from then on.
	Begin func(netns uint64, lot []*Tunnel)
	// Logger and Metrics hear what becomes of it. Metrics may be nil.
	Logger  *slog.Logger
	Metrics *Metrics
}

// A New takes over from the process before.
type New struct {
	cfg        NewConfig
	link       *link
	peer       *peer
	generation uint64
	running    sync.WaitGroup // listens; ends with the conversation

	mu    sync.Mutex
	waits map[uint64]chan Summary // guarded by mu: for Done, by pod
	over  bool                    // guarded by mu: nothing more will come
}

// A Summary is what the first pass over a pod came to.
type Summary struct {
	Tunnels, Connections int
	Left                 int // tunnels that could not travel yet
}

// ErrNobody says that there is no process before: a cold start.
var ErrNobody = errors.New("nobody to take over from")

// Dial begins a conversation with the process that listens at the path. The
// error is [ErrNobody] if there is none.
func Dial(ctx context.Context, cfg NewConfig) (*New, error) {
	var d net.Dialer
	ctx, cancel := context.WithTimeout(ctx, helloTime)
	defer cancel()
	c, err := d.DialContext(ctx, "unixpacket", cfg.Path)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ECONNREFUSED) {
		return nil, ErrNobody
	}
	if err != nil {
		return nil, err
	}
	conn := c.(*net.UnixConn)
	p, err := identify(conn)
	if err != nil {
		conn.Close()
		return nil, err
	}
	n := &New{cfg: cfg, link: &link{conn: conn}, peer: p, waits: map[uint64]chan Summary{}}
	if err := n.greet(); err != nil {
		p.close()
		conn.Close()
		return nil, err
	}
	n.running.Go(n.listen) // ends when the socket does
	return n, nil
}

func (n *New) greet() error {
	hello := &pb.Hello{FormatMin: OldestFormat, FormatMax: Format, Version: n.cfg.Version}
	for _, f := range features() {
		hello.Features = append(hello.Features, uint32(f))
	}
	if err := n.link.send(&pb.Message{Kind: &pb.Message_Hello{Hello: hello}}, nil, sendTime); err != nil && !hungUp(err) {
		return err
	}
	got, err := n.link.receive(time.Now().Add(helloTime))
	if err != nil {
		return fmt.Errorf("no welcome: %w", err)
	}
	got.close()
	w := got.GetWelcome()
	switch {
	case w == nil:
		return errors.New("no welcome")
	case w.Refused != "":
		return fmt.Errorf("refused: %s", w.Refused)
	case w.Format < OldestFormat || w.Format > Format:
		return fmt.Errorf("format %d was not offered", w.Format)
	}
	n.generation = w.Generation + 1
	n.cfg.Metrics.isGeneration(n.generation)
	growDescriptors(int(w.Descriptors))
	hideMemory(n.cfg.Logger)
	n.cfg.Logger.Info("taking over", slog.Int("peer", n.peer.pid), slog.String("version", w.Version))
	return nil
}

// Generation is how many processes in a row have handed over to this one.
func (n *New) Generation() uint64 { return n.generation }

// Take asks for the tunnels of a pod, which this process serves from now on,
// and waits for the end of the first pass. Tunnels may come later too.
func (n *New) Take(ctx context.Context, netns uint64) (Summary, error) {
	done := make(chan Summary, 1)
	n.mu.Lock()
	if n.over {
		n.mu.Unlock()
		return Summary{}, net.ErrClosed
	}
	n.waits[netns] = done
	n.mu.Unlock()
	if err := n.link.send(&pb.Message{Kind: &pb.Message_Take{Take: &pb.Take{Netns: netns}}}, nil, sendTime); err != nil {
		return Summary{}, err
	}
	select {
	case s, ok := <-done:
		if !ok {
			return s, errors.New("the process before has gone")
		}
		return s, nil
	case <-ctx.Done():
		return Summary{}, context.Cause(ctx)
	}
}

// Close ends the conversation: what has not been taken stays with the other.
func (n *New) Close() {
	_ = n.link.conn.CloseWrite() // the other one finishes what is under way, and hangs up
	_ = n.link.conn.SetReadDeadline(time.Unix(1, 0))
	n.Wait()
}

// Wait returns when the other process has gone, or hung up.
func (n *New) Wait() { n.running.Wait() }

func (n *New) listen() {
	defer n.end()
	for {
		got, err := n.link.receive(time.Time{})
		switch {
		case isEnd(err), isTimeout(err):
			return
		case err != nil:
			n.cfg.Logger.Warn("taking over ended early", slog.String("error", err.Error()))
			return
		}
		switch {
		case got.GetDone() != nil:
			n.done(got.GetDone())
		case got.GetLot() != nil:
			if err := n.lot(got.GetLot()); err != nil {
				n.cfg.Logger.Warn("taking over ended early", slog.String("error", err.Error()))
				return
			}
		}
		got.close()
	}
}

func (n *New) end() {
	n.link.conn.Close()
	n.peer.close()
	n.mu.Lock()
	defer n.mu.Unlock()
	n.over = true
	for _, done := range n.waits {
		close(done)
	}
	clear(n.waits)
}

func (n *New) done(d *pb.Done) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if done := n.waits[d.Netns]; done != nil {
		done <- Summary{Tunnels: int(d.Tunnels), Connections: int(d.Connections), Left: int(d.Left)}
		delete(n.waits, d.Netns)
	}
}

// lot takes one lot, or has the other keep it. An error ends the conversation.
func (n *New) lot(lot *pb.Lot) error {
	fds, err := n.descriptors(lot)
	if err != nil {
		return n.giveUp(lot, nil, err)
	}
	tunnels, refused, err := n.read(lot, fds)
	if err != nil {
		return n.giveUp(lot, nil, err)
	}
	answer := &pb.Message{Kind: &pb.Message_Restored{Restored: &pb.Restored{Seq: lot.Seq, Refused: refused}}}
	if err := n.link.send(answer, nil, sendTime); err != nil && !hungUp(err) { // what it said last comes first
		return n.giveUp(lot, tunnels, err)
	}
	if len(tunnels) == 0 {
		return nil
	}
	return n.awaitCommit(lot, tunnels)
}

// descriptors collects those of a lot: the image's first.
func (n *New) descriptors(lot *pb.Lot) ([]int, error) {
	if lot.Descriptors > maxLotDescriptors {
		return nil, fmt.Errorf("a lot of %d descriptors", lot.Descriptors)
	}
	want := int(lot.Descriptors) + 1
	fds := make([]int, 0, want)
	for len(fds) < want {
		got, err := n.link.receive(time.Now().Add(partTime))
		if err != nil {
			closeAll(fds)
			return nil, err
		}
		if got.GetDescriptors().GetSeq() != lot.Seq || len(got.fds) == 0 || len(fds)+len(got.fds) > want {
			got.close()
			closeAll(fds)
			return nil, fmt.Errorf("%d descriptors and %d more, where %d were said", len(fds), len(got.fds), want)
		}
		fds = append(fds, got.fds...)
	}
	return fds, nil
}

// read makes tunnels of a lot. Those that cannot be are refused one by one. The
// descriptors belong to what it returns, or are closed.
func (n *New) read(lot *pb.Lot, fds []int) (tunnels []*Tunnel, refused []*pb.Refusal, err error) {
	image, err := readMemoryFile(fds[0], lot)
	fds = fds[1:]
	var decoded []Decoded
	if err == nil {
		decoded, err = Decode(image)
		clear(image)
	}
	sum := 0
	for _, d := range decoded {
		sum += len(d.Tunnel.FDs)
	}
	if err == nil && (sum != len(fds) || len(decoded) != int(lot.Tunnels)) {
		err = fmt.Errorf("%d tunnels with %d descriptors, where %d with %d were said", len(decoded), sum, lot.Tunnels, len(fds))
	}
	if err != nil {
		closeAll(fds)
		return nil, nil, err
	}
	for at, d := range decoded {
		fds = fds[copy(d.Tunnel.FDs, fds):]
		if d.Err == nil {
			d.Err = n.cfg.Check(lot.Netns, d.Tunnel)
		}
		if d.Err != nil {
			refused = append(refused, &pb.Refusal{Index: uint32(at), Why: d.Err.Error()})
			n.cfg.Metrics.some(took, resultRefused, []*Tunnel{d.Tunnel})
			d.Tunnel.Close()
			continue
		}
		tunnels = append(tunnels, d.Tunnel)
	}
	return tunnels, refused, nil
}

// awaitCommit waits for the other one's word, or for its death: a process that
// is dead and had not taken the lot back leaves it to us.
func (n *New) awaitCommit(lot *pb.Lot, tunnels []*Tunnel) error {
	deadline := time.Now().Add(commitTime)
	for {
		got, err := n.link.receive(deadline)
		if isTimeout(err) && time.Now().Before(deadline) { // Close
			continue
		}
		if isEnd(err) {
			if !n.peer.dead(deathTime) {
				return n.drop(tunnels, errors.New("the process before hung up"))
			}
			n.cfg.Logger.Warn("the process before has died, its connections go on here", slog.Int("connections", connections(tunnels)))
			n.begin(lot, tunnels)
			return nil
		}
		if err != nil {
			return n.giveUp(lot, tunnels, err)
		}
		got.close()
		switch {
		case got.GetAbort() != nil && got.GetAbort().Seq == lot.Seq:
			n.cfg.Logger.Warn("the process before keeps connections", slog.Int("connections", connections(tunnels)),
				slog.String("error", got.GetAbort().Why))
			_ = n.drop(tunnels, nil)
			return nil
		case got.GetCommit() != nil && got.GetCommit().Seq == lot.Seq:
			begun := &pb.Message{Kind: &pb.Message_Begun{Begun: &pb.Begun{Seq: lot.Seq}}}
			if err := n.link.send(begun, nil, sendTime); err != nil {
				if hungUp(err) && n.peer.dead(deathTime) { // it had given them away
					n.begin(lot, tunnels)
					return nil
				}
				return n.drop(tunnels, err)
			}
			n.begin(lot, tunnels)
			return nil
		case got.GetDone() != nil:
			n.done(got.GetDone())
		}
	}
}

func (n *New) begin(lot *pb.Lot, tunnels []*Tunnel) {
	n.cfg.Metrics.lot(took, resultDone, tunnels)
	n.cfg.Begin(lot.Netns, tunnels)
}

// giveUp tells the other one to keep a lot: from then on it is certain that
// nobody begins here. The error is nil if the conversation can go on.
func (n *New) giveUp(lot *pb.Lot, tunnels []*Tunnel, cause error) error {
	_ = n.drop(tunnels, nil)
	m := &pb.Message{Kind: &pb.Message_Abort{Abort: &pb.Abort{Seq: lot.Seq, Why: cause.Error()}}}
	if err := n.link.send(m, nil, sendTime); err != nil {
		return cause
	}
	n.cfg.Logger.Warn("a lot was not taken", slog.String("error", cause.Error()))
	if isEnd(cause) {
		return cause
	}
	return nil
}

// drop closes what will not begin here, and returns cause.
func (n *New) drop(tunnels []*Tunnel, cause error) error {
	n.cfg.Metrics.lot(took, resultAborted, tunnels)
	for _, t := range tunnels {
		t.Close()
	}
	return cause
}
