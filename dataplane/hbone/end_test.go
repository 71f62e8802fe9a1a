// SPDX-License-Identifier: Apache-2.0

package hbone

import (
	"context"
	"errors"
	"io"
	"testing"
	"time"
)

var errWhy = errors.New("a reason of the caller's")

func TestATunnelThatIsEndedTellsItsStreamsWhy(t *testing.T) {
	r := newRig(t, echo)
	s := r.open(r.pool(nil))
	r.accepted()[0].End(errWhy)
	_, err := s.Read(make([]byte, 1))
	var reset *ResetError
	if !errors.As(err, &reset) || !reset.Quiet() {
		t.Errorf("the other side reads %v; it knows no reason and should not complain", err)
	}
}

func TestStreamsOfAnEndedTunnelAreNoSuccess(t *testing.T) {
	heard := make(chan error, 1)
	r := newRig(t, func(c *Connect) {
		s, err := c.Accept(nil)
		if err == nil {
			_, err = s.Read(make([]byte, 1))
		}
		heard <- err
	})
	r.open(r.pool(nil))
	r.accepted()[0].End(errWhy)
	err := <-heard
	var reset *ResetError
	if !errors.Is(err, errWhy) || !errors.As(err, &reset) || reset.Quiet() {
		t.Errorf("the stream's error is %v", err)
	}
}

func TestOurOwnTunnelIsEndedWithAReason(t *testing.T) {
	r := newRig(t, echo)
	p := r.pool(nil)
	s := r.open(p)
	p.mu.Lock()
	var tunnels []*Tunnel
	for tunnel := range p.all {
		tunnels = append(tunnels, tunnel)
	}
	p.mu.Unlock()
	for _, tunnel := range tunnels {
		tunnel.End(errWhy)
	}
	if _, err := s.Read(make([]byte, 1)); len(tunnels) != 1 || !errors.Is(err, errWhy) {
		t.Errorf("%d tunnels ended; the stream's error is %v", len(tunnels), err)
	}
}

// opening makes a pool whose tunnels are told to opened.
func opening(r *rig, opened func(*Tunnel) (func(), error)) *Pool {
	return r.pool(func(c *PoolConfig) {
		c.TLS = func(context.Context, Key) (Handshake, error) {
			return Handshake{Config: r.clientTLS(), Opened: opened}, nil
		}
	})
}

func TestATunnelIsToldOfAndReleased(t *testing.T) {
	r := newRig(t, echo)
	released := make(chan struct{})
	told := make(chan *Tunnel, 1)
	p := opening(r, func(tunnel *Tunnel) (func(), error) {
		told <- tunnel
		return func() { close(released) }, nil
	})
	s := r.open(p)
	(<-told).End(errWhy)
	if _, err := s.Read(make([]byte, 1)); !errors.Is(err, errWhy) {
		t.Errorf("the stream's error is %v", err)
	}
	select {
	case <-released:
	case <-time.After(patience):
		t.Error("the tunnel has ended and was not released")
	}
}

func TestATunnelThatIsNotWantedCarriesNothing(t *testing.T) {
	r := newRig(t, func(*Connect) { t.Error("a request came through") })
	released := make(chan struct{})
	p := opening(r, func(*Tunnel) (func(), error) { return func() { close(released) }, errWhy })
	if _, _, err := p.Open(within(t), r.key(), Request{Authority: "a:1"}); !errors.Is(err, errWhy) {
		t.Errorf("got %v", err)
	}
	select {
	case <-released:
	case <-time.After(patience):
		t.Error("the tunnel was not released")
	}
}

func TestTheEndOfATunnelIsNotTheEndOfItsStreams(t *testing.T) {
	heard := make(chan error, 1)
	r := newRig(t, func(c *Connect) {
		s, err := c.Accept(nil)
		if err == nil {
			_, err = io.Copy(io.Discard, s)
		}
		heard <- err
	})
	p := r.pool(nil)
	s := r.open(p)
	r.cut(0) // so that both read the end of the connection
	if _, err := s.Read(make([]byte, 1)); err == nil || errors.Is(err, io.EOF) {
		t.Errorf("our stream's error is %v", err)
	}
	if err := <-heard; err == nil || errors.Is(err, io.EOF) {
		t.Errorf("the peer's stream's error is %v", err)
	}
}
