// SPDX-License-Identifier: Apache-2.0

package engine

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"os"
	"os/exec"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ztunnel-go/ztunnel/dataplane/hbone/wire"
	"github.com/ztunnel-go/ztunnel/dataplane/reactor"
	"github.com/ztunnel-go/ztunnel/dataplane/relay"
)

// A mover takes a tunnel out and puts it in again, as often as it is asked.
type mover struct {
	*rig
	cfg   Config
	done  chan error
	moves int
}

func (m *mover) adopter() Adopter {
	return Adopter{
		Joint: func(StreamImage) relay.Join { return relay.Join{Done: func(err error) { m.done <- err }} },
		Answer: func(_ *Stream, _ wire.Response, err error) {
			if err != nil {
				m.Errorf("answer: %v", err)
			}
		},
	}
}

func (m *mover) move(t *Tunnel) *Tunnel {
	m.Helper()
	img, fds, err := t.Export()
	if err != nil {
		m.Fatalf("after %d moves: %v", m.moves, err)
	}
	if err := t.Wait(); !errors.Is(err, ErrMoved) {
		m.Fatalf("the old one ended with %v", err)
	}
	moved, err := m.engine.Import(again(m, img), fds, m.cfg, m.adopter())
	if err != nil {
		m.Fatalf("after %d moves: %v", m.moves, err)
	}
	m.moves++
	return moved
}

// again is an image that was written down and read.
func again(t testing.TB, img *Image) *Image {
	t.Helper()
	b, err := json.Marshal(img)
	if err != nil {
		t.Fatal(err)
	}
	var read Image
	if err := json.Unmarshal(b, &read); err != nil {
		t.Fatal(err)
	}
	return &read
}

func unixPair(t testing.TB) (a, b int) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	return fds[0], fds[1]
}

// A wire that lets bytes pass one by one: what one end says, in the direction
// that is being looked at, waits for step.
type slowWire struct {
	from, to *os.File
}

func (w *slowWire) step() bool {
	var b [1]byte
	w.from.SetReadDeadline(time.Now().Add(20 * time.Millisecond))
	if n, err := w.from.Read(b[:]); n == 0 || err != nil {
		return false
	}
	_, err := w.to.Write(b[:])
	return err == nil
}

// The tunnel is moved after each single byte that it receives, as server and
// as client, while bytes pass both ways. Not one may be lost.
func TestATunnelMovesAfterEveryByte(t *testing.T) {
	for _, server := range []bool{true, false} {
		r := newRig(t)
		near, far := pair(t)
		cs, ss := r.sessions(near, far)
		near.Close()
		far.Close()
		a, aOuter := unixPair(t)
		b, bOuter := unixPair(t)
		wires := []*os.File{os.NewFile(uintptr(aOuter), "a"), os.NewFile(uintptr(bOuter), "b")}
		for _, f := range wires {
			defer f.Close()
		}
		m := &mover{rig: r, done: make(chan error, 2)}
		requests := make(chan *Request, 1000)
		serverCfg := Config{Request: func(q *Request) { requests <- q }}
		client := r.engine.Client(a, cs, Config{})
		srv := r.engine.Server(b, ss, serverCfg)
		m.cfg = serverCfg

		// What the side that is moved says passes freely; what it hears does not.
		slow, fast := &slowWire{wires[0], wires[1]}, &slowWire{wires[1], wires[0]}
		if !server {
			m.cfg = Config{}
			slow, fast = fast, slow
		}
		var copying sync.WaitGroup
		copying.Go(func() { io.Copy(fast.to, fast.from) })

		data := noise(9, 1500)
		var apps [2]*net.TCPConn
		var opened sync.WaitGroup
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		defer cancel()
		opened.Go(func() {
			s, _, err := client.Open(ctx, wire.Request{Authority: "10.0.0.1:80", Baggage: "k=v"})
			if server {
				if err != nil {
					t.Error(err)
					return
				}
				apps[0], _, _, _ = r.joined(s, true)
				apps[0].Write(data)
				apps[0].CloseWrite()
			}
		})
		for asked := make(chan bool, 1); ; time.Sleep(time.Millisecond) { // who moves first refuses the request
			client.do(func() { asked <- len(client.streams) > 0 })
			if await(t, asked) {
				break
			}
		}
		moved := client
		if server {
			moved = srv
		}
		var got bytes.Buffer
		answered, idle := false, 0
		for deadline := time.Now().Add(patience); (!answered || idle < 60) && time.Now().Before(deadline); {
			if slow.step() {
				idle = 0
				moved = m.move(moved)
			} else {
				idle++
			}
			select {
			case q := <-requests:
				if answered || server && q.stream.t != moved { // an earlier life's
					q.Release()
					continue
				}
				answered = true
				s := q.Accept(nil)
				app, inner := pair(t)
				s.Join(relay.Join{FD: take(t, inner), Done: func(err error) { m.done <- err }})
				q.Release()
				apps[1] = app
				if !server {
					app.Write(data)
					app.CloseWrite()
				}
			default:
			}
		}
		if server {
			opened.Wait()
			io.Copy(&got, apps[1])
			apps[1].CloseWrite()
			if err := await(t, m.done); err != nil {
				t.Errorf("far: %v", err)
			}
			if !bytes.Equal(got.Bytes(), data) {
				t.Errorf("server: %d of %d bytes after %d moves", got.Len(), len(data), m.moves)
			}
		}
		if !server {
			seen := make(chan struct{})
			moved.do(func() {
				for _, s := range moved.streams {
					for _, b := range s.queue.slices(nil) {
						got.Write(b)
					}
				}
				close(seen)
			})
			await(t, seen)
			if !bytes.Equal(got.Bytes(), data) {
				t.Errorf("client: %d of %d bytes after %d moves", got.Len(), len(data), m.moves)
			}
		}
		if m.moves < 200 {
			t.Errorf("server %v: only %d moves", server, m.moves)
		}
		t.Logf("server %v: %d moves", server, m.moves)
		cancel() // nobody answers an opener whose tunnel has moved
		moved.Close()
		client.EndWith(wire.ErrClosed)
		srv.EndWith(wire.ErrClosed)
		for _, f := range wires {
			f.Close()
		}
		copying.Wait()
		opened.Wait()
		client.Wait()
		srv.Wait()
	}
}

const childVariable = "ENGINE_TEST_CHILD"

func TestMain(m *testing.M) {
	if os.Getenv(childVariable) != "" {
		os.Exit(child())
	}
	os.Exit(m.Run())
}

// child is the other process: it takes a tunnel over from descriptor 3, and
// carries it to its end.
func child() int {
	conn, err := net.FileConn(os.NewFile(3, "control"))
	if err != nil {
		return 2
	}
	control := conn.(*net.UnixConn)
	image := make([]byte, 8<<20)
	oob := make([]byte, 4096)
	n, oobn, _, _, err := control.ReadMsgUnix(image[:1], oob)
	if n != 1 || err != nil {
		return 3
	}
	var img Image
	if err := json.NewDecoder(control).Decode(&img); err != nil {
		return 4
	}
	messages, err := unix.ParseSocketControlMessage(oob[:oobn])
	if err != nil || len(messages) != 1 {
		return 5
	}
	fds, err := unix.ParseUnixRights(&messages[0])
	if err != nil {
		return 6
	}
	group, err := reactor.Start(1)
	if err != nil {
		return 7
	}
	defer group.Close()
	done := make(chan error, 10)
	t, err := New(group).Import(&img, fds, Config{Request: func(q *Request) { q.Reject(503); q.Release() }}, Adopter{
		Joint: func(StreamImage) relay.Join { return relay.Join{Done: func(err error) { done <- err }} },
	})
	if err != nil {
		return 8
	}
	if err := <-done; err != nil {
		return 9
	}
	t.Wait()
	return 0
}

// A tunnel is handed to another process in the middle of a transfer.
func TestATunnelMovesToAnotherProcess(t *testing.T) {
	r := newRig(t)
	e := through(r, wire.Settings{})
	const size = 24 << 20
	up, down := noise(5, size), noise(6, size/2)
	var wg sync.WaitGroup
	var passed atomic.Int64
	transfer := func(from, to *net.TCPConn, b []byte) {
		wg.Go(func() {
			from.Write(b)
			from.CloseWrite()
		})
		wg.Go(func() {
			if got, err := io.ReadAll(io.TeeReader(to, counter{&passed})); err != nil || !bytes.Equal(got, b) {
				t.Errorf("%d bytes of %d, %v", len(got), len(b), err)
			}
		})
	}
	transfer(e.near, e.far, up)
	transfer(e.far, e.near, down)
	for deadline := time.Now().Add(patience); passed.Load() < size/8; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("nothing passes")
		}
	}
	img, fds, err := e.server.Export()
	if err != nil {
		t.Fatal(err)
	}
	wait := hand(t, img, fds)
	wg.Wait()
	if err := await(t, e.nearDone); err != nil {
		t.Errorf("near: %v", err)
	}
	e.client.Close()
	if err := wait(); err != nil {
		t.Errorf("the other process: %v", err)
	}
}

type counter struct{ n *atomic.Int64 }

func (c counter) Write(p []byte) (int, error) {
	c.n.Add(int64(len(p)))
	return len(p), nil
}

// hand sends a tunnel to a new process, whose end the function returned waits
// for.
func hand(t *testing.T, img *Image, fds []int) func() error {
	t.Helper()
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	theirs := os.NewFile(uintptr(pair[1]), "theirs")
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), childVariable+"=1")
	cmd.ExtraFiles = []*os.File{theirs}
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	theirs.Close()
	if err := unix.Sendmsg(pair[0], []byte{0}, unix.UnixRights(fds...), nil, 0); err != nil {
		t.Fatal(err)
	}
	for _, fd := range fds {
		unix.Close(fd)
	}
	ours := os.NewFile(uintptr(pair[0]), "ours")
	defer ours.Close()
	if err := json.NewEncoder(ours).Encode(img); err != nil {
		t.Fatal(err)
	}
	return cmd.Wait
}

func TestWhatIsNoImageIsRefused(t *testing.T) {
	r := newRig(t)
	for name, img := range map[string]*Image{
		"no descriptors":  {Plain: true},
		"no suite":        {},
		"a long preface":  {Plain: true, Frame: FrameImage{Preface: 100}},
		"two for one":     {Plain: true, Streams: []StreamImage{{ID: 1, Joint: &JointImage{FD: 0}}}},
		"one that is not": {Plain: true, Streams: []StreamImage{{ID: 1, Joint: &JointImage{FD: 7}}}},
	} {
		var fds []int
		if name != "no descriptors" {
			a, b := unixPair(t)
			fds = []int{a, b}
		}
		if _, err := r.engine.Import(img, fds, Config{}, Adopter{}); err == nil {
			t.Errorf("%s: taken", name)
		}
	}
}

func TestATunnelThatGoroutinesReadStays(t *testing.T) {
	r := newRig(t)
	client, _ := r.tunnels(wire.Settings{}, func(q *Request) {
		s := q.Accept(nil)
		io.Copy(s, s)
		s.CloseWrite()
	})
	s, _, err := client.Open(within(t), wire.Request{Authority: "10.0.0.1:80"})
	if err != nil {
		t.Fatal(err)
	}
	read := make(chan error, 1)
	go func() {
		_, err := io.ReadAll(s)
		read <- err
	}()
	reading := func() bool {
		n := make(chan int)
		client.do(func() {
			if s.waits == nil {
				n <- 0
				return
			}
			n <- len(s.waits.readers)
		})
		return <-n > 0
	}
	for deadline := time.Now().Add(patience); !reading() && time.Now().Before(deadline); {
		time.Sleep(time.Millisecond)
	}
	if _, _, err := client.Export(); !errors.Is(err, ErrImmovable) {
		t.Fatalf("moved: %v", err)
	}
	if _, err := s.Write([]byte("x")); err != nil {
		t.Fatal(err)
	}
	s.CloseWrite()
	if err := await(t, read); err != nil {
		t.Error(err)
	}
}
