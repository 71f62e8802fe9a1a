// SPDX-License-Identifier: Apache-2.0

//go:debug fips140=on

package app

import (
	"bytes"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ztunnel-go/ztunnel/internal/logs"
	"github.com/ztunnel-go/ztunnel/test/leak"
)

// TestMain makes the test binary a proxy when its first argument is a command,
// for tests that want a process of its own.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 && !strings.HasPrefix(os.Args[1], "-") {
		os.Exit(Main(os.Args, ProcessEnv(), os.Stdout, os.Stderr))
	}
	os.Exit(m.Run())
}

// patience bounds whatever a test waits for.
const patience = 20 * time.Second

// output is what a Main prints, from any goroutine.
type output struct {
	mu  sync.Mutex
	buf bytes.Buffer // guarded by mu
}

func (o *output) Write(b []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.buf.Write(b)
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.buf.String()
}

func TestAProcessWithoutFIPSModeSaysWhoItIsAndDoesNotStart(t *testing.T) {
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	for format, lines := range map[string]string{
		"plain": `\S+\tinfo\tztunnel\tversion: version\.BuildInfo\{.*\}\t\n` +
			`\S+\tinfo\tztunnel\tset file descriptor limits from \d+ to \d+\t\n` +
			`\S+\tinfo\tztunnel\trunning with config: .*`,
		"json": `\{"level":"info","time":"[^"]+","scope":"ztunnel","message":"version: .*"\}\n` +
			`\{.*"message":"set file descriptor limits from \d+ to \d+"\}\n` +
			`\{.*"message":"running with config: .*`,
	} {
		cmd := exec.Command(exe, "proxy")
		cmd.Dir = t.TempDir()
		cmd.Env = []string{"GODEBUG=fips140=off", "FAKE_CA=true", "LOCAL_XDS={}", "XDS_ADDRESS=", "LOG_FORMAT=" + format}
		var stdout, stderr bytes.Buffer
		cmd.Stdout, cmd.Stderr = &stdout, &stderr
		err := cmd.Run()
		if cmd.ProcessState == nil || cmd.ProcessState.ExitCode() != 1 || !strings.HasPrefix(stderr.String(), "Error: the FIPS mode of crypto/tls is off") {
			t.Errorf("%v, %s", err, stderr.String())
		}
		if !regexp.MustCompile("^" + lines).Match(stdout.Bytes()) {
			t.Errorf("%s: %s", format, stdout.String())
		}
	}
}

// A stopping is a stopper with what it has said and done.
type stopping struct {
	*stopper
	out    output
	exited chan int
}

func newStopping(t *testing.T) *stopping {
	t.Helper()
	s := &stopping{exited: make(chan int, 1)}
	log, err := logs.New(logs.Config{Output: &s.out})
	if err != nil {
		t.Fatal(err)
	}
	if err := log.Close(); err != nil { // which ends buffering
		t.Fatal(err)
	}
	s.stopper = newStopper(log.Logger(), func(status int) { s.exited <- status })
	t.Cleanup(s.close)
	return s
}

// said waits for a line, which is there once.
func (s *stopping) said(t *testing.T, text string) {
	t.Helper()
	eventually(t, "it says "+text, func() bool { return strings.Contains(s.out.String(), text) })
	if n := strings.Count(s.out.String(), text); n != 1 {
		t.Errorf("it said so %d times: %s", n, text)
	}
}

func eventually(t *testing.T, what string, holds func() bool) {
	t.Helper()
	for end := time.Now().Add(patience); !holds(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("not so after %v: %s", patience, what)
		}
	}
}

func kill(t *testing.T, sig unix.Signal) {
	t.Helper()
	if err := unix.Kill(os.Getpid(), sig); err != nil {
		t.Fatal(err)
	}
}

func TestRequestsToStop(t *testing.T) {
	for _, first := range []unix.Signal{unix.SIGTERM, unix.SIGINT} {
		t.Run(unix.SignalName(first), func(t *testing.T) {
			leak.Check(t)
			s := newStopping(t)
			if s.ctx.Err() != nil {
				t.Fatal("it begins with the end")
			}
			kill(t, first)
			<-s.ctx.Done()
			s.said(t, "received signal "+unix.SignalName(first)+", starting shutdown")
			// From here on by hand: of two signals at the same time the kernel
			// makes one, and one that comes too late would end the test.
			s.signals <- unix.SIGTERM // says nothing more, and does nothing
			s.signals <- unix.SIGINT
			if first == unix.SIGTERM {
				s.signals <- unix.SIGINT
			}
			if status := <-s.exited; status != 0 {
				t.Errorf("exit with %d", status)
			}
			s.said(t, "starting shutdown")
		})
	}
	t.Run("page", func(t *testing.T) {
		leak.Check(t)
		s := newStopping(t)
		s.quit()
		<-s.ctx.Done()
		s.said(t, "received explicit shutdown signal")
	})
}

// freePorts are n different ports that nobody listens on, by any address.
func freePorts(t *testing.T, n int) []uint16 {
	t.Helper()
	var ports []uint16
	for range n {
		l, err := net.Listen("tcp", ":0")
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close() // all at the end, or one could come twice
		ports = append(ports, uint16(l.Addr().(*net.TCPAddr).Port))
	}
	return ports
}

// inDir is a path in a directory that ends with the test, short enough for a
// socket.
func inDir(t *testing.T, name string) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "zt")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return filepath.Join(dir, name)
}
