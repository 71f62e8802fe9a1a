// SPDX-License-Identifier: Apache-2.0

package hbone

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/net/http2"

	"github.com/ztunnel-go/ztunnel/dataplane/hbone/wire"
	"github.com/ztunnel-go/ztunnel/test/leak"
)

// A flood writes until the tunnel refuses it. Each must end in GOAWAY with
// ENHANCE_YOUR_CALM, or in a connection that is closed while the flood is
// still being written, and leave nothing behind.
func TestFloodsAreBounded(t *testing.T) {
	empty := http2.HeadersFrameParam{StreamID: 1, EndHeaders: false}
	for name, flood := range map[string]func(p *peer, i int) error{
		"ping":     func(p *peer, i int) error { return p.fr.WritePing(false, [8]byte{byte(i)}) },
		"pong":     func(p *peer, i int) error { return p.fr.WritePing(true, [8]byte{byte(i)}) },
		"settings": func(p *peer, i int) error { return p.fr.WriteSettings() },
		"settings with values": func(p *peer, i int) error {
			return p.fr.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: uint32(i)})
		},
		"empty data": func(p *peer, i int) error {
			if i == 0 {
				p.connect(1)
			}
			return p.fr.WriteData(1, false, nil)
		},
		"padding": func(p *peer, i int) error {
			if i == 0 {
				p.connect(1)
			}
			return p.fr.WriteDataPadded(1, false, nil, make([]byte, 100))
		},
		"padding of no length": func(p *peer, i int) error {
			if i == 0 {
				p.connect(1)
			}
			return p.fr.WriteDataPadded(1, false, nil, []byte{})
		},
		"a block that unpacks": func(p *peer, i int) error {
			id := uint32(2*i + 1)
			if i == 0 { // 4000 bytes into the dynamic table, and then one byte for each time they come
				p.headers(id, false, ":method", "CONNECT", ":authority", "10.0.0.1:80", "x", strings.Repeat("y", 4000))
				return nil
			}
			block := append([]byte{0x02, 7}, "CONNECT"...)
			return p.fr.WriteHeaders(http2.HeadersFrameParam{
				StreamID: id, EndHeaders: true, BlockFragment: append(block, bytes.Repeat([]byte{0xbe}, 60<<10)...)})
		},
		"empty data for nobody": func(p *peer, i int) error {
			if i == 0 {
				p.connect(1)
				p.fr.WriteRSTStream(1, http2.ErrCodeCancel)
			}
			return p.fr.WriteData(1, false, nil)
		},
		"rapid reset": func(p *peer, i int) error {
			p.connect(uint32(2*i + 1))
			return p.fr.WriteRSTStream(uint32(2*i+1), http2.ErrCodeCancel)
		},
		"malformed": func(p *peer, i int) error {
			p.headers(uint32(2*i+1), false, ":method", "CONNECT", ":path", "/")
			return nil
		},
		"beyond the limit": func(p *peer, i int) error { p.connect(uint32(2*i + 1)); return nil },
		"priority": func(p *peer, i int) error {
			return p.fr.WritePriority(1, http2.PriorityParam{StreamDep: 3})
		},
		"unknown type": func(p *peer, i int) error { return p.fr.WriteRawFrame(0xbb, 0, 0, []byte("x")) },
		"window updates": func(p *peer, i int) error {
			return p.fr.WriteWindowUpdate(0, 1)
		},
		"continuation": func(p *peer, i int) error {
			if i == 0 {
				return p.fr.WriteHeaders(empty)
			}
			return p.fr.WriteContinuation(1, false, []byte{0x82})
		},
		"empty continuation": func(p *peer, i int) error {
			if i == 0 {
				return p.fr.WriteHeaders(empty)
			}
			return p.fr.WriteContinuation(1, false, nil)
		},
		"oversized headers": func(p *peer, i int) error { p.big(uint32(2*i+1), 80<<10); return nil },
	} {
		t.Run(name, func(t *testing.T) {
			p, _, done := rawServer(t, Settings{MaxStreams: 10}, func(c *Connect) { <-c.Context().Done() })
			calm := make(chan Code, 1)
			go func() {
				defer close(calm)
				for {
					f, err := p.fr.ReadFrame()
					if err != nil {
						return
					}
					if g, ok := f.(*http2.GoAwayFrame); ok {
						calm <- Code(g.ErrCode)
						return
					}
				}
			}()
			w := &stopper{TB: t}
			q := newPeer(w, p.nc)
			q.fr = http2.NewFramer(p.nc, bytes.NewReader(nil))
			q.fr.AllowIllegalWrites = true
			w.run(func() {
				for i := range 200000 {
					if err := flood(q, i); err != nil {
						return
					}
				}
			})
			err := <-done
			var g *GoAwayError
			if !errors.As(err, &g) || g.Code != EnhanceYourCalm {
				t.Errorf("the tunnel ended with %v", err)
			}
			if code, heard := <-calm; heard && code != EnhanceYourCalm {
				t.Errorf("heard %v", code)
			}
		})
	}
}

// stopper turns the end of a flood's connection into the end of the flood.
type stopper struct{ testing.TB }

type flooded struct{}

func (s *stopper) Helper()               {}
func (s *stopper) Fatalf(string, ...any) { panic(flooded{}) }
func (s *stopper) run(f func()) {
	defer func() {
		if r := recover(); r != nil && r != (flooded{}) {
			panic(r)
		}
	}()
	f()
}

// A peer that never reads makes us keep what we have to answer, whether or not
// it pays for its questions with data. (Package engine tests its own. TCP is not
// used here: Linux's goes astray when one side never reads many small segments.)
func TestAnswersThatNobodyReadsAreBounded(t *testing.T) {
	if ofGoroutines() {
		return
	}
	var refused atomic.Int64
	for name, ask := range map[string]func(p *peer, i int) error{
		"refused requests": func(p *peer, i int) error {
			if i == 0 {
				refused.Store(0)
			}
			p.connect(uint32(2*i + 1))
			for deadline := time.Now().Add(time.Second); refused.Load() <= int64(i); time.Sleep(10 * time.Microsecond) {
				if time.Now().After(deadline) {
					return nil // the tunnel has ended, or the machine is slow
				}
			}
			return nil
		},
		"pings paid for with data": func(p *peer, i int) error {
			if i == 0 {
				p.headers(1, false, ":method", "CONNECT", ":authority", "data")
			}
			if err := p.fr.WriteData(1, false, []byte("x")); err != nil {
				return err
			}
			return p.fr.WritePing(false, [8]byte{})
		},
	} {
		t.Run(name, func(t *testing.T) {
			leak.Check(t)
			near, far := net.Pipe()
			s, err := Accept(t.Context(), far, nil, ServerConfig{Handler: func(c *Connect) {
				if c.Authority != "data" {
					c.Reject(503)
					refused.Add(1)
					return
				}
				if s, err := c.Accept(nil); err == nil {
					io.Copy(io.Discard, s)
				}
			}})
			if err != nil {
				t.Fatal(err)
			}
			done := make(chan error, 1)
			go func() { done <- s.Serve(context.Background()) }()
			t.Cleanup(func() { s.Close() })
			w := &stopper{TB: t}
			p := newPeer(w, near)
			p.raw([]byte(http2.ClientPreface))
			p.settings()
			const enough = 20 * maxProvoked
			w.run(func() {
				for i := range enough {
					if err := ask(p, i); err != nil {
						return
					}
				}
			})
			near.Close()
			var g *GoAwayError
			if err := <-done; !errors.As(err, &g) || g.Code != EnhanceYourCalm {
				t.Errorf("the tunnel ended with %v", err)
			}
		})
	}
}

func TestAPeerThatAsksWithoutReadingIsBounded(t *testing.T) {
	c := newConn(nil, nil, false, Settings{})
	f := &http2.PingFrame{}
	for i := range maxProvoked + 1 {
		err := c.pingLocked(f)
		if failed := err != nil; failed != (i == maxProvoked) {
			t.Fatalf("ping %d: %v", i, err)
		}
	}
}

// frames writes raw frames: type, flags, stream, payload.
func frames(list ...http2.FrameHeader) []byte {
	var b bytes.Buffer
	fr := http2.NewFramer(&b, nil)
	for _, h := range list {
		fr.WriteRawFrame(h.Type, h.Flags, h.StreamID, make([]byte, h.Length))
	}
	return b.Bytes()
}

func TestBreachesEndTheTunnel(t *testing.T) {
	const stream = 1 // open in each case
	for _, tc := range []struct {
		name string
		code Code
		raw  []byte
	}{
		{"DATA on stream 0", ProtocolError, frames(http2.FrameHeader{Type: http2.FrameData, Length: 1})},
		{"DATA on an idle stream", ProtocolError, frames(http2.FrameHeader{Type: http2.FrameData, Length: 1, StreamID: 9})},
		{"DATA on a stream of ours", ProtocolError, frames(http2.FrameHeader{Type: http2.FrameData, Length: 1, StreamID: 2})},
		{"DATA that is all pad length", ProtocolError, []byte{0, 0, 2, 0, 8, 0, 0, 0, 1, 200, 0}},
		{"padded DATA of no length", FrameSize, []byte{0, 0, 0, 0, 8, 0, 0, 0, 1}},
		{"HEADERS on stream 0", ProtocolError, frames(http2.FrameHeader{Type: http2.FrameHeaders, Length: 1})},
		{"HEADERS on an even stream", ProtocolError, frames(http2.FrameHeader{Type: http2.FrameHeaders, Flags: http2.FlagHeadersEndHeaders, StreamID: 2})},
		{"HEADERS with too much padding", ProtocolError, []byte{0, 0, 2, 1, 0xc, 0, 0, 0, 3, 200, 0}},
		{"a header block that is none", Compression, []byte{0, 0, 1, 1, 4, 0, 0, 0, 3, 0xff}},
		{"CONTINUATION of nothing", ProtocolError, frames(http2.FrameHeader{Type: http2.FrameContinuation, StreamID: stream})},
		{"a block interrupted", ProtocolError, frames(
			http2.FrameHeader{Type: http2.FrameHeaders, StreamID: 3}, http2.FrameHeader{Type: http2.FramePing, Length: 8})},
		{"a block continued elsewhere", ProtocolError, frames(
			http2.FrameHeader{Type: http2.FrameHeaders, StreamID: 3}, http2.FrameHeader{Type: http2.FrameContinuation, StreamID: 5})},
		{"PING of seven bytes", FrameSize, frames(http2.FrameHeader{Type: http2.FramePing, Length: 7})},
		{"PING on a stream", ProtocolError, frames(http2.FrameHeader{Type: http2.FramePing, Length: 8, StreamID: 1})},
		{"SETTINGS of five bytes", FrameSize, frames(http2.FrameHeader{Type: http2.FrameSettings, Length: 5})},
		{"SETTINGS on a stream", ProtocolError, frames(http2.FrameHeader{Type: http2.FrameSettings, StreamID: 1})},
		{"SETTINGS ack with content", FrameSize, frames(http2.FrameHeader{Type: http2.FrameSettings, Flags: 1, Length: 6})},
		{"SETTINGS without end", FrameSize, frames(http2.FrameHeader{Type: http2.FrameSettings, Length: 6000})},
		{"window beyond 2^31-1", FlowControl, []byte{0, 0, 4, 8, 0, 0, 0, 0, 0, 0x7f, 0xff, 0xff, 0xff}},
		{"window update of nothing", ProtocolError, frames(http2.FrameHeader{Type: http2.FrameWindowUpdate, Length: 4})},
		{"window update on idle", ProtocolError, []byte{0, 0, 4, 8, 0, 0, 0, 0, 9, 0, 0, 0, 1}},
		{"window update of three bytes", FrameSize, frames(http2.FrameHeader{Type: http2.FrameWindowUpdate, Length: 3})},
		{"initial window beyond", FlowControl, []byte{0, 0, 6, 4, 0, 0, 0, 0, 0, 0, 4, 0x80, 0, 0, 0}},
		{"frame size below", ProtocolError, []byte{0, 0, 6, 4, 0, 0, 0, 0, 0, 0, 5, 0, 0, 0, 1}},
		{"push of two", ProtocolError, []byte{0, 0, 6, 4, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 2}},
		{"RST_STREAM on idle", ProtocolError, frames(http2.FrameHeader{Type: http2.FrameRSTStream, Length: 4, StreamID: 9})},
		{"RST_STREAM of stream 0", ProtocolError, frames(http2.FrameHeader{Type: http2.FrameRSTStream, Length: 4})},
		{"PUSH_PROMISE", ProtocolError, frames(http2.FrameHeader{Type: http2.FramePushPromise, Length: 4, StreamID: 1})},
		{"GOAWAY of four bytes", FrameSize, frames(http2.FrameHeader{Type: http2.FrameGoAway, Length: 4})},
		{"a frame beyond our size", FrameSize, []byte{0x10, 0, 1, 0, 0, 0, 0, 0, 1}},
		{"a reused stream", StreamClosed, []byte{0, 0, 4, 3, 0, 0, 0, 0, 1, 0, 0, 0, 8, 0, 0, 1, 1, 4, 0, 0, 0, 1, 0x82}},
		{"a stream passed over", ProtocolError, []byte{0, 0, 1, 1, 5, 0, 0, 0, 7, 0x82, 0, 0, 1, 1, 5, 0, 0, 0, 5, 0x82}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			p, _, done := rawServer(t, Settings{}, func(c *Connect) { <-c.Context().Done() })
			p.connect(stream)
			p.raw(tc.raw)
			p.wantGoAway(tc.code)
			p.wantEnd()
			var g *GoAwayError
			if err := <-done; !errors.As(err, &g) || g.Code != tc.code || g.Remote {
				t.Errorf("Serve: %v", err)
			}
		})
	}
}

func TestBreachesThatEndTheirStreamOnly(t *testing.T) {
	for _, tc := range []struct {
		name string
		code Code
		do   func(p *peer)
	}{
		{"DATA after END_STREAM", StreamClosed, func(p *peer) { p.fr.WriteData(1, true, nil); p.fr.WriteData(1, false, []byte("x")) }},
		{"more than the window", FlowControl, func(p *peer) { p.fr.WriteData(1, false, make([]byte, 3000)) }},
		{"HEADERS in the middle", ProtocolError, func(p *peer) { p.headers(1, false, "x", "y") }},
		{"window of the stream", FlowControl, func(p *peer) { p.fr.WriteWindowUpdate(1, wire.MaxWindow) }},
		{"window update of nothing", ProtocolError, func(p *peer) { p.fr.WriteWindowUpdate(1, 0) }},
	} {
		t.Run(tc.name, func(t *testing.T) {
			p, _, _ := rawServer(t, Settings{StreamWindow: 2000}, func(c *Connect) {
				c.Accept(nil)
				time.Sleep(10 * time.Millisecond) // the reset comes while or after it runs
			})
			p.connect(1)
			want[*http2.MetaHeadersFrame](p)
			tc.do(p)
			f := want[*http2.RSTStreamFrame](p)
			if f.StreamID != 1 {
				t.Errorf("got %v", f)
			}
			p.connect(3)
			want[*http2.MetaHeadersFrame](p)
		})
	}
}

func TestTrailersAreAnEnd(t *testing.T) {
	p, _, _ := rawServer(t, Settings{}, echo)
	p.connect(1)
	want[*http2.MetaHeadersFrame](p)
	p.headers(1, true, "grpc-status", "0")
	if f := want[*http2.DataFrame](p); !f.StreamEnded() {
		t.Errorf("got %v", f)
	}
}

func TestWhoDoesNotSpeakHTTP2(t *testing.T) {
	for name, hello := range map[string]string{
		"HTTP/1.1":           "GET / HTTP/1.1\r\nHost: x\r\n\r\n",
		"frames before any":  http2.ClientPreface + "\x00\x00\x08\x06\x00\x00\x00\x00\x00" + strings.Repeat("x", 8),
		"acknowledges first": http2.ClientPreface + "\x00\x00\x00\x04\x01\x00\x00\x00\x00",
	} {
		t.Run(name, func(t *testing.T) {
			near, far := tcpPair(t)
			done := make(chan error, 1)
			go func() { done <- ServeConn(t.Context(), far, nil, ServerConfig{Handler: echo, Engine: theEngine}) }()
			p := newPeer(t, near)
			io.WriteString(near, hello)
			p.wantGoAway(ProtocolError)
			if err := <-done; err == nil {
				t.Error("nobody complained")
			}
		})
	}
}
