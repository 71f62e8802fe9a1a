// SPDX-License-Identifier: Apache-2.0

package handover

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ztunnel-go/ztunnel/test/leak"
)

// How a taker in another process misbehaves, and when.
const (
	childVariable = "HANDOVER_TEST_CHILD"
	pathVariable  = "HANDOVER_TEST_SOCKET"
)

func TestMain(m *testing.M) {
	if fault := os.Getenv(childVariable); fault != "" {
		os.Exit(child(fault, os.Getenv(pathVariable)))
	}
	os.Exit(m.Run())
}

// child takes over and fails on the way.
func child(fault, path string) int {
	if fault == "gives and dies" {
		return givingChild(path)
	}
	die := func() { _ = unix.Kill(os.Getpid(), unix.SIGKILL) }
	began := make(chan int, 8)
	if fault == "few descriptors" {
		limit := unix.Rlimit{Cur: 14, Max: 14}
		if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
			return 2
		}
	}
	n, err := Dial(context.Background(), NewConfig{
		Path: path, Logger: slog.New(slog.DiscardHandler),
		Check: func(uint64, *Tunnel) error {
			switch fault {
			case "dies with a lot":
				die()
			case "exits with a lot":
				os.Exit(0)
			case "stops with a lot":
				runtime.LockOSThread() // a signal to the thread itself stops it before the call returns
				_ = unix.Tgkill(os.Getpid(), unix.Gettid(), unix.SIGSTOP)
				runtime.UnlockOSThread()
			case "refuses":
				return errors.New("no")
			}
			return nil
		},
		Begin: func(_ uint64, lot []*Tunnel) {
			for _, t := range lot {
				unix.Write(t.FDs[0], []byte("new"))
				t.Close()
			}
			began <- len(lot)
		},
	})
	if err != nil {
		return 3
	}
	switch fault {
	case "dies at once":
		die()
	case "hangs up":
		n.Close()
		return 0
	}
	if _, err := n.Take(context.Background(), 7); err != nil {
		return 4
	}
	return 0
}

// givingChild is an old process that dies when it is about to commit a lot.
func givingChild(path string) int {
	pod := &shelf{}
	pod.put()
	o, err := Listen(OldConfig{Path: path, Logger: slog.New(slog.DiscardHandler), Pod: func(uint64) Pod { return doomed{pod} }})
	if err != nil {
		return 2
	}
	o.running.Wait()
	return 0
}

// doomed kills its process between Restored and Commit.
type doomed struct{ *shelf }

func (d doomed) Resume(lot []*Tunnel, refused bool) {
	if d.no++; d.no == 2 { // the first is for what the other process does not know enough for
		_ = unix.Kill(os.Getpid(), unix.SIGKILL)
		select {}
	}
}

// A shelf is a pod with tunnels that are nothing but a socket.
type shelf struct {
	mu                sync.Mutex
	there             []*Tunnel
	resumed, gone, no int // tunnels
}

// put has another tunnel there, and returns what its peer holds.
func (s *shelf) put() *os.File {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		panic(err)
	}
	lot := sample()
	tunnel := lot[0]
	tunnel.Image.Streams, tunnel.Connections, tunnel.FDs = nil, nil, []int{fds[0]}
	tunnel.Image.Frame.Fault = nil
	s.mu.Lock()
	defer s.mu.Unlock()
	s.there = append(s.there, tunnel)
	return os.NewFile(uintptr(fds[1]), "peer")
}

func (s *shelf) Stop(limit Limit) ([]*Tunnel, int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	lot := s.there[:min(len(s.there), limit.Tunnels)]
	s.there = s.there[len(lot):]
	return lot, 0
}

func (s *shelf) Resume(lot []*Tunnel, refused bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, t := range lot {
		unix.Write(t.FDs[0], []byte("old"))
		if s.resumed++; refused {
			s.no++
		}
		t.Close()
	}
}

func (s *shelf) Forget(lot []*Tunnel) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, t := range lot {
		s.gone++
		t.Close()
	}
}

func socketPath(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "h")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return filepath.Join(dir, "s")
}

// listenWith is an old process with one pod, number 7.
func listenWith(t *testing.T, path string, pod Pod) *Old {
	t.Helper()
	o, err := Listen(OldConfig{Path: path, Logger: slog.New(slog.DiscardHandler), Pod: func(netns uint64) Pod {
		if netns == 7 {
			return pod
		}
		return nil
	}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(o.Close)
	return o
}

// TestWhateverTheNextProcessDoesATunnelHasOneOwner has it fail at every step:
// what the peer of each tunnel hears is from one of the two, never both.
func TestWhateverTheNextProcessDoesATunnelHasOneOwner(t *testing.T) {
	for fault, owner := range map[string]string{
		"nothing": "new", "dies at once": "", "hangs up": "", "dies with a lot": "old", "exits with a lot": "old",
		"stops with a lot": "old", "refuses": "old", "few descriptors": "old",
	} {
		t.Run(fault, func(t *testing.T) {
			t.Parallel()
			path, pod := socketPath(t), &shelf{}
			var peers []*os.File
			for range 20 {
				peers = append(peers, pod.put())
			}
			o := listenWith(t, path, pod)
			cmd := exec.Command(os.Args[0])
			cmd.Env = append(os.Environ(), childVariable+"="+fault, pathVariable+"="+path)
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			ended := make(chan struct{})
			go func() {
				_ = cmd.Wait() // its end is its fault
				close(ended)
			}()
			defer func() {
				_ = cmd.Process.Kill() // it may be stopped
				<-ended
			}()
			if owner == "" {
				<-ended
				awaitThat(t, "the conversation is over", func() bool { return !o.Talks() })
				for _, p := range peers {
					p.Close()
				}
				for _, tunnel := range pod.there {
					tunnel.Close()
				}
				return
			}
			awaitThat(t, "every tunnel has an owner", func() bool {
				pod.mu.Lock()
				defer pod.mu.Unlock()
				return pod.resumed+pod.gone == len(peers)
			})
			if fault == "stops with a lot" { // what it does when it goes on is nothing
				awaitThat(t, "it has ended", func() bool {
					_ = cmd.Process.Signal(unix.SIGCONT) // it may have been too slow to stop yet
					select {
					case <-ended:
						return true
					default:
						return false
					}
				})
			}
			for _, p := range peers {
				if heard := hears(t, p); heard != owner {
					t.Errorf("a peer hears %q, not %q", heard, owner)
				}
			}
		})
	}
}

// hears is all that the owner of a tunnel says, to the end.
func hears(t *testing.T, p *os.File) string {
	t.Helper()
	defer p.Close()
	var all strings.Builder
	b := make([]byte, 64)
	for {
		n, err := p.Read(b)
		all.Write(b[:n])
		if err != nil {
			return all.String()
		}
	}
}

func awaitThat(t *testing.T, what string, holds func() bool) {
	t.Helper()
	for deadline := time.Now().Add(30 * time.Second); !holds(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("not so in time: %s", what)
		}
	}
}

func TestWhoIsNobodyIsAColdStart(t *testing.T) {
	leak.Check(t)
	path := socketPath(t)
	if _, err := Dial(t.Context(), NewConfig{Path: path}); !errors.Is(err, ErrNobody) {
		t.Errorf("without a socket: %v", err)
	}
	l, err := net.ListenUnix("unixpacket", &net.UnixAddr{Name: path, Net: "unixpacket"})
	if err != nil {
		t.Fatal(err)
	}
	l.SetUnlinkOnClose(false)
	l.Close()
	if _, err := Dial(t.Context(), NewConfig{Path: path}); !errors.Is(err, ErrNobody) {
		t.Errorf("without a listener: %v", err)
	}
}

func TestTheSocketIsForItsOwnerAlone(t *testing.T) {
	leak.Check(t)
	path := socketPath(t)
	nested := filepath.Join(filepath.Dir(path), "new", "s")
	listenWith(t, nested, &shelf{}).Close()
	for name, want := range map[string]os.FileMode{nested: 0o600, filepath.Dir(nested): 0o700} {
		info, err := os.Stat(name)
		if err != nil {
			t.Fatal(err)
		}
		if got := info.Mode().Perm(); got != want {
			t.Errorf("%s has mode %v", name, got)
		}
	}
	taken := filepath.Join(filepath.Dir(path), "taken") // by a directory, which no rename replaces
	if err := os.MkdirAll(filepath.Join(taken, "x"), 0o700); err != nil {
		t.Fatal(err)
	}
	if o, err := Listen(OldConfig{Path: taken}); err == nil {
		o.Close()
		t.Error("it listens where nobody finds it")
	}
	open := filepath.Join(filepath.Dir(path), "open")
	if err := os.Mkdir(open, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(open, 0o777); err != nil {
		t.Fatal(err)
	}
	if o, err := Listen(OldConfig{Path: filepath.Join(open, "s")}); err == nil {
		o.Close()
		t.Error("it listens where others could put another socket")
	}
}

func TestASecondSuccessorIsRefused(t *testing.T) {
	leak.Check(t)
	path, pod := socketPath(t), &shelf{}
	o := listenWith(t, path, pod)
	cfg := NewConfig{Path: path, Logger: slog.New(slog.DiscardHandler)}
	first, err := Dial(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	if n, err := Dial(t.Context(), cfg); err == nil || !strings.Contains(err.Error(), "another process") {
		t.Errorf("the second: %v, %v", n, err)
	}
	if first.Generation() != 1 {
		t.Errorf("generation %d", first.Generation())
	}
	if sum, err := first.Take(t.Context(), 99); err != nil || sum != (Summary{}) {
		t.Errorf("a pod that nobody knows: %v, %v", sum, err)
	}
	first.Close()
	o.Close()
}

func TestCgroupsOfPodsOfOneDaemonSetAreBesideEachOther(t *testing.T) {
	for _, tc := range []struct {
		ours, theirs string
		want         bool
	}{
		{"/", "/", true},
		{"/user.slice/x", "/user.slice/x", true},
		{"/kube/podA/c1", "/kube/podB/c2", true},
		{"/kube/podA/c1", "/kube/podA/c2", true},
		{"/", "/../../podB/c2", true},
		{"/", "/../c2", true},
		{"/kube/podA/c1", "/kube/podB", false},
		{"/kube/podA/c1", "/other/podB/c2", false},
		{"/", "/../../../other/podB/c2", false},
		{"/", "/../../podB", false},
		{"/a/b/c", "/a/x/y/z", false},
	} {
		if got := beside(tc.ours, tc.theirs); got != tc.want {
			t.Errorf("%s and %s: %v", tc.ours, tc.theirs, got)
		}
	}
}

func TestWhoIsAnotherProgramIsRefused(t *testing.T) {
	sleeper := exec.Command("sleep", "60")
	if err := sleeper.Start(); err != nil {
		t.Fatal(err)
	}
	defer sleeper.Wait()
	defer sleeper.Process.Kill()
	p := &peer{pid: sleeper.Process.Pid}
	awaitThat(t, "it runs", func() bool { name, _ := programOf(fmt.Sprint(p.pid)); return name == "sleep" || name == "coreutils" })
	var err error
	if p.pidfd, err = unix.PidfdOpen(p.pid, 0); err != nil {
		t.Fatal(err)
	}
	defer p.close()
	if err := p.admissible(os.Geteuid()); err == nil || !strings.Contains(err.Error(), "runs ") {
		t.Errorf("admitted: %v", err)
	}
	if err := p.admissible(os.Geteuid() + 1); err == nil || !strings.Contains(err.Error(), "user") {
		t.Errorf("of another user: %v", err)
	}
	if err := (&peer{}).admissible(os.Geteuid()); err == nil || !strings.Contains(err.Error(), "hostPID") {
		t.Errorf("without a number: %v", err)
	}
}
