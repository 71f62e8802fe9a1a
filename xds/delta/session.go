// SPDX-License-Identifier: Apache-2.0

package delta

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"maps"
	"strings"
	"sync"

	"google.golang.org/grpc"

	"github.com/ztunnel-go/ztunnel/internal/control"
	"github.com/ztunnel-go/ztunnel/xds/pb/discoverypb"
)

/* The life of a stream
 *
 *	channel -> stream -> first requests -> headers -+-> response -> handle -> remember -> answer --+
 *	                                                +<---------------------------------------------+
 *
 * Functions stand in this order. Beside the loop, one goroutine sends what is
 * demanded; a lock keeps the two from sending at the same time.
 */

const method = "/envoy.service.discovery.v3.AggregatedDiscoveryService/DeltaAggregatedResources"

// wildcard subscribes to, or unsubscribes from, everything.
const wildcard = "*"

// A session is one stream.
type session struct {
	c      *Client
	logger *slog.Logger
	stream grpc.ClientStream

	sending sync.Mutex // held while sending: grpc takes one sender at a time
}

// session opens a stream and serves it until it ends. Roots, token and headers
// are read anew: the channel is not kept.
func (c *Client) session(ctx context.Context, logger *slog.Logger) ending {
	conn, err := control.Dial(c.cfg.Control,
		grpc.WithDisableRetry(), // when to try again is ours to say
		grpc.WithDefaultCallOptions(grpc.ForceCodecV2(codec{})),
	)
	if err != nil {
		return ending{phase: phaseLocal, err: err}
	}
	defer conn.Close()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel() // frees the stream; before Close, which would call it an error

	stream, err := conn.NewStream(ctx, &grpc.StreamDesc{ServerStreams: true, ClientStreams: true}, method)
	if err != nil {
		return ending{phase: phaseOpening, err: err}
	}
	s := &session{c: c, logger: logger, stream: stream}
	if err := s.introduce(); err != nil {
		return s.ended(phaseOpening, err, false)
	}
	if md, err := stream.Header(); err != nil || md == nil {
		return s.ended(phaseOpening, io.EOF, false) // the status waits to be received
	}
	logger.Info("Stream established")
	c.streamed(true)
	defer c.streamed(false)

	var asker sync.WaitGroup // ends with ctx
	asker.Go(func() { s.ask(ctx, cancel) })
	defer asker.Wait()
	defer cancel()
	return s.listen()
}

// ended makes an ending of an error of sending. io.EOF there means that the
// stream broke, and that receiving tells why.
func (s *session) ended(p phase, err error, heard bool) ending {
	if !errors.Is(err, io.EOF) {
		return ending{phase: phaseLocal, err: err, heard: heard}
	}
	for {
		if err := s.stream.RecvMsg(&response{}); err != nil {
			return ending{phase: p, err: err, heard: heard}
		}
	}
}

// introduce subscribes to each type, with the node in each request and what
// is known from earlier streams (contract 8.2).
func (s *session) introduce() error {
	for _, t := range s.c.cfg.Types {
		req := &discoverypb.DeltaDiscoveryRequest{
			Node:                    &discoverypb.Node{Id: s.c.cfg.Node.ID, Metadata: s.c.cfg.Node.Metadata},
			TypeUrl:                 t.URL,
			InitialResourceVersions: s.c.resume(t.URL),
		}
		if t.OnDemand {
			// Both: the second takes back what the first, or its absence,
			// would mean.
			req.ResourceNamesSubscribe = []string{wildcard}
			req.ResourceNamesUnsubscribe = []string{wildcard}
		}
		if err := s.send(req); err != nil {
			return err
		}
	}
	return nil
}

// resume returns a copy of the known versions. Whatever is waited for is
// asked for anew: versions alone need not bring news of it.
func (c *Client) resume(url string) map[string]string {
	c.mu.Lock()
	defer c.mu.Unlock()
	t := c.topics[url]
	clear(t.asked)
	clear(t.leaving)
	for name := range t.waiters {
		t.fresh[name] = struct{}{}
	}
	return maps.Clone(t.versions)
}

func (s *session) send(req *discoverypb.DeltaDiscoveryRequest) error {
	s.sending.Lock()
	defer s.sending.Unlock()
	return s.stream.SendMsg(req)
}

// ask sends what is demanded. If it cannot, the stream is over, and listen
// will say why.
func (s *session) ask(ctx context.Context, cancel context.CancelFunc) {
	for {
		for _, w := range s.c.takeWishes() {
			err := s.send(&discoverypb.DeltaDiscoveryRequest{
				TypeUrl: w.url, ResourceNamesSubscribe: w.subscribe, ResourceNamesUnsubscribe: w.unsubscribe,
			})
			if err != nil && !errors.Is(err, io.EOF) {
				s.logger.Warn("XDS client could not ask", "error", err.Error())
				cancel() // for the names are with nobody now: a new stream asks again
			}
			if err != nil {
				return
			}
		}
		select {
		case <-s.c.told:
		case <-ctx.Done():
			return
		}
	}
}

// listen takes responses until the stream ends.
func (s *session) listen() ending {
	heard := false
	for {
		var r response
		if err := s.stream.RecvMsg(&r); err != nil {
			return ending{phase: phaseStream, err: err, heard: heard}
		}
		heard = true
		if err := s.take(&r); err != nil {
			return s.ended(phaseStream, err, heard)
		}
	}
}

// take handles one response and answers it, once, whatever it holds
// (contract 8.3).
func (s *session) take(r *response) error {
	c := s.c
	c.cfg.Observer.Message(r.typeURL, r.payloadBytes())
	answer := &discoverypb.DeltaDiscoveryRequest{TypeUrl: r.typeURL, ResponseNonce: r.nonce}
	t := c.topics[r.typeURL]
	if t == nil {
		s.logger.Error("unknown type", "type_url", r.typeURL)
		return s.send(answer)
	}
	s.logger.Debug("received response", "type_url", r.typeURL, "resources", len(r.resources), "removes", len(r.removed))
	rejected := t.Handle(r.resources, c.news(t, r.removed))
	c.remember(t, r, rejected)
	if len(rejected) > 0 {
		text := reasons(rejected)
		s.logger.Warn("XDS resources rejected", "type_url", r.typeURL, "error", text)
		answer.ErrorDetail = &discoverypb.Status{Message: text} // code 0, as in the reference
	}
	if err := s.send(answer); err != nil {
		return err
	}
	if len(rejected) == 0 {
		c.acknowledged(r.typeURL)
	}
	return nil
}

// reasons is the message of a refusal (contract 8.3).
func reasons(rejected []Rejection) string {
	texts := make([]string, len(rejected))
	for i, x := range rejected {
		texts[i] = x.Name + ": " + x.Reason
	}
	// Names and reasons may quote what came, and a message has to be UTF-8.
	return strings.ToValidUTF8(strings.Join(texts, "; "), "\uFFFD")
}
