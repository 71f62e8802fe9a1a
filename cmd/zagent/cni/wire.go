// SPDX-License-Identifier: Apache-2.0

// Package cni is the agent's part in the making of pods: a chained plugin of the
// Container Network Interface (specification 1.1), which a runtime executes
// for each pod, and the socket by which it asks the agent that runs.
//
//	runtime -> plugin   environment, configuration on standard input
//	plugin  -> agent    one packet: a Request as JSON, with the pod's namespace as a descriptor
//	agent   -> plugin   one packet: an answer as JSON; then the connection ends
//	plugin  -> runtime  the result of the plugins before, or an error
//
// The namespace comes as a descriptor, so that the agent needs no view of the
// runtime's mounts. Whether a pod is to be captured, and that it is before ADD
// returns, is the affair of the function that serves.
package cni

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ztunnel-go/ztunnel/internal/netns"
)

// An Op is what is wanted.
type Op string

// The ops.
const (
	Add   Op = "add"   // have the pod captured, if it is in the mesh
	Check Op = "check" // is it, if it is in the mesh?
	Del   Op = "del"   // the sandbox ends
)

// A Request is what the plugin asks.
type Request struct {
	Op        Op            `json:"op"`
	Sandbox   string        `json:"sandbox"` // the runtime's id of it
	Name      string        `json:"name"`
	Namespace string        `json:"namespace"`
	UID       string        `json:"uid,omitempty"`   // older runtimes do not tell
	Addrs     []netip.Addr  `json:"addrs,omitempty"` // that the plugins before have given
	Wait      time.Duration `json:"wait"`            // nanoseconds
}

// An answer is the agent's; no error is success.
type answer struct {
	Error string `json:"error,omitempty"`
}

// A Refused is what an agent answered.
type Refused struct{ Text string }

// Error is the agent's text.
func (r *Refused) Error() string { return r.Text }

// maxPacket bounds requests and answers, in bytes.
const maxPacket = 8192

// patience bounds what a side does without delay.
const patience = 5 * time.Second

// Ask asks the agent at socket and waits for its answer. What the agent
// answered, other than success, is a *[Refused]; other errors mean that none
// did. ns may be nil and stays the caller's.
func Ask(ctx context.Context, socket string, req Request, ns *netns.NS) error {
	var d net.Dialer
	c, err := d.DialContext(ctx, "unixpacket", socket)
	if err != nil {
		return fmt.Errorf("reach the node agent: %w", err)
	}
	conn := c.(*net.UnixConn)
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	packet, err := json.Marshal(req)
	if err != nil {
		return err
	}
	if len(packet) > maxPacket {
		return &Refused{fmt.Sprintf("a request of %d bytes is more than the %d that an agent reads", len(packet), maxPacket)}
	}
	var oob []byte
	if ns != nil {
		oob = unix.UnixRights(ns.Fd())
	}
	if _, _, err := conn.WriteMsgUnix(packet, oob, nil); err != nil {
		return fmt.Errorf("ask the node agent: %w", err)
	}
	buf := make([]byte, maxPacket)
	n, err := conn.Read(buf)
	if err != nil {
		if ctx.Err() != nil {
			return &Refused{fmt.Sprintf("the node agent has not answered in time: %v", ctx.Err())}
		}
		return fmt.Errorf("answer of the node agent: %w", err)
	}
	var a answer
	if err := json.Unmarshal(buf[:n], &a); err != nil {
		return fmt.Errorf("answer of the node agent: %w", err)
	}
	if a.Error != "" {
		return &Refused{a.Error}
	}
	return nil
}

// parse reads a request and the descriptor that came with it, which it owns:
// it is closed unless it is returned.
func parse(packet, oob []byte, flags int) (Request, *netns.NS, error) {
	fds, err := descriptors(oob)
	if err == nil && flags&(unix.MSG_TRUNC|unix.MSG_CTRUNC) != 0 {
		err = errors.New("the request is cut short")
	}
	var req Request
	if err == nil {
		req, err = decode(packet, len(fds))
	}
	if err != nil || len(fds) == 0 {
		for _, fd := range fds {
			unix.Close(fd)
		}
		return req, nil, err
	}
	ns, err := netns.FromFile(os.NewFile(uintptr(fds[0]), "netns"))
	return req, ns, err
}

// decode reads a request that came with so many descriptors.
func decode(packet []byte, fds int) (Request, error) {
	var req Request
	if err := json.Unmarshal(packet, &req); err != nil {
		return Request{}, fmt.Errorf("the request is not what it should be: %w", err)
	}
	want := 1
	switch req.Op {
	case Add, Check:
	case Del:
		want = 0
	default:
		return Request{}, fmt.Errorf("the request has op %q", req.Op)
	}
	switch {
	case fds != want:
		return Request{}, fmt.Errorf("%s came with %d descriptors and not %d", req.Op, fds, want)
	case req.Name == "" || req.Namespace == "":
		return Request{}, fmt.Errorf("%s does not name a pod", req.Op)
	case req.Wait < 0 || req.Wait > maxTimeout:
		return Request{}, fmt.Errorf("%s is to take %v", req.Op, req.Wait)
	}
	return req, nil
}

// descriptors are those of a control message, also beside an error.
func descriptors(oob []byte) ([]int, error) {
	messages, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return nil, fmt.Errorf("the request's control message: %w", err)
	}
	var fds []int
	for i := range messages {
		got, rightsErr := unix.ParseUnixRights(&messages[i])
		if rightsErr != nil {
			err = fmt.Errorf("the request's control message: %w", rightsErr)
			continue
		}
		fds = append(fds, got...)
	}
	return fds, err
}
