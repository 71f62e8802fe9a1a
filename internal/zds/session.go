// SPDX-License-Identifier: Apache-2.0

package zds

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"time"
	"unicode/utf8"

	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"

	"github.com/ztunnel-go/ztunnel/internal/zds/zdspb"
)

// A Session is one connection to the agent. Next and Ack are for one
// goroutine; Close may be called by any.
type Session struct {
	conn *net.UnixConn
	data []byte // for one request
	oob  []byte // for its control messages
	owed bool   // a request has not been answered
}

// A HelloError is a connection on which the greeting could not be written.
type HelloError struct{ err error }

// Error says that the greeting failed, and why.
func (e *HelloError) Error() string { return fmt.Sprintf("announce to node agent: %v", e.err) }

// Unwrap is the system's error.
func (e *HelloError) Unwrap() error { return e.err }

// errNoRequest keeps the sequence: one answer to each request.
var errNoRequest = errors.New("no request is waiting for an answer")

// writeWait bounds a write to the agent. It sends nothing while it waits for
// an answer, so its queue is empty unless it is stuck.
const writeWait = 5 * time.Second

// Dial connects to the agent's socket and greets it. A greeting that fails is
// a *[HelloError]; other errors mean that nobody listens at path.
func Dial(ctx context.Context, path string) (*Session, error) {
	var d net.Dialer
	conn, err := d.DialContext(ctx, "unixpacket", path) // SOCK_SEQPACKET
	if err != nil {
		return nil, err
	}
	s := &Session{
		conn: conn.(*net.UnixConn),
		// One more than a request may have would hide that it was too long.
		data: make([]byte, maxRequest),
		oob:  make([]byte, unix.CmsgSpace(maxDescriptors*4)),
	}
	if err := s.write(&zdspb.ZdsHello{Version: zdspb.Version_V1}); err != nil {
		s.Close()
		return nil, &HelloError{err}
	}
	return s, nil
}

// Next waits for the agent's next request. It returns io.EOF when the agent
// has closed, a *[MessageError] (to be answered with [Session.Ack] before the
// session is closed) for a packet that makes no sense, and ctx's error when it
// ends first.
func (s *Session) Next(ctx context.Context) (Request, error) {
	if err := ctx.Err(); err != nil {
		return Request{}, err
	}
	stop := context.AfterFunc(ctx, func() { _ = s.conn.SetReadDeadline(time.Unix(1, 0)) })
	// Go sets MSG_CMSG_CLOEXEC, and reports an empty packet as the end too, as
	// recvmsg(2) does.
	n, oobn, flags, _, err := s.conn.ReadMsgUnix(s.data, s.oob)
	if !stop() && err == nil {
		// ctx ended while a request came in. It is the agent's last; the
		// deadline is past for good.
		err = ctx.Err()
	}
	switch {
	case err == nil:
		s.owed = true
		return parse(s.data[:n], s.oob[:oobn], flags)
	case ctx.Err() != nil:
		err = ctx.Err()
	case !errors.Is(err, io.EOF):
		err = fmt.Errorf("read from node agent: %w", err)
	}
	// Descriptors come even with an empty packet; this closes them.
	_, _ = parse(nil, s.oob[:oobn], flags)
	return Request{}, err
}

// Ack answers the request that Next returned last: nil accepts it, an error
// refuses it with the error's text.
func (s *Session) Ack(refusal error) error {
	if !s.owed {
		return errNoRequest
	}
	s.owed = false
	ack := &zdspb.Ack{}
	if refusal != nil {
		ack.Error = ackText(refusal.Error())
	}
	if err := s.write(&zdspb.WorkloadResponse{Payload: &zdspb.WorkloadResponse_Ack{Ack: ack}}); err != nil {
		return fmt.Errorf("answer node agent: %w", err)
	}
	return nil
}

// maxAckText bounds the text of a refusal, in bytes: Istio's agent reads
// answers into 1,024 bytes and takes a longer one for garbage.
const maxAckText = 1000

// ackText is text as it may stand in a protobuf string, cut where it is long.
// An empty one would read as success.
func ackText(text string) string {
	text = strings.ToValidUTF8(text, "\uFFFD")
	if len(text) > maxAckText {
		end := maxAckText
		for !utf8.RuneStart(text[end]) {
			end--
		}
		text = text[:end]
	}
	if text == "" {
		return "refused"
	}
	return text
}

func (s *Session) write(m proto.Message) error {
	packet, err := proto.Marshal(m)
	if err != nil {
		return err
	}
	_ = s.conn.SetWriteDeadline(time.Now().Add(writeWait))
	_, err = s.conn.Write(packet)
	return err
}

// Close ends the session. Later calls do nothing.
func (s *Session) Close() error {
	if err := s.conn.Close(); err != nil && !errors.Is(err, net.ErrClosed) {
		return fmt.Errorf("close session with node agent: %w", err)
	}
	return nil
}
