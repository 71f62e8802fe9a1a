// SPDX-License-Identifier: Apache-2.0

package delta

import (
	"bytes"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"
)

// lines is a log.
type lines struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (l *lines) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.Write(b)
}

func (l *lines) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.String()
}

func (l *lines) logger() *slog.Logger {
	return slog.New(slog.NewTextHandler(l, &slog.HandlerOptions{Level: slog.LevelDebug}))
}

func (l *lines) has(parts ...string) bool {
	for line := range strings.Lines(l.String()) {
		all := true
		for _, p := range parts {
			all = all && strings.Contains(line, p)
		}
		if all {
			return true
		}
	}
	return false
}

// counts is an observer.
type counts struct {
	mu       sync.Mutex
	messages map[string]int
	bytes    map[string]int
	endings  map[Reason]int
	demands  map[DemandResult]int
}

func (c *counts) Message(url string, bytes int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.messages == nil {
		c.messages, c.bytes = map[string]int{}, map[string]int{}
	}
	c.messages[url]++
	c.bytes[url] += bytes
}

func (c *counts) Terminated(r Reason) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.endings == nil {
		c.endings = map[Reason]int{}
	}
	c.endings[r]++
}

func (c *counts) Demanded(r DemandResult) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.demands == nil {
		c.demands = map[DemandResult]int{}
	}
	c.demands[r]++
}

func (c *counts) demanded(r DemandResult) int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.demands[r]
}

func (c *counts) ended(r Reason) int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.endings[r]
}

func eventually(t *testing.T, what string, holds func() bool) {
	t.Helper()
	deadline := time.Now().Add(20 * time.Second)
	for !holds() {
		if time.Now().After(deadline) {
			t.Fatalf("never happened: %s", what)
		}
		time.Sleep(time.Millisecond)
	}
}
