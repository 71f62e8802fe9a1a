// SPDX-License-Identifier: Apache-2.0

package engine

import (
	"bytes"
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/ztunnel-go/ztunnel/dataplane/hbone/record"
	"github.com/ztunnel-go/ztunnel/dataplane/hbone/wire"
)

// An auditor stands between two sides of a tunnel and keeps every byte that one
// of them ever said, whoever carried it at the time.
type auditor struct {
	from, to *os.File
	begin    record.State // of who is listened to

	mu   sync.Mutex
	said bytes.Buffer // guarded by mu
}

func (a *auditor) run() {
	b := make([]byte, 64<<10)
	for {
		n, err := a.from.Read(b)
		a.mu.Lock()
		a.said.Write(b[:n])
		a.mu.Unlock()
		if _, werr := a.to.Write(b[:n]); err != nil || werr != nil {
			return
		}
	}
}

// hears waits until so many bytes more were said, and reports false if nothing
// comes.
func (a *auditor) hears(more int) bool {
	size := func() int {
		a.mu.Lock()
		defer a.mu.Unlock()
		return a.said.Len()
	}
	begin := size()
	for end := time.Now().Add(time.Second); size() < begin+more; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			return false
		}
	}
	return true
}

// audit opens all that was said: each record under the next number of the
// current key, and none under one that was used. It returns how many records
// and keys there were.
func (a *auditor) audit(t *testing.T, client bool) (records, keys int) {
	t.Helper()
	a.mu.Lock()
	defer a.mu.Unlock()
	r, err := record.NewReceiver(record.ReceiverState{State: a.begin, Client: client})
	if err != nil {
		t.Fatal(err)
	}
	type number struct {
		secret [record.MaxSecret]byte
		seq    uint64
	}
	used, secrets := map[number]bool{}, map[[record.MaxSecret]byte]bool{}
	for b := a.said.Bytes(); ; {
		n, err := record.Length(b)
		if err != nil {
			t.Fatal(err)
		}
		if n == 0 || len(b) < n {
			return len(used), len(secrets)
		}
		at := r.State()
		this := number{at.Secret, at.Seq}
		if used[this] {
			t.Fatalf("number %d is used twice", at.Seq)
		}
		used[this], secrets[at.Secret] = true, true
		if _, _, err := r.Receive(bytes.Clone(b[:n])); err != nil {
			t.Fatalf("record %d, number %d of key %d: %v", len(used), at.Seq, len(secrets), err)
		}
		b = b[n:]
	}
}

// TestNoSequenceNumberIsUsedTwice moves the server's side, with new keys each
// time, while bytes pass both ways.
func TestNoSequenceNumberIsUsedTwice(t *testing.T) {
	r := newRig(t)
	near, far := pair(t)
	cs, ss := r.sessions(near, far)
	near.Close()
	far.Close()
	a, aOuter := unixPair(t)
	b, bOuter := unixPair(t)
	ends := []*os.File{os.NewFile(uintptr(aOuter), "client"), os.NewFile(uintptr(bOuter), "server")}
	up := &auditor{from: ends[0], to: ends[1], begin: cs.Out.State()}
	down := &auditor{from: ends[1], to: ends[0], begin: ss.Out.State()}
	var copying sync.WaitGroup
	copying.Go(up.run)
	copying.Go(down.run)

	m := &mover{rig: r, done: make(chan error, 1)}
	apps := make(chan *net.TCPConn, 1)
	m.cfg = Config{Request: r.serve(func(q *Request) {
		app, inner := pair(t)
		s := q.Accept(nil)
		how := m.adopter().Joint(StreamImage{})
		how.FD = take(t, inner)
		s.Join(how)
		apps <- app
	})}
	client := r.engine.Client(a, cs, Config{})
	server := r.engine.Server(b, ss, m.cfg)
	s, _, err := client.Open(within(t), wire.Request{Authority: "10.0.0.1:80"})
	if err != nil {
		t.Fatal(err)
	}
	app, done, _, _ := r.joined(s, true)
	peer := await(t, apps)
	const size = 8 << 20
	data := noise(3, size)
	var moving sync.WaitGroup
	for _, way := range [][2]*net.TCPConn{{app, peer}, {peer, app}} {
		moving.Go(func() {
			for at := 0; at < size; at += size / 64 {
				way[0].Write(data[at : at+size/64])
				time.Sleep(2 * time.Millisecond)
			}
			way[0].CloseWrite()
		})
		moving.Go(func() {
			if got, err := io.ReadAll(way[1]); err != nil || !bytes.Equal(got, data) {
				t.Errorf("%d bytes of %d, %v", len(got), size, err)
			}
		})
	}
	const moves = 40
	for n := 0; n < moves; {
		img, fds, err := server.Settle()
		if errors.Is(err, ErrBusy) {
			time.Sleep(time.Millisecond)
			continue
		}
		if err != nil {
			break // all has been said
		}
		if server, err = r.engine.Import(again(t, img), fds, m.cfg, m.adopter()); err != nil {
			t.Fatal(err)
		}
		server.Rekey()
		n++
		if !down.hears(4 << 10) { // a peer bears 16 records without data in a row
			break
		}
	}
	moving.Wait()
	if err := await(t, done); err != nil {
		t.Error(err)
	}
	client.Close()
	server.EndWith(wire.ErrClosed)
	server.Wait()
	for _, f := range ends {
		f.Close()
	}
	copying.Wait()
	for name, side := range map[string]struct {
		*auditor
		client bool
	}{"client": {up, false}, "server": {down, true}} {
		records, keys := side.audit(t, side.client)
		t.Logf("the %s said %d records under %d keys", name, records, keys)
		if keys < moves/8 || records < 50 {
			t.Errorf("the %s said only %d records under %d keys", name, records, keys)
		}
	}
}
