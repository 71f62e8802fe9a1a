// SPDX-License-Identifier: Apache-2.0

package logs

import (
	"io"
	"sync"
)

const (
	// queueLines is how many lines wait for the output before those who log
	// wait too (contract 14.1).
	queueLines = 10000

	// batchLines is how many lines one write takes at most (contract 14.1).
	batchLines = 64

	// keepBytes bounds a buffer that is kept for later lines, so that one very
	// long line does not cost memory for ever.
	keepBytes = 16 << 10
)

// A writer takes lines from many goroutines and writes them from one, several
// at a time. A full queue makes callers wait; no line is dropped.
type writer struct {
	out   io.Writer
	queue chan *[]byte
	pool  sync.Pool // of *[]byte
	done  chan struct{}

	// mu is held shared while a line is queued, and alone to close the queue,
	// so that nobody sends on a closed channel.
	mu     sync.RWMutex
	closed bool // guarded by mu

	outMu sync.Mutex
	err   error // guarded by outMu: the first that the output returned
}

func newWriter(out io.Writer) *writer {
	w := &writer{out: out, queue: make(chan *[]byte, queueLines), done: make(chan struct{})}
	w.pool.New = func() any { b := make([]byte, 0, 512); return &b }
	go w.run() // ends when Close closes the queue; Close waits for done
	return w
}

// write renders a line and queues it, or writes it at once after Close. The
// only error is the output's, and only after Close.
func (w *writer) write(l *line, render func([]byte, *line) []byte) error {
	buf := w.pool.Get().(*[]byte)
	*buf = render((*buf)[:0], l)
	w.mu.RLock()
	defer w.mu.RUnlock()
	if !w.closed {
		w.queue <- buf
		return nil
	}
	defer w.recycle(buf)
	return w.emit(*buf)
}

func (w *writer) run() {
	defer close(w.done)
	var batch []byte
	for first := range w.queue {
		batch = append(batch[:0], *first...)
		w.recycle(first)
		for n := 1; n < batchLines && len(w.queue) > 0; n++ { // the only receiver, so it will not wait
			next := <-w.queue
			batch = append(batch, *next...)
			w.recycle(next)
		}
		_ = w.emit(batch) // the error is kept for Close; a log has nowhere to log it
		if cap(batch) > batchLines*keepBytes {
			batch = nil
		}
	}
}

func (w *writer) recycle(buf *[]byte) {
	if cap(*buf) <= keepBytes {
		w.pool.Put(buf)
	}
}

// emit writes b whole. After an error the rest of b is given up, and the next
// line tried: a full disk behind stdout may have room again.
func (w *writer) emit(b []byte) error {
	w.outMu.Lock()
	defer w.outMu.Unlock()
	n, err := w.out.Write(b)
	for err == nil && n < len(b) { // a writer that breaks its promise, but costs nothing to help
		b = b[n:]
		if n, err = w.out.Write(b); n == 0 && err == nil {
			err = io.ErrShortWrite
		}
	}
	if err != nil && w.err == nil {
		w.err = err
	}
	return err
}

// Close writes what is queued, ends the goroutine and returns the first error
// of the output.
func (w *writer) Close() error {
	w.mu.Lock()
	if !w.closed {
		w.closed = true
		close(w.queue)
	}
	w.mu.Unlock()
	<-w.done
	w.outMu.Lock()
	defer w.outMu.Unlock()
	return w.err
}
