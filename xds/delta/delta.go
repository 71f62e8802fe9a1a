// SPDX-License-Identifier: Apache-2.0

// Package delta holds the delta xDS conversation with a control plane, for
// any resource types: it subscribes, acknowledges and refuses, resumes after a
// broken stream with what it knew, and asks for single resources on demand
// (contract 8).
//
// It knows names and versions of resources and nothing of what is in them:
// the payloads go to the [Type]'s Handle, which decodes and keeps them. What
// was received stays in force while there is no stream; there is no other
// memory of it here than names and versions.
//
//	we   -> them   one request for each type: node, names and versions known
//	them -> us     a response: resources, names that are gone, a nonce
//	we   -> them   the nonce, with an error if something was refused
//	we   -> them   names that are wanted, in on-demand mode
//
// The channel is internal/control's. grpc and protobuf go no further up than
// package xds.
package delta

import (
	"context"
	"log/slog"
	"sync"
	"time"

	"google.golang.org/protobuf/types/known/structpb"

	"github.com/ztunnel-go/ztunnel/internal/control"
	"github.com/ztunnel-go/ztunnel/internal/logs"
)

// MaxMessage is the largest response taken, in bytes (contract 8.1).
const MaxMessage = 200 << 20

// A Node describes us to the control plane.
type Node struct {
	ID       string
	Metadata *structpb.Struct
}

// A Resource is one resource of a [Response]. Payload is what the resource
// carries as it came, and is good only during Handle.
type Resource struct {
	Name, Version string
	Aliases       []string
	Payload       []byte
	HasPayload    bool // a resource may come without any, which is wrong but not empty
}

// A Rejection refuses one resource of a response.
type Rejection struct {
	Name   string
	Reason string
	// Held says that something is in force under the name all the same, so
	// that its removal has to be heard of after a broken stream.
	Held bool
}

// A Type is a kind of resource that is subscribed to.
type Type struct {
	URL string
	// OnDemand asks only for what [Client.Demand] names, and not for all.
	OnDemand bool
	// Handle takes one response and returns what it refuses of it, in the
	// order in which that is to be told. It is never called twice at a time.
	Handle func(updates []Resource, removed []string) []Rejection
}

// A Reason is why a stream ended, as the metric calls it (contract 8.6).
type Reason string

const (
	ConnectionError Reason = "ConnectionError" // it could not be opened
	Reconnect       Reason = "Reconnect"       // the connection went away
	Error           Reason = "Error"           // the server's word, or a local mistake
	Complete        Reason = "Complete"        // the server ended it
)

// An Observer is told what happens. It must not block, and is called by
// several goroutines.
type Observer interface {
	// Message is told of each response, with the sum of its payloads.
	Message(typeURL string, bytes int)
	// Terminated is told of the end of each stream.
	Terminated(Reason)
	// Demanded is told what became of each call of [Client.Demand].
	Demanded(DemandResult)
}

// A Config says with whom the conversation is and what about.
type Config struct {
	Control control.Config // MaxMessage is set by Open
	Node    Node
	Types   []Type // subscribed to in this order
	// Observer may be nil.
	Observer Observer
}

// A Client keeps the conversation going until it is closed.
type Client struct {
	cfg    Config
	logger *slog.Logger
	cancel context.CancelFunc
	closed <-chan struct{}
	runner sync.WaitGroup // ends by cancel
	ready  chan struct{}  // closed when every type that is not on demand was acknowledged
	told   chan struct{}  // capacity 1: there are names to subscribe to

	mu     sync.Mutex
	topics map[string]*topic // by URL; the map itself never changes
	// streaming is whether there is a stream; guarded by mu.
	streaming bool

	awaited map[string]bool // types not acknowledged yet; the runner's own
}

// A topic is what is known of one type.
type topic struct {
	Type
	versions map[string]string  // by name; guarded by Client.mu
	waiters  map[string]*waiter // by name that was demanded; guarded by Client.mu
	answers  answers            // guarded by Client.mu

	// Names by how far they have come (see demand.go); guarded by Client.mu.
	fresh, asked, leaving map[string]struct{}
	// left are the resources that were forgotten the last time, and forgotten
	// those that are about to be; guarded by Client.mu.
	left      map[string]struct{}
	forgotten []string
}

type waiter struct {
	done   chan struct{} // closed when a response has spoken of the name
	result DemandResult  // what it said; set before
	count  int           // guarded by Client.mu
}

// Open starts the conversation and returns at once: whether there is a control
// plane is known by [Client.Ready]. Errors are logged and tried again.
func Open(cfg Config, logger *slog.Logger) *Client {
	cfg.Control.MaxMessage = MaxMessage
	if cfg.Observer == nil {
		cfg.Observer = nobody{}
	}
	ctx, cancel := context.WithCancel(context.Background())
	c := &Client{
		cfg:     cfg,
		logger:  logs.Target(logger, "xds::client"),
		cancel:  cancel,
		closed:  ctx.Done(),
		ready:   make(chan struct{}),
		told:    make(chan struct{}, 1),
		topics:  map[string]*topic{},
		awaited: map[string]bool{},
	}
	for _, t := range cfg.Types {
		c.topics[t.URL] = &topic{
			Type: t, versions: map[string]string{}, waiters: map[string]*waiter{},
			fresh: map[string]struct{}{}, asked: map[string]struct{}{}, leaving: map[string]struct{}{}, left: map[string]struct{}{},
		}
		if !t.OnDemand {
			c.awaited[t.URL] = true
		}
	}
	c.acknowledged("") // with nothing to wait for, ready at once
	c.runner.Go(func() { c.run(ctx) })
	return c
}

// Ready is closed when a response of every type that is not on demand has been
// taken without refusing anything (contract 8.5).
func (c *Client) Ready() <-chan struct{} { return c.ready }

// Close ends the conversation, and demands that wait, and waits until it has
// ended. It may be called again.
func (c *Client) Close() error {
	c.cancel()
	c.runner.Wait()
	return nil
}

// run is the life of the client: one stream after another.
//
//	open --error--> wait --> open
//	  |                       ^
//	  +--> stream --ended-----+
func (c *Client) run(ctx context.Context) {
	b := backoff{}
	for id := 1; ctx.Err() == nil; id++ {
		logger := logs.Span(c.logger, "xds", slog.Int("id", id))
		started := time.Now()
		end := c.session(ctx, logger)
		if ctx.Err() != nil {
			return
		}
		wait := b.after(end, time.Since(started))
		c.cfg.Observer.Terminated(end.reason())
		end.log(logger, c.cfg.Control.Address, wait)
		sleep(ctx, wait)
	}
}

func sleep(ctx context.Context, d time.Duration) {
	if d <= 0 {
		return
	}
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
	}
}

// acknowledged notes that a response of a type was taken as a whole.
func (c *Client) acknowledged(url string) {
	delete(c.awaited, url)
	if len(c.awaited) > 0 {
		return
	}
	select {
	case <-c.ready:
	default:
		close(c.ready)
	}
}

type nobody struct{}

func (nobody) Message(string, int)   {}
func (nobody) Terminated(Reason)     {}
func (nobody) Demanded(DemandResult) {}
