// SPDX-License-Identifier: Apache-2.0

package conform

import (
	"bytes"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"sync"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// A peer is the other end of a tunnel, client or server, on HTTP/2 frames: it
// sees what the proxy really sent, in what order.
type peer struct {
	conn   *tls.Conn
	raw    net.Conn
	hello  *tls.ClientHelloInfo // a server's only
	client bool
	framer *http2.Framer

	writing sync.Mutex // held for one frame, or a header block
	encoder *hpack.Encoder
	block   bytes.Buffer

	mu       sync.Mutex
	changed  *sync.Cond // on mu
	streams  map[uint32]*tunnelStream
	nextID   uint32
	settings []http2.Setting // the first ones that came
	greeted  bool
	window   uint32 // the increment of the connection's window that came first
	goaway   *http2.GoAwayFrame
	err      error // why reading ended
	sendRoom int64 // of the connection
	initial  int64 // of new streams, to send
	accepted func(*tunnelStream)
	reading  sync.WaitGroup // ends with the connection
}

const initialWindow = 65535

// newPeer takes a connection whose handshake is done. hello is what a client
// greeted us with, and nil if we are the client; accepted is told of streams
// that the other side opens.
func newPeer(conn *tls.Conn, raw net.Conn, hello *tls.ClientHelloInfo, accepted func(*tunnelStream)) (*peer, error) {
	client := hello == nil
	p := &peer{
		conn: conn, raw: raw, hello: hello, client: client, framer: http2.NewFramer(conn, conn), streams: map[uint32]*tunnelStream{}, nextID: 1,
		sendRoom: initialWindow, initial: initialWindow, accepted: accepted,
	}
	p.changed = sync.NewCond(&p.mu)
	p.encoder = hpack.NewEncoder(&p.block)
	p.framer.ReadMetaHeaders = hpack.NewDecoder(4096, nil)
	p.framer.SetMaxReadFrameSize(1 << 20)
	if client {
		if _, err := io.WriteString(conn, http2.ClientPreface); err != nil {
			return nil, err
		}
	} else {
		preface := make([]byte, len(http2.ClientPreface))
		if _, err := io.ReadFull(conn, preface); err != nil || string(preface) != http2.ClientPreface {
			return nil, fmt.Errorf("the preface is %q, %w", preface, err)
		}
	}
	if err := p.framer.WriteSettings(http2.Setting{ID: http2.SettingMaxFrameSize, Val: 1 << 20}); err != nil {
		return nil, err
	}
	p.reading.Go(p.read)
	return p, nil
}

func (p *peer) read() {
	for {
		f, err := p.framer.ReadFrame()
		var stream http2.StreamError
		if errors.As(err, &stream) {
			continue
		}
		p.mu.Lock()
		if err == nil {
			err = p.frame(f)
		}
		if err != nil {
			p.err = err
			for _, s := range p.streams {
				s.over(err, "")
			}
		}
		p.changed.Broadcast()
		p.mu.Unlock()
		if err != nil {
			return
		}
	}
}

// frame handles one that came. mu is held.
func (p *peer) frame(f http2.Frame) error {
	s := p.streams[f.Header().StreamID]
	switch f := f.(type) {
	case *http2.SettingsFrame:
		return p.settingsFrame(f)
	case *http2.WindowUpdateFrame:
		if f.StreamID == 0 {
			if p.window == 0 {
				p.window = f.Increment
			}
			p.sendRoom += int64(f.Increment)
		} else if s != nil {
			s.sendRoom += int64(f.Increment)
		}
	case *http2.PingFrame:
		if !f.IsAck() {
			return p.locked(func() error { return p.framer.WritePing(true, f.Data) })
		}
	case *http2.GoAwayFrame:
		p.goaway = f
	case *http2.MetaHeadersFrame:
		if s == nil && !p.client {
			s = p.newStream(f.StreamID)
			s.headers = f.Fields
			p.accepted(s)
		} else if s != nil {
			s.headers = f.Fields
		}
		if s != nil && f.StreamEnded() {
			s.finished = true
		}
	case *http2.DataFrame:
		return p.data(f, s)
	case *http2.RSTStreamFrame:
		if s != nil {
			s.over(nil, codeName(f.ErrCode))
		}
	}
	return nil
}

func (p *peer) settingsFrame(f *http2.SettingsFrame) error {
	if f.IsAck() {
		return nil
	}
	_ = f.ForeachSetting(func(set http2.Setting) error {
		if !p.greeted {
			p.settings = append(p.settings, set)
		}
		if set.ID == http2.SettingInitialWindowSize {
			for _, s := range p.streams {
				s.sendRoom += int64(set.Val) - p.initial
			}
			p.initial = int64(set.Val)
		}
		return nil
	})
	p.greeted = true
	return p.locked(p.framer.WriteSettingsAck)
}

// data is credited at once: scenarios read little.
func (p *peer) data(f *http2.DataFrame, s *tunnelStream) error {
	n := uint32(len(f.Data()))
	if s != nil {
		s.in.Write(f.Data())
		s.finished = s.finished || f.StreamEnded()
	}
	if n == 0 {
		return nil
	}
	return p.locked(func() error {
		if s != nil && !s.finished {
			if err := p.framer.WriteWindowUpdate(f.StreamID, n); err != nil {
				return err
			}
		}
		return p.framer.WriteWindowUpdate(0, n)
	})
}

func (p *peer) locked(write func() error) error {
	p.writing.Lock()
	defer p.writing.Unlock()
	return write()
}

// newStream makes one. mu is held.
func (p *peer) newStream(id uint32) *tunnelStream {
	s := &tunnelStream{peer: p, id: id, sendRoom: p.initial}
	p.streams[id] = s
	return s
}

// writeHeaders sends a header block for a stream.
func (p *peer) writeHeaders(id uint32, fields []hpack.HeaderField, end bool) error {
	p.writing.Lock()
	defer p.writing.Unlock()
	p.block.Reset()
	for _, f := range fields {
		if err := p.encoder.WriteField(f); err != nil {
			return err
		}
	}
	return p.framer.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: p.block.Bytes(), EndHeaders: true, EndStream: end})
}

// await waits until ready says so. mu is held while it does.
func (p *peer) await(deadline time.Time, what string, ready func() bool) error {
	wake := time.AfterFunc(time.Until(deadline), func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		p.changed.Broadcast()
	})
	defer wake.Stop()
	for !ready() {
		if p.err != nil {
			return fmt.Errorf("waiting for %s: %w", what, p.err)
		}
		if !time.Now().Before(deadline) {
			return fmt.Errorf("%s did not come", what)
		}
		p.changed.Wait()
	}
	return nil
}

func (p *peer) close() {
	p.raw.Close()
	p.reading.Wait()
}

// codeName is CANCEL and so on.
func codeName(c http2.ErrCode) string { return strings.TrimPrefix(c.String(), "ErrCode") }

// A tunnelStream is one stream of a tunnel. Its fields are guarded by the
// peer's mu.
type tunnelStream struct {
	peer     *peer
	id       uint32
	headers  []hpack.HeaderField // that came
	in       bytes.Buffer
	finished bool   // END_STREAM came
	code     string // of RST_STREAM
	lost     error
	sendRoom int64
	deadline time.Time
	shutDone bool
}

var _ endpoint = (*tunnelStream)(nil)

// over ends a stream. mu is held.
func (s *tunnelStream) over(err error, code string) {
	if s.lost == nil && s.code == "" {
		s.lost, s.code = err, code
	}
}

// errReset is a stream that the other side reset.
type errReset struct{ code string }

func (e errReset) Error() string { return "reset with " + e.code }

// Read implements io.Reader.
func (s *tunnelStream) Read(b []byte) (int, error) {
	s.peer.mu.Lock()
	defer s.peer.mu.Unlock()
	err := s.peer.await(s.until(), "more data", func() bool { return s.in.Len() > 0 || s.finished || s.code != "" || s.lost != nil })
	switch {
	case s.in.Len() > 0:
		return s.in.Read(b)
	case err != nil && s.lost == nil:
		return 0, err
	case s.finished:
		return 0, io.EOF
	case s.code != "":
		return 0, errReset{s.code}
	}
	return 0, s.lost
}

func (s *tunnelStream) until() time.Time {
	if s.deadline.IsZero() {
		return time.Now().Add(10 * time.Second)
	}
	return s.deadline
}

// Write implements io.Writer.
func (s *tunnelStream) Write(b []byte) (int, error) {
	const piece = 16384
	for sent := 0; sent < len(b); {
		s.peer.mu.Lock()
		err := s.peer.await(s.until(), "room to send", func() bool {
			return s.sendRoom > 0 && s.peer.sendRoom > 0 || s.code != ""
		})
		n := int(min(int64(len(b)-sent), piece, s.sendRoom, s.peer.sendRoom))
		if err == nil && s.code != "" {
			err = errReset{s.code}
		}
		if err == nil {
			s.sendRoom -= int64(n)
			s.peer.sendRoom -= int64(n)
		}
		s.peer.mu.Unlock()
		if err == nil {
			err = s.peer.locked(func() error { return s.peer.framer.WriteData(s.id, false, b[sent:sent+n]) })
		}
		if err != nil {
			return sent, err
		}
		sent += n
	}
	return len(b), nil
}

func (s *tunnelStream) setDeadline(t time.Time) {
	s.peer.mu.Lock()
	defer s.peer.mu.Unlock()
	s.deadline = t
}

func (s *tunnelStream) shut() error {
	s.peer.mu.Lock()
	s.shutDone = true
	s.peer.mu.Unlock()
	return s.peer.locked(func() error { return s.peer.framer.WriteData(s.id, true, nil) })
}

// reset says what a proxy says of a TCP reset (RFC 9113, section 8.5).
func (s *tunnelStream) reset() error {
	return s.peer.locked(func() error { return s.peer.framer.WriteRSTStream(s.id, http2.ErrCodeConnect) })
}

func (s *tunnelStream) close() {
	s.peer.mu.Lock()
	over := s.finished && s.shutDone || s.code != ""
	s.peer.mu.Unlock()
	if !over {
		_ = s.peer.locked(func() error { return s.peer.framer.WriteRSTStream(s.id, http2.ErrCodeCancel) })
	}
	if !s.peer.client { // whose tunnel belongs to the server alone
		return
	}
}

func (s *tunnelStream) addrs() (local, remote netip.AddrPort) {
	return addrPort(s.peer.raw.LocalAddr()), addrPort(s.peer.raw.RemoteAddr())
}

func (s *tunnelStream) ended(err error) string {
	var reset errReset
	switch {
	case errors.Is(err, io.EOF) && s.finishedNow():
		return "fin"
	case errors.As(err, &reset):
		return "rst " + reset.code
	case s.lostNow():
		return "rst tunnel"
	}
	return ""
}

func (s *tunnelStream) finishedNow() bool {
	s.peer.mu.Lock()
	defer s.peer.mu.Unlock()
	return s.finished
}

func (s *tunnelStream) lostNow() bool {
	s.peer.mu.Lock()
	defer s.peer.mu.Unlock()
	return s.lost != nil
}

// header is the value of a header that came.
func (s *tunnelStream) header(name string) (string, bool) {
	s.peer.mu.Lock()
	defer s.peer.mu.Unlock()
	for _, f := range s.headers {
		if f.Name == name {
			return f.Value, true
		}
	}
	return "", false
}

func (s *tunnelStream) headerNames() (names []string) {
	s.peer.mu.Lock()
	defer s.peer.mu.Unlock()
	for _, f := range s.headers {
		names = append(names, f.Name)
	}
	return names
}
