// SPDX-License-Identifier: Apache-2.0

package istiod

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"time"

	"github.com/ztunnel-go/ztunnel/test/netlab"
)

// A child is a program of Istio's. It says "ready" on its standard output when
// it is, and may answer lines with lines afterwards.
type child struct {
	cmd    *exec.Cmd
	in     io.WriteCloser
	out    *os.File
	lines  *bufio.Reader
	stderr bytes.Buffer // complete when done is closed
	done   chan struct{}
}

// startChild runs a program in a namespace and waits until it is ready.
func startChild(h *netlab.Host, path string, args ...string) (*child, error) {
	c := &child{cmd: exec.Command(path, args...), done: make(chan struct{})}
	c.cmd.Stderr = &c.stderr
	in, err := c.cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	out, w, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	c.in, c.out, c.lines, c.cmd.Stdout = in, out, bufio.NewReader(out), w
	err = h.Start(c.cmd)
	w.Close()
	if err != nil {
		out.Close()
		return nil, fmt.Errorf("start istio %s: %w", args[0], err)
	}
	go func() { // ends with the process, which kill kills
		_ = c.cmd.Wait()
		close(c.done)
	}()
	const start = time.Minute // istiod on a machine whose processors are all busy
	line, err := c.line(start)
	for err == nil && line != "ready" { // Istio prints a word or two of its own
		line, err = c.line(start)
	}
	if err != nil {
		_ = c.kill()
		return nil, fmt.Errorf("istio %s: %w\n%s", args[0], err, c.tail())
	}
	return c, nil
}

func (c *child) line(patience time.Duration) (string, error) {
	if err := c.out.SetReadDeadline(time.Now().Add(patience)); err != nil {
		return "", err
	}
	line, err := c.lines.ReadString('\n')
	return strings.TrimSuffix(line, "\n"), err
}

// order sends a line and returns the answer, which begins as package zds says.
func (c *child) order(words ...string) (string, error) {
	if _, err := fmt.Fprintln(c.in, strings.Join(words, " ")); err != nil {
		return "", err
	}
	for {
		line, err := c.line(patience)
		if answer, ok := strings.CutPrefix(line, "zds: "); ok || err != nil {
			return answer, err
		}
	}
}

func (c *child) running() bool {
	select {
	case <-c.done:
		return false
	default:
		return true
	}
}

// kill ends the program and waits for it.
func (c *child) kill() error {
	if c.running() {
		_ = c.cmd.Process.Kill()
	}
	<-c.done
	c.in.Close()
	return c.out.Close()
}

// tail is the end of what an ended program complained of.
func (c *child) tail() string {
	const enough = 4000
	text := c.stderr.Bytes()
	return string(text[max(0, len(text)-enough):])
}
