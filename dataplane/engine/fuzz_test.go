// SPDX-License-Identifier: Apache-2.0

package engine

import (
	"bytes"
	"context"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/sys/unix"

	"github.com/ztunnel-go/ztunnel/dataplane/hbone/wire"
	"github.com/ztunnel-go/ztunnel/dataplane/reactor"
)

// words is what a peer may say: with a preface as a client, without as a
// server.
func words(client bool) []byte {
	var b bytes.Buffer
	if client {
		b.WriteString(clientPreface)
	}
	fr := http2.NewFramer(&b, nil)
	fr.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 100000}, http2.Setting{ID: http2.SettingMaxFrameSize, Val: 1 << 20})
	fr.WriteSettingsAck()
	fr.WriteWindowUpdate(0, 1<<20)
	list := wire.Request{Authority: "10.0.0.1:80", Baggage: "a=b"}.Fields()
	if !client {
		list = wire.ResponseFields(200, nil)
	}
	block := wire.AppendBlock(nil, list)
	fr.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: block[:1], PadLength: 3, Priority: http2.PriorityParam{Weight: 3}})
	fr.WriteContinuation(1, true, block[1:])
	fr.WriteData(1, false, []byte("hello"))
	fr.WriteDataPadded(1, false, []byte("padded"), make([]byte, 7))
	fr.WritePing(false, [8]byte{1})
	fr.WriteWindowUpdate(1, 5000)
	fr.WriteRawFrame(0xbe, 0xff, 77, []byte("unknown"))
	fr.WritePriority(1, http2.PriorityParam{Weight: 1})
	fr.WriteData(1, true, []byte("end"))
	fr.WriteRSTStream(1, http2.ErrCodeNo)
	fr.WriteGoAway(1, http2.ErrCodeNo, []byte("bye"))
	return b.Bytes()
}

// hear lets a tunnel hear b in pieces of n bytes, and then the end.
func hear(t testing.TB, e *Engine, client bool, b []byte, n int) {
	t.Helper()
	ours, theirs := unixPair(t)
	defer unix.Close(theirs)
	var tunnel *Tunnel
	if client {
		tunnel = e.Client(ours, nil, Config{})
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		go tunnel.Open(ctx, wire.Request{Authority: "a:1"})
	} else {
		tunnel = e.Server(ours, nil, Config{Request: func(q *Request) {
			q.Accept(nil)
			q.Release()
		}})
	}
	for len(b) > 0 {
		k := min(n, len(b))
		if _, err := unix.Write(theirs, b[:k]); err != nil {
			break // it has heard enough, or hears too slowly for the rest
		}
		b = b[k:]
	}
	unix.Shutdown(theirs, unix.SHUT_WR)
	select {
	case <-tunnel.gone:
	case <-time.After(patience):
		t.Fatal("a tunnel outlived its connection")
	}
}

func FuzzTunnel(f *testing.F) {
	for _, client := range []bool{true, false} {
		whole := words(!client)
		f.Add(client, whole, uint16(1000))
		f.Add(client, whole, uint16(1))
		for i := 5; i < len(whole); i += 11 {
			mutant := bytes.Clone(whole)
			mutant[i] ^= 1 << (i % 8)
			f.Add(client, mutant, uint16(i))
		}
	}
	group, err := reactor.Start(1)
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(group.Close)
	e := New(group)
	f.Fuzz(func(t *testing.T, client bool, b []byte, n uint16) {
		hear(t, e, client, b[:min(len(b), 64<<10)], int(n)+1)
	})
}

func TestEveryPrefixOfWhatAPeerSaysEnds(t *testing.T) {
	r := newRig(t)
	for _, client := range []bool{true, false} {
		whole := words(!client)
		for n := range whole {
			hear(t, r.engine, client, whole[:n], 1+n%97)
		}
	}
}
