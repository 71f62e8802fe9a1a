// SPDX-License-Identifier: Apache-2.0

package relay_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"runtime"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ztunnel-go/ztunnel/dataplane/reactor"
	"github.com/ztunnel-go/ztunnel/dataplane/relay"
	"github.com/ztunnel-go/ztunnel/test/leak"
)

// pair is a TCP connection over loopback.
func pair(t *testing.T) (near, far *net.TCPConn) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	c, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	s, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close(); s.Close() })
	return c.(*net.TCPConn), s.(*net.TCPConn)
}

// A path is a client and a server with a relay between them.
type path struct {
	client, server *net.TCPConn
	sent, received atomic.Int64
	cancel         context.CancelCauseFunc
	done           chan error
	ends           relay.Ends
}

// startLoops is event loops for a test.
func startLoops(t *testing.T) *relay.Loops {
	t.Helper()
	group, err := reactor.Start(1)
	if err != nil {
		t.Fatal(err)
	}
	l := relay.NewLoops(group)
	t.Cleanup(func() {
		group.Close()
		l.Close()
	})
	return l
}

// eachWay has a test run with goroutines and with event loops.
func eachWay(t *testing.T, f func(t *testing.T, newPath func(*testing.T) *path)) {
	t.Run("goroutines", func(t *testing.T) { f(t, func(t *testing.T) *path { return newPathBy(t, false) }) })
	t.Run("loops", func(t *testing.T) { f(t, func(t *testing.T) *path { return newPathBy(t, true) }) })
}

func newPathBy(t *testing.T, loops bool) *path {
	t.Helper()
	leak.Check(t)
	// The runtime keeps the pipe of a splice until a collection or two.
	t.Cleanup(func() { runtime.GC(); runtime.GC() })
	client, a := pair(t)
	b, server := pair(t)
	ctx, cancel := context.WithCancelCause(t.Context())
	p := &path{client: client, server: server, cancel: cancel, done: make(chan error, 1)}
	counts := relay.Counts{
		Sent:     func(n int) { p.sent.Add(int64(n)) },
		Received: func(n int) { p.received.Add(int64(n)) },
		Ends:     &p.ends,
	}
	if loops {
		startLoops(t).Carry(ctx, relay.TCP(a), relay.TCP(b), counts, func(err error) { p.done <- err })
	} else {
		go func() { p.done <- relay.Copy(ctx, relay.TCP(a), relay.TCP(b), counts) }()
	}
	t.Cleanup(func() { cancel(errors.New("test is over")) })
	for _, c := range []*net.TCPConn{client, server} {
		if err := c.SetDeadline(time.Now().Add(20 * time.Second)); err != nil {
			t.Fatal(err)
		}
	}
	return p
}

func (p *path) wait(t *testing.T) error {
	t.Helper()
	select {
	case err := <-p.done:
		return err
	case <-time.After(15 * time.Second):
		t.Fatal("the relay did not end")
		return nil
	}
}

func write(t *testing.T, w io.Writer, s string) {
	t.Helper()
	if _, err := io.WriteString(w, s); err != nil {
		t.Fatal(err)
	}
}

func expect(t *testing.T, r io.Reader, want string) {
	t.Helper()
	got := make([]byte, len(want))
	if _, err := io.ReadFull(r, got); err != nil || string(got) != want {
		t.Fatalf("read %q, %v; want %q", got, err, want)
	}
}

func expectEnd(t *testing.T, r io.Reader) {
	t.Helper()
	if n, err := r.Read(make([]byte, 1)); n != 0 || !errors.Is(err, io.EOF) {
		t.Fatalf("read %d, %v; want the end", n, err)
	}
}

func expectReset(t *testing.T, r io.Reader) {
	t.Helper()
	if n, err := r.Read(make([]byte, 1)); n != 0 || !errors.Is(err, syscall.ECONNRESET) {
		t.Fatalf("read %d, %v; want a reset", n, err)
	}
}

func TestEachDirectionEndsOnItsOwn(t *testing.T) {
	eachWay(t, func(t *testing.T, newPath func(*testing.T) *path) {
		for name, order := range map[string]func(p *path) (first, second *net.TCPConn){
			"client first": func(p *path) (*net.TCPConn, *net.TCPConn) { return p.client, p.server },
			"server first": func(p *path) (*net.TCPConn, *net.TCPConn) { return p.server, p.client },
		} {
			t.Run(name, func(t *testing.T) {
				p := newPath(t)
				first, second := order(p)
				write(t, first, "one")
				expect(t, second, "one")
				if err := first.CloseWrite(); err != nil {
					t.Fatal(err)
				}
				expectEnd(t, second)
				write(t, second, "two, after the other end")
				expect(t, first, "two, after the other end")
				if err := second.CloseWrite(); err != nil {
					t.Fatal(err)
				}
				expectEnd(t, first)
				if err := p.wait(t); err != nil {
					t.Fatal(err)
				}
				if s, r := p.sent.Load(), p.received.Load(); s+r != 27 {
					t.Errorf("counted %d and %d", s, r)
				}
			})
		}
	})
}

func TestBothDirectionsEndAtOnce(t *testing.T) {
	eachWay(t, func(t *testing.T, newPath func(*testing.T) *path) {
		p := newPath(t)
		p.client.CloseWrite()
		p.server.CloseWrite()
		expectEnd(t, p.client)
		expectEnd(t, p.server)
		if err := p.wait(t); err != nil {
			t.Fatal(err)
		}
	})
}

func reset(c *net.TCPConn) {
	c.SetLinger(0)
	c.Close()
}

func TestAResetIsPassedOn(t *testing.T) {
	eachWay(t, func(t *testing.T, newPath func(*testing.T) *path) {
		for name, ends := range map[string]func(p *path) (from, to *net.TCPConn){
			"client": func(p *path) (*net.TCPConn, *net.TCPConn) { return p.client, p.server },
			"server": func(p *path) (*net.TCPConn, *net.TCPConn) { return p.server, p.client },
		} {
			t.Run(name, func(t *testing.T) {
				p := newPath(t)
				from, to := ends(p)
				write(t, from, "before")
				expect(t, to, "before")
				reset(from)
				expectReset(t, to)
				err := p.wait(t)
				var e *relay.Error
				if !errors.As(err, &e) || e.Sending != (name == "client") || !errors.Is(err, syscall.ECONNRESET) {
					t.Errorf("ended with %v", err)
				}
				if !relay.Quiet(err) {
					t.Errorf("%v is not quiet", err)
				}
			})
			t.Run(name+" after its end", func(t *testing.T) {
				p := newPath(t)
				from, to := ends(p)
				from.CloseWrite()
				expectEnd(t, to)
				reset(from)
				eventuallyBroken(t, to)
				if err := p.wait(t); !errors.Is(err, syscall.ECONNRESET) {
					t.Errorf("ended with %v", err)
				}
			})
			t.Run(name+" after the other's end", func(t *testing.T) {
				p := newPath(t)
				from, to := ends(p)
				to.CloseWrite()
				expectEnd(t, from)
				reset(from)
				expectReset(t, to)
				if err := p.wait(t); !errors.Is(err, syscall.ECONNRESET) {
					t.Errorf("ended with %v", err)
				}
			})
		}
	})
}

// eventuallyBroken waits until the kernel has c in error, without writing to
// it: the relay must find out by itself.
func eventuallyBroken(t *testing.T, c *net.TCPConn) {
	t.Helper()
	raw, err := c.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	broken := false
	for deadline := time.Now().Add(10 * time.Second); !broken && time.Now().Before(deadline); time.Sleep(time.Millisecond) {
		raw.Control(func(fd uintptr) {
			fds := []unix.PollFd{{Fd: int32(fd)}}
			unix.Poll(fds, 0)
			broken = fds[0].Revents&unix.POLLERR != 0
		})
	}
	if !broken {
		t.Fatal("never reset")
	}
}

func TestACloseWithUnreadBytesIsAReset(t *testing.T) {
	eachWay(t, func(t *testing.T, newPath func(*testing.T) *path) {
		p := newPath(t)
		write(t, p.client, "nobody reads this")
		for p.sent.Load() == 0 {
			time.Sleep(time.Millisecond)
		}
		p.server.Close() // Linux answers RST: bytes are unread
		expectReset(t, p.client)
		if err := p.wait(t); !relay.Quiet(err) || err == nil {
			t.Errorf("ended with %v", err)
		}
	})
}

func TestTheAnswerBeforeAResetArrives(t *testing.T) {
	eachWay(t, func(t *testing.T, newPath func(*testing.T) *path) {
		p := newPath(t)
		write(t, p.server, "goodbye")
		for p.received.Load() < 7 {
			time.Sleep(time.Millisecond)
		}
		reset(p.server)
		expect(t, p.client, "goodbye")
		expectReset(t, p.client)
		p.wait(t)
	})
}

func TestTheContextResetsBoth(t *testing.T) {
	eachWay(t, func(t *testing.T, newPath func(*testing.T) *path) {
		p := newPath(t)
		write(t, p.client, "x")
		expect(t, p.server, "x")
		cause := errors.New("connection closed due to policy change")
		p.cancel(cause)
		expectReset(t, p.client)
		expectReset(t, p.server)
		if err := p.wait(t); !errors.Is(err, cause) {
			t.Errorf("ended with %v", err)
		}
	})
}

func TestTheContextEndsAStalledRelay(t *testing.T) {
	eachWay(t, func(t *testing.T, newPath func(*testing.T) *path) {
		p := newPath(t)
		go func() {
			junk := make([]byte, 1<<20)
			for {
				if _, err := p.client.Write(junk); err != nil {
					return
				}
			}
		}()
		for last := int64(-1); last != p.sent.Load(); time.Sleep(50 * time.Millisecond) {
			last = p.sent.Load()
		}
		p.cancel(errors.New("enough"))
		if err := p.wait(t); err == nil || err.Error() != "enough" {
			t.Errorf("ended with %v", err)
		}
		p.client.Close()
	})
}

func TestBulkIsWholeAndCountedLive(t *testing.T) {
	eachWay(t, func(t *testing.T, newPath func(*testing.T) *path) {
		p := newPath(t)
		const size = 64 << 20
		data := make([]byte, size)
		rng := rand.New(rand.NewPCG(1, 2))
		for i := 0; i < size; i += 8 {
			v := rng.Uint64()
			for j := range 8 {
				data[i+j] = byte(v >> (8 * j))
			}
		}
		want := sha256.Sum256(data)
		go func() {
			io.Copy(p.client, bytes.NewReader(data))
			p.client.CloseWrite()
		}()
		h := sha256.New()
		if _, err := io.CopyN(h, p.server, size/2); err != nil {
			t.Fatal(err)
		}
		if n := p.sent.Load(); n < size/4 {
			t.Errorf("half has arrived, and %d bytes are counted", n)
		}
		if _, err := io.Copy(h, p.server); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(h.Sum(nil), want[:]) {
			t.Error("the bytes differ")
		}
		p.server.CloseWrite()
		if err := p.wait(t); err != nil {
			t.Fatal(err)
		}
		if n := p.sent.Load(); n != size {
			t.Errorf("counted %d of %d", n, size)
		}
	})
}

// fakeConn is a Conn that is neither TCP nor a stream.
type fakeConn struct {
	io.Reader
	io.Writer
	err    error
	resets atomic.Int32
}

func (f *fakeConn) CloseWrite() error { return f.err }
func (f *fakeConn) Reset()            { f.resets.Add(1) }
func (f *fakeConn) Close() error      { return nil }

type complaint struct{}

func (complaint) Error() string { return "stream reset by peer: INTERNAL_ERROR" }
func (complaint) Quiet() bool   { return false }

func TestErrorsReadAsTheContractSays(t *testing.T) {
	for _, tc := range []struct {
		name             string
		client, upstream *fakeConn
		want             string
		quiet            bool
	}{
		{"all well", &fakeConn{Reader: bytes.NewReader(nil), Writer: io.Discard}, &fakeConn{Reader: bytes.NewReader(nil), Writer: io.Discard}, "", true},
		{
			"upstream complains", &fakeConn{Reader: bytes.NewReader(nil), Writer: io.Discard},
			&fakeConn{Reader: failing{complaint{}}, Writer: io.Discard}, "receive: stream reset by peer: INTERNAL_ERROR", false,
		},
		{
			"client breaks", &fakeConn{Reader: failing{syscall.ECONNRESET}, Writer: io.Discard},
			&fakeConn{Reader: bytes.NewReader(nil), Writer: io.Discard}, "send: connection reset by peer", true,
		},
		{
			"closing fails", &fakeConn{Reader: bytes.NewReader(nil), Writer: io.Discard},
			&fakeConn{Reader: bytes.NewReader(nil), Writer: io.Discard, err: errors.New("no")}, "while closing connection: no", false,
		},
	} {
		t.Run(tc.name, func(t *testing.T) {
			err := relay.Copy(t.Context(), tc.client, tc.upstream, relay.Counts{})
			got := ""
			if err != nil {
				got = err.Error()
			}
			if got != tc.want || relay.Quiet(err) != tc.quiet {
				t.Errorf("%q, quiet %v", got, relay.Quiet(err))
			}
		})
	}
}

type failing struct{ err error }

func (f failing) Read([]byte) (int, error) { return 0, f.err }
