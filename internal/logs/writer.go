// SPDX-License-Identifier: Apache-2.0

package logs

import (
	"errors"
	"fmt"
	"io"
	"sync"
	"sync/atomic"
	"time"
)

/*
 * Those who log are connections: none of them waits for whoever reads the log.
 *
 *	write ----> queue ----> run ----> output
 *	       \
 *	        +-> lost, and counted, when the queue is full. Once it is half empty
 *	            again a line says how many.
 */
const (
	// queueLines and queueBytes are how much waits for the output at most
	// (contract 14.1 has the lines).
	queueLines = 10000
	queueBytes = 16 << 20

	// batchLines is how many lines one write takes at most (contract 14.1).
	batchLines = 64

	// keepBytes bounds a buffer that is kept for later lines, so that one very
	// long line does not cost memory for ever.
	keepBytes = 16 << 10

	// flushGrace is how long Close waits for an output that takes nothing.
	flushGrace = 2 * time.Second
)

// A writer takes lines from many goroutines and writes them from one, several
// at a time.
type writer struct {
	out    io.Writer
	notice func(lost uint64) []byte // the line that says how many were lost
	grace  time.Duration            // flushGrace, but in tests
	limit  int64                    // queueBytes, but in tests
	queue  chan *[]byte
	pool   sync.Pool // of *[]byte
	done   chan struct{}

	queued  atomic.Int64  // bytes
	lost    atomic.Uint64 // lines
	written atomic.Uint64 // batches, to see that the output moves

	// mu is held shared while a line is queued, and alone to close the queue,
	// so that nobody sends on a closed channel.
	mu     sync.RWMutex
	closed bool // guarded by mu
	stuck  bool // guarded by mu; Close gave up on the output

	outMu sync.Mutex
	err   error // guarded by outMu: the first that the output returned
}

// errStuck is why a line that was logged after Close is lost.
var errStuck = errors.New("the log's output takes nothing")

func newWriter(out io.Writer, notice func(lost uint64) []byte) *writer {
	w := &writer{out: out, notice: notice, grace: flushGrace, limit: queueBytes, queue: make(chan *[]byte, queueLines), done: make(chan struct{})}
	w.pool.New = func() any { b := make([]byte, 0, 512); return &b }
	go w.run() // ends when Close closes the queue; Close waits for done, unless the output is stuck
	return w
}

// write renders a line and queues it, or writes it at once after Close. It
// does not wait for the output before Close. An error is the output's, and
// comes only after Close.
func (w *writer) write(l *line, render func([]byte, *line) []byte) error {
	buf := w.pool.Get().(*[]byte)
	*buf = render((*buf)[:0], l)
	w.mu.RLock()
	defer w.mu.RUnlock()
	if !w.closed {
		w.enqueue(buf)
		return nil
	}
	defer w.recycle(buf)
	if w.stuck {
		w.lost.Add(1)
		return errStuck
	}
	return w.emit(*buf, 1)
}

func (w *writer) enqueue(buf *[]byte) {
	size := int64(len(*buf))
	if w.queued.Add(size) <= w.limit {
		select {
		case w.queue <- buf:
			return
		default:
		}
	}
	w.queued.Add(-size)
	w.lost.Add(1)
	w.recycle(buf)
}

func (w *writer) run() {
	defer close(w.done)
	var batch []byte
	told := uint64(0)
	for first := range w.queue {
		batch = w.take(batch[:0], first)
		lines := uint64(1)
		for lines < batchLines && len(w.queue) > 0 { // the only receiver, so it will not wait
			batch = w.take(batch, <-w.queue)
			lines++
		}
		_ = w.emit(batch, lines) // the error is kept for Close; a log has nowhere to log it
		if lost := w.lost.Load(); lost > told && len(w.queue) <= queueLines/2 {
			_ = w.emit(w.notice(lost-told), 0)
			told = lost
		}
		if cap(batch) > batchLines*keepBytes {
			batch = nil
		}
	}
}

// take moves a queued line to the end of a batch.
func (w *writer) take(batch []byte, buf *[]byte) []byte {
	batch = append(batch, *buf...)
	w.queued.Add(-int64(len(*buf)))
	w.recycle(buf)
	return batch
}

func (w *writer) recycle(buf *[]byte) {
	if cap(*buf) <= keepBytes {
		w.pool.Put(buf)
	}
}

// emit writes b, which has so many lines, whole. After an error the rest of b
// is given up, and the next line tried: a full disk behind stdout may have
// room again.
func (w *writer) emit(b []byte, lines uint64) error {
	w.outMu.Lock()
	defer w.outMu.Unlock()
	n, err := w.out.Write(b)
	for err == nil && n < len(b) { // a writer that breaks its promise, but costs nothing to help
		b = b[n:]
		if n, err = w.out.Write(b); n == 0 && err == nil {
			err = io.ErrShortWrite
		}
	}
	w.written.Add(1)
	if err == nil {
		return nil
	}
	w.lost.Add(lines)
	if w.err == nil {
		w.err = err
	}
	return err
}

// Close writes what is queued, ends the goroutine and returns the first error
// of the output. An output that takes nothing for the time of a grace is given
// up, and what is queued with it.
func (w *writer) Close() error {
	w.mu.Lock()
	if !w.closed {
		w.closed = true
		close(w.queue)
	}
	w.mu.Unlock()
	for {
		before := w.written.Load()
		timer := time.NewTimer(w.grace)
		select {
		case <-w.done:
			timer.Stop()
			w.outMu.Lock()
			defer w.outMu.Unlock()
			return w.err
		case <-timer.C:
		}
		if w.written.Load() == before {
			return w.giveUp()
		}
	}
}

func (w *writer) giveUp() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if !w.stuck {
		w.stuck = true
		w.lost.Add(uint64(len(w.queue)))
	}
	return fmt.Errorf("%w: %d lines are lost", errStuck, w.lost.Load())
}
