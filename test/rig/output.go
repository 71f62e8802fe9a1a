// SPDX-License-Identifier: Apache-2.0

package rig

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
)

// An Output is what a proxy has printed, over all its lives, by line.
type Output struct {
	held sync.Mutex // held by Hold

	mu    sync.Mutex
	lines []string      // guarded by mu
	rest  []byte        // guarded by mu; a line that is not over
	more  chan struct{} // guarded by mu; closed when lines grow
}

var _ io.Writer = (*Output)(nil)

// NewOutput is an output with no line yet.
func NewOutput() *Output { return &Output{more: make(chan struct{})} }

// Write takes a piece of output.
func (o *Output) Write(b []byte) (int, error) {
	o.held.Lock()
	defer o.held.Unlock()
	o.mu.Lock()
	defer o.mu.Unlock()
	o.rest = append(o.rest, b...)
	for {
		i := bytes.IndexByte(o.rest, '\n')
		if i < 0 {
			return len(b), nil
		}
		o.lines = append(o.lines, string(o.rest[:i]))
		o.rest = o.rest[i+1:]
		close(o.more)
		o.more = make(chan struct{})
	}
}

// Hold stops reading what the proxy prints, until the returned function is
// called: its pipe fills up.
func (o *Output) Hold() (release func()) {
	o.held.Lock()
	return o.held.Unlock
}

// Mark is a place in the output: the end, as it is now.
func (o *Output) Mark() int {
	o.mu.Lock()
	defer o.mu.Unlock()
	return len(o.lines)
}

// Lines are the lines since a mark; 0 is the beginning.
func (o *Output) Lines(since int) []string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return slices.Clone(o.lines[since:])
}

// Await waits for a line since a mark that contains every one of texts, and
// returns it.
func (o *Output) Await(ctx context.Context, since int, texts ...string) (string, error) {
	for {
		o.mu.Lock()
		lines, more := o.lines[since:], o.more
		o.mu.Unlock()
		for _, line := range lines {
			if containsAll(line, texts) {
				return line, nil
			}
		}
		since += len(lines)
		select {
		case <-more:
		case <-ctx.Done():
			return "", fmt.Errorf("no line with %q: %w", texts, ctx.Err())
		}
	}
}

func containsAll(line string, texts []string) bool {
	for _, text := range texts {
		if !strings.Contains(line, text) {
			return false
		}
	}
	return true
}
