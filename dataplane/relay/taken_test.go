// SPDX-License-Identifier: Apache-2.0

package relay

import (
	"context"
	"errors"
	"io"
	"net"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestAResetIsKnownThoughAnotherCallWasTold has the error of a reset go to
// another call than the read, as it does when the other direction writes at
// that moment: the read sees a mere end.
func TestAResetIsKnownThoughAnotherCallWasTold(t *testing.T) {
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	ours, err := new(net.Dialer).DialContext(context.Background(), "tcp4", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer ours.Close()
	theirs, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	theirs.(*net.TCPConn).SetLinger(0)
	theirs.Close()
	raw, err := ours.(*net.TCPConn).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(10 * time.Second); ; {
		code := 0
		raw.Control(func(fd uintptr) { code, _ = unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_ERROR) })
		if code == int(unix.ECONNRESET) {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("the reset did not arrive")
		}
		time.Sleep(time.Millisecond)
	}
	if n, err := ours.Read(make([]byte, 1)); n != 0 || !errors.Is(err, io.EOF) {
		t.Fatalf("read %d, %v: the error was still there, so this shows nothing", n, err)
	}
	c := TCP(ours.(*net.TCPConn)).(*tcp)
	if err := c.howEnded(raw); !errors.Is(err, unix.ECONNRESET) {
		t.Errorf("it ended with %v", err)
	}
}
