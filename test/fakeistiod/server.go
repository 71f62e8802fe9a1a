// SPDX-License-Identifier: Apache-2.0

// Package fakeistiod is a control plane to talk to: the delta xDS half of one,
// in process, over TLS, that does what it is told. It also does what a real
// one never does: sends bad resources, wrong names and types, cuts streams at
// any byte, goes away and comes back.
//
// A [Server] either serves a [World], a set of resources that tests change, or
// runs a Script for each stream. It records every request. For tests and
// commands of tests only.
package fakeistiod

import (
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/ztunnel-go/ztunnel/xds/pb/discoverypb"
)

// Options are how a [Server] begins. The zero value serves an empty world to
// anybody.
type Options struct {
	// Address to listen on; empty: a free port of 127.0.0.1.
	Address string
	// Listen makes the listener; nil: net.Listen. A laboratory's hosts have
	// one of their own.
	Listen func(network, address string) (net.Listener, error)
	// Hosts are what the certificate is for; empty: 127.0.0.1, ::1, localhost
	// and istiod.istio-system.svc.
	Hosts []string
	// Token judges the bearer token of each stream and call, which is empty
	// if there is none; nil: all are good.
	Token func(token string) error
	// Script runs for each stream instead of serving the world. What it
	// returns is the stream's status; nil ends it well.
	Script func(*Stream) error
	// Register adds services, such as a certificate authority.
	Register func(*grpc.Server)
}

// A Request is one that came.
type Request struct {
	Stream   int // which stream it came on, from 1
	Metadata metadata.MD
	*discoverypb.DeltaDiscoveryRequest
}

// A Server is a control plane.
type Server struct {
	World *World

	opts  Options
	certs *authority

	mu       sync.Mutex
	grpc     *grpc.Server // nil while stopped
	addr     string
	serving  sync.WaitGroup
	script   func(*Stream) error
	streams  int
	requests []Request
	arrived  chan struct{} // closed and renewed at each request
	trouble  trouble
}

// New starts a server.
func New(opts Options) (*Server, error) {
	if len(opts.Hosts) == 0 {
		opts.Hosts = []string{"127.0.0.1", "::1", "localhost", "istiod.istio-system.svc"}
	}
	certs, err := newAuthority()
	if err != nil {
		return nil, err
	}
	s := &Server{
		World: newWorld(), opts: opts, certs: certs, script: opts.Script,
		addr: opts.Address, arrived: make(chan struct{}),
	}
	if s.addr == "" {
		s.addr = "127.0.0.1:0"
	}
	return s, s.Restart()
}

// Start is [New] for tests. The server is stopped at the end of the test.
func Start(tb testing.TB, opts Options) *Server {
	tb.Helper()
	s, err := New(opts)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(s.Stop)
	return s
}

// Address is the server's URI. It stays the same across restarts.
func (s *Server) Address() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return "https://" + s.addr
}

// RootPEM is what the server's certificate leads to.
func (s *Server) RootPEM() string { return s.certs.rootPEM }

// Restart stops the server, if it runs, and starts it on its port again. The
// world stays.
func (s *Server) Restart() error {
	s.Stop()
	leaf, err := s.certs.issue(s.opts.Hosts)
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	listen := s.opts.Listen
	if listen == nil {
		listen = net.Listen
	}
	l, err := listen("tcp", s.addr)
	if err != nil {
		return fmt.Errorf("fake istiod: %w", err)
	}
	s.addr = l.Addr().String()
	g := grpc.NewServer(
		grpc.Creds(credentials.NewTLS(&tls.Config{Certificates: []tls.Certificate{leaf}, MinVersion: tls.VersionTLS12})),
		grpc.UnaryInterceptor(s.judgeCall),
		grpc.MaxRecvMsgSize(1<<28),
		// As Istio's: clients ping every 30 s, and grpc's own limit is 5 min.
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: 15 * time.Second}),
	)
	g.RegisterService(&grpc.ServiceDesc{
		ServiceName: "envoy.service.discovery.v3.AggregatedDiscoveryService",
		HandlerType: (*any)(nil),
		Streams: []grpc.StreamDesc{{
			StreamName: "DeltaAggregatedResources", Handler: s.handle, ServerStreams: true, ClientStreams: true,
		}},
	}, s)
	if s.opts.Register != nil {
		s.opts.Register(g)
	}
	s.grpc = g
	s.serving.Go(func() { _ = g.Serve(&troubledListener{l, &s.trouble}) })
	return nil
}

// Stop cuts all streams and stops listening. It may be called again.
func (s *Server) Stop() {
	s.mu.Lock()
	g := s.grpc
	s.grpc = nil
	s.mu.Unlock()
	if g != nil {
		g.Stop()
		s.serving.Wait()
	}
}

// Follow changes what is done with streams from now on; nil: the world is
// served.
func (s *Server) Follow(script func(*Stream) error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.script = script
}

// Requests returns what has come so far.
func (s *Server) Requests() []Request {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.requests)
}

// Streams is how many streams have been opened.
func (s *Server) Streams() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.streams
}

// Arrival is closed at the next request. Take it before looking.
func (s *Server) Arrival() <-chan struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.arrived
}

func (s *Server) judge(md metadata.MD) error {
	if s.opts.Token == nil {
		return nil
	}
	token := ""
	if v := md.Get("authorization"); len(v) > 0 {
		token = strings.TrimPrefix(v[0], "Bearer ")
	}
	if err := s.opts.Token(token); err != nil {
		return status.Error(codes.Unauthenticated, "authentication failure: "+err.Error())
	}
	return nil
}

func (s *Server) handle(_ any, g grpc.ServerStream) error {
	md, _ := metadata.FromIncomingContext(g.Context())
	if err := s.judge(md); err != nil {
		return err
	}
	s.mu.Lock()
	s.streams++
	st := &Stream{s: s, grpc: g, Number: s.streams, Metadata: md}
	script := s.script
	s.mu.Unlock()
	if script != nil {
		return script(st)
	}
	return s.World.serve(st)
}

// A Stream is one stream of a client.
type Stream struct {
	Number   int // from 1
	Metadata metadata.MD

	s    *Server
	grpc grpc.ServerStream
}

// Done is closed when the stream is over.
func (st *Stream) Done() <-chan struct{} { return st.grpc.Context().Done() }

// Recv waits for a request and records it.
func (st *Stream) Recv() (*discoverypb.DeltaDiscoveryRequest, error) {
	req := &discoverypb.DeltaDiscoveryRequest{}
	if err := st.grpc.RecvMsg(req); err != nil {
		return nil, err
	}
	st.s.mu.Lock()
	defer st.s.mu.Unlock()
	st.s.requests = append(st.s.requests, Request{st.Number, st.Metadata, req})
	close(st.s.arrived)
	st.s.arrived = make(chan struct{})
	return req, nil
}

// Greet receives the first request of each type and sends the headers.
func (st *Stream) Greet() error {
	for range 2 {
		if _, err := st.Recv(); err != nil {
			return err
		}
	}
	return st.Headers()
}

// Headers sends the headers, which otherwise go with the first response.
func (st *Stream) Headers() error { return st.grpc.SendHeader(nil) }

// Send sends a response as it is.
func (st *Stream) Send(r *discoverypb.DeltaDiscoveryResponse) error { return st.grpc.SendMsg(r) }

// Exchange sends a response and receives the answer to it.
func (st *Stream) Exchange(r *discoverypb.DeltaDiscoveryResponse) (*discoverypb.DeltaDiscoveryRequest, error) {
	if err := st.Send(r); err != nil {
		return nil, err
	}
	return st.Recv()
}

// Push exchanges resources of one type and names that are gone.
func (st *Stream) Push(nonce string, resources []Resource, removed ...string) (*discoverypb.DeltaDiscoveryRequest, error) {
	if len(resources) == 0 {
		return nil, errors.New("push: no resource to tell the type by")
	}
	return st.Exchange(Response(resources[0].Type, nonce, resources, removed...))
}
