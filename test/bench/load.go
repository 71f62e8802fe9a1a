// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"net/netip"
	"os"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// Kinds of load.
const (
	bulk  = "bulk"  // send without pause
	trips = "trips" // send Size bytes and wait for as many, on one connection
	once  = "once"  // the same, on a connection for each
	names = "names" // ask for a name over UDP
	idle  = "idle"  // open connections and leave them alone
)

// A job is what one child does.
type job struct {
	Kind     string
	To       netip.AddrPort
	Threads  int // each with a connection of its own
	Size     int // of a request; with idle, how many connections
	Duration time.Duration
	// From, if valid, is where each connection takes its next address from; no
	// two jobs of a lab should have the same.
	From netip.Prefix
	Name string // that is asked for
}

// An outcome is what came of a job.
type outcome struct {
	Ops    int64 // or bytes, of bulk
	Nanos  int64 // that they took
	P50    int64 // nanoseconds of one, not of bulk
	P99    int64
	Errors int64
	Error  string // the first; one makes the whole job a failure
}

// patience is how long a job may take beyond its time, for connections that
// hang.
const patience = 15 * time.Second

// queryWait is how long an answer is waited for, in seconds.
const queryWait = 2

// A worker is one thread of a job.
type worker struct {
	*job
	to     *address
	window *window
	source *atomic.Uint32 // counts addresses of From
	ops    int64
	asked  uint16 // queries
	times  histogram
	buf    []byte
	fd     int   // 0: none
	err    error // that ended it
}

// A window says when what is done counts: between the two, in nanoseconds
// since zero.
type window struct {
	zero       time.Time
	begin, end atomic.Int64
}

func (w *window) now() int64 { return int64(time.Since(w.zero)) }

// run does the job and prints its outcome.
func (j *job) run() error {
	if j.Kind == idle {
		return j.open()
	}
	step, ok := map[string]func(*worker) error{
		bulk: (*worker).push, trips: (*worker).trip, once: (*worker).connectAndTrip, names: (*worker).ask,
	}[j.Kind]
	if !ok {
		return fmt.Errorf("no load is called %q", j.Kind)
	}
	w := &window{zero: time.Now()}
	w.begin.Store(math.MaxInt64)
	w.end.Store(math.MaxInt64)
	workers := make([]*worker, j.Threads)
	var source atomic.Uint32
	var ready, done sync.WaitGroup
	for i := range workers {
		o := &worker{job: j, to: addressOf(j.To), window: w, source: &source, buf: make([]byte, max(j.Size, 512))}
		workers[i] = o
		ready.Add(1)
		done.Go(func() {
			runtime.LockOSThread()
			o.err = o.begin()
			ready.Done()
			if o.err == nil {
				o.err = o.loop(step)
			}
		})
	}
	ready.Wait()
	j.count(w)
	done.Wait()
	return j.sumUp(workers)
}

// count opens the window when all are warm, and tells who started us.
func (j *job) count(w *window) {
	begin := w.now() + int64(j.Duration/5)
	end := begin + int64(j.Duration)
	w.end.Store(end)
	w.begin.Store(begin)
	time.AfterFunc(j.Duration+patience, func() { // the process ends before, or hangs
		fmt.Fprintf(os.Stderr, "%s to %v hangs\n", j.Kind, j.To)
		os.Exit(1)
	})
	time.Sleep(time.Duration(begin - w.now()))
	fmt.Println(beginLine)
	time.Sleep(time.Duration(end - w.now()))
	fmt.Println(overLine)
}

// sumUp adds up and prints.
func (j *job) sumUp(workers []*worker) error {
	o := outcome{Nanos: int64(j.Duration)}
	var all histogram
	for _, w := range workers {
		o.Ops += w.ops
		all.add(&w.times)
		if w.err != nil {
			if o.Errors++; o.Error == "" {
				o.Error = w.err.Error()
			}
		}
	}
	o.P50, o.P99 = all.quantile(0.50), all.quantile(0.99)
	return json.NewEncoder(os.Stdout).Encode(o)
}

// begin makes what lasts for the whole job.
func (w *worker) begin() (err error) {
	switch w.Kind {
	case bulk, trips:
		if w.fd, err = socket(unix.SOCK_STREAM, nil, w.to); err == nil {
			err = unix.SetsockoptInt(w.fd, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1)
		}
	case names:
		if w.fd, err = socket(unix.SOCK_DGRAM, nil, w.to); err == nil {
			err = unix.SetsockoptTimeval(w.fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: queryWait})
		}
	}
	if err != nil {
		return fmt.Errorf("connect to %v: %w", w.To, err)
	}
	return nil
}

// loop takes steps until the window ends, and counts those that end in it.
func (w *worker) loop(step func(*worker) error) error {
	for before := w.window.now(); ; {
		if err := step(w); err != nil {
			return fmt.Errorf("%s to %v: %w", w.Kind, w.To, err)
		}
		now := w.window.now()
		switch {
		case now >= w.window.end.Load():
			if w.fd > 0 {
				closeFD(w.fd)
			}
			return nil
		case now >= w.window.begin.Load():
			if w.Kind == bulk {
				w.ops += int64(w.Size)
			} else {
				w.ops++
				w.times.note(now - before)
			}
		}
		before = now
	}
}

// push sends Size bytes.
func (w *worker) push() error { return writeFull(w.fd, w.buf[:w.Size]) }

func (w *worker) trip() error {
	b := w.buf[:w.Size]
	if err := writeFull(w.fd, b); err != nil {
		return err
	}
	n, err := readFull(w.fd, b)
	if err == nil && n == 0 {
		err = errors.New("closed by the other side")
	}
	return err
}

func (w *worker) connectAndTrip() error {
	fd, err := socket(unix.SOCK_STREAM, w.nextSource(), w.to)
	if err != nil {
		return fmt.Errorf("connect: %w", err)
	}
	w.fd = fd
	err = w.trip()
	closeFD(fd)
	w.fd = 0
	return err
}

// nextSource is an address of From that nobody had before, with any port; nil
// without From.
func (w *worker) nextSource() *address {
	if !w.From.IsValid() {
		return nil
	}
	a := w.From.Addr().As4()
	n := binary.BigEndian.Uint32(a[:]) + w.source.Add(1)
	binary.BigEndian.PutUint32(a[:], n)
	return addressOf(netip.AddrPortFrom(netip.AddrFrom4(a), 0))
}

// attempts are how often a resolver of an application asks before it gives up;
// datagrams may be lost.
const attempts = 3

// ask sends a query for the address of Name, and wants one.
func (w *worker) ask() error {
	w.asked++
	id := w.asked
	q := appendQuery(nil, id, w.Name)
	for range attempts {
		if _, err := write(w.fd, q); err != nil {
			return err
		}
		err := w.hear(id)
		if !errors.Is(err, unix.EAGAIN) {
			return err
		}
	}
	return fmt.Errorf("no answer to %d queries in a row", attempts)
}

// hear waits for the answer to a query, or for queryWait (EAGAIN).
func (w *worker) hear(id uint16) error {
	for {
		n, err := read(w.fd, w.buf)
		switch {
		case err != nil:
			return err
		case n < 12 || binary.BigEndian.Uint16(w.buf) != id:
			continue // of a query before
		case w.buf[3]&15 != 0 || binary.BigEndian.Uint16(w.buf[6:]) == 0:
			return fmt.Errorf("answer with code %d and %d records", w.buf[3]&15, binary.BigEndian.Uint16(w.buf[6:]))
		}
		return nil
	}
}

// appendQuery adds a DNS query for the IPv4 addresses of a name.
func appendQuery(b []byte, id uint16, name string) []byte {
	b = binary.BigEndian.AppendUint16(b, id)
	b = append(b, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0) // recursion desired, one question
	for label := range strings.SplitSeq(name, ".") {
		b = append(b, byte(len(label)))
		b = append(b, label...)
	}
	return append(b, 0, 0, 1, 0, 1)
}

// warmConnections are opened before memory is looked at the first time: what a
// proxy needs once is not what a connection needs.
const warmConnections = 100

// open opens connections, each with one round trip, and leaves them open until
// the process is killed.
func (j *job) open() error {
	many := j.Size
	j.Size = smallSize
	w := &worker{job: j, to: addressOf(j.To), source: new(atomic.Uint32), buf: make([]byte, smallSize)}
	if err := w.openMore(warmConnections); err != nil {
		return err
	}
	fmt.Println(beginLine)
	if _, err := os.Stdin.Read(make([]byte, 1)); err != nil {
		return err
	}
	o := outcome{Ops: int64(many)}
	began := time.Now()
	if err := w.openMore(many); err != nil {
		o.Errors, o.Error = 1, err.Error()
	}
	o.Nanos = int64(time.Since(began))
	fmt.Println(overLine)
	if err := json.NewEncoder(os.Stdout).Encode(o); err != nil {
		return err
	}
	_, err := os.Stdin.Read(make([]byte, 1))
	return err
}

func (w *worker) openMore(n int) (err error) {
	for i := range n {
		if w.fd, err = socket(unix.SOCK_STREAM, w.nextSource(), w.to); err == nil {
			err = w.trip()
		}
		if err != nil {
			return fmt.Errorf("connection %d to %v: %w", i+1, w.To, err)
		}
	}
	return nil
}
