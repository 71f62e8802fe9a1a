// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"runtime/debug"
	"strings"
	"sync"
	"time"

	"github.com/ztunnel-go/ztunnel/test/netlab"
)

// loadName is argv[0] of a child that generates load instead of measuring. Its
// one argument is a job, or none for the servers of a pod.
const loadName = "bench-load"

// Lines that children print.
const (
	readyLine = "ready" // sockets are bound
	beginLine = "begin" // what is counted begins
	overLine  = "over"  // and is over; the outcome follows
)

// maxThreads is more than any child has.
const maxThreads = 256

// generate does what a child is for, and does not return in one.
func generate() {
	if os.Args[0] != loadName {
		return
	}
	runtime.GOMAXPROCS(maxThreads)
	debug.SetGCPercent(-1)
	var err error
	if len(os.Args) == 1 {
		err = serve()
	} else {
		var j job
		if err = json.Unmarshal([]byte(os.Args[1]), &j); err == nil {
			err = j.run()
		}
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(0)
}

// A generator is such a child.
type generator struct {
	cmd    *exec.Cmd
	stdin  io.WriteCloser
	stdout *os.File
	lines  *bufio.Reader
	stderr strings.Builder
	once   sync.Once
	err    error
}

// start runs a child in a pod.
func start(p *netlab.Pod, args ...string) (*generator, error) {
	g := &generator{cmd: exec.Command("/proc/self/exe", args...)}
	g.cmd.Args[0] = loadName
	g.cmd.Env = append(os.Environ(), "GODEBUG=asyncpreemptoff=1") // a signal would interrupt system calls
	g.cmd.Stderr = &g.stderr
	var err error
	if g.stdin, err = g.cmd.StdinPipe(); err != nil {
		return nil, err
	}
	r, w, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	g.stdout, g.lines, g.cmd.Stdout = r, bufio.NewReader(r), w
	err = p.Start(g.cmd)
	w.Close()
	if err != nil {
		r.Close()
		return nil, fmt.Errorf("load in %s: %w", p.Name(), err)
	}
	return g, nil
}

func serveIn(p *netlab.Pod) (*generator, error) {
	g, err := start(p)
	if err != nil {
		return nil, err
	}
	if err := g.await(readyLine); err != nil {
		g.stop()
		return nil, fmt.Errorf("serve in %s: %w", p.Name(), err)
	}
	return g, nil
}

// lineWait bounds the wait for a child's next line; a child whose connections
// hang gives up earlier (patience).
const lineWait = time.Minute

func (g *generator) line() (string, error) {
	_ = g.stdout.SetReadDeadline(time.Now().Add(lineWait))
	line, err := g.lines.ReadString('\n')
	if err != nil {
		g.stop()
		return "", fmt.Errorf("the load ended (%w): %s", errors.Join(err, g.err), strings.TrimSpace(g.stderr.String()))
	}
	return strings.TrimSuffix(line, "\n"), nil
}

func (g *generator) await(want string) error {
	line, err := g.line()
	if err == nil && line != want {
		err = fmt.Errorf("the load said %q, want %q", line, want)
	}
	return err
}

// outcome reads the last line.
func (g *generator) outcome() (outcome, error) {
	var o outcome
	line, err := g.line()
	if err == nil {
		err = json.Unmarshal([]byte(line), &o)
	}
	if err == nil && o.Error != "" {
		err = fmt.Errorf("%d failed: %s", o.Errors, o.Error)
	}
	return o, err
}

// goOn lets a child that waits for it go on.
func (g *generator) goOn() error {
	_, err := g.stdin.Write([]byte{'\n'})
	return err
}

// stop ends the child and waits for it. Later calls do nothing.
func (g *generator) stop() {
	g.once.Do(func() {
		_ = g.cmd.Process.Kill()
		err := g.cmd.Wait()
		var exit *exec.ExitError
		if errors.As(err, &exit) && exit.Exited() {
			g.err = exit
		}
		g.stdout.Close()
	})
}

// load runs a job in a pod, and calls begun and over when what it counts begins
// and is over.
func load(ctx context.Context, p *netlab.Pod, j job, begun, over func() error) (outcome, error) {
	text, err := json.Marshal(j)
	if err != nil {
		return outcome{}, err
	}
	g, err := start(p, string(text))
	if err != nil {
		return outcome{}, err
	}
	defer g.stop()
	defer context.AfterFunc(ctx, func() { _ = g.cmd.Process.Kill() })()
	if err := g.await(beginLine); err != nil {
		return outcome{}, err
	}
	if err := begun(); err != nil {
		return outcome{}, err
	}
	if j.Kind == idle {
		if err := g.goOn(); err != nil {
			return outcome{}, err
		}
	}
	if err := g.await(overLine); err != nil {
		return outcome{}, err
	}
	if err := over(); err != nil {
		return outcome{}, err
	}
	return g.outcome()
}
