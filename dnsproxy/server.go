// SPDX-License-Identifier: Apache-2.0

// Package dnsproxy answers the DNS queries of one pod: from the mesh what the
// mesh knows, and the rest by asking upstream (contract 11).
//
// It is given its sockets, made inside the pod's network namespace by others,
// and a function that dials from there. It reads no file, knows no capture
// and opens no socket of its own; what a name means is a pure function
// (resolve.go) over a [mesh.View]. Messages are packed and unpacked by
// miekg/dns; the loops that read them are ours, because that library's server
// answers malformed queries with a question it made up, gives no way to end
// at once, and takes messages that end early.
//
// docs/wire/dns.md says what is on the wire.
package dnsproxy

import (
	"context"
	"errors"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/ztunnel-go/ztunnel/internal/mesh"
)

// Config is what a Server is made of. View, Client and Dial are needed.
type Config struct {
	Domain             string // of the cluster; empty: cluster.local
	PreferredNamespace string // wins among services of a hostname; empty: none
	SearchOfSource     bool   // complete names as Source says, not by <namespace>.svc.<Domain>, svc.<Domain>, <Domain>
	IPv6               bool   // answer AAAA from the mesh

	View mesh.View // what the mesh knows

	// Client returns the workload of the pod, whose queries these are: another
	// one only when View has changed. It may wait until ctx ends, which is
	// after 5 s.
	Client func(ctx context.Context) (*mesh.Workload, error)

	Upstream Upstream // who answers what the mesh does not know
	Source   *Source  // the same, in place of Upstream, and followed as it changes
	Dial     DialFunc // from inside the pod's network namespace
	Hosts    Hosts    // asked before upstream
	Cache    int      // answers of upstream that are kept; zero: 8192; below: none

	Metrics *Metrics     // nil: nothing is counted
	Logger  *slog.Logger // start, stop and warnings; nil: discarded
	Access  *slog.Logger // a line per query, at debug, for target dns; nil: discarded

	// Shuffle orders the addresses of an answer; nil: at random.
	Shuffle func([]netip.Addr)
}

// A Server serves one pod.
//
//	new --> serving --> draining --> closed
//	 |         |                       ^
//	 +---------+-----------------------+
type Server struct {
	zone    zone
	source  *Source // may be nil
	search  *Source // source, if its search domains count; nil: Kubernetes'
	view    mesh.View
	client  func(context.Context) (*mesh.Workload, error)
	shuffle func([]netip.Addr)
	forward *Forwarder
	shelf   shelf
	metrics *Metrics
	log     *slog.Logger
	access  *slog.Logger

	ctx    context.Context // ends with Close
	cancel context.CancelFunc
	work   sync.WaitGroup // one per socket, packet and connection
	close  sync.Once

	packets  atomic.Int64 // UDP queries in hand
	lastWarn atomic.Int64 // when, in ns of the Unix epoch

	mu        sync.Mutex // guards everything below
	state     state
	pcs       []net.PacketConn
	listeners []net.Listener
	conns     map[net.Conn]struct{}
}

type state uint8

const (
	stateNew state = iota
	stateServing
	stateQuiet // see Quiet
	stateDraining
	stateClosed
)

// New returns a server that does not serve yet.
func New(cfg Config) *Server {
	s := &Server{
		view:    cfg.View,
		client:  cfg.Client,
		shuffle: cfg.Shuffle,
		source:  cfg.Source,
		forward: NewForwarder(ForwarderConfig{
			Upstream: cfg.Upstream, Source: cfg.Source, Dial: cfg.Dial,
			Hosts: cfg.Hosts, Cache: cfg.Cache, Metrics: cfg.Metrics,
		}),
		metrics: cfg.Metrics,
		log:     orDiscard(cfg.Logger),
		access:  orDiscard(cfg.Access),
		conns:   map[net.Conn]struct{}{},
	}
	domain := strings.ToLower(strings.Trim(cfg.Domain, "."))
	if domain == "" {
		domain = "cluster.local"
	}
	s.zone = zone{domain: domain, preferred: cfg.PreferredNamespace, ipv6: cfg.IPv6}
	if cfg.SearchOfSource {
		s.search = cfg.Source
	}
	if s.shuffle == nil {
		s.shuffle = func(a []netip.Addr) {
			rand.Shuffle(len(a), func(i, j int) { a[i], a[j] = a[j], a[i] })
		}
	}
	s.ctx, s.cancel = context.WithCancel(context.Background())
	return s
}

func orDiscard(l *slog.Logger) *slog.Logger {
	if l == nil {
		return slog.New(slog.DiscardHandler)
	}
	return l
}

// Serve starts serving on sockets, which belong to the server from then on,
// and returns. An answer to a datagram is written to the address that
// ReadFrom returned with it, as the same value; that needs an AddrPort method
// as [net.UDPAddr] has it. A socket is read by one goroutine and written by
// many. After an error the sockets are the caller's still.
func (s *Server) Serve(pcs []net.PacketConn, listeners []net.Listener) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.state != stateNew {
		return errors.New("serve DNS: the server was started or closed before")
	}
	s.state = stateServing
	s.pcs, s.listeners = pcs, listeners
	for _, pc := range pcs {
		s.announce(pc.LocalAddr())
		s.work.Go(func() { s.readPackets(pc) }) // ends when pc is closed or drained
	}
	for _, l := range listeners {
		if len(pcs) == 0 { // else the same address was told
			s.announce(l.Addr())
		}
		s.work.Go(func() { s.accept(l) }) // ends when l is closed
	}
	return nil
}

func (s *Server) announce(addr net.Addr) {
	s.log.Info("starting local DNS server", slog.Any("address", addr), slog.String("component", "dns"))
}

// Quiet stops taking queries. Those in hand are answered, and Resolve goes on
// for whoever has yet to learn where to connect. Drain or Close must follow.
func (s *Server) Quiet() {
	if s.stopReading() {
		s.log.Info("shutting down the DNS server")
	}
}

// Drain stops taking queries, finishes those in hand, and closes the server.
// When ctx ends first, the rest is dropped and the error is that of ctx.
func (s *Server) Drain(ctx context.Context) error {
	s.Quiet()
	s.mu.Lock()
	if s.state == stateQuiet {
		s.state = stateDraining
	}
	s.mu.Unlock()
	finished := make(chan struct{})
	go func() { // ends at the latest when Close ended the work
		s.work.Wait()
		close(finished)
	}()
	var err error
	select {
	case <-finished:
	case <-ctx.Done():
		err = ctx.Err()
	}
	s.Close()
	<-finished
	if err == nil {
		s.log.Info("dns server drained")
	}
	return err
}

// lastQueries is how long datagrams are read on after the end was decided: what
// the kernel had already taken in would else be lost, and its sender waits for
// seconds before he asks again.
const lastQueries = 20 * time.Millisecond

// stopReading ends all reading; answers may still be written. It reports
// whether the server was serving.
func (s *Server) stopReading() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.state != stateServing {
		return false
	}
	s.state = stateQuiet
	for _, l := range s.listeners {
		l.Close()
	}
	for _, pc := range s.pcs {
		if err := pc.SetReadDeadline(time.Now().Add(lastQueries)); err != nil {
			pc.Close() // cannot be woken otherwise
		}
	}
	for c := range s.conns {
		c.SetReadDeadline(longAgo())
	}
	return true
}

// longAgo is a deadline that has passed: it wakes whoever reads.
func longAgo() time.Time { return time.Unix(1, 0) }

// Close drops all queries, closes the sockets and waits until nothing runs.
// Later calls wait for the first.
func (s *Server) Close() {
	s.close.Do(func() {
		s.cancel()
		s.mu.Lock()
		s.state = stateClosed
		for _, l := range s.listeners {
			l.Close()
		}
		for _, pc := range s.pcs {
			pc.Close()
		}
		for c := range s.conns {
			c.Close()
		}
		s.mu.Unlock()
		s.forward.Close()
		s.work.Wait()
	})
}

// serving reports whether new queries are taken.
func (s *Server) serving() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.state == stateServing
}

// warn logs what a pod can provoke at will, and so once a second at most.
func (s *Server) warn(msg string, args ...any) {
	now, last := time.Now().UnixNano(), s.lastWarn.Load()
	if now-last >= int64(time.Second) && s.lastWarn.CompareAndSwap(last, now) {
		s.log.Warn(msg, args...)
	}
}
