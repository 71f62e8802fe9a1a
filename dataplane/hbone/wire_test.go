// SPDX-License-Identifier: Apache-2.0

package hbone

import (
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"github.com/ztunnel-go/ztunnel/dataplane/hbone/wire"
)

// What each side says first, byte for byte (contract 4.4).
const (
	firstOfClient = "505249202a20485454502f322e300d0a0d0a534d0d0a0d0a" + // preface
		"000018040000000000" + "000200000000" + "000400400000" + "000500100000" + "000600004000" +
		"000004080000000000" + "00ff0001" // 16777216 - 65535
	firstOfServer = "000018040000000000" + "0003000000c8" + "000400400000" + "000500100000" + "000600010000" +
		"000004080000000000" + "00ff0001"
)

func TestTheFirstBytesAreTheContracts(t *testing.T) {
	for want, client := range map[string]bool{firstOfClient: true, firstOfServer: false} {
		c := newConn(nil, nil, client, Settings{})
		if got := hex.EncodeToString(c.control.Bytes()); got != want {
			t.Errorf("client %v:\n got %s\nwant %s", client, got, want)
		}
	}
}

func pairs(fields []hpack.HeaderField) string {
	var lines []string
	for _, f := range fields {
		lines = append(lines, f.Name+": "+f.Value)
	}
	return strings.Join(lines, "\n")
}

type opened struct {
	s    Stream
	resp Response
	err  error
}

func goOpen(t *testing.T, tunnel *Tunnel, r Request) chan opened {
	done := make(chan opened, 1)
	ctx := within(t)
	go func() {
		s, resp, err := tunnel.Open(ctx, r)
		done <- opened{s, resp, err}
	}()
	return done
}

func TestTheRequestIsTheContracts(t *testing.T) {
	p, tunnel := rawClient(t, Settings{})
	network := ""
	// No SETTINGS of the server are waited for.
	done := goOpen(t, tunnel, Request{
		Authority: "[2001:db8::1]:80", Baggage: "k8s.namespace.name=a", Forwarded: `for="[::1]:1234"`,
		TraceParent: "00-00-00-00", ForwardedNetwork: &network,
	})
	h := want[*http2.MetaHeadersFrame](p)
	if got := pairs(h.Fields); got != ":method: CONNECT\n:authority: [2001:db8::1]:80\nbaggage: k8s.namespace.name=a\n"+
		"forwarded: for=\"[::1]:1234\"\ntraceparent: 00-00-00-00\nx-forwarded-network: " {
		t.Errorf("request:\n%s", got)
	}
	if h.StreamID != 1 || h.StreamEnded() {
		t.Errorf("frame %v", h)
	}
	p.settings()
	p.headers(1, false, ":status", "103")
	p.headers(1, false, ":status", "200", "baggage", "x=y")
	o := <-done
	if o.err != nil || o.resp.Baggage != "x=y" || o.resp.Status != 200 {
		t.Fatalf("%+v", o)
	}
	io.WriteString(o.s, "data")
	if f := want[*http2.DataFrame](p); string(f.Data()) != "data" || f.StreamEnded() {
		t.Errorf("got %v", f)
	}
	o.s.CloseWrite()
	if f := want[*http2.DataFrame](p); f.Length != 0 || !f.StreamEnded() {
		t.Errorf("got %v, want an empty DATA with END_STREAM", f)
	}
	p.ok(p.fr.WriteDataPadded(1, true, []byte("answer"), make([]byte, 200)))
	got, err := io.ReadAll(o.s)
	if string(got) != "answer" || err != nil {
		t.Errorf("%q, %v", got, err)
	}
	if err := o.s.Close(); err != nil {
		t.Error(err)
	}
	tunnel.Drain()
	p.wantGoAway(NoError) // and no RST_STREAM before it
}

func TestARefusalIsResetWithCancel(t *testing.T) {
	p, tunnel := rawClient(t, Settings{})
	p.settings()
	done := goOpen(t, tunnel, Request{Authority: "10.0.0.1:80"})
	want[*http2.MetaHeadersFrame](p)
	p.headers(1, true, ":status", "401")
	o := <-done
	var status *StatusError
	if !errors.As(o.err, &status) || status.Code != 401 || o.err.Error() != "http status: 401 Unauthorized" {
		t.Errorf("got %v", o.err)
	}
	p.wantReset(1, Cancel)
}

func TestAnswersThatAreNone(t *testing.T) {
	for name, answer := range map[string][]string{
		"no status":       {"server", "x"},
		"odd status":      {":status", "2000"},
		"status in words": {":status", "abc"},
		"switching":       {":status", "101"},
		"request":         {":method", "CONNECT"},
		"upper case":      {":status", "200", "Server", "x"},
		"late pseudo":     {"server", "x", ":status", "200"},
		"twice":           {":status", "200", ":status", "200"},
		"connection":      {":status", "200", "connection", "close"},
		"too long":        {":status", "200", "baggage", strings.Repeat("x", 17<<10)},
	} {
		t.Run(name, func(t *testing.T) {
			p, tunnel := rawClient(t, Settings{})
			p.settings()
			done := goOpen(t, tunnel, Request{Authority: "10.0.0.1:80"})
			want[*http2.MetaHeadersFrame](p)
			p.headers(1, false, answer...)
			p.wantReset(1, ProtocolError)
			var h *HandshakeError
			if o := <-done; !errors.As(o.err, &h) {
				t.Errorf("got %v", o.err)
			}
			// The tunnel lives.
			done = goOpen(t, tunnel, Request{Authority: "10.0.0.1:80"})
			want[*http2.MetaHeadersFrame](p)
			p.headers(3, false, ":status", "200")
			if o := <-done; o.err != nil {
				t.Error(o.err)
			}
		})
	}
}

func TestEveryRefusalIsHeadersThenReset(t *testing.T) {
	p, _, _ := rawServer(t, Settings{}, func(c *Connect) {
		var code int
		fmt.Sscan(c.Header("x-code")[0], &code)
		c.Reject(code)
	})
	id := uint32(1)
	for _, code := range []int{400, 401, 503} {
		p.headers(id, false, ":method", "CONNECT", ":authority", "a:1", "x-code", fmt.Sprint(code))
		h := want[*http2.MetaHeadersFrame](p)
		if got := pairs(h.Fields); got != fmt.Sprintf(":status: %d", code) || !h.StreamEnded() {
			t.Errorf("got %q, %v", got, h)
		}
		p.wantReset(id, NoError)
		id += 2
	}
	// A request that has ended needs no reset.
	p.headers(id, true, ":method", "CONNECT", ":authority", "a:1", "x-code", "503")
	want[*http2.MetaHeadersFrame](p)
	p.ok(p.fr.WritePing(false, [8]byte{1}))
	want[*http2.PingFrame](p)
}

func TestAnAnswerCarriesBaggageOnly(t *testing.T) {
	baggage := ""
	p, _, _ := rawServer(t, Settings{}, func(c *Connect) {
		s, err := c.Accept(&baggage)
		if err != nil {
			t.Error(err)
			return
		}
		if _, err := c.Accept(nil); err == nil {
			t.Error("answered twice")
		}
		if c.Reject(503) == nil {
			t.Error("answered twice")
		}
		io.Copy(io.Discard, s)
		s.CloseWrite()
	})
	p.connect(1)
	if got := pairs(want[*http2.MetaHeadersFrame](p).Fields); got != ":status: 200\nbaggage: " {
		t.Errorf("got %q", got)
	}
	p.ok(p.fr.WriteData(1, true, nil))
	if f := want[*http2.DataFrame](p); f.Length != 0 || !f.StreamEnded() {
		t.Errorf("got %v", f)
	}
}

func TestRequestsThatAreMalformed(t *testing.T) {
	p, _, _ := rawServer(t, Settings{}, func(c *Connect) {
		if c.Method == "CONNECT" {
			c.Accept(nil)
			return
		}
		c.Reject(400)
	})
	id := uint32(1)
	for name, request := range map[string][]string{
		"CONNECT with scheme": {":method", "CONNECT", ":scheme", "https", ":authority", "a:1"},
		"CONNECT with path":   {":method", "CONNECT", ":path", "/", ":authority", "a:1"},
		"no method":           {":authority", "a:1"},
		"GET without path":    {":method", "GET", ":scheme", "https"},
		"status":              {":method", "CONNECT", ":status", "200"},
		"protocol":            {":method", "CONNECT", ":protocol", "websocket", ":authority", "a:1"},
		"upper case":          {":method", "CONNECT", ":authority", "a:1", "Baggage", "x"},
		"line feed":           {":method", "CONNECT", ":authority", "a:1", "baggage", "x\ny"},
		"te":                  {":method", "CONNECT", ":authority", "a:1", "te", "gzip"},
	} {
		p.headers(id, false, request...)
		f := p.next()
		if r, ok := f.(*http2.RSTStreamFrame); !ok || r.StreamID != id || r.ErrCode != http2.ErrCodeProtocol {
			t.Fatalf("%s: got %v", name, f)
		}
		id += 2
	}
	p.headers(id, false, ":method", "GET", ":scheme", "https", ":path", "/", ":authority", "a:1")
	if h := want[*http2.MetaHeadersFrame](p); h.PseudoValue("status") != "400" {
		t.Errorf("GET: got %v", pairs(h.Fields))
	}
	p.wantReset(id, NoError)
}

func TestHeadersBeyondTheLimitAre431(t *testing.T) {
	p, _, _ := rawServer(t, Settings{}, func(c *Connect) { c.Reject(http.StatusTeapot) })
	p.big(1, 70<<10)
	if h := want[*http2.MetaHeadersFrame](p); h.PseudoValue("status") != "431" || !h.StreamEnded() {
		t.Errorf("got %v", pairs(h.Fields))
	}
	p.wantReset(1, NoError)
	p.big(3, 50<<10) // the tables are still in step
	if h := want[*http2.MetaHeadersFrame](p); h.PseudoValue("status") != "418" {
		t.Errorf("got %v", pairs(h.Fields))
	}
}

// big opens a stream with size bytes of headers in small frames.
func (p *peer) big(id uint32, size int) {
	p.t.Helper()
	lines := []string{":method", "CONNECT", ":authority", "10.0.0.1:80"}
	for i := 0; i < size; i += 5 << 10 {
		lines = append(lines, fmt.Sprintf("x-%d", i), strings.Repeat("~", 5<<10-50))
	}
	rest := p.block(lines...)
	first := true
	for len(rest) > 0 {
		n := min(len(rest), 16<<10)
		frag := rest[:n]
		rest = rest[n:]
		if first {
			p.ok(p.fr.WriteHeaders(http2.HeadersFrameParam{
				StreamID: id, BlockFragment: frag, EndHeaders: len(rest) == 0, PadLength: 7,
				Priority: http2.PriorityParam{Weight: 3},
			}))
		} else {
			p.ok(p.fr.WriteContinuation(id, len(rest) == 0, frag))
		}
		first = false
	}
}

func TestOurHeadersFitThePeersFrames(t *testing.T) {
	p, tunnel := rawClient(t, Settings{})
	long := strings.Repeat("~", 60<<10) // a byte that Huffman does not shorten
	done := goOpen(t, tunnel, Request{Authority: "a:1", Baggage: long})
	h := want[*http2.MetaHeadersFrame](p) // the Framer of the peer takes no more than 16 KiB
	if len(h.Fields) < 3 || h.Fields[2].Value != long {
		t.Fatalf("%d fields", len(h.Fields))
	}
	p.settings()
	p.headers(1, false, ":status", "200")
	if o := <-done; o.err != nil {
		t.Fatal(o.err)
	}
}

func TestAHandlerThatSaysNothingIsReset(t *testing.T) {
	p, _, _ := rawServer(t, Settings{}, func(*Connect) {})
	p.connect(1)
	p.wantReset(1, Cancel)
}

func TestTheContextOfARequestEndsWithItsStream(t *testing.T) {
	gone := make(chan struct{})
	p, _, _ := rawServer(t, Settings{}, func(c *Connect) {
		<-c.Context().Done()
		if _, err := c.Accept(nil); err == nil {
			t.Error("accepted a stream that was reset")
		}
		close(gone)
	})
	p.connect(1)
	p.ok(p.fr.WriteRSTStream(1, http2.ErrCodeCancel))
	<-gone
}

func TestStreamsBeyondTheLimitAreRefused(t *testing.T) {
	p, _, _ := rawServer(t, Settings{MaxStreams: 2}, echo)
	for id := uint32(1); id <= 3; id += 2 {
		p.connect(id)
		want[*http2.MetaHeadersFrame](p)
	}
	p.connect(5)
	p.wantReset(5, RefusedStream)
	p.ok(p.fr.WriteData(1, true, nil))
	want[*http2.DataFrame](p)
	p.connect(7)
	want[*http2.MetaHeadersFrame](p)
}

func TestStreamIDsRunOut(t *testing.T) {
	if ofGoroutines() {
		return
	}
	p, tunnel := rawClient(t, Settings{})
	p.settings()
	c := tunnel.carrier.(*goTunnel).c
	c.mu.Lock()
	c.nextID = wire.MaxStreamID
	c.mu.Unlock()
	done := goOpen(t, tunnel, Request{Authority: "a:1"})
	want[*http2.MetaHeadersFrame](p)
	p.headers(wire.MaxStreamID, false, ":status", "200")
	o := <-done
	if o.err != nil {
		t.Fatal(o.err)
	}
	if _, _, err := tunnel.Open(within(t), Request{}); !errors.Is(err, ErrUnavailable) {
		t.Errorf("got %v", err)
	}
	io.WriteString(o.s, "x")
	want[*http2.DataFrame](p)
}

func TestFramesMayBeAsLargeAsWeSay(t *testing.T) {
	p, _, _ := rawServer(t, Settings{}, func(c *Connect) {
		s, err := c.Accept(nil)
		if err != nil {
			return
		}
		n, err := io.Copy(io.Discard, s)
		if err != nil || n != 1<<20 {
			t.Errorf("read %d, %v", n, err)
		}
		s.CloseWrite()
	})
	p.connect(1)
	want[*http2.MetaHeadersFrame](p)
	p.ok(p.fr.WriteData(1, true, make([]byte, 1<<20)))
	if f := want[*http2.DataFrame](p); !f.StreamEnded() {
		t.Errorf("got %v", f)
	}
}

func TestAComplaintOfThePeerIsTold(t *testing.T) {
	p, tunnel := rawClient(t, Settings{})
	p.settings()
	done := goOpen(t, tunnel, Request{Authority: "a:1"})
	want[*http2.MetaHeadersFrame](p)
	p.headers(1, false, ":status", "200")
	s := (<-done).s
	p.ok(p.fr.WriteGoAway(1, http2.ErrCodeInternal, []byte("disk full")))
	p.nc.Close()
	_, err := s.Read(make([]byte, 1))
	var reset *ResetError
	if !errors.As(err, &reset) || reset.Quiet() || err.Error() != "tunnel lost: GOAWAY received: INTERNAL_ERROR (disk full)" {
		t.Errorf("got %v", err)
	}
}
