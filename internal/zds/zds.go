// SPDX-License-Identifier: Apache-2.0

// Package zds speaks the protocol by which the node agent enrols pods: one
// protobuf message to a packet, over a unix SOCK_SEQPACKET on which the agent
// listens. A [Session] is the proxy's end of it, a [Peer] the agent's.
//
//	us    -> agent   ZdsHello          once, first
//	agent -> us      WorkloadRequest   an add carries one descriptor: the pod's network namespace
//	us    -> agent   WorkloadResponse  one to each request, in order, before the next
//
// A session begins with an add or a keep for every pod of the node and one
// snapshot_sent; adds and deletes follow as pods come and go. What a request
// means is dataplane/inpod's affair; here is only its form.
//
// The form is strict, since a descriptor is a right that is handed over: a
// packet cut short (MSG_TRUNC, MSG_CTRUNC) is refused, so is an add without
// exactly one descriptor and anything else with one, and every descriptor of a
// refused packet is closed. Unknown protobuf fields are ignored, so that newer
// agents can talk to us. docs/wire/zds.md has the bytes.
package zds

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"

	"github.com/ztunnel-go/ztunnel/internal/netns"
	"github.com/ztunnel-go/ztunnel/internal/zds/zdspb"
)

// maxRequest is the largest request, in bytes. The agent of Istio bounds its
// own by the buffer of the reference, which is as large.
const maxRequest = 1024

// maxDescriptors is SCM_MAX_FD: no packet can carry more (net/scm.h), so the
// buffer for it is never the reason that one is cut short.
const maxDescriptors = 253

// A Kind tells requests apart.
type Kind uint8

// The requests, see the fields of [Request].
const (
	Add          Kind = iota + 1 // serve this pod
	Keep                         // do not take the pod for gone, before SnapshotSent
	Del                          // the pod is gone
	SnapshotSent                 // every pod of the node has been told
)

// String is the request's name in logs.
func (k Kind) String() string {
	switch k {
	case Add:
		return "add"
	case Keep:
		return "keep"
	case Del:
		return "del"
	case SnapshotSent:
		return "snapshot sent"
	}
	return fmt.Sprintf("kind %d", uint8(k))
}

// A Request is one message of the agent.
type Request struct {
	Kind Kind
	UID  string // of the pod; empty for SnapshotSent
	Info *Info  // Add only, and nil if the agent left it out
	// Late says that the pod ran before anybody captured it. Add only, and of
	// our own agent only (cmd/zagent): the field is none of Istio's.
	Late bool
	// NetNS is the pod's namespace. Add only; it is the receiver's to close.
	NetNS *netns.NS
	// NotNetNS says why the descriptor of an Add is no network namespace;
	// NetNS is nil then. It is for the receiver to refuse this one pod: ending
	// the session would have the agent send the same again, for ever.
	NotNetNS error
}

// Info is who the pod is.
type Info struct{ Name, Namespace, ServiceAccount string }

// A MessageError is a packet that is not what the protocol allows. The session
// has to end after it is answered: who is right about the next one is unknown.
type MessageError struct{ reason string }

// Error is in the words of the reference (contract 10.3), since agents log it.
func (e *MessageError) Error() string { return e.reason }

var (
	errTruncated   = &MessageError{"received truncated message"}
	errNoControl   = &MessageError{"No control message"}
	errControl     = &MessageError{"Unexpected control message"}
	errNoPayload   = &MessageError{"no payload"}
	errDescriptors = func(n int) error { return &MessageError{fmt.Sprintf("Expected 1 FD, got %d", n)} }
)

// parse makes a request of what one recvmsg(2) gave. It owns the descriptors
// in oob: they are closed unless they are part of the request.
func parse(data, oob []byte, flags int) (Request, error) {
	fds, err := descriptors(oob)
	if err == nil && flags&(unix.MSG_TRUNC|unix.MSG_CTRUNC) != 0 {
		err = errTruncated
	}
	var req Request
	if err == nil {
		req, err = decode(data, len(fds))
	}
	if err != nil {
		for _, fd := range fds {
			unix.Close(fd)
		}
		return Request{}, err
	}
	if req.Kind == Add { // decode saw to it that there is one
		req.NetNS, req.NotNetNS = netns.FromFile(os.NewFile(uintptr(fds[0]), "netns"))
	}
	return req, nil
}

// descriptors are those that came with a packet. With an error come those that
// were found, to be closed.
func descriptors(oob []byte) ([]int, error) {
	messages, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return nil, errTruncated
	}
	var fds []int
	for _, m := range messages {
		got, rightsErr := unix.ParseUnixRights(&m)
		if rightsErr != nil {
			err = errControl
			continue
		}
		fds = append(fds, got...)
	}
	return fds, err
}

// decode reads a packet that came with so many descriptors.
func decode(data []byte, fds int) (Request, error) {
	var m zdspb.WorkloadRequest
	if err := proto.Unmarshal(data, &m); err != nil {
		return Request{}, &MessageError{err.Error()}
	}
	var req Request
	switch p := m.GetPayload().(type) {
	case *zdspb.WorkloadRequest_Add:
		req = Request{Kind: Add, UID: p.Add.GetUid(), Late: p.Add.GetLate()}
		if info := p.Add.GetWorkloadInfo(); info != nil {
			req.Info = &Info{Name: info.GetName(), Namespace: info.GetNamespace(), ServiceAccount: info.GetServiceAccount()}
		}
		switch fds {
		case 0:
			return Request{}, errNoControl
		case 1:
			return req, nil
		}
		return Request{}, errDescriptors(fds)
	case *zdspb.WorkloadRequest_Keep:
		req = Request{Kind: Keep, UID: p.Keep.GetUid()}
	case *zdspb.WorkloadRequest_Del:
		req = Request{Kind: Del, UID: p.Del.GetUid()}
	case *zdspb.WorkloadRequest_SnapshotSent:
		req = Request{Kind: SnapshotSent}
	default:
		return Request{}, errNoPayload
	}
	if fds > 0 {
		return Request{}, errControl
	}
	return req, nil
}
