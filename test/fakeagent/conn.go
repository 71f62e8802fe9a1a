// SPDX-License-Identifier: Apache-2.0

// Package fakeagent is a node agent to enrol pods with, for tests and by hand.
//
// A [Listener] hands out connections on which a test says what it likes, well
// formed or not. An [Agent] keeps a list of pods and tells it to whoever
// connects, as istio-cni does: adds, the snapshot, then what changes. It is
// written from docs/wire/zds.md and shares no code with internal/zds but the
// generated messages.
package fakeagent

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"

	"github.com/ztunnel-go/ztunnel/internal/netns"
	"github.com/ztunnel-go/ztunnel/internal/zds/zdspb"
)

// patience is how long an answer may take. Istio's agent waits 5 s; a loaded
// test machine with the race detector on gets twice that.
const patience = 10 * time.Second

// A Listener is the agent's socket.
type Listener struct {
	l    *net.UnixListener
	path string
}

// Listen makes the socket. A file that is left from before is replaced.
func Listen(path string) (*Listener, error) {
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("agent: %w", err)
	}
	l, err := net.ListenUnix("unixpacket", &net.UnixAddr{Net: "unixpacket", Name: path})
	if err != nil {
		return nil, fmt.Errorf("agent: %w", err)
	}
	return &Listener{l: l, path: path}, nil
}

// Accept waits for a proxy and its greeting.
func (l *Listener) Accept(ctx context.Context) (*Conn, error) {
	_ = l.l.SetDeadline(time.Time{})
	stop := context.AfterFunc(ctx, func() { _ = l.l.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	u, err := l.l.AcceptUnix()
	if err != nil {
		if ctx.Err() != nil {
			err = ctx.Err()
		}
		return nil, fmt.Errorf("agent: accept: %w", err)
	}
	c := &Conn{c: u}
	var hello zdspb.ZdsHello
	if err := c.read(&hello); err != nil {
		c.Close()
		return nil, fmt.Errorf("agent: greeting: %w", err)
	}
	if hello.GetVersion() != zdspb.Version_V1 {
		c.Close()
		return nil, fmt.Errorf("agent: greeting of version %v", hello.GetVersion())
	}
	return c, nil
}

// Close stops listening and removes the socket's file. Connections stay.
func (l *Listener) Close() error {
	if err := l.l.Close(); err != nil && !errors.Is(err, net.ErrClosed) {
		return err
	}
	return nil
}

// A Conn is a connection after the greeting. Its methods may be called by
// several goroutines; requests go one at a time.
type Conn struct {
	c  *net.UnixConn
	mu sync.Mutex // held for a request and its answer
}

// A Refused is what a proxy answered to a request that it refuses.
type Refused struct{ Text string }

// Error is the proxy's text.
func (r *Refused) Error() string { return r.Text }

// Add enrols a pod and waits for the answer; a refusal is a *[Refused].
func (c *Conn) Add(uid string, info *zdspb.WorkloadInfo, ns *netns.NS) error {
	return c.Send(&zdspb.WorkloadRequest{Payload: &zdspb.WorkloadRequest_Add{
		Add: &zdspb.AddWorkload{Uid: uid, WorkloadInfo: info},
	}}, ns.Fd())
}

// Keep says that a pod is still there.
func (c *Conn) Keep(uid string) error {
	return c.Send(&zdspb.WorkloadRequest{Payload: &zdspb.WorkloadRequest_Keep{Keep: &zdspb.KeepWorkload{Uid: uid}}})
}

// Del says that a pod is gone.
func (c *Conn) Del(uid string) error {
	return c.Send(&zdspb.WorkloadRequest{Payload: &zdspb.WorkloadRequest_Del{Del: &zdspb.DelWorkload{Uid: uid}}})
}

// SnapshotSent says that every pod has been told.
func (c *Conn) SnapshotSent() error {
	return c.Send(&zdspb.WorkloadRequest{Payload: &zdspb.WorkloadRequest_SnapshotSent{SnapshotSent: &zdspb.SnapshotSent{}}})
}

// Send sends a request with descriptors and waits for the answer.
func (c *Conn) Send(req *zdspb.WorkloadRequest, fds ...int) error {
	data, err := proto.Marshal(req)
	if err != nil {
		return err
	}
	return c.SendRaw(data, fds...)
}

// SendRaw sends a packet of any content and waits for the answer.
func (c *Conn) SendRaw(data []byte, fds ...int) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	var oob []byte
	if len(fds) > 0 {
		oob = unix.UnixRights(fds...)
	}
	_ = c.c.SetWriteDeadline(time.Now().Add(patience))
	if _, _, err := c.c.WriteMsgUnix(data, oob, nil); err != nil {
		return fmt.Errorf("agent: send: %w", err)
	}
	var resp zdspb.WorkloadResponse
	if err := c.read(&resp); err != nil {
		return fmt.Errorf("agent: answer: %w", err)
	}
	ack := resp.GetAck()
	if ack == nil {
		return errors.New("agent: an answer without ack")
	}
	if ack.GetError() != "" {
		return &Refused{ack.GetError()}
	}
	return nil
}

// AwaitClosed waits until the proxy has ended the connection.
func (c *Conn) AwaitClosed() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	_ = c.c.SetReadDeadline(time.Now().Add(patience))
	n, err := c.c.Read(make([]byte, 1024))
	if n > 0 {
		return fmt.Errorf("agent: %d bytes instead of the end", n)
	}
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return errors.New("agent: the proxy did not end the connection")
	}
	return nil // the end, or a reset for what we sent meanwhile
}

func (c *Conn) read(m proto.Message) error {
	// As many bytes as Istio's agent reads: a longer answer is cut short there.
	buf := make([]byte, 1024)
	_ = c.c.SetReadDeadline(time.Now().Add(patience))
	n, err := c.c.Read(buf)
	if err != nil {
		return err
	}
	return proto.Unmarshal(buf[:n], m)
}

// Close ends the connection.
func (c *Conn) Close() error {
	if err := c.c.Close(); err != nil && !errors.Is(err, net.ErrClosed) {
		return err
	}
	return nil
}
