// SPDX-License-Identifier: Apache-2.0

package hbone

import (
	"container/list"
	"context"
	"crypto/tls"
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/ztunnel-go/ztunnel/dataplane/engine"
	"github.com/ztunnel-go/ztunnel/dataplane/hbone/wire"
	"github.com/ztunnel-go/ztunnel/internal/identity"
)

// A Key says which user connections may share a tunnel (contract 4.7).
type Key struct {
	Local  identity.ID    // whose certificate we show
	Expect string         // the SANs of which the peer must have one, in order, joined by commas
	Dst    netip.AddrPort // where the tunnel goes
	Src    netip.Addr     // the client's address, which the tunnel may be sent from
}

// PoolConfig is how a pool makes tunnels.
type PoolConfig struct {
	// Dial connects to Key.Dst. It is bounded by its own timeout and by the
	// context, which ends when nobody waits for the tunnel any more.
	Dial func(context.Context, Key) (net.Conn, error)
	// TLS says how to greet the peer; its error is returned by Open as it is.
	TLS func(context.Context, Key) (Handshake, error)
	// Engine carries tunnels on event loops; nil: goroutines do.
	Engine      *engine.Engine
	Settings    Settings
	MaxStreams  int           // user connections in one tunnel; 0: 100
	IdleTimeout time.Duration // from the last use of a tunnel to its release; 0: 5 min
	Logger      *slog.Logger  // hears of lost tunnels; nil: nobody does
}

// A Handshake is how one tunnel begins.
type Handshake struct {
	// Config is that of contract 4.2; nil is for tests without TLS.
	Config *tls.Config
	// Opened is told of the tunnel once the handshake is done and before any
	// stream is on it. Its error ends the tunnel and is returned by Open. What
	// it returns is called when the tunnel has ended. Nil: nobody is told.
	Opened func(*Tunnel) (release func(), err error)
}

const (
	// maxPooled is how many tunnels wait for more streams (contract 4.7). It
	// bounds no tunnel that is in use.
	maxPooled = 500
	// maxTries is how often a request is made that no peer has acted on: a
	// pooled tunnel may turn out to be closed, going away or full.
	maxTries = 3
)

// A Pool shares tunnels among the user connections of one pod.
type Pool struct {
	cfg    PoolConfig
	ctx    context.Context // ends with Close
	cancel context.CancelFunc

	making  sync.WaitGroup // attempts; end with their dial and handshake
	tunnels sync.WaitGroup // tunnels; end with their last stream, idle time, or Close

	mu       sync.Mutex
	closed   bool                  // guarded by mu: Drain or Close was called
	pooled   map[Key]*list.Element // guarded by mu: of *entry
	lru      *list.List            // guarded by mu: entries, latest use first
	attempts map[Key][]*attempt    // guarded by mu: under way
	all      map[*Tunnel]Key       // guarded by mu: pooled or not, until they end
}

// An entry is a tunnel that takes more streams.
type entry struct {
	key  Key
	t    *Tunnel
	idle *time.Timer
}

// An attempt makes one tunnel, for all who wait for it.
type attempt struct {
	key     Key
	waiters int // guarded by Pool.mu; each gets a stream of the tunnel
	cancel  context.CancelFunc
	done    chan struct{}
	t       *Tunnel // set before done is closed; so is err
	err     error
}

// NewPool returns an empty pool.
func NewPool(cfg PoolConfig) *Pool {
	cfg.MaxStreams = wire.Or(cfg.MaxStreams, wire.ClientStreams)
	cfg.IdleTimeout = wire.Or(cfg.IdleTimeout, 5*time.Minute)
	ctx, cancel := context.WithCancel(context.Background())
	return &Pool{
		cfg: cfg, ctx: ctx, cancel: cancel,
		pooled: map[Key]*list.Element{}, lru: list.New(),
		attempts: map[Key][]*attempt{}, all: map[*Tunnel]Key{},
	}
}

// Open asks the peer of key for a connection, over a tunnel that has room or a
// new one, and waits for the answer or ctx. Its errors are [ErrDraining],
// those of PoolConfig.TLS, [*DialError], [*TLSError], those of [Tunnel.Open],
// and the cause of ctx. A failure to make a tunnel is told to all who waited
// for that tunnel.
func (p *Pool) Open(ctx context.Context, key Key, r Request) (Stream, Response, error) {
	return p.open(ctx, key, r, 1)
}

// OpenAgain is Open after [Pool.OpenNow] has said that the request may be made
// once more.
func (p *Pool) OpenAgain(ctx context.Context, key Key, r Request) (Stream, Response, error) {
	return p.open(ctx, key, r, 2)
}

func (p *Pool) open(ctx context.Context, key Key, r Request, try int) (Stream, Response, error) {
	for ; ; try++ {
		t, reused, err := p.acquire(ctx, key)
		if err != nil {
			return nil, Response{}, err
		}
		s, response, err := t.open(ctx, r)
		if err == nil || try == maxTries || !retriable(err, reused) {
			return s, response, err
		}
	}
}

// OpenNow is [Pool.Open] for event loops, if there is a tunnel with room that one
// of them carries: else it says false and does nothing. done hears of the
// answer, once and on the tunnel's loop, where it must not wait; again says that
// the same request may be made once more, by OpenAgain.
func (p *Pool) OpenNow(ctx context.Context, key Key, r Request, done func(s Stream, again bool, err error)) bool {
	p.mu.Lock()
	if p.closed || ctx.Err() != nil {
		p.mu.Unlock()
		return false
	}
	t := p.checkoutLocked(key)
	p.mu.Unlock()
	if t == nil {
		return false
	}
	loop, ok := t.carrier.(loopTunnel)
	if !ok {
		t.cede(1)
		return false
	}
	loop.Begin(ctx, r, func(s *engine.Stream, _ Response, err error) {
		if err != nil {
			done(nil, retriable(err, true), err)
			return
		}
		done(s, false, nil)
	})
	return true
}

// retriable reports whether a request may be made again: the peer has not
// acted on it, or it was lost with a tunnel that may have been dead before.
// (No byte of the user's was sent before the answer.)
func retriable(err error, reused bool) bool {
	var reset *ResetError
	return errors.As(err, &reset) && (reset.Unseen || reused && reset.Cause != nil)
}

// acquire returns a tunnel with a stream reserved on it, and whether it was
// there before.
func (p *Pool) acquire(ctx context.Context, key Key) (*Tunnel, bool, error) {
	if ctx.Err() != nil {
		return nil, false, context.Cause(ctx)
	}
	p.mu.Lock()
	if p.closed {
		p.mu.Unlock()
		return nil, false, ErrDraining
	}
	if t := p.checkoutLocked(key); t != nil {
		p.mu.Unlock()
		return t, true, nil
	}
	a := p.attemptLocked(key)
	a.waiters++
	p.mu.Unlock()

	select {
	case <-a.done:
		return a.t, false, a.err
	case <-ctx.Done():
		p.desert(a)
		return nil, false, context.Cause(ctx)
	}
}

// checkoutLocked reserves a stream on the pooled tunnel of key, if there is
// one. A tunnel that is full thereby leaves the pool for good.
func (p *Pool) checkoutLocked(key Key) *Tunnel {
	el := p.pooled[key]
	if el == nil {
		return nil
	}
	e := el.Value.(*entry)
	if !e.t.reserve(1) {
		p.releaseLocked(el)
		return nil
	}
	if e.t.full() {
		p.releaseLocked(el)
	} else {
		p.lru.MoveToFront(el)
		e.idle.Reset(p.cfg.IdleTimeout)
	}
	return e.t
}

// releaseLocked takes a tunnel out of the pool: it ends with its last stream.
// Since it may end at once, and that calls back, it does so elsewhere.
func (p *Pool) releaseLocked(el *list.Element) {
	e := p.lru.Remove(el).(*entry)
	delete(p.pooled, e.key)
	e.idle.Stop()
	p.tunnels.Go(e.t.Drain)
}

// attemptLocked returns an attempt for key that has room for one more waiter,
// and makes one if there is none.
func (p *Pool) attemptLocked(key Key) *attempt {
	for _, a := range p.attempts[key] {
		if a.waiters < p.cfg.MaxStreams {
			return a
		}
	}
	ctx, cancel := context.WithCancel(p.ctx)
	a := &attempt{key: key, cancel: cancel, done: make(chan struct{})}
	p.attempts[key] = append(p.attempts[key], a)
	p.making.Go(func() { p.make(ctx, a) }) // ends with a's context at the latest
	return a
}

// desert is a waiter that gave up. The last one ends the attempt.
func (p *Pool) desert(a *attempt) {
	p.mu.Lock()
	select {
	case <-a.done: // it has a stream of the tunnel already
		p.mu.Unlock()
		if a.t != nil {
			a.t.cede(1)
		}
		return
	default:
	}
	if a.waiters--; a.waiters == 0 {
		p.forgetLocked(a) // so that nobody joins what is being given up
		a.cancel()
	}
	p.mu.Unlock()
}

func (p *Pool) forgetLocked(a *attempt) {
	left := slices.DeleteFunc(p.attempts[a.key], func(other *attempt) bool { return other == a })
	if len(left) == 0 {
		delete(p.attempts, a.key)
		return
	}
	p.attempts[a.key] = left
}

// make makes a tunnel and hands it to those who wait.
func (p *Pool) make(ctx context.Context, a *attempt) {
	defer a.cancel()
	t, err := p.connect(ctx, a.key)

	p.mu.Lock()
	p.forgetLocked(a)
	if p.closed || err == nil && a.waiters == 0 {
		err = ErrDraining
	}
	if err == nil {
		a.t = t
		t.promise(a.waiters)
		if t.full() {
			p.tunnels.Go(t.Drain)
		} else {
			p.poolLocked(a.key, t)
		}
	}
	a.err = err
	close(a.done)
	p.mu.Unlock()
	if err != nil && t != nil {
		_ = t.Close()
	}
}

// poolLocked puts a tunnel where others find it. Another one of the same key
// has less room and goes.
func (p *Pool) poolLocked(key Key, t *Tunnel) {
	if el := p.pooled[key]; el != nil {
		p.releaseLocked(el)
	}
	e := &entry{key: key, t: t}
	el := p.lru.PushFront(e)
	p.pooled[key] = el
	e.idle = time.AfterFunc(p.cfg.IdleTimeout, func() { p.remove(key, t) })
	if p.lru.Len() > maxPooled {
		p.releaseLocked(p.lru.Back())
	}
}

// connect makes the tunnel of an attempt.
func (p *Pool) connect(ctx context.Context, key Key) (*Tunnel, error) {
	hs, err := p.cfg.TLS(ctx, key)
	if err != nil {
		return nil, err
	}
	nc, err := p.cfg.Dial(ctx, key)
	if err != nil {
		return nil, &DialError{Err: err}
	}
	t, err := making{p.cfg.Settings, p.cfg.MaxStreams, p.cfg.Engine}.tunnel(ctx, nc, hs.Config)
	if err != nil {
		return nil, err
	}
	p.mu.Lock()
	p.all[t] = key
	p.mu.Unlock()
	release, err := hs.opened(t)
	p.tunnels.Add(1) // we are one of making, for which Close waits first
	t.then(func(err error) {
		p.ended(t, key, err)
		release()
		p.tunnels.Done()
	})
	if err != nil {
		t.End(err)
		return nil, err
	}
	return t, nil
}

// opened tells whoever wants to know of t. release is never nil.
func (h Handshake) opened(t *Tunnel) (release func(), err error) {
	if h.Opened == nil {
		return func() {}, nil
	}
	if release, err = h.Opened(t); release == nil {
		release = func() {}
	}
	return release, err
}

// ended forgets a tunnel.
func (p *Pool) ended(t *Tunnel, key Key, err error) {
	p.remove(key, t)
	p.mu.Lock()
	delete(p.all, t)
	p.mu.Unlock()
	if errors.Is(err, ErrPingTimeout) && p.cfg.Logger != nil {
		p.cfg.Logger.Warn("HBONE ping timeout/error", "peer", key.Dst)
	}
}

// remove takes t out of the pool if it is there.
func (p *Pool) remove(key Key, t *Tunnel) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if el := p.pooled[key]; el != nil && el.Value.(*entry).t == t {
		p.releaseLocked(el)
	}
}

// Shed lets every tunnel that is there end with its last stream; one without
// ends now. Whoever opens a stream from now on has a new one.
func (p *Pool) Shed() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for p.lru.Len() > 0 {
		p.releaseLocked(p.lru.Front())
	}
}

// Drain lets every tunnel end with its last stream, and refuses further use.
// It does not wait.
func (p *Pool) Drain() {
	p.mu.Lock()
	p.closed = true
	for p.lru.Len() > 0 {
		p.releaseLocked(p.lru.Front())
	}
	p.mu.Unlock()
}

// Close ends all tunnels with all their streams, and waits until they and all
// attempts are gone.
func (p *Pool) Close() error {
	p.Drain()
	p.cancel()
	p.making.Wait()
	p.mu.Lock()
	left := make([]*Tunnel, 0, len(p.all))
	for t := range p.all {
		left = append(left, t)
	}
	p.mu.Unlock()
	for _, t := range left {
		t.end(ErrClosed)
	}
	p.tunnels.Wait()
	return nil
}
