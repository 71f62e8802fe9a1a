// SPDX-License-Identifier: Apache-2.0

package zds

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ztunnel-go/ztunnel/internal/netns"
	"github.com/ztunnel-go/ztunnel/internal/zds/zdspb"
	"github.com/ztunnel-go/ztunnel/test/leak"
)

// connected is a session and the agent's end of it, after the greeting.
func connected(t *testing.T) (*Session, *net.UnixConn) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "s")
	l, err := net.ListenUnix("unixpacket", &net.UnixAddr{Net: "unixpacket", Name: path})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	s, err := Dial(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	agent, err := l.AcceptUnix()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close(); agent.Close() })
	if got := receive(t, agent); !bytes.Equal(got, []byte{0x08, 0x01}) {
		t.Fatalf("greeting % x", got)
	}
	return s, agent
}

func receive(t *testing.T, agent *net.UnixConn) []byte {
	t.Helper()
	buf := make([]byte, 2048)
	_ = agent.SetReadDeadline(time.Now().Add(5 * time.Second))
	n, err := agent.Read(buf)
	if err != nil {
		t.Fatal(err)
	}
	return buf[:n]
}

func send(t *testing.T, agent *net.UnixConn, data, oob []byte) {
	t.Helper()
	if _, _, err := agent.WriteMsgUnix(data, oob, nil); err != nil {
		t.Fatal(err)
	}
}

func TestASession(t *testing.T) {
	leak.Check(t)
	s, agent := connected(t)
	own, err := netns.Open(ownNetNS)
	if err != nil {
		t.Fatal(err)
	}
	defer own.Close()
	if err := s.Ack(nil); err == nil {
		t.Error("answered nothing")
	}
	send(t, agent, addPacket(t, "u", somebody), unix.UnixRights(own.Fd()))
	req, err := s.Next(t.Context())
	if err != nil || req.Kind != Add || req.NetNS.ID() != own.ID() {
		t.Fatalf("%+v, %v", req, err)
	}
	if flags, err := unix.FcntlInt(uintptr(req.NetNS.Fd()), unix.F_GETFD, 0); err != nil || flags&unix.FD_CLOEXEC == 0 {
		t.Errorf("children would inherit the namespace: flags %#x, %v", flags, err)
	}
	req.NetNS.Close()
	if err := s.Ack(nil); err != nil {
		t.Fatal(err)
	}
	if got := receive(t, agent); !bytes.Equal(got, []byte{0x0a, 0}) {
		t.Errorf("success is % x", got)
	}

	send(t, agent, []byte{0x1a, 0}, nil)
	if req, err := s.Next(t.Context()); err != nil || req.Kind != SnapshotSent {
		t.Fatalf("%+v, %v", req, err)
	}
	if err := s.Ack(errors.New("no")); err != nil {
		t.Fatal(err)
	}
	if got := receive(t, agent); !bytes.Equal(got, []byte("\x0a\x04\x0a\x02no")) {
		t.Errorf("refusal is % x", got)
	}
	if err := s.Ack(nil); err == nil {
		t.Error("answered twice")
	}

	agent.Close()
	if _, err := s.Next(t.Context()); !errors.Is(err, io.EOF) {
		t.Errorf("after the agent closed: %v", err)
	}
	if err := errors.Join(s.Close(), s.Close()); err != nil {
		t.Error(err)
	}
}

// TestWhatIsRefusedIsClosed sends, through a socket, what parse's table cannot
// have the kernel do.
func TestWhatIsRefusedIsClosed(t *testing.T) {
	own, err := os.Open(ownNetNS)
	if err != nil {
		t.Fatal(err)
	}
	defer own.Close()
	one, three := unix.UnixRights(int(own.Fd())), unix.UnixRights(int(own.Fd()), int(own.Fd()), int(own.Fd()))
	big := &zdspb.WorkloadInfo{Name: strings.Repeat("n", maxRequest)}
	for _, tc := range []struct {
		name      string
		data, oob []byte
		want      string
	}{
		{"too long", addPacket(t, "u", big), one, "received truncated message"},
		{"three descriptors", addPacket(t, "u", somebody), three, "Expected 1 FD, got 3"},
		{"no message", []byte{0x1a}, one, "cannot parse"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			leak.Check(t)
			s, agent := connected(t)
			send(t, agent, tc.data, tc.oob)
			_, err := s.Next(t.Context())
			var refused *MessageError
			if !errors.As(err, &refused) || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("%v, want %q", err, tc.want)
			}
			if err := s.Ack(err); err != nil {
				t.Errorf("cannot tell the agent: %v", err)
			}
		})
	}
	t.Run("empty packet", func(t *testing.T) {
		leak.Check(t)
		s, agent := connected(t)
		if _, err := agent.Write(nil); err != nil {
			t.Fatal(err)
		}
		if _, err := s.Next(t.Context()); !errors.Is(err, io.EOF) {
			t.Errorf("%v", err)
		}
	})
}

func TestTheLargestRequestFits(t *testing.T) {
	leak.Check(t)
	s, agent := connected(t)
	uid := strings.Repeat("u", maxRequest-6) // two tags and two lengths of two bytes
	data := append([]byte{0x12, 0x80 | byte((maxRequest-3)&0x7f), byte((maxRequest - 3) >> 7), 0x12, 0x80 | byte((maxRequest-6)&0x7f), byte((maxRequest - 6) >> 7)}, uid...)
	if len(data) != maxRequest {
		t.Fatalf("%d bytes", len(data))
	}
	send(t, agent, data, nil)
	if req, err := s.Next(t.Context()); err != nil || req.UID != uid {
		t.Errorf("%v %d, %v", req.Kind, len(req.UID), err)
	}
}

func TestNextEndsWithItsContext(t *testing.T) {
	leak.Check(t)
	s, agent := connected(t)
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	if _, err := s.Next(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Next = %v", err)
	}
	send(t, agent, []byte{0x1a, 0}, nil)
	if _, err := s.Next(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Next after the end = %v", err)
	}
}

func TestDialTellsNobodyThereFromNobodyListening(t *testing.T) {
	leak.Check(t)
	path := filepath.Join(t.TempDir(), "s")
	_, err := Dial(t.Context(), path)
	var hello *HelloError
	if err == nil || errors.As(err, &hello) {
		t.Errorf("no socket: %v", err)
	}
	// A listener that goes away with us in its queue resets the connection.
	l, err := net.ListenUnix("unixpacket", &net.UnixAddr{Net: "unixpacket", Name: path})
	if err != nil {
		t.Fatal(err)
	}
	s, err := Dial(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	l.Close()
	if _, err := s.Next(t.Context()); err == nil {
		t.Error("Next on a dead connection")
	}
}
