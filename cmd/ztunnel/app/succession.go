// SPDX-License-Identifier: Apache-2.0

package app

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"time"

	"github.com/ztunnel-go/ztunnel/dataplane/handover"
	"github.com/ztunnel-go/ztunnel/internal/admin"
	"github.com/ztunnel-go/ztunnel/internal/logs"
)

/* Two processes of one node, the new one's view
 *
 *	start ----> connect to HANDOVER_SOCK; nobody there: a cold start
 *	pod served -> take its tunnels; those that cannot travel drain in the old one
 *	all pods served, and all first passes over -> ready; listen for the next one
 *
 * And the old one's: it listens, gives what is asked for, and goes on giving
 * what becomes possible later until it ends.
 */

const (
	// takeLimit is how long readiness waits for one pod's tunnels.
	takeLimit = 10 * time.Second
	// listenLimit is when this process listens for its successor at the latest,
	// even if a pod cannot be served.
	listenLimit = 30 * time.Second
)

// A succession is this process between the one before and the one after.
type succession struct {
	log     *slog.Logger
	path    string
	version string
	metrics *handover.Metrics
	task    *admin.Task   // pending while the first passes are under way; nil in a cold start
	taker   *handover.New // nil in a cold start

	running sync.WaitGroup // takes, and listen; end with Close at the latest
	late    *time.Timer    // see listenLimit
	ctx     context.Context
	cancel  context.CancelFunc
	once    sync.Once // of listening

	mu    sync.Mutex
	pods  map[uint64]*podProxy // guarded by mu; by their namespace's cookie
	takes sync.WaitGroup       // first passes
	giver *handover.Old        // guarded by mu; nil until all pods are served
}

// buildSuccession connects to the process before, if there is one. Without it,
// or if the two do not agree, connections of the other end as it drains.
func (n *node) buildSuccession(ctx context.Context) {
	if n.cfg.HandoverSocket == "" || n.engine == nil {
		return
	}
	s := &succession{
		log: logs.Target(n.logger, "handover"), path: n.cfg.HandoverSocket, version: n.version.String(), metrics: n.handovers,
		pods: map[uint64]*podProxy{},
	}
	s.ctx, s.cancel = context.WithCancel(context.Background())
	taker, err := handover.Dial(ctx, handover.NewConfig{
		Path: s.path, Version: s.version, Check: s.check, Begin: s.begin, Logger: s.log, Metrics: s.metrics,
	})
	switch {
	case err == nil:
		s.taker = taker
		s.task = n.ready.Register("handover")
	case !errors.Is(err, handover.ErrNobody):
		s.log.Warn("open connections cannot be taken over", slog.String("error", err.Error()))
	}
	s.late = time.AfterFunc(listenLimit, s.settled)
	n.succession = s
	n.onClose("handover", s.close)
}

// serves says that the process serves a pod now, whose tunnels may come.
func (s *succession) serves(netns uint64, p *podProxy) {
	if s == nil {
		return
	}
	s.mu.Lock()
	s.pods[netns] = p
	s.mu.Unlock()
	if s.taker == nil || s.ctx.Err() != nil {
		return
	}
	s.takes.Add(1)
	s.running.Go(func() { // ends with takeLimit
		defer s.takes.Done()
		ctx, done := context.WithTimeout(s.ctx, takeLimit)
		defer done()
		got, err := s.taker.Take(ctx, netns)
		log := s.log.With(slog.String("pod", p.pod.Namespace+"/"+p.pod.Name))
		if err != nil {
			log.Warn("open connections of a pod drain in the process before", slog.String("error", err.Error()))
			return
		}
		log.Info("took open connections over", slog.Int("connections", got.Connections), slog.Int("tunnels", got.Tunnels),
			slog.Int("tunnels_left", got.Left))
	})
}

// forgets is the end of a pod.
func (s *succession) forgets(netns uint64, p *podProxy) {
	if s == nil {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.pods[netns] == p {
		delete(s.pods, netns)
	}
}

func (s *succession) pod(netns uint64) *podProxy {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.pods[netns]
}

// settled is when every pod is served, the first time. It does not wait.
func (s *succession) settled() {
	if s == nil {
		return
	}
	s.once.Do(func() {
		s.running.Go(func() { // ends with the last take
			s.takes.Wait()
			if s.task != nil {
				s.task.Done()
			}
			s.listen()
		})
	})
}

// listen takes the place of the process before: who follows now asks us.
func (s *succession) listen() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ctx.Err() != nil {
		return
	}
	var generation uint64
	if s.taker != nil {
		generation = s.taker.Generation()
	}
	giver, err := handover.Listen(handover.OldConfig{
		Path: s.path, Version: s.version, Generation: generation, Pod: s.give, Descriptors: s.descriptors,
		Logger: s.log, Metrics: s.metrics,
	})
	if err != nil {
		s.log.Warn("open connections cannot be handed over", slog.String("error", err.Error()))
		return
	}
	s.giver = giver
}

func (s *succession) give(netns uint64) handover.Pod {
	if p := s.pod(netns); p != nil {
		return p.proxy.Handover()
	}
	return nil
}

func (s *succession) descriptors() (n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, p := range s.pods {
		n += p.proxy.Descriptors()
	}
	return n
}

// errNotServed is why a tunnel stays with the process that has it.
var errNotServed = errors.New("its pod is not served here")

func (s *succession) check(netns uint64, t *handover.Tunnel) error {
	p := s.pod(netns)
	if p == nil {
		return errNotServed
	}
	return p.proxy.Adoptable(t)
}

func (s *succession) begin(netns uint64, lot []*handover.Tunnel) {
	p := s.pod(netns)
	for _, t := range lot {
		err := errNotServed
		if p == nil { // it has gone since
			t.Close()
		} else {
			err = p.proxy.Adopt(t)
		}
		if err != nil {
			s.log.Error("a tunnel is lost in a handover", slog.Any("peer", t.Remote), slog.Int("connections", len(t.Connections)),
				slog.String("error", err.Error()))
		}
	}
}

// close is after the pods' end: what was to be given has been.
func (s *succession) close() error {
	s.cancel()
	s.late.Stop()
	s.once.Do(func() {}) // nobody begins to listen any more
	s.mu.Lock()
	giver := s.giver
	s.mu.Unlock()
	if giver != nil {
		giver.Close()
	}
	if s.taker != nil {
		s.taker.Close()
	}
	s.running.Wait()
	return nil
}
