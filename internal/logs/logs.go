// SPDX-License-Identifier: Apache-2.0

// Package logs writes the program's log lines in the two formats of the
// contract (14.2 plain, 14.3 JSON) and decides by target and level which are
// written (13.5, 14.1).
//
// It is an [slog.Handler] behind a bounded queue: who logs never waits for who
// reads, and lines that find no room are counted and told of.
// What is logged, and why, is the business of others: they get a
// [*slog.Logger], and say with [Target] and [Span] whose lines theirs are.
// It opens no file and reads no environment. It imports only the standard
// library; the middle rooms may import it, leaves stay quiet.
package logs

import (
	"fmt"
	"io"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"
)

// LevelTrace is one step below [slog.LevelDebug]; slog has no name for it.
const LevelTrace = slog.LevelDebug - 4

const (
	// builtin precedes every filter (contract 1.4, RUST_LOG). We have no such
	// target; it is kept because tools read the filter back (contract 13.5).
	builtin = "hickory_server::server=off,"

	defaultFilter = "info"
)

// A Config says where lines go and which.
type Config struct {
	// Output gets the lines. Only one goroutine at a time writes to it.
	Output io.Writer

	// JSON selects the format of contract 14.3; else that of 14.2.
	JSON bool

	// Filter is the value of RUST_LOG: target=level or level, separated by
	// commas. Empty means info.
	Filter string
}

// A Log is a sink of lines with a filter that may change while it is in use.
type Log struct {
	out    *writer
	render func(buf []byte, l *line) []byte
	start  string // the filter it started with, to which Reset returns

	mu     sync.Mutex // orders changes of filter; readers need no lock
	filter atomic.Pointer[filter]
}

// New starts a log. The error says what is wrong with the filter.
func New(c Config) (*Log, error) {
	start := c.Filter
	if start == "" {
		start = defaultFilter
	}
	start = builtin + start
	f, err := parseFilter(start)
	if err != nil {
		return nil, fmt.Errorf("log filter %q: %v", c.Filter, err)
	}
	l := &Log{render: appendPlain, start: start}
	if c.JSON {
		l.render = appendJSON
	}
	l.out = newWriter(c.Output, l.lostLine)
	l.filter.Store(f)
	return l, nil
}

// Logger returns a logger without a target of its own: its lines are those of
// the program, ztunnel.
func (l *Log) Logger() *slog.Logger { return slog.New(&handler{log: l, target: root}) }

// Filter is the filter in force in canonical form, the most specific target
// first (contract 13.5).
func (l *Log) Filter() string { return l.filter.Load().String() }

// Append adds clauses to the filter, of which later ones win. Each clause is a
// lower-case level or target=level; anything else, a bare target included,
// is an error, and then nothing changes (contract 13.5).
func (l *Log) Append(clauses string) error {
	if err := checkClauses(clauses); err != nil {
		return err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	f, err := parseFilter(l.Filter() + "," + clauses)
	if err != nil {
		return err
	}
	l.filter.Store(f)
	return nil
}

// Reset returns to the filter that the log started with.
func (l *Log) Reset() {
	l.mu.Lock()
	defer l.mu.Unlock()
	f, err := parseFilter(l.start)
	if err != nil {
		panic("logs: the start filter was valid once: " + err.Error())
	}
	l.filter.Store(f)
}

// Lost is how many lines have not been written so far, because the output took
// none or failed.
func (l *Log) Lost() uint64 { return l.out.lost.Load() }

// lostLine is what the log says of itself when it can speak again. No filter
// holds it back: it is about lines that passed one.
func (l *Log) lostLine(lost uint64) []byte {
	return l.render(nil, &line{
		time: time.Now(), level: levelName(slog.LevelWarn), target: prefix + "logs",
		message: "log lines were lost: their reader did not keep up",
		fields:  []field{{"lines", slog.Uint64Value(lost)}},
	})
}

// Close writes what is buffered and stops buffering: lines logged afterwards
// are written at once. It does not close the output. It returns the first
// error that writing met; an output that takes nothing for two seconds is not
// waited for, and one goroutine stays behind in it.
func (l *Log) Close() error { return l.out.Close() }
