// SPDX-License-Identifier: Apache-2.0

package hbone

import (
	"bytes"
	"context"
	"io"
	"net"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// A line is a connection whose peer has said everything and hears nothing.
type line struct {
	in     *bytes.Reader
	closed chan struct{}
}

func newLine(b []byte) *line { return &line{in: bytes.NewReader(b), closed: make(chan struct{})} }

func (l *line) Read(p []byte) (int, error)       { return l.in.Read(p) }
func (l *line) Write(p []byte) (int, error)      { return len(p), nil }
func (l *line) Close() error                     { close(l.closed); return nil }
func (l *line) LocalAddr() net.Addr              { return &net.TCPAddr{} }
func (l *line) RemoteAddr() net.Addr             { return &net.TCPAddr{} }
func (l *line) SetDeadline(time.Time) error      { return nil }
func (l *line) SetReadDeadline(time.Time) error  { return nil }
func (l *line) SetWriteDeadline(time.Time) error { return nil }

// script is what a well-behaved client says on three streams.
func script() []byte {
	var out, block bytes.Buffer
	out.WriteString(http2.ClientPreface)
	fr := http2.NewFramer(&out, nil)
	enc := hpack.NewEncoder(&block)
	fr.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 1 << 20})
	fr.WriteSettingsAck()
	fr.WriteWindowUpdate(0, 1<<20)
	for id := uint32(1); id <= 5; id += 2 {
		block.Reset()
		for _, f := range (Request{Authority: "10.0.0.1:80", Baggage: "a=b"}).Fields() {
			enc.WriteField(hpack.HeaderField{Name: f.Name, Value: f.Value})
		}
		b := block.Bytes()
		fr.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: b[:5], PadLength: 3})
		fr.WriteContinuation(id, true, b[5:])
		fr.WriteDataPadded(id, false, []byte("hello"), make([]byte, 9))
		fr.WritePing(false, [8]byte{1})
		fr.WriteWindowUpdate(id, 100)
	}
	fr.WriteData(1, true, nil)
	fr.WriteRSTStream(3, http2.ErrCodeCancel)
	fr.WriteGoAway(0, http2.ErrCodeNo, []byte("bye"))
	fr.WriteData(5, true, []byte("end"))
	return out.Bytes()
}

func serveBytes(b []byte) error {
	return ServeConn(context.Background(), newLine(b), nil, ServerConfig{Handler: func(c *Connect) {
		switch c.Header("baggage") {
		case nil:
			c.Reject(400)
			return
		}
		s, err := c.Accept(nil)
		if err != nil {
			return
		}
		io.Copy(s, s)
		s.CloseWrite()
	}})
}

func TestEveryPrefixOfAConversationEnds(t *testing.T) {
	whole := script()
	for n := range whole {
		serveBytes(whole[:n])
	}
	if err := serveBytes(whole); err != nil {
		t.Errorf("the whole: %v", err)
	}
}

// FuzzServer has a client say anything after its preface.
func FuzzServer(f *testing.F) {
	whole := script()[len(http2.ClientPreface):]
	f.Add(whole)
	f.Add([]byte{})
	for i := 0; i < len(whole); i += 17 {
		mutant := bytes.Clone(whole)
		mutant[i] ^= 0x41
		f.Add(mutant)
		f.Add(whole[:i])
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		done := make(chan struct{})
		go func() { serveBytes(append([]byte(http2.ClientPreface), b...)); close(done) }()
		select {
		case <-done:
		case <-time.After(patience):
			t.Fatal("a tunnel outlived its connection")
		}
	})
}

// answers is what a well-behaved server says to two requests.
func answers() []byte {
	var out, block bytes.Buffer
	fr := http2.NewFramer(&out, nil)
	enc := hpack.NewEncoder(&block)
	fr.WriteSettings(http2.Setting{ID: http2.SettingMaxConcurrentStreams, Val: 200})
	fr.WriteSettingsAck()
	for id, status := range map[uint32]string{1: "200", 3: "503"} {
		block.Reset()
		enc.WriteField(hpack.HeaderField{Name: ":status", Value: status})
		enc.WriteField(hpack.HeaderField{Name: "baggage", Value: "a=b"})
		fr.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: block.Bytes(), EndHeaders: true, EndStream: status != "200"})
	}
	fr.WriteData(1, false, []byte("hello"))
	fr.WriteGoAway(1, http2.ErrCodeNo, nil)
	fr.WriteData(1, true, []byte("end"))
	return out.Bytes()
}

func dialBytes(b []byte) {
	// The streams are there before the first byte is read, as if the peer had
	// waited for them.
	nc := newLine(b)
	t := &goTunnel{c: newConn(nc, nc, true, Settings{}), max: 2}
	for range 2 {
		t.reserve(1)
		t.c.mu.Lock()
		s, err := t.startLocked(Request{Authority: "a:1"})
		t.c.mu.Unlock()
		if err == nil {
			t.running.Go(func() { io.Copy(io.Discard, s); s.Close() })
		}
	}
	t.c.run()
	t.running.Wait()
}

func TestEveryPrefixOfAServersWordsEnds(t *testing.T) {
	whole := answers()
	for n := range whole {
		dialBytes(whole[:n])
	}
	dialBytes(whole)
}

func FuzzClient(f *testing.F) {
	whole := answers()
	f.Add(whole)
	for i := 0; i < len(whole); i += 7 {
		mutant := bytes.Clone(whole)
		mutant[i] ^= 0x41
		f.Add(mutant)
		f.Add(whole[:i])
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		done := make(chan struct{})
		go func() { dialBytes(b); close(done) }()
		select {
		case <-done:
		case <-time.After(patience):
			t.Fatal("a tunnel outlived its connection")
		}
	})
}
